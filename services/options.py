"""Options of services: one frozen data class for each kind, from a command's options or the record of a start.

Fields declare the command's options, and their names are the keys of the stored JSON. A data class opens what its
options name (``open``) and makes its service (``service``). Importing this module loads no service and no engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from ciml.errors import CimlError
from ciml.kafka import KafkaOptions
from ciml.options import BrokerOptions, IngestPolicyOptions, LearnOptions, Options, flag, option, repeated
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.integrations.config import Receivers
    from ciml.pipelines.feedback import FeedbackConfig
    from ciml.pipelines.ingest.committer import IngestConfig
    from ciml.pipelines.live import LiveConfig
    from ciml.pipelines.predict import PredictConfig
    from ciml.services.receivers import GerritService, MqttService, WebhooksService
    from ciml.services.service import Service
    from ciml.services.trainer import Triggers
    from ciml.training.evaluation.gate import GatePolicy
    from ciml.training.refresh import TrainConfig


class ServiceOptions(Options, ABC):
    """Options of a service.

    Attributes:
      kind: of the service; a key of `KINDS`.
      submits: whether a supervisor submits its job to Flink itself; else a worker process runs the service.
      pipeline: whether it runs a pipeline, on an engine.
      subject_field: the field with the topic that the service reads, or that a receiver writes; or "".
    """

    kind: ClassVar[str]
    submits: ClassVar[bool] = False
    pipeline: ClassVar[bool] = False
    subject_field: ClassVar[str] = ""

    @abstractmethod
    def service(self) -> Service:
        """Make the service. Raises `CimlError` for invalid options."""

    @property
    def data(self) -> str:
        """The data root, or ""."""
        return str(getattr(self, "data_path", ""))

    @property
    def bootstrap(self) -> str:
        """``host:port`` of the broker, or ""."""
        return str(getattr(self, "kafka", ""))

    @property
    def subject(self) -> str:
        """The topic of ``subject_field``, or ""."""
        return str(getattr(self, self.subject_field, ""))

    def with_addresses(self, kafka: str | None, model_server: str | None) -> Self:
        """Return the options with the present addresses of the home's own engines, if it uses them."""
        addresses = {"kafka": kafka, "server": model_server}
        present = {name: address for name, address in addresses.items() if address is not None}
        return replace(self, **{name: present[name] for name in self.names() if name in present})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the command's options, which are the keys of the JSON."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the options for stored JSON.

        Raises:
          CimlError: an option is missing or unknown, or has another type.
        """
        if unknown := sorted(values.keys() - set(cls.names())):
            raise CimlError(f"service {cls.kind}: unknown option {unknown[0]!r}; choose from {', '.join(cls.names())}")
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise CimlError(f"service {cls.kind}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return the inverse of `from_json`."""
        return asdict(self)


class _WithBroker(ServiceOptions, BrokerOptions, ABC):
    kafka: str = option(kind="broker", required=True)


class TopicOptions(_WithBroker, ABC):
    data_path: str = option(kind="data", required=True)


class IngestOptions(TopicOptions, IngestPolicyOptions):
    """Options of ``ciml ingest``.

    Attributes:
      topic: Topic of CI events.
      runs_topic: Topic of committed runs; '' for none.
      dead_letters_topic: Topic of dead letters.
      jobs: Jobs to ingest; may be repeated. [default: all]
      delays: Delay before a further fetch of an unavailable log; repeated for each fetch. [default: 10s, 1min, 5min,
        30min, 2h]
    """

    kind = "ingest"
    subject_field = "topic"
    submits = True
    pipeline = True
    data_path: str = option(kind="new data", required=True)
    topic: str = option("ci-events")
    runs_topic: str = option("runs", metavar="TOPIC")
    dead_letters_topic: str = option("", shown="none", metavar="TOPIC")
    jobs: tuple[str, ...] = repeated(metavar="GLOB")
    delays: tuple[float, ...] = repeated("time", flags="--retry-after")

    def open(self) -> IngestConfig:
        """Open what the options name.

        Raises:
          CimlError: for an unreadable policy, an option that is not a pair, or an unknown URL scheme.
        """
        from ciml.data_root import DataRoot
        from ciml.events.run_id import source_names
        from ciml.pipelines.ingest.committer import IngestConfig
        from ciml.transforms.fetch.policy import FetchPolicy
        from ciml.transforms.ingest.decode import ALL_JOBS

        policy = FetchPolicy.of(self.fetch_policy, **({"delays_s": self.delays} if self.delays else {}))
        root = DataRoot.open(self.data_path)
        return IngestConfig(
            root.raw,
            kafka=self.connection(),
            topic=self.topic,
            runs_topic=self.runs_topic,
            dead_letters_topic=self.dead_letters_topic,
            selection=self.jobs or ALL_JOBS,
            names=source_names(pairs("--source", self.sources)),
            trust=self.trust_of(root),
            fetch=policy.allowing(hosts=self.hosts, roots=self.roots),
        )

    def service(self) -> Service:
        from ciml.services.ingest import IngestService

        return IngestService(self.open())


class PredictOptions(TopicOptions):
    """Options of ``ciml predict stream``.

    Attributes:
      model: Model to query.
      label: Version label to query.
      server: gRPC address of the model server. [default: the model server of ciml up]
      candidate: Predict in this process with the last candidate, even if the gate rejected it.
      allow_modules: Module that a candidate's estimator may import; may be repeated.
      canary_share: Share of the changes that the version with the label canary predicts. [default: 0]
      runs_topic: Topic of announced runs.
      predictions_topic: Topic of predictions; '' for none.
    """

    kind = "predict"
    subject_field = "runs_topic"
    submits = True
    pipeline = True
    model: str = option(metavar="NAME", required=True)
    label: str = option("stable")
    server: str | None = option(kind="model server", metavar="HOST:PORT", envvar="CIML_MODEL_SERVER")
    candidate: bool = flag()
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")
    canary_share: float | None = option(kind="share")
    runs_topic: str = option("runs", metavar="TOPIC")
    predictions_topic: str = option("predictions", metavar="TOPIC")

    def open(self) -> PredictConfig:
        """Open what the options name.

        Raises:
          CimlError: there is no model server, options exclude each other or are not pairs, or a scheme is unknown.
        """
        from ciml.data_root import DataRoot
        from ciml.pipelines.predict import PredictConfig
        from ciml.serving.predict.predictor import PredictPolicy
        from ciml.serving.registry import STABLE

        if self.server is None and not self.candidate:
            raise CimlError("no model server: start one (ciml up models, ciml serve) or name one (--server HOST:PORT)")
        if self.candidate and self.label != STABLE:
            raise CimlError("--candidate excludes --label: a candidate is not served")
        if self.canary_share and (self.candidate or self.label != STABLE):
            raise CimlError(
                "--canary-share excludes --candidate and --label: it is a share of the stable version's runs"
            )
        if self.allow_modules and not self.candidate:
            raise CimlError("--allow-module: only with --candidate; a served version imports nothing")
        return PredictConfig(
            DataRoot.open(self.data_path),
            "" if self.candidate else str(self.server),
            PredictPolicy(self.model, self.label, canary_share=self.canary_share or 0.0),
            self.runs_topic,
            self.predictions_topic,
            kafka=self.connection(),
            candidate=self.candidate,
            allow_modules=self.allow_modules,
        )

    def service(self) -> Service:
        from ciml.services.predict import PredictService

        return PredictService(self.open())


class LiveOptions(TopicOptions):
    """Options of ``ciml live``. Times are in seconds.

    Attributes:
      datasets: Data set that defines the windows; may be repeated.
      samples_topic: Topic of samples.
      windows_topic: Topic of windows; '' for none.
      examples_topic: Topic of the growing examples; '' for none.
      dead_letters_topic: Topic of samples that could not be used.
      since: Age from which samples are read; longer than any run.
      slack: Time after its end, by the run's clock, for which a window waits for late samples.
      grace: Time for which a finished run waits for missing samples.
      silence: Time without samples after which a run is abandoned.
    """

    kind = "live"
    subject_field = "samples_topic"
    pipeline = True
    data_path: str = option(kind="new data", required=True)
    datasets: tuple[str, ...] = repeated(metavar="NAME", required=True)
    samples_topic: str = option("samples", metavar="TOPIC")
    windows_topic: str = option("windows", metavar="TOPIC")
    examples_topic: str = option("live-examples", metavar="TOPIC")
    dead_letters_topic: str = option("live-dead-letters", metavar="TOPIC")
    since: float | None = option(10_800.0, "time")
    slack: float = option(60.0, "time")
    grace: float = option(60.0, "time")
    silence: float = option(1800.0, "time")

    def open(self) -> LiveConfig:
        """Open what the options name.

        Raises:
          CimlError: for a data set without columns, an option that is not a pair, or an unknown URL scheme.
        """
        from ciml.data_root import DataRoot
        from ciml.pipelines.live import LiveConfig, live_dataset
        from ciml.transforms.live.samples import LivePolicy

        if not self.dead_letters_topic:
            raise CimlError("--dead-letters-topic: must not be empty")
        data = DataRoot.open(self.data_path)
        return LiveConfig(
            self.connection(),
            tuple(live_dataset(data.dataset(name)) for name in self.datasets),
            self.samples_topic,
            self.windows_topic,
            self.examples_topic,
            self.dead_letters_topic,
            LivePolicy(slack_s=self.slack, grace_s=self.grace, silence_s=self.silence),
        )

    def service(self) -> Service:
        from ciml.services.live import LiveService

        return LiveService(self.open(), self.since)


class FeedbackOptions(TopicOptions):
    """Options of ``ciml feedback stream``.

    Attributes:
      config: TOML file of the policy and its review systems.
      predictions_topic: Topic of predictions.
    """

    kind = "feedback"
    subject_field = "predictions_topic"
    config: str = option(kind="absolute file", envvar="CIML_FEEDBACK", required=True)
    predictions_topic: str = option("predictions", metavar="TOPIC")

    def open(self) -> FeedbackConfig:
        """Open what the options name.

        Raises:
          CimlError: for an option that is not a pair, an unknown URL scheme, or an invalid configuration.
        """
        from ciml.data_root import DataRoot
        from ciml.pipelines.feedback import FeedbackConfig
        from ciml.verdicts.feedback.config import load_feedback

        data = DataRoot.open(self.data_path)
        return FeedbackConfig(data, load_feedback(self.config), self.predictions_topic, kafka=self.connection())

    def service(self) -> Service:
        from ciml.services.feedback import FeedbackService

        return FeedbackService(self.open())


class GateOptions(Options):
    """What the gate demands of a candidate, and what may be imported to train one.

    Attributes:
      min_test_runs: Minimum held-out runs; the gate rejects on fewer.
      tolerance: Accuracy by which a candidate may be worse than the champion.
      accept_baselines: Number that may predict better than the model: duration or memory; repeatable.
      min_decided: Minimum share of held-out runs that a model of causes decides. [default: 0.2]
      min_agreement: Minimum share of held-out runs on which a model of another seed agrees; 0 trains none.
        [default: 0.7]
      allow_modules: Module of an own estimator that may be imported; repeatable.
    """

    min_test_runs: int | None = option(kind="count")
    tolerance: float | None = option(kind="no negative number")
    accept_baselines: tuple[str, ...] = repeated(metavar="NUMBER")
    min_decided: float | None = option(kind="share")
    min_agreement: float | None = option(kind="share")
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")

    def gate(self) -> GatePolicy:
        """Return the gate's requirements. Raises `CimlError` if a number is unknown."""
        from ciml.training.evaluation.gate import GatePolicy

        return GatePolicy.of(
            self.min_test_runs, self.tolerance, self.accept_baselines, self.min_decided, self.min_agreement
        )


class TrainerOptions(ServiceOptions, LearnOptions, GateOptions):
    """Options of ``ciml refresh``.

    Attributes:
      dataset: Data set to train on.
      model: Name of the served model. [default: the data set's name]
      experiment: TOML file of the estimator and its hyper-parameters. [default: those of the model's last candidate,
        or a random forest]
      estimator: Estimator with its defaults instead: a built-in name, a class of scikit-learn, or package.module:name.
      label: Label of a pushed version.
      lineage: Send OpenLineage events, by its own configuration or to DATA/lineage.
      every: Refresh if there are new data and the last candidate is so old. [default: at each new version of the data]
      new_runs: Refresh after this number of trusted runs that the last candidate did not have.
      on_drift: Refresh when the new data drift from what the champion learned.
      on_accuracy: Refresh when the champion is shown to be worse than at its gate.
    """

    kind = "trainer"
    data_path: str = option(kind="data", required=True)
    dataset: str = option(metavar="NAME", required=True)
    model: str | None = option(metavar="NAME")
    experiment: str | None = option(kind="file")
    estimator: str | None = option(metavar="NAME")
    label: str = option("stable")
    lineage: bool = flag("--lineage/--no-lineage", envvar="CIML_LINEAGE")
    every: float | None = option(kind="time")
    new_runs: int | None = option(kind="count")
    on_drift: bool = flag()
    on_accuracy: bool = flag()

    def triggers(self) -> Triggers:
        """Return when new data lead to a refresh."""
        from ciml.services.trainer import Triggers

        return Triggers(self.every or 0.0, self.new_runs or 0, self.on_drift, self.on_accuracy)

    def open(self, *, allow_file: bool = False) -> TrainConfig:
        """Open what the options name. The runs of the file ``exclude`` are stored by the service.

        Args:
          allow_file: whether modules that the file ``experiment`` names may be imported, since a person named the file
            in this call. Stored options outlive their author's look at it.

        Raises:
          CimlError: a file cannot be read, or a number is unknown.
        """
        from ciml.data_root import DataRoot
        from ciml.serving.model_files import check_model_name
        from ciml.training.estimators import modules_named
        from ciml.training.experiment import Experiment
        from ciml.training.experiments.results import experiment_of
        from ciml.training.refresh import TrainConfig

        experiment = Experiment.load(self.experiment) if self.experiment else None
        modules = self.allow_modules
        if experiment and allow_file:
            modules = (*modules, *modules_named(experiment))
        if self.estimator is not None:
            if self.experiment:
                raise CimlError("--experiment and --estimator exclude each other")
            experiment = experiment_of(self.estimator)
            modules = (*modules, *modules_named(experiment))
        root = DataRoot.open(self.data_path)
        return TrainConfig(
            root,
            self.dataset,
            check_model_name(self.model or self.dataset),
            experiment,
            self.trust_of(root),
            self.gate(),
            self.label,
            self.lineage,
            modules,
        )

    def service(self) -> Service:
        from ciml.services.trainer import TrainerService

        return TrainerService(self.open(), triggers=self.triggers(), exclude=self.exclude)


class ReceiverOptions(_WithBroker, ABC):
    """Options of ``ciml receive``.

    Attributes:
      config: TOML file of the receivers and their sources.
      topic: Topic that ciml ingest reads.
    """

    subject_field = "topic"
    config: str = option(kind="absolute file", envvar="CIML_RECEIVERS", required=True)
    topic: str = option("ci-events", metavar="TOPIC")

    def open(self) -> tuple[Receivers, KafkaOptions, str]:
        """Return the arguments of the receiver. Raises `CimlError` for an invalid file or option."""
        from ciml.integrations.config import load_receivers

        return load_receivers(self.config), self.connection(), self.topic


class WebhooksOptions(ReceiverOptions):
    """Options of ``ciml receive webhooks``."""

    kind = "webhooks"

    def service(self) -> WebhooksService:
        from ciml.services.receivers import WebhooksService

        return WebhooksService(*self.open())


class MqttOptions(ReceiverOptions):
    """Options of ``ciml receive mqtt``."""

    kind = "mqtt"

    def service(self) -> MqttService:
        from ciml.services.receivers import MqttService

        return MqttService(*self.open())


class GerritOptions(ReceiverOptions):
    """Options of ``ciml receive gerrit``."""

    kind = "gerrit"

    def service(self) -> GerritService:
        from ciml.services.receivers import GerritService

        return GerritService(*self.open())


_RECEIVERS = (WebhooksOptions, MqttOptions, GerritOptions)
_TOPICS = (IngestOptions, PredictOptions, LiveOptions, FeedbackOptions)
#: The options of each kind of service.
KINDS: dict[str, type[ServiceOptions]] = {options.kind: options for options in (*_TOPICS, TrainerOptions, *_RECEIVERS)}


def options_of(kind: str) -> type[ServiceOptions]:
    """Return the options of a kind of service. Raises `CimlError` for an unknown one."""
    if kind not in KINDS:
        raise CimlError(f"unknown kind of service {kind!r}; choose from {', '.join(KINDS)}")
    return KINDS[kind]

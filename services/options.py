"""Options of services: one frozen data class for each kind, from a command's options or the record of a start.

Fields have the names of the command's options, which are also the keys of the stored JSON. A data class opens what its
options name (``open``) and makes its service (``service``). Importing this module loads no service and no engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from ciml.errors import CimlError
from ciml.kafka.options import KafkaOptions
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.integrations.config import Receivers
    from ciml.pipelines.feedback import FeedbackConfig
    from ciml.pipelines.ingest.committer import IngestConfig
    from ciml.pipelines.live import LiveConfig
    from ciml.pipelines.predict import PredictConfig
    from ciml.services.feedback import FeedbackService
    from ciml.services.ingest import IngestService
    from ciml.services.live import LiveService
    from ciml.services.predict import PredictService
    from ciml.services.receivers import GerritService, MqttService
    from ciml.services.service import Service
    from ciml.services.trainer import TrainerService
    from ciml.services.webhooks import WebhooksService
    from ciml.training.trainer import TrainConfig


@dataclass(frozen=True)
class BrokerOptions:
    """Options of the connection to Kafka.

    Attributes:
      kafka: ``host:port``.
      kafka_options: ``PROPERTY=VALUE`` texts; they take precedence over the file.
      kafka_config: a file of librdkafka properties.
    """

    kafka: str
    kafka_options: tuple[str, ...] = ()
    kafka_config: str | None = None

    def connection(self) -> KafkaOptions:
        """Return the connection. Raises `CimlError` for an option that is not a pair, or a reserved property."""
        return KafkaOptions.of(self.kafka, pairs("-X", self.kafka_options), self.kafka_config)


_BROKER = tuple(field.name for field in fields(BrokerOptions))


@dataclass(frozen=True, kw_only=True)
class ServiceOptions(ABC):
    """Options of a service.

    Attributes:
      kind: of the service; a key of `KINDS`.
      submits: whether a supervisor submits its job to Flink itself; else a worker process runs the service.
      data: the data root, or "".
      bootstrap: ``host:port`` of the broker, or "".
      subject: the topic that the service reads, or that a receiver writes; or "".
    """

    kind: ClassVar[str]
    submits: ClassVar[bool] = False

    @abstractmethod
    def service(self) -> Service:
        """Make the service. Raises `CimlError` for invalid options."""

    @property
    def data(self) -> str:
        return ""

    @property
    def bootstrap(self) -> str:
        return ""

    @property
    def subject(self) -> str:
        return ""

    def with_addresses(self, kafka: str | None, model_server: str | None) -> Self:
        """Return the options with the present addresses of the home's own engines, if it uses them."""
        return self

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the command's options, which are the keys of the JSON."""
        return tuple(name for field in fields(cls) for name in (_BROKER if field.name == "broker" else (field.name,)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the options for the values of a command, or for stored JSON.

        Raises:
          CimlError: an option is missing or unknown, or has another type.
        """
        if unknown := sorted(values.keys() - set(cls.names())):
            raise CimlError(f"service {cls.kind}: unknown option {unknown[0]!r}; choose from {', '.join(cls.names())}")
        own = {name: value for name, value in values.items() if name not in _BROKER}
        broker = {name: value for name, value in values.items() if name in _BROKER}
        try:
            return msgspec.convert({**own, "broker": broker} if issubclass(cls, _WithBroker) else own, cls)
        except msgspec.ValidationError as error:
            raise CimlError(f"service {cls.kind}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return the inverse of `from_json`."""
        values = asdict(self)
        return {**values.pop("broker", {}), **values}


@dataclass(frozen=True, kw_only=True)
class _WithBroker(ServiceOptions, ABC):
    broker: BrokerOptions

    @property
    def bootstrap(self) -> str:
        return self.broker.kafka

    def with_addresses(self, kafka: str | None, model_server: str | None) -> Self:
        return self if kafka is None else replace(self, broker=replace(self.broker, kafka=kafka))


@dataclass(frozen=True, kw_only=True)
class TopicOptions(_WithBroker, ABC):
    data_path: str

    @property
    def data(self) -> str:
        return self.data_path


@dataclass(frozen=True, kw_only=True)
class IngestOptions(TopicOptions):
    """Options of ``ciml ingest``."""

    kind = "ingest"
    submits = True
    topic: str = "ci-events"
    runs_topic: str = "runs"
    dead_letters_topic: str = ""
    jobs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    fetch_policy: str | None = None
    delays: tuple[float, ...] = ()
    trust_policy: str | None = None

    @property
    def subject(self) -> str:
        return self.topic

    def open(self) -> IngestConfig:
        """Open what the options name.

        Raises:
          CimlError: for an unreadable policy, an option that is not a pair, or an unknown URL scheme.
        """
        from ciml.data_root import DataRoot
        from ciml.events.run_facts import source_names
        from ciml.pipelines.ingest.committer import IngestConfig
        from ciml.transforms.fetch.policy import FetchPolicy
        from ciml.transforms.ingest.decode import ALL_JOBS
        from ciml.trust import TrustPolicy

        policy = FetchPolicy.load(self.fetch_policy, **({"delays_s": self.delays} if self.delays else {}))
        return IngestConfig(
            DataRoot.open(self.data_path).raw,
            self.broker.connection(),
            topic=self.topic,
            runs_topic=self.runs_topic,
            dead_letters_topic=self.dead_letters_topic,
            selection=self.jobs or ALL_JOBS,
            names=source_names(pairs("--source", self.sources)),
            trust=TrustPolicy.load(self.trust_policy),
            fetch=policy.allowing(hosts=self.hosts, roots=self.roots),
        )

    def service(self) -> IngestService:
        from ciml.services.ingest import IngestService

        return IngestService(self.open())


@dataclass(frozen=True, kw_only=True)
class PredictOptions(TopicOptions):
    """Options of ``ciml predict stream``."""

    kind = "predict"
    submits = True
    model: str
    server: str
    label: str = "stable"
    runs_topic: str = "runs"
    predictions_topic: str = "predictions"

    @property
    def subject(self) -> str:
        return self.runs_topic

    def with_addresses(self, kafka: str | None, model_server: str | None) -> Self:
        options = super().with_addresses(kafka, model_server)
        return options if model_server is None else replace(options, server=model_server)

    def open(self) -> PredictConfig:
        """Open what the options name. Raises `CimlError` for an option that is not a pair, or an unknown scheme."""
        from ciml.data_root import DataRoot
        from ciml.pipelines.predict import PredictConfig
        from ciml.serving.predict.predictor import PredictPolicy

        return PredictConfig(
            DataRoot.open(self.data_path),
            self.broker.connection(),
            self.server,
            PredictPolicy(self.model, self.label),
            self.runs_topic,
            self.predictions_topic,
        )

    def service(self) -> PredictService:
        from ciml.services.predict import PredictService

        return PredictService(self.open())


@dataclass(frozen=True, kw_only=True)
class LiveOptions(TopicOptions):
    """Options of ``ciml live``. Times are in seconds."""

    kind = "live"
    datasets: tuple[str, ...]
    samples_topic: str = "samples"
    windows_topic: str = "windows"
    examples_topic: str = "live-examples"
    dead_letters_topic: str = "live-dead-letters"
    since: float | None = 10_800.0
    slack: float = 60.0
    grace: float = 60.0
    silence: float = 1800.0

    @property
    def subject(self) -> str:
        return self.samples_topic

    def open(self) -> LiveConfig:
        """Open what the options name.

        Raises:
          CimlError: for a data set without columns, an option that is not a pair, or an unknown URL scheme.
        """
        from ciml.data_root import DataRoot
        from ciml.pipelines.live import LiveConfig, live_dataset
        from ciml.transforms.live.windows import LivePolicy

        if not self.dead_letters_topic:
            raise CimlError("--dead-letters-topic: must not be empty")
        data = DataRoot.open(self.data_path)
        return LiveConfig(
            self.broker.connection(),
            tuple(live_dataset(data.dataset(name)) for name in self.datasets),
            self.samples_topic,
            self.windows_topic,
            self.examples_topic,
            self.dead_letters_topic,
            LivePolicy(slack_s=self.slack, grace_s=self.grace, silence_s=self.silence),
        )

    def service(self) -> LiveService:
        from ciml.services.live import LiveService

        return LiveService(self.open(), self.since)


@dataclass(frozen=True, kw_only=True)
class FeedbackOptions(TopicOptions):
    """Options of ``ciml feedback stream``; ``config`` is the file of the policy and its review systems."""

    kind = "feedback"
    config: str
    predictions_topic: str = "predictions"

    @property
    def subject(self) -> str:
        return self.predictions_topic

    def open(self) -> FeedbackConfig:
        """Open what the options name.

        Raises:
          CimlError: for an option that is not a pair, an unknown URL scheme, or an invalid configuration.
        """
        from ciml.data_root import DataRoot
        from ciml.pipelines.feedback import FeedbackConfig
        from ciml.verdicts.feedback.config import load_feedback

        data = DataRoot.open(self.data_path)
        return FeedbackConfig(data, self.broker.connection(), load_feedback(self.config), self.predictions_topic)

    def service(self) -> FeedbackService:
        from ciml.services.feedback import FeedbackService

        return FeedbackService(self.open())


@dataclass(frozen=True, kw_only=True)
class TrainerOptions(ServiceOptions):
    """Options of ``ciml refresh``."""

    kind = "trainer"
    data_path: str
    dataset: str
    model: str | None = None
    experiment: str | None = None
    trust_policy: str | None = None
    exclude: str | None = None
    label: str = "stable"
    min_test_runs: int | None = None
    tolerance: float | None = None
    accept_baselines: tuple[str, ...] = ()
    min_decided: float | None = None
    lineage: bool = False

    @property
    def data(self) -> str:
        return self.data_path

    def open(self) -> TrainConfig:
        """Open what the options name, and store the exclusions of the file ``exclude``.

        Raises:
          CimlError: a file cannot be read, or a number is unknown.
        """
        from ciml.data_root import DataRoot
        from ciml.serving.model_files import check_model_name
        from ciml.training.evaluation.gate import GatePolicy
        from ciml.training.exclusions import add, read_lines
        from ciml.training.experiment import Experiment, load_experiment
        from ciml.training.trainer import TrainConfig
        from ciml.trust import TrustPolicy

        config = TrainConfig(
            DataRoot.open(self.data_path),
            self.dataset,
            check_model_name(self.model or self.dataset),
            load_experiment(self.experiment) if self.experiment else Experiment(),
            TrustPolicy.load(self.trust_policy),
            GatePolicy.of(self.min_test_runs, self.tolerance, self.accept_baselines, self.min_decided),
            self.label,
            self.lineage,
        )
        add(config.data.exclusions, read_lines(self.exclude))
        return config

    def service(self) -> TrainerService:
        from ciml.services.trainer import TrainerService

        return TrainerService(self.open())


@dataclass(frozen=True, kw_only=True)
class ReceiverOptions(_WithBroker, ABC):
    """Options of ``ciml receive``: ``config`` is the file of the receivers."""

    config: str
    topic: str = "ci-events"

    @property
    def subject(self) -> str:
        return self.topic

    def open(self) -> tuple[Receivers, KafkaOptions, str]:
        """Return the arguments of the receiver. Raises `CimlError` for an invalid file or option."""
        from ciml.integrations.config import load_receivers

        return load_receivers(self.config), self.broker.connection(), self.topic


class WebhooksOptions(ReceiverOptions):
    """Options of ``ciml receive webhooks``."""

    kind = "webhooks"

    def service(self) -> WebhooksService:
        from ciml.services.webhooks import WebhooksService

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

"""How a command runs its pipeline or service: options of runners and engines, signals, the foreground, and Dataflow."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from ciml.cli.options import FLINK, HERE, EngineChoice, parse_engine, running_flink
from ciml.cli.output import print_lines, status_line
from ciml.errors import CimlError
from ciml.extras import require
from ciml.options import Options, flag, option, repeated

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Build, Launched
    from ciml.pipelines.dataflow.settings import DataflowSettings
    from ciml.services.decide import ServiceProgress
    from ciml.services.driver import Report
    from ciml.services.options import ServiceOptions
    from ciml.services.service import Service, TopicService, Until
    from ciml.transforms.fetch.policy import FetchPolicy

#: Exit code of a command that was stopped before its end.
INTERRUPTED = 130
#: Longest outage of a broker or a store in the foreground, seconds.
PATIENCE_S = 300.0
#: The value of ``--runner`` for Dataflow.
DATAFLOW = "dataflow"
#: The limit of a job's graph by https://cloud.google.com/dataflow/quotas.
_GRAPH_BYTES = 10_000_000


def find_own_modules() -> None:
    """Let modules in the working directory be imported, after installed ones: for ``--estimator mine:Model``."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)


class DataflowJob(Options):
    """Options of a job on Dataflow.

    Attributes:
      dataflow: TOML file of Dataflow: project, region, image and others. Keys: docs/dataflow.md.
      template: File of the Dataflow job description.
      job_name: Name of the Dataflow job.
      submit: Submit the Dataflow job.
    """

    dataflow: str | None = option(kind="file", envvar="CIML_DATAFLOW")
    template: str = option("", shown="none", metavar="FILE|gs://OBJECT")
    job_name: str = option("", shown="by command and data", metavar="NAME")
    submit: bool = flag()
    #: An option of streaming jobs alone.
    update: bool = False

    def check_unused(self, beam_options: Sequence[str] = ()) -> None:
        """Raise `CimlError` if an option of the job was given without ``--runner dataflow``.

        The file of settings may be given: it comes from a variable of the environment.

        Args:
          beam_options: the Beam options of a command that uses them only on Dataflow.
        """
        values = {"template": self.template, "job-name": self.job_name, "submit": self.submit, "update": self.update}
        for name, value in {**values, "beam-option": beam_options}.items():
            if value:
                raise CimlError(f"--{name}: only with --runner dataflow")

    def settings(self) -> DataflowSettings:
        """Check the options, and return the settings of the file."""
        from ciml.pipelines.dataflow.settings import DataflowSettings

        if self.dataflow is None:
            raise CimlError(
                "--runner dataflow: give --dataflow FILE with project, region, image and others; docs/dataflow.md"
            )
        if self.submit == bool(self.template):
            raise CimlError("--runner dataflow: give --template FILE or gs://OBJECT, or --submit")
        if self.update and not self.submit:
            raise CimlError("--update: replaces a running job, so it needs --submit")
        require("google.cloud.dataflow", "dataflow")
        self.name_or("ciml")  # which fails now for an invalid name, before any work
        return DataflowSettings.load(self.dataflow)

    def name_or(self, default: str) -> str:
        """Return the name of the job. Raises `CimlError` for one that Dataflow rejects."""
        from ciml.pipelines.dataflow.settings import check_job_name, job_name

        try:
            check_job_name(name := self.job_name or job_name(default))
        except ValueError as error:
            raise CimlError(f"--job-name: {error}") from None
        return name


class BatchRunner(NamedTuple):
    """The Beam runner of a batch pipeline: its name, None for no Beam, and the job server's ``host:port`` for Flink."""

    name: str | None = None
    job_endpoint: str = ""


def _runner(ctx: click.Context, param: click.Parameter, value: str | None) -> BatchRunner:
    if value is None or ctx.resilient_parsing:
        return BatchRunner()
    name, endpoint = parse_engine(ctx, param, value, ("fnapi", FLINK, DATAFLOW))
    if name == FLINK and not endpoint:
        endpoint = running_flink(ctx, param, required=True)
    return BatchRunner(name, endpoint)


class BatchRunning(DataflowJob):
    """How a batch pipeline runs.

    Attributes:
      runner: Beam runner; flink:HOST:PORT names a job server. [default: none, without Beam]
      beam_options: Further Beam option; may be repeated.
    """

    runner: BatchRunner = option(BatchRunner(), _runner, metavar="fnapi|flink|dataflow")
    beam_options: tuple[str, ...] = repeated(metavar="--NAME=VALUE")

    @property
    def launches(self) -> bool:
        """Whether it runs as a job on Dataflow."""
        return self.runner.name == DATAFLOW

    def launch(
        self,
        settings: DataflowSettings,
        build: Build,
        name: str,
        *,
        work: str,
        then: str,
        fetch: FetchPolicy | None = None,
    ) -> None:
        """Write or submit the job on Dataflow, and print the result.

        Args:
          settings: the result of `settings`, which a command calls first: it rejects invalid options before any work.
          build: adds the transforms to a pipeline.
          name: default name of the job.
          work: one line about the work of the job, for people.
          then: the command to run when the job has ended.
          fetch: the policy of the job's downloads, whose secrets must not be in the job description.
        """
        from ciml.pipelines.dataflow.checks import secrets_here
        from ciml.pipelines.dataflow.job import launch

        launched = launch(
            build,
            settings,
            self.name_or(name),
            streaming=False,
            template=self.template,
            extra=self.beam_options,
            hidden=secrets_here(fetch=fetch),
        )
        click.echo(work)
        print_launched(launched, settings, streaming=False, then=then)


class Endpoint(Options):
    """The metrics endpoint of a process; a port of None for no metrics.

    Attributes:
      metrics_port: Port of the Prometheus endpoint /metrics; 0 for any free port. [default: no metrics]
      metrics_address: Address of the metrics endpoint, which has no authentication.
    """

    metrics_port: int | None = option(kind=click.IntRange(0, 65535), metavar="PORT", envvar="CIML_METRICS_PORT")
    metrics_address: str = option("127.0.0.1", metavar="ADDRESS", envvar="CIML_METRICS_ADDRESS")


class Foreground(Endpoint):
    """How a service runs in the foreground. Here only the metrics are options; subclasses make options of other fields.

    Attributes:
      engine: of the service's pipeline.
      beam_options: further options of Beam.
      once: whether it ends at the present end of the topic.
      until_idle: time without new input after which it ends, in seconds; None for never.
    """

    engine: EngineChoice = HERE
    beam_options: tuple[str, ...] = ()
    once: bool = False
    until_idle: float | None = None

    @property
    def until(self) -> Until:
        """When it ends, for `ciml.services.driver.drive`."""
        return "end" if self.once else self.until_idle

    def run(self, service: Service, report: Report | None, *, patience_s: float | None = PATIENCE_S) -> None:
        """Run a service until it ends or a signal arrives, and serve its metrics.

        Args:
          service: the service.
          report, patience_s: see `ciml.services.driver.drive`.
        """
        from ciml.metrics import registry_of, serve_metrics
        from ciml.services.driver import drive

        if self.once and self.until_idle is not None:
            raise click.UsageError("--once and --until-idle exclude each other")
        problems = service.problems()
        if problems:
            raise CimlError("; ".join(problems.values()))
        stop = stop_on_signals()
        registry = registry_of(service.board, *service.timings())
        with serve_metrics(registry, self.metrics_port, self.metrics_address) as url:
            if url:
                click.echo(f"metrics: {url}", err=True)
            drive(
                service,
                self.engine.job_endpoint,
                until=self.until,
                stop=stop,
                report=report,
                patience_s=patience_s,
                extra=self.beam_options,
            )

    def run_and_print(
        self, service: Service, text: Callable[[ServiceProgress, str], str], *, patience_s: float | None
    ) -> None:
        """Run a service, and print its status on standard error whenever it changes.

        Args:
          service, patience_s: see `run`.
          text: the status for the progress of the service, and for its wait.
        """
        last = ""

        def report(progress: ServiceProgress, word: str) -> None:
            nonlocal last
            if (line := text(progress, word)) != last:
                last = line
                click.echo(line, err=True)

        self.run(service, report, patience_s=patience_s)


class OnEngine(Foreground):
    """How a service runs whose pipeline has an engine.

    Attributes:
      engine: Engine of the pipeline; flink:HOST:PORT names a job server. [default: flink if it
        runs, otherwise micro-batches]
      beam_options: Further Beam option; may be repeated.
    """

    engine: EngineChoice = option(kind="engine", metavar="flink|micro-batches", envvar="CIML_ENGINE")
    beam_options: tuple[str, ...] = repeated(metavar="--NAME=VALUE")


class Running(OnEngine, DataflowJob):
    """How a streaming pipeline runs, in the foreground or as a job on Dataflow.

    Attributes:
      once: Stop at the present end of the topic.
      until_idle: Time without new input after which it stops. [default: never]
      runner: Run as a streaming job on Dataflow. [default: --engine, here]
      update: Replace the running Dataflow job of that name.
    """

    once: bool = flag()
    until_idle: float | None = option(kind="time")
    runner: str | None = option(kind=click.Choice([DATAFLOW]))
    update: bool = flag()

    def stream(
        self,
        options: ServiceOptions,
        text: Callable[[ServiceProgress, str], str],
        *,
        patience_s: float | None = PATIENCE_S,
    ) -> None:
        """Run a service and show its status, or write or submit its job for Dataflow.

        Args:
          options: of the service.
          text: the status for the progress of the service, and for its wait.
          patience_s: see `ciml.services.driver.drive`.
        """
        if self.runner == DATAFLOW:
            self._launch(options)
            return
        self.check_unused()
        service = options.service()
        with status_line(f"{options.subject} by {self.engine}") as show:
            self.run(service, lambda progress, word: show(text(progress, word)), patience_s=patience_s)

    def _launch(self, options: ServiceOptions) -> None:
        """Write or submit the service's streaming job on Dataflow, and print the result."""
        excluded = {"once": self.once, "until-idle": self.until_idle, "metrics-port": self.metrics_port}
        for name, value in excluded.items():
            if value not in (None, False):
                raise CimlError(
                    f"--{name}: not with --runner dataflow, whose job runs until it is drained; leave it out"
                )
        require_s3((options.data, "--data-path"))
        settings = self.settings()
        from ciml.services.driver import check_runs_on_dataflow, launch_on_dataflow

        check_runs_on_dataflow(options)
        service = cast("TopicService[Any]", options.service())  # by `check_runs_on_dataflow`
        launched = launch_on_dataflow(
            service,
            settings,
            self.name_or(service.name),
            template=self.template,
            update=self.update,
            extra=self.beam_options,
        )
        print_launched(launched, settings, streaming=True)


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Raise the garbage collector's thresholds while modules are imported and large manifests are read.

    Both make some hundred thousand lasting objects, which form no cycles. At the usual thresholds the collector scans
    them repeatedly, for a quarter of the time. Not for long-running processes, where cycles would keep large objects.
    """
    before = gc.get_threshold()
    gc.set_threshold(1_000_000, 50, 100)
    try:
        yield
    finally:
        gc.freeze()  # otherwise the next collection scans all of these objects
        gc.set_threshold(*before)


def stop_on_signals() -> threading.Event:
    """Return an event that the first SIGINT or SIGTERM sets, for an orderly stop; the next signal interrupts."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return stop


def require_s3(*places: tuple[str | None, str]) -> None:
    """Raise `CimlError` unless all places are on S3.

    Args:
      places: (place, option) pairs; a place of None is left out.
    """
    from ciml.pipelines.dataflow.checks import check_on_s3

    for place, name in places:
        if place is not None:
            check_on_s3(place, name)


def print_launched(launched: Launched, settings: DataflowSettings, *, streaming: bool, then: str = "") -> None:
    """Print the job that was written or submitted, and the next commands.

    Args:
      launched: the job.
      settings: of the job.
      streaming: whether it is unbounded.
      then: the command to run when the job has ended.
    """
    print_lines(
        _submitted_lines(launched, settings, streaming) if launched.job_id else _template_lines(launched, settings)
    )
    click.echo(f"  pipeline  {launched.pipeline}, {launched.size / 1e6:.1f} MB")
    if launched.size > _GRAPH_BYTES:
        click.echo(
            f"warning: the pipeline has {launched.size / 1e6:.0f} MB, and Dataflow documents 10 MB as the limit of a "
            "job's graph; if it rejects the job, leave --runner out for the runs of the past",
            err=True,
        )
    if then:
        click.echo(f"  then      {then}")


def _submitted_lines(launched: Launched, settings: DataflowSettings, streaming: bool) -> Iterator[str]:
    page = f"https://console.cloud.google.com/dataflow/jobs/{settings.region}/{launched.job_id}"
    where = f"--project={settings.project} --region={settings.region}"
    end = "drain" if streaming else "cancel"
    yield f"{launched.name}: submitted as job {launched.job_id}"
    yield f"  watch     {page}?project={settings.project}"
    yield f"  stop      gcloud dataflow jobs {end} {launched.job_id} {where}"
    if streaming:
        yield "  replace   the same command with --update"


def _template_lines(launched: Launched, settings: DataflowSettings) -> Iterator[str]:
    yield f"{launched.name}: job description in {launched.template}; nothing runs"
    place = launched.template
    if not place.startswith("gs://"):
        place = f"{settings.staging}/templates/{Path(place).name}"
        yield f"  copy      gcloud storage cp {shlex.quote(launched.template)} {place}"
    yield f"  run       {_run_command(launched, settings, place)}"


def _run_command(launched: Launched, settings: DataflowSettings, place: str) -> str:
    """Return gcloud's command that starts a job from a template, with the settings of its workers."""
    flags = {
        "gcs-location": place,
        "project": settings.project,
        "region": settings.region,
        "staging-location": settings.temp_location,
        "worker-machine-type": settings.machine_type,
        "max-workers": settings.max_workers,
        "service-account-email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
    }
    words = [f"--{key}={value}" for key, value in flags.items() if value not in ("", None)]
    words += ["--disable-public-ips"] * (not settings.public_addresses)
    return shlex.join(["gcloud", "dataflow", "jobs", "run", launched.name, *words])

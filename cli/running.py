"""How a command runs its pipeline or service: options of runners and engines, signals, and the foreground."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from ciml.cli.dataflow import DATAFLOW, DataflowJob, print_launched, require_s3
from ciml.cli.options import HERE, EngineChoice, running_engines
from ciml.cli.output import status_line
from ciml.errors import CimlError
from ciml.options import Options, flag, option, repeated

if TYPE_CHECKING:
    from ciml.pipelines.dataflow.job import Build
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


def find_own_modules() -> None:
    """Let modules in the working directory be imported, after installed ones: for ``--estimator mine:Model``."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)


class BatchRunner(NamedTuple):
    """The Beam runner of a batch pipeline: its name, None for no Beam, and the job server's ``host:port`` for Flink."""

    name: str | None = None
    job_endpoint: str = ""


def _runner(ctx: click.Context, param: click.Parameter, value: str | None) -> BatchRunner:
    if value is None or ctx.resilient_parsing:
        return BatchRunner()
    name, _, endpoint = value.partition(":")
    if name not in ("fnapi", "flink", DATAFLOW) or (name != "flink" and endpoint):
        raise click.BadParameter(
            f"unknown runner {value!r}; choose from fnapi, flink, flink:HOST:PORT, dataflow", ctx, param
        )
    if name == "flink" and not endpoint:
        flink = running_engines(ctx).get("flink")
        if flink is None or flink.light:
            raise CimlError(
                "no Flink runs here: start it (ciml up flink) or name a job server (--runner flink:HOST:PORT)"
            )
        endpoint = flink.address
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
        from ciml.pipelines.dataflow.job import launch
        from ciml.pipelines.dataflow.settings import secrets_here

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

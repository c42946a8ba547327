"""Services in the foreground: the options of all services, the call that runs one, and the signals that stop it."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field, fields
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import click

from ciml.cli.batch_options import DATAFLOW, DataflowJob, as_s3, dataflow_options, print_launched
from ciml.cli.options import (
    HERE,
    EngineChoice,
    Option,
    beam_option,
    data_path_option,
    engine_option,
    gathered,
    kafka_options,
    metrics_options,
    stacked,
)
from ciml.cli.param_types import Duration
from ciml.errors import CimlError
from ciml.services.options import BrokerOptions, ServiceOptions

if TYPE_CHECKING:
    from ciml.services.driver import Report
    from ciml.services.service import Service, TopicService, Until

#: Options that end a service by themselves; a supervised one has none of them.
ENDINGS = ("once", "until_idle", "watch")
#: Options of a service on Dataflow, which no supervisor watches.
ELSEWHERE = ("runner", *(each.name for each in fields(DataflowJob)))

#: Longest outage of a broker or a store in the foreground, seconds.
PATIENCE_S = 300.0


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


@dataclass(frozen=True)
class Running:
    """How a service runs in the foreground: the values of `running_options`.

    Attributes:
      engine: of its pipeline.
      once: whether it ends at the present end of the topic.
      until_idle: time without new input after which it ends, in seconds; None for never.
      beam_options: further options of Beam.
      metrics_port, metrics_address: of the metrics endpoint; a port of None for no metrics.
      runner: ``dataflow`` for a job on Dataflow in place of a process here, else None.
      job: the options of that job.
    """

    engine: EngineChoice = HERE
    once: bool = False
    until_idle: float | None = None
    beam_options: tuple[str, ...] = ()
    metrics_port: int | None = None
    metrics_address: str = ""
    runner: str | None = None
    job: DataflowJob = field(default_factory=DataflowJob)

    @property
    def until(self) -> Until:
        """When it ends, for `ciml.services.driver.drive`."""
        return "end" if self.once else self.until_idle

    def launch(self, options: ServiceOptions) -> bool:
        """Write or submit the service's job, if it is to run on Dataflow; return whether it is.

        Args:
          options: of the service.
        """
        if self.runner != DATAFLOW:
            self.job.check_unused()
            return False
        for option, value in (
            ("--once", self.once),
            ("--until-idle", self.until_idle),
            ("--metrics-port", self.metrics_port),
        ):
            if value is not None and value is not False:
                raise CimlError(
                    f"{option}: not with --runner dataflow, whose job runs until it is drained; leave it out"
                )
        as_s3((options.data, "--data-path"))
        settings = self.job.settings()
        from ciml.services.driver import check_kind, launch_service

        check_kind(options)
        service = cast("TopicService[Any]", options.service())
        launched = launch_service(
            service,
            settings,
            self.job.name_or(service.name),
            template=self.job.template,
            update=self.job.update,
            extra=self.beam_options,
        )
        print_launched(launched, settings, streaming=True)
        return True

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
        endpoint = self.engine.job_endpoint
        registry = registry_of(service.board, *service.timings())
        with serve_metrics(registry, self.metrics_port, self.metrics_address) as url:
            if url:
                click.echo(f"metrics: {url}", err=True)
            drive(
                service,
                endpoint,
                until=self.until,
                stop=stop,
                report=report,
                patience_s=patience_s,
                extra=self.beam_options,
            )


def topic_options(creates: bool = False) -> Option:
    """Return the options of the data and the broker that a service reads: ``--data-path`` and `kafka_options`.

    Args:
      creates: see `data_path_option`.
    """
    return stacked(data_path_option(creates=creates), kafka_options())


def running_options(once: str = "Stop at the present end of the topic.") -> Option:
    """Return the options of a service in the foreground, which the command gets as one argument ``running``.

    Args:
      once: help of ``--once``.
    """
    options = stacked(
        engine_option,
        click.option("--once", is_flag=True, help=once),
        click.option(
            "--until-idle",
            type=Duration(),
            metavar="TIME",
            help="Time without new input after which it stops.  [default: never]",
        ),
        beam_option,
        metrics_options,
        click.option(
            "--runner",
            type=click.Choice([DATAFLOW]),
            help="Run as a streaming job on Dataflow.  [default: --engine, here]",
        ),
        dataflow_options(updates=True),
    )

    return stacked(options, gathered("running", [field.name for field in fields(Running)], Running))


#: The command gets `kafka_options` as one argument ``broker``. It stands last.
broker_options = gathered("broker", [field.name for field in fields(BrokerOptions)], BrokerOptions)


def service_options(kind: type[ServiceOptions]) -> Option:
    """Return a decorator: the command gets the options of a service as one argument ``options``. It stands last."""
    return gathered("options", kind.names(), lambda **values: kind.from_json(values))

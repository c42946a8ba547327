"""Services in the foreground: the options that end one, and the call that runs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import EngineChoice
from cli.param_types import Duration
from cli.signals import stop_on_signals

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from services.driver import Report
    from services.service import Service, Until

F = TypeVar("F", bound=Callable[..., Any])

#: Options that end a service by themselves; a supervised one has none of them.
ENDINGS = ("once", "until_idle", "watch")


def ending_options(once: str = "Stop at the present end of the topic.") -> Callable[[F], F]:
    """Return ``--once`` (with this help) and ``--until-idle``, as ``once`` and ``until_idle`` (s, or None)."""

    def apply(command: F) -> F:
        for option in (
            click.option(
                "--until-idle",
                type=Duration(),
                metavar="TIME",
                help="Time without new input after which it stops.  [default: never]",
            ),
            click.option("--once", is_flag=True, help=once),
        ):
            command = option(command)
        return command

    return apply


def run_service(
    service: Service,
    engine: EngineChoice,
    endings: tuple[bool, float | None],
    report: Report | None,
    beam_options: tuple[str, ...],
    metrics_port: int | None = None,
    metrics_address: str = "",
    *timings: Collector,
    **options: Any,
) -> None:
    """Run a service until it ends or a signal arrives, and serve its metrics.

    Args:
      service, engine: the service, and its engine.
      endings: the values of `ending_options`.
      report: see `services.driver.drive`.
      beam_options, metrics_port, metrics_address: of the command.
      timings: further metrics.
      options: further arguments of `services.driver.drive`.
    """
    from services.driver import drive

    once, until_idle = endings
    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    until: Until = "end" if once else until_idle
    stop = stop_on_signals()
    with metrics_endpoint(metrics_port, metrics_address, service.board, *timings):
        drive(service, engine.job_endpoint, until=until, stop=stop, report=report, extra=tuple(beam_options), **options)


@contextmanager
def metrics_endpoint(port: int | None, address: str, *collectors: Collector) -> Iterator[None]:
    """Serve the metrics of ``collectors`` within the ``with`` and print the URL; nothing for a ``port`` of None.

    Raises:
      EngineError: the address cannot be listened on.
    """
    if port is None:
        yield
        return
    from ciml.metrics import registry_of, serve_metrics

    with serve_metrics(registry_of(*collectors), port, address) as url:
        click.echo(f"metrics: {url}", err=True)
        yield

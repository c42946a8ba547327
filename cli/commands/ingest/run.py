"""``ciml ingest run``: in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands.ingest.options import ingest_options, make_config
from cli.options import EngineChoice
from cli.signals import stop_on_signals

if TYPE_CHECKING:
    from pipelines.watching import Until


@click.command("run", short_help="Ingest in the foreground (the default).")
@ingest_options(endings=True)
def command(
    data_path: str,
    kafka: str,
    engine: EngineChoice,
    once: bool,
    until_idle: float | None,
    beam_options: tuple[str, ...],
    **options: Any,
) -> None:
    """Turn CI events into raw runs, in the foreground."""
    from cli.progress import Counts
    from pipelines.run_ingest import ingest_micro_batches, ingest_on_flink

    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    until: Until = "end" if once else until_idle
    options.pop("home")
    config = make_config(data_path, kafka, **options)
    stop = stop_on_signals()
    with Counts(f"{config.topic} by {engine}") as counts:
        if engine.job_endpoint:
            ingest_on_flink(
                config, engine.job_endpoint, until=until, stop=stop, report=counts.show, extra=tuple(beam_options)
            )
        else:
            ingest_micro_batches(config, until=until, stop=stop, report=counts.show)

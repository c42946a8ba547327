"""``ciml ingest run``: in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.commands.operate.ingest.options import ingest_options
from cli.options import EngineChoice
from cli.signals import stop_on_signals
from services.config import make_config

if TYPE_CHECKING:
    from services.progress import Until


@click.command("run")
@ingest_options(endings=True)
def command(
    data_path: str,
    kafka: str,
    engine: EngineChoice,
    once: bool,
    until_idle: float | None,
    beam_options: tuple[str, ...],
    metrics_port: int | None,
    metrics_address: str,
    **options: Any,
) -> None:
    """Ingest in the foreground.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
    """
    from cli.metrics import shown
    from cli.progress_counts import Counts
    from services.ingest import ingest_micro_batches, ingest_on_flink
    from services.metrics import IngestBoard
    from transforms.ingest.timings_beam import COMMIT, FETCH

    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    until: Until = "end" if once else until_idle
    options.pop("home")
    config = make_config(data_path, kafka, **options)
    stop, board = stop_on_signals(), IngestBoard()
    showing = shown(metrics_port, metrics_address, board, FETCH.histogram, COMMIT.histogram)
    with showing, Counts(f"{config.topic} by {engine}") as counts:
        if engine.job_endpoint:
            ingest_on_flink(
                config, engine.job_endpoint, until=until, stop=stop, report=counts.show, extra=tuple(beam_options),
                board=board,
            )  # fmt: skip
        else:
            ingest_micro_batches(config, until=until, stop=stop, report=counts.show, board=board)

"""``ciml predict``: predictions for finished runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    EngineChoice,
    beam_option,
    data_path_option,
    engine_option,
    home_option,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
    metrics_options,
)
from cli.param_types import Duration
from cli.signals import stop_on_signals

if TYPE_CHECKING:
    from services.progress import Until
    from serving.predict.log import PredictionState


def _server(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value or ctx.resilient_parsing:
        return value
    from ciml.errors import CimlError
    from engines import state

    one = state.read(ctx.meta.get("ciml.home") or state.default_home()).get("models")
    if one is None:
        raise CimlError("no model server: start one (ciml up models, ciml serve) or name one (--server HOST:PORT)")
    return one.urls["grpc"]


@click.command("predict")
@data_path_option()
@kafka_option()
@kafka_config_option
@engine_option
@home_option
@click.option("--model", required=True, metavar="NAME", help="Model to query.")
@click.option("--label", default="stable", show_default=True, help="Version label to query.")
@click.option(
    "--server",
    metavar="HOST:PORT",
    envvar="CIML_MODEL_SERVER",
    show_envvar=True,
    callback=_server,
    help="gRPC address of the model server.  [default: the model server of ciml up]",
)
@click.option("--runs-topic", default="runs", show_default=True, metavar="TOPIC", help="Topic of announced runs.")
@click.option(
    "--predictions-topic",
    default="predictions",
    show_default=True,
    metavar="TOPIC",
    help="Topic of predictions; '' for none.",
)
@click.option("--once", is_flag=True, help="Stop at the present end of the topic.")
@click.option(
    "--until-idle",
    type=Duration(),
    metavar="TIME",
    help="Time without new runs after which it stops.  [default: never]",
)
@kafka_properties_option
@beam_option
@metrics_options
def command(
    data_path: str,
    kafka: str,
    engine: EngineChoice,
    model: str,
    label: str,
    server: str,
    runs_topic: str,
    predictions_topic: str,
    once: bool,
    until_idle: float | None,
    kafka_options: tuple[str, ...],
    kafka_config: str | None,
    beam_options: tuple[str, ...],
    metrics_port: int | None,
    metrics_address: str,
    **_: Any,
) -> None:
    """Predict for finished runs as they arrive.

    Ingest announces the runs, trusted or not. Each run is prepared by the definition of the served version, predicted
    once by it, committed to DATA/predictions with its offset, and published. Without a served version nothing is read.
    An interrupted predict continues from the last commit.

    \b
    Example:
      ciml predict --model provider --data-path data
      ciml predict --model provider --data-path data --once --engine micro-batches
    """
    from ciml.data_root import DataRoot
    from ciml.pairs import pairs
    from cli.metrics import shown
    from pipelines.kafka.client import KafkaOptions
    from pipelines.predict.pipeline import PredictConfig
    from services.metrics import PredictBoard
    from services.predict import predict_micro_batches, predict_on_flink
    from serving.predict.predictor import PredictPolicy
    from transforms.ingest.timings_beam import COMMIT

    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    until: Until = "end" if once else until_idle
    config = PredictConfig(
        DataRoot.open(data_path),
        KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config),
        server,
        PredictPolicy(model, label),
        runs_topic=runs_topic,
        predictions_topic=predictions_topic,
    )
    stop, board, line = stop_on_signals(), PredictBoard(), _Shown()
    with shown(metrics_port, metrics_address, board, COMMIT.histogram):
        if engine.job_endpoint:
            predict_on_flink(
                config, engine.job_endpoint, until=until, stop=stop, report=line, extra=tuple(beam_options), board=board
            )
        else:
            predict_micro_batches(config, until=until, stop=stop, report=line, board=board)
    line.finish()


class _Shown:
    """A status line: updated in place on a terminal, elsewhere printed at most every five seconds if it changed."""

    def __init__(self) -> None:
        self._last = ""
        self._printed = 0.0

    def finish(self) -> None:
        """Print the last line."""
        import sys

        click.echo(("\r\x1b[K" if sys.stderr.isatty() else "") + (self._last or "nothing was announced"), err=True)

    def __call__(self, state: PredictionState, lag: int, word: str) -> None:
        import sys
        import time

        parts = [f"{number:,} by {model} {version}" for (model, version), number in sorted(state.predicted.items())]
        parts += [f"{number:,} {reason}" for reason, number in sorted(state.unpredictable.items())]
        line = f"{', '.join(parts) or 'no predictions yet'}; {lag:,} runs to go; {word}"
        if line == self._last:
            return
        self._last = line
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        elif time.monotonic() - self._printed > 5.0:
            self._printed = time.monotonic()
            click.echo(line, err=True)

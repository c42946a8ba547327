"""``ciml predict stream``: predictions for finished runs, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.foreground import ending_options, run_service
from cli.options import (
    EngineChoice,
    beam_option,
    data_path_option,
    engine_option,
    home_of,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
    metrics_options,
)

if TYPE_CHECKING:
    from services.service import Progress


def _server(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value or ctx.resilient_parsing:
        return value
    from ciml.errors import CimlError
    from engines import state

    one = state.read(home_of(ctx)).get("models")
    if one is None:
        raise CimlError("no model server: start one (ciml up models, ciml serve) or name one (--server HOST:PORT)")
    return one.urls["grpc"]


@click.command("stream")
@data_path_option()
@kafka_option()
@kafka_config_option
@engine_option
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
@ending_options()
@kafka_properties_option
@beam_option
@metrics_options
def command(
    engine: EngineChoice,
    once: bool,
    until_idle: float | None,
    beam_options: tuple[str, ...],
    metrics_port: int | None,
    metrics_address: str,
    **arguments: Any,
) -> None:
    """Predict for finished runs as they arrive.

    Ingest announces the runs, trusted or not. Each run is prepared by the definition of the served version, predicted
    once by it, committed to DATA/predictions with its offset, and published. Without a served version nothing is read.
    An interrupted stream continues from the last commit. To keep it at work under a supervisor: ciml service start
    predict.

    \b
    Example:
      ciml predict stream --model provider --data-path data
      ciml predict stream --model provider --data-path data --once --engine micro-batches
    """
    from cli.progress_counts import Counts
    from services.driver import PATIENCE_S
    from services.predict import PredictService
    from transforms.ingest.timings_beam import COMMIT

    service = PredictService.of(**arguments)
    ends = once or until_idle is not None
    with Counts(f"{service.topic} by {engine}") as counts:

        def report(progress: Progress, word: str) -> None:
            done = ", ".join(f"{number:,} {what}" for what, number in progress.facts["counts"].items())
            counts.update(f"{done or 'no predictions yet'}; {progress.behind:,} runs to go; {word}")

        run_service(
            service, engine, (once, until_idle), report, beam_options, metrics_port, metrics_address, COMMIT.histogram,
            patience_s=0.0 if ends else PATIENCE_S,
        )  # fmt: skip

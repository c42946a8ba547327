"""``ciml predict stream``: predictions for finished runs, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import Running, running_options, topic_options
from ciml.cli.options import home_of

if TYPE_CHECKING:
    from ciml.services.service import Progress


def _server(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value or ctx.resilient_parsing:
        return value
    from ciml.engines import state
    from ciml.errors import CimlError

    one = state.read(home_of(ctx)).get("models")
    if one is None:
        raise CimlError("no model server: start one (ciml up models, ciml serve) or name one (--server HOST:PORT)")
    return one.urls["grpc"]


@click.command("stream")
@topic_options()
@click.option("--model", required=True, metavar="NAME", help="Model to query.")
@click.option("--label", default="stable", help="Version label to query.")
@click.option(
    "--server",
    metavar="HOST:PORT",
    envvar="CIML_MODEL_SERVER",
    show_envvar=True,
    callback=_server,
    help="gRPC address of the model server.  [default: the model server of ciml up]",
)
@click.option("--runs-topic", default="runs", metavar="TOPIC", help="Topic of announced runs.")
@click.option("--predictions-topic", default="predictions", metavar="TOPIC", help="Topic of predictions; '' for none.")
@running_options()
def command(running: Running, **arguments: Any) -> None:
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
    from ciml.cli.progress import Counts
    from ciml.services.driver import PATIENCE_S
    from ciml.services.predict import PredictService

    if running.launch(PredictService, arguments):
        return
    service = PredictService.of(**arguments)
    with Counts(f"{service.topic} by {running.engine}") as counts:

        def report(progress: Progress, word: str) -> None:
            done = ", ".join(f"{number:,} {what}" for what, number in progress.facts["counts"].items())
            counts.update(f"{done or 'no predictions yet'}; {progress.behind:,} runs to go; {word}")

        running.run(service, report, patience_s=PATIENCE_S if running.until is None else 0.0)

"""``ciml graph``: a pipeline as an engine sees it."""

from __future__ import annotations

from typing import BinaryIO

import click

_NAMES = ("ingest", "ingest-micro-batch", "predict", "backfill", "dataset", "materialise")


@click.command("graph", short_help="Show a pipeline's portable graph.")
@click.argument("pipeline", type=click.Choice(_NAMES))
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "dot", "json", "proto")),
    default="text",
    show_default=True,
    help="For people, for Graphviz, and Beam's own pipeline message as JSON or binary.",
)
@click.option("--output", type=click.File("wb"), default="-", help="A file.  [default: standard output]")
def command(pipeline: str, form: str, output: BinaryIO) -> None:
    """Show the graph of PIPELINE that every engine is given: FnApiRunner, Flink, Dataflow.

    It is wired by the function that runs it, on an example: two partitions of ci-events, one span of a data set.
    Nothing is run, and no broker, store or network is needed.

    \b
    Example:
      ciml graph ingest
      ciml graph predict --format dot --output predict.dot && dot -Tsvg predict.dot > predict.svg
    """
    from pipelines.flink.portable_graph import as_dot, as_text, portable
    from pipelines.graphs import PIPELINES

    proto = portable(PIPELINES[pipeline][0])
    if form == "proto":
        output.write(proto.SerializeToString(deterministic=True))
        return
    if form == "json":
        from google.protobuf.json_format import MessageToJson

        text = MessageToJson(proto, indent=1)
    else:
        text = as_text(pipeline, proto) if form == "text" else as_dot(proto)
    output.write(f"{text}\n".encode())

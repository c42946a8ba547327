"""``ciml graph``: the portable graph of a pipeline."""

from __future__ import annotations

from typing import BinaryIO

import click

_NAMES = ("ingest", "ingest-micro-batch", "predict", "backfill", "dataset", "dataset-alone", "materialise")


@click.command("graph")
@click.argument("pipeline", type=click.Choice(_NAMES))
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "dot", "json", "proto")),
    default="text",
    help="Format: text, dot for Graphviz, or Beam's pipeline message as json or proto.",
)
@click.option("--output", type=click.File("wb"), default="-", help="Output file; '-' is standard output.")
def command(pipeline: str, form: str, output: BinaryIO) -> None:
    """Show the Beam graph of a pipeline.

    It is the portable graph that FnApiRunner, Flink and Dataflow get, for an example input: two partitions of ci-events
    or one span of a data set. Nothing runs; no broker, store or network is needed.

    \b
    Example:
      ciml graph ingest
      ciml graph predict --format dot --output predict.dot && dot -Tsvg predict.dot > predict.svg
    """
    from ciml.pipelines.flink.submit import as_dot, as_text, portable
    from ciml.pipelines.graphs import PIPELINES

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

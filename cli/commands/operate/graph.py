"""``ciml graph``: the portable graph of a pipeline."""

from __future__ import annotations

from typing import BinaryIO

import click

from ciml.cli.command import make_command
from ciml.options import Options, argument, option

_NAMES = ("ingest", "ingest-micro-batch", "predict", "backfill", "dataset", "dataset-alone", "materialise")


class GraphOptions(Options):
    """Options of ``ciml graph``.

    Attributes:
      format: Format: text, dot for Graphviz, or Beam's pipeline message as json or proto.
      output: Output file; '-' is standard output.
    """

    pipeline: str = argument(kind=click.Choice(_NAMES))
    format: str = option("text", click.Choice(("text", "dot", "json", "proto")))
    output: BinaryIO = option("-", click.File("wb"))


@make_command("graph")
def command(options: GraphOptions) -> None:
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

    proto = portable(PIPELINES[options.pipeline][0])
    if options.format == "proto":
        options.output.write(proto.SerializeToString(deterministic=True))
        return
    if options.format == "json":
        from google.protobuf.json_format import MessageToJson

        text = MessageToJson(proto, indent=1)
    else:
        text = as_text(options.pipeline, proto) if options.format == "text" else as_dot(proto)
    options.output.write(f"{text}\n".encode())

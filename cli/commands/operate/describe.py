"""``ciml graph`` and ``ciml schema``: the portable graphs of the pipelines, and the JSON Schemas of the topics."""

from __future__ import annotations

from pathlib import Path
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
def graph(options: GraphOptions) -> None:
    """Show the Beam graph of a pipeline.

    It is the portable graph that FnApiRunner, Flink and Dataflow get, for an example input: two partitions of ci-events
    or one span of a data set. Nothing runs; no broker, store or network is needed.

    \b
    Example:
      ciml graph ingest
      ciml graph predict --format dot --output predict.dot && dot -Tsvg predict.dot > predict.svg
    """
    from ciml.pipelines.graphs import PIPELINES, as_dot, as_text, portable

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


class SchemaOptions(Options):
    """Options of ``ciml schema``.

    Attributes:
      output: Write all, a file each.
    """

    name: str | None = argument(required=False)
    output: Path | None = option(kind=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")


@make_command("schema")
def schema(options: SchemaOptions) -> None:
    """Print the JSON Schema of a topic.

    NAME is the usual name of a topic, for its values, or TOPIC-headers. Without NAME it lists all.

    \b
    Example:
      ciml schema
      ciml schema predictions
      ciml schema --output schemas
    """
    from ciml.messages import schema_text, schema_titles

    output = options.output
    if output is not None:
        if options.name is not None:
            raise click.UsageError("--output writes all schemas; leave out NAME")
        output.mkdir(parents=True, exist_ok=True)
        for topic in schema_titles():
            (output / f"{topic}.json").write_text(schema_text(topic), encoding="utf-8")
        click.echo(f"{len(schema_titles())} schemas in {output}")
    elif options.name is not None:
        click.echo(schema_text(options.name), nl=False)
    else:
        for topic, title in schema_titles().items():
            click.echo(f"{topic:22} {title}")

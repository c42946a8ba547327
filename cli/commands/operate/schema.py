"""``ciml schema``: the JSON Schemas of the topics."""

from __future__ import annotations

from pathlib import Path

import click

from ciml.cli.command import make_command
from ciml.options import Options, argument, option


class SchemaOptions(Options):
    """Options of ``ciml schema``.

    Attributes:
      output: Write all, a file each.
    """

    name: str | None = argument(required=False)
    output: Path | None = option(kind=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")


@make_command("schema")
def command(options: SchemaOptions) -> None:
    """Print the JSON Schema of a topic.

    NAME is the usual name of a topic, for its values, or TOPIC-headers. Without NAME it lists all.

    \b
    Example:
      ciml schema
      ciml schema predictions
      ciml schema --output schemas
    """
    from ciml.messages import schema_names, schema_text

    output = options.output
    if output is not None:
        if options.name is not None:
            raise click.UsageError("--output writes all schemas; leave out NAME")
        output.mkdir(parents=True, exist_ok=True)
        for schema in schema_names():
            (output / f"{schema}.json").write_text(schema_text(schema), encoding="utf-8")
        click.echo(f"{len(schema_names())} schemas in {output}")
    elif options.name is not None:
        click.echo(schema_text(options.name), nl=False)
    else:
        for schema, title in schema_names().items():
            click.echo(f"{schema:22} {title}")

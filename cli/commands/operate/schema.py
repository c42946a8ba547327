"""``ciml schema``: the JSON Schemas of the topics."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("schema")
@click.argument("name", required=False)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Write all, a file each."
)
def command(name: str | None, output: Path | None) -> None:
    """Print the JSON Schema of a topic.

    NAME is the usual name of a topic, for its values, or TOPIC-headers. Without NAME it lists all.

    \b
    Example:
      ciml schema
      ciml schema predictions
      ciml schema --output schemas
    """
    from ciml.messages import schema_names, schema_text

    if output is not None:
        if name is not None:
            raise click.UsageError("--output writes all schemas; leave out NAME")
        output.mkdir(parents=True, exist_ok=True)
        for schema in schema_names():
            (output / f"{schema}.json").write_text(schema_text(schema), encoding="utf-8")
        click.echo(f"{len(schema_names())} schemas in {output}")
    elif name is not None:
        click.echo(schema_text(name), nl=False)
    else:
        for schema, title in schema_names().items():
            click.echo(f"{schema:22} {title}")

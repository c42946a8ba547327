"""``ciml tables``: the stored runs and data sets as Delta tables, for other engines."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json, JsonLines
from ciml.cli.output import print_table
from ciml.options import repeated

if TYPE_CHECKING:
    from ciml.runs.tables.publish import TableState


class TablesOptions(Data):
    """The tables of a command.

    Attributes:
      tables: Table: raw, runs, dead_letters or datasets/NAME; may be repeated. [default: all]
    """

    tables: tuple[str, ...] = repeated(metavar="TABLE")


class PublishOptions(Json, TablesOptions):
    """Options of ``ciml tables publish``."""


@make_command("publish")
def publish(options: PublishOptions) -> None:
    """Publish the present state as a table version.

    Up-to-date tables get no version. From the first time on, compaction and updates of data sets publish too. It can be
    interrupted and repeated, and run next to all other commands.

    \b
    Example:
      ciml tables publish --data-path data
      ciml tables publish --table raw --table datasets/cpu-load --data-path s3://bucket/data
    """
    from ciml.extras import require
    from ciml.runs.tables.publish import publish_tables

    require("deltalake", "tables")
    for table in publish_tables(options.root, options.tables):
        if options.json:
            click.echo(json.dumps(asdict(table)))
            continue
        for note in table.notes:
            click.echo(f"warning: {table.name}: {note}", err=True)
        changed = f"{table.added:,} files added, {table.removed:,} removed" if table.committed else "up to date"
        size = f"{table.rows:,} rows in {table.files:,} files"
        click.echo(f"{table.name}: version {table.version}, {size}, {changed}: {table.url}")


class ListOptions(JsonLines, TablesOptions):
    """Options of ``ciml tables list``."""


@make_command("list")
def list_tables(options: ListOptions) -> None:
    """List tables, their versions, rows and places.

    Behind is the number of commits that a table does not show: of the raw manifest, of the data set, or of packs.

    \b
    Example:
      ciml tables list --data-path data
      ciml tables list --table runs --json --data-path data
    """
    from ciml.runs.tables.publish import list_tables as states

    options.show_all(states(options.root, options.tables), _print_tables, asdict)


def _print_tables(tables: list[TableState]) -> None:
    rows = []
    for table in tables:
        version = "none" if table.version is None else table.version
        rows.append((table.name, version, table.rows, table.files, table.behind, table.url))
    print_table(("table", "version", "rows", "files", "behind", "place"), rows)


@click.group("tables", commands=[publish, list_tables])
def command() -> None:
    """Publish Delta tables for other engines.

    DuckDB, polars, pandas, Spark and others read the stored files themselves; nothing is copied. Tables: raw, runs,
    dead_letters, and datasets/NAME for each data set.

    \b
    Example:
      ciml tables publish --data-path data
      ciml tables list --data-path data
    """

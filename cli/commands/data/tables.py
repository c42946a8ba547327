"""``ciml tables``: the stored runs and data sets as Delta tables, for other engines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ciml.cli.options import Option, data_path_option
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.data_root import DataRoot


@click.group("tables")
def command() -> None:
    """Publish Delta tables for other engines.

    DuckDB, polars, pandas, Spark and others read the stored files themselves; nothing is copied. Tables: raw, runs,
    dead_letters, and datasets/NAME for each data set.

    \b
    Example:
      ciml tables publish --data-path data
      ciml tables list --data-path data
    """


def _tables_option(help: str) -> Option:
    text = f"{help}: raw, runs, dead_letters or datasets/NAME; may be repeated.  [default: all]"
    return click.option("--table", "names", multiple=True, metavar="TABLE", help=text)


@command.command("publish")
@_tables_option("Table to publish")
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def publish(names: tuple[str, ...], data_path: str, as_json: bool) -> None:
    """Publish the present state as a table version.

    Up-to-date tables get no version. From the first time on, compaction and updates of data sets publish too. It can be
    interrupted and repeated, and run beside everything else.

    \b
    Example:
      ciml tables publish --data-path data
      ciml tables publish --table raw --table datasets/cpu-load --data-path s3://bucket/data
    """
    from ciml.data_root import DataRoot
    from ciml.extras import require
    from ciml.runs.tables.publish import publish_tables

    require("deltalake")
    for table in publish_tables(DataRoot.open(data_path), names):
        if as_json:
            click.echo(json.dumps(asdict(table)))
            continue
        for note in table.notes:
            click.echo(f"warning: {table.name}: {note}", err=True)
        changed = f"{table.added:,} files added, {table.removed:,} removed" if table.committed else "up to date"
        size = f"{table.rows:,} rows in {table.files:,} files"
        click.echo(f"{table.name}: version {table.version}, {size}, {changed}: {table.url}")


@command.command("list")
@_tables_option("Table to list")
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def list_tables(names: tuple[str, ...], data_path: str, as_json: bool) -> None:
    """List tables, their versions, rows and places.

    Behind is the number of commits that a table does not show: of the raw manifest, of the data set, or of packs.

    \b
    Example:
      ciml tables list --data-path data
      ciml tables list --table runs --json --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.runs.tables.publish import list_tables as states

    tables = list(states(DataRoot.open(data_path), names))
    if as_json:
        for table in tables:
            click.echo(json.dumps(asdict(table)))
        return
    rows = [
        (
            table.name,
            "none" if table.version is None else f"{table.version}",
            f"{table.rows:,}",
            f"{table.files:,}",
            f"{table.behind:,}",
            table.url,
        )
        for table in tables
    ]
    numbers = ("version", "rows", "files", "behind")
    print_table(("table", *numbers, "place"), rows, right=numbers)


def update_tables(data: DataRoot, names: Iterable[str]) -> None:
    """Publish tables after a change, where they are in use; a failure is a warning."""
    from ciml.runs.tables import update_tables as update

    for note in update(data, names):
        click.echo(f"warning: {note}", err=True)

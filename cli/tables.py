"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 128  # least width in a file or a pipe, whose width is unknown


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as aligned columns, for commands that work without rich and for pipes to other programs."""
    import click

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    right: Collection[str] = (),
    last_apart: bool = False,
    console: Console | None = None,
) -> None:
    """Print a table; nothing in it is markup.

    Args:
      headings, rows: texts.
      title: a line above it.
      right: headings of columns of numbers.
      last_apart: whether a line separates the last row, such as a sum.
      console: where to print; None for standard output.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=escape(title) or None, title_justify="left")
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if last_apart and len(table.rows) > 1:
        table.rows[-2].end_section = True
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, _WIDTH)
    console.print(table)

"""One HTML page of plots and tables that needs nothing but itself, and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ciml.storage.open import Store
from reports.drawing import Plot

if TYPE_CHECKING:
    from jinja2 import Environment

#: The page's file.
PAGE = "index.html"


@dataclass(frozen=True)
class Tile:
    """A number that is seen first: what it is, the number, and a note on it."""

    what: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      headings: of the columns.
      rows: of as many cells.
      words: how many columns at the left are words; the others are numbers, set to the right.
      title: above it.
      best: (row, column) of the cells that are set off.
      links: (row, column) of cells that lead to another page, each with its address relative to this one.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    title: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of a page: a text, then tables, then plots."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True)
class Page:
    """What a page says. All texts are plain; names in them may be hostile."""

    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...] = field(default=())


def render(page: Page) -> str:
    """Return the page: styles and plots inline, no script, no address outside."""
    from markupsafe import Markup

    environment = page_environment(drawn=lambda svg: Markup(svg))  # noqa: S704
    template = environment.from_string(files("reports").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page)


def save(folder: Store, page: Page, others: Mapping[str, bytes] | None = None) -> str:
    """Write each plot as SVG and PNG, ``others`` by their names, and last the page. Return where the page is."""
    for section in page.sections:
        for plot in section.plots:
            folder.replace(f"{plot.name}.svg", plot.svg.encode())
            folder.replace(f"{plot.name}.png", plot.png)
    for name, data in (others or {}).items():
        folder.replace(name, data)
    folder.replace(PAGE, render(page).encode())
    return folder.url(PAGE)


def page_environment(**filters: Any) -> Environment:
    """What pages are rendered with: all is escaped, an unknown name is an error, ``style`` is the style sheet."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    style = files("reports").joinpath("style.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)  # noqa: S704 (a file of this package)
    return environment

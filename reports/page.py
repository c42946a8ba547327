"""Render plots and tables as one self-contained HTML page, and write it with its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ciml.reports.drawing import Plot
from ciml.storage import Store

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "index.html"


@dataclass(frozen=True)
class Tile:
    """A headline number: its label, its value and a note."""

    what: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      headings: column headings.
      rows: cells, one for each heading.
      words: number of text columns at the left; the others are numbers, aligned right.
      title: caption above the table.
      best: (row, column) of highlighted cells.
      links: relative addresses of linked pages by (row, column).
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
    """The content of a page. All texts are plain; names in them may be hostile."""

    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...] = field(default=())


def render(page: Page) -> str:
    """Return the page as HTML: styles and plots inline, no script, no external address."""
    from markupsafe import Markup

    environment = page_environment(drawn=lambda svg: Markup(svg))  # noqa: S704
    template = environment.from_string(files("ciml.reports").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(page=page)


def save(folder: Store, page: Page, others: Mapping[str, bytes] | None = None) -> str:
    """Write each plot as SVG and PNG, ``others`` by name, and the page last. Return the page's address."""
    for section in page.sections:
        for plot in section.plots:
            folder.replace(f"{plot.name}.svg", plot.svg.encode())
            folder.replace(f"{plot.name}.png", plot.png)
    for name, data in (others or {}).items():
        folder.replace(name, data)
    folder.replace(PAGE, render(page).encode())
    return folder.url(PAGE)


def page_environment(**filters: Any) -> Environment:
    """Return the template environment: it escapes everything, rejects unknown names and has the style sheet."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    style = files("ciml.reports").joinpath("style.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)  # noqa: S704 (a file of this package)
    return environment

"""Pages as data: a page is tiles and sections, and a section is texts, tables and plots.

`render` turns a page into one self-contained HTML file by the templates of this folder. `save` writes it with its
plots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ciml.reports.drawing import Estimate, Plot
from ciml.storage import Store

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "index.html"


@dataclass(frozen=True)
class Tile:
    """A headline number: its label, its value and a note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      headings: column headings.
      rows: cells, one for each heading; `cells` formats them.
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
class Picture:
    """A picture that is drawn already.

    Attributes:
      title: for readers who do not see it.
      svg: one self-contained ``<svg>`` element of ours.
      caption: how to read it.
    """

    title: str
    svg: str
    caption: str = ""


def cells(*values: str | float | Estimate | None) -> tuple[str, ...]:
    """Format the cells of a row.

    Counts get separators, figures three decimals, and None becomes a dash. An estimate becomes two cells: its value
    and its interval.
    """
    texts: list[str] = []
    for value in values:
        if isinstance(value, Estimate):
            texts += [*cells(value.value), value.interval]
        elif isinstance(value, str):
            texts.append(value)
        elif value is None:
            texts.append("–")
        else:
            texts.append(f"{value:,}" if isinstance(value, Integral) else f"{value:.3f}")
    return tuple(texts)


class Section:
    """A titled part of a page.

    Attributes:
      title: heading.
      parts: texts, tables, plots and pictures from top to bottom. Empty texts and None are left out.
    """

    def __init__(self, title: str, *parts: str | Table | Plot | Picture | None) -> None:
        self.title = title
        self.parts = tuple(part for part in parts if part)

    @property
    def text(self) -> str:
        """The texts in one line."""
        return " ".join(part for part in self.parts if isinstance(part, str))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables."""
        return tuple(part for part in self.parts if isinstance(part, Table))

    @property
    def plots(self) -> tuple[Plot, ...]:
        """The plots."""
        return tuple(part for part in self.parts if isinstance(part, Plot))

    def prefixed(self, name: str) -> Section:
        """Return the section with a prefix of its title and of the file names of its plots."""
        parts = (replace(part, name=f"{name}-{part.name}") if isinstance(part, Plot) else part for part in self.parts)
        return Section(f"{name}: {self.title}", *parts)


@dataclass(frozen=True)
class Page:
    """The content of a page. All texts are plain; names in them may be hostile."""

    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...] = ()


def render(page: Page) -> str:
    """Return the page as HTML: styles and plots inline, no script, no external address."""
    from markupsafe import Markup

    environment = page_environment(drawn=lambda svg: Markup(svg))  # noqa: S704 (drawn here, and escaped by matplotlib)
    return environment.get_template("page.html").render(page=page)


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
    """Return an environment of the templates: it escapes everything, rejects unknown names and has the style sheet."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def read(name: str) -> str:
        return files("ciml.reports").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read)
    )
    environment.filters.update(filters)
    environment.globals["style"] = Markup(read("style.css"))  # noqa: S704 (a file of this package)
    return environment

"""Draw plots as SVG and PNG, with one style, fixed colours and sanitised names.

Also formats numbers and names for titles and captions, and draws what several plots share: intervals, curves, the cells
of a matrix, and grids of panels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from ciml.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: matplotlib settings of every plot, without math text, so that a hostile name is not parsed as a formula.
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",  # keeps text searchable and in the page's font
    "svg.hashsalt": "ciml",
}
#: Colour-blind safe (Okabe and Ito); black replaces yellow, which is invisible on white. The last colour is for the
#: group of the rest.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8a8a8a")
#: Fixed colours of common outcomes.
_OUTCOMES = {
    "passed": "#0072B2",
    "success": "#0072B2",
    "failed": "#D55E00",
    "failure": "#D55E00",
    "timeout": "#E69F00",
}
#: Line styles, so that lines differ without colour too.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), "-", (0, (5, 2)), (0, (1, 1.2)), "-")
#: Width of the plots of a page in inches.
WIDE = 8.4
_INCH_CHARACTERS = 11.2  # of a title
_LEGEND_CHARACTERS = 13.5  # of the same inch
_DOTS_AN_INCH = 150


@dataclass(frozen=True)
class Plot:
    """A plot, drawn on first access.

    Attributes:
      name: file name without suffix.
      title: the finding, in one sentence.
      caption: how to read the plot.
      size: width and height in inches.
      paint: draws into a figure with a constrained layout.
    """

    name: str
    title: str
    caption: str
    size: tuple[float, float]
    paint: Callable[[Figure], None] = field(repr=False)

    @property
    def svg(self) -> str:
        """The plot as one self-contained ``<svg>`` element."""
        return self._images[0]

    @property
    def png(self) -> bytes:
        """The plot as PNG."""
        return self._images[1]

    @cached_property
    def _images(self) -> tuple[str, bytes]:
        """The plot as SVG and as PNG."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        svg = io.StringIO()
        png = io.BytesIO()
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of scripts that DejaVu lacks
            figure = Figure(figsize=self.size, layout="constrained", dpi=_DOTS_AN_INCH)
            FigureCanvasAgg(figure)
            self.paint(figure)
            wrapped = fill(self.title, int(self.size[0] * _INCH_CHARACTERS))
            figure.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
            figure.savefig(png, format="png", metadata={"Software": None})
            figure.set_layout_engine("none")  # keep the layout of the PNG
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        text = svg.getvalue()
        head, _, tail = text[text.index("<svg") :].partition("<metadata>")
        text = head + tail.partition("</metadata>")[2]
        return text, png.getvalue()


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None if it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, metric: Mapping[str, Any]) -> Estimate:
        """Return the estimate of a stored metric with the keys ``value``, ``low`` and ``high``."""
        return cls(metric["value"], metric["low"], metric["high"])

    @classmethod
    def of_share(cls, count: int, total: int) -> Estimate:
        """Return a share of runs with Wilson's interval."""
        return cls(count / total, *wilson(count, total))

    @property
    def interval(self) -> str:
        """The interval as ``0.363 to 0.477``; a dash if it is unknown."""
        return "–" if None in (self.value, self.low, self.high) else f"{self.low:.3f} to {self.high:.3f}"

    @property
    def percent(self) -> str:
        """The interval as ``36 to 48 %``; an unknown end is the value."""
        low, high = (self.value or 0.0 if end is None else end for end in (self.low, self.high))
        return f"{100 * low:.0f} to {100 * high:.0f} %"


def draw_estimates(
    axes: Any,
    places: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    color: str = COLORS[0],
    label: str | None = None,
    marker: str = "o",
    size: float = 6,
    scale: float = 100,
    horizontal: bool = False,
) -> None:
    """Draw values with their intervals.

    Args:
      axes: axes to draw into.
      places: positions on the other axis.
      estimates: one for each place.
      color: colour of markers and intervals.
      label: name in the legend.
      marker: format of matplotlib; ``none`` for intervals only, ``o-`` for a line through the values.
      size: of a marker.
      scale: factor of the values; by default, shares become per cent.
      horizontal: values are on the x axis.
    """
    values = np.array([estimate.value or 0.0 for estimate in estimates])
    ends = np.array([(estimate.low, estimate.high) for estimate in estimates], np.float64)  # None becomes NaN
    lengths = None if np.isnan(ends).all() else scale * np.nan_to_num(np.abs(ends.T - values))
    style: Any = {"fmt": marker, "color": color, "label": label, "capsize": 3, "markersize": size}
    if horizontal:
        axes.errorbar(scale * values, places, xerr=lengths, **style)
    else:
        axes.errorbar(places, scale * values, yerr=lengths, **style)


def draw_matrix(
    axes: Any,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Mapping[tuple[int, int], str],
    *,
    dark: np.ndarray | None = None,
    size: float = 8,
    **shades: Any,
) -> Any:
    """Draw a matrix as an image with a text in its cells, and return the image.

    Args:
      axes: axes to draw into.
      values: float [rows, columns]; NaN leaves a cell empty.
      rows: labels of the rows.
      columns: labels of the columns.
      texts: by (row, column).
      dark: bool [rows, columns], cells whose text is white; by default those above half of the largest value.
      size: of the texts.
      **shades: ``cmap``, ``vmin`` and ``vmax`` of matplotlib.
    """
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **shades)
    is_dark = values > np.nanmax(values) / 2 if dark is None else dark
    for (row, column), text in texts.items():
        color = "white" if is_dark[row, column] else "black"
        axes.annotate(text, (column, row), ha="center", va="center", fontsize=size, color=color)
    axes.set_xticks(np.arange(len(columns)), columns)
    axes.set_yticks(np.arange(len(rows)), rows, fontsize=8)
    axes.grid(False)
    return image


def add_panels(figure: Figure, count: int, columns: int, share: bool = True) -> list[Any]:
    """Add panels to a figure, row by row, and return their axes. ``share``: whether they have common scales."""
    rows = -(-count // columns)
    grid = figure.subplots(rows, min(count, columns), sharex=share, sharey=share, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return list(grid[:count])


def label_panels(grid: Sequence[Any], columns: int, horizontal: str, vertical: str = "") -> None:
    """Label the left column, and the lowest panel of each column."""
    for index, axes in enumerate(grid):
        if index % columns == 0:
            axes.set_ylabel(vertical)
        if index + columns >= len(grid):
            axes.set_xlabel(horizontal)
            axes.tick_params(labelbottom=True)


def shown(name: str, limit: int = 26) -> str:
    """Return a name from outside as one printable line of at most ``limit`` characters."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    plain = f" {plain}" if plain.startswith("_") else plain  # matplotlib leaves such names out of legends
    return plain if len(plain) <= limit else f"{plain[: limit - limit // 2 - 1]}…{plain[-(limit // 2) :]}"


def distinct(names: Sequence[str], limit: int = 26) -> list[str]:
    """Shorten names as `shown` does, and keep them distinct: similar names keep the part in which they differ."""
    texts = [shown(name, limit) for name in names]
    indices_by_text: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        indices_by_text.setdefault(text, []).append(index)
    for group in indices_by_text.values():
        if len(group) > 1:
            parts = _differing_parts([names[index] for index in group], limit)
            for number, (index, text) in enumerate(zip(group, parts, strict=True), 1):
                texts[index] = text if text not in texts else f"{shown(text, limit - 4)} #{number}"
    return texts


def _differing_parts(names: Sequence[str], limit: int) -> list[str]:
    """Return the part of each name that differs from the others, with as much around it as fits."""
    head = _common_prefix(names)
    tail = _common_prefix([name[head:][::-1] for name in names])
    longest = max(len(name) for name in names) - head - tail
    margin = max(0, (limit - 2 - longest) // 2)
    begin = max(0, head - margin)
    end = max(0, tail - margin)
    return [
        shown(f"{'…' if begin else ''}{name[begin : len(name) - end]}{'…' if end else ''}", limit) for name in names
    ]


def _common_prefix(names: Sequence[str]) -> int:
    """Return the length of the common prefix."""
    ends = (index for index, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1)
    return next(ends, min(map(len, names)))


def colors_of(names: Sequence[str]) -> list[str]:
    """Return a colour for each of at most eight names. The eighth is for the group of the rest."""
    fixed = {_OUTCOMES[name] for name in names if name in _OUTCOMES}
    unused = iter([color for color in COLORS if color not in fixed] + [COLORS[-1]] * len(names))
    colors = []
    for index, name in enumerate(names):
        if name in _OUTCOMES:
            colors.append(_OUTCOMES[name])
        elif index == len(names) - 1 == len(COLORS) - 1:
            colors.append(COLORS[-1])
        else:
            colors.append(next(unused))
    return colors


def add_legend(figure: Figure, columns: int = 4) -> None:
    """Add one legend for the lines and areas of all panels below the figure, in as many columns as fit."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        longest = max(map(len, handles)) + 6
        columns = min(columns, len(handles), max(1, int(figure.get_figwidth() * _LEGEND_CHARACTERS) // longest))
        place: Any = {"loc": "outside lower left", "ncols": columns, "fontsize": 8.5}
        figure.legend(list(handles.values()), list(handles), **place)


def slug(name: str, limit: int = 60) -> str:
    """Return a name as part of a file name."""
    return "".join(char if char.isascii() and char.isalnum() else "-" for char in name)[:limit]


def set_units(axis: Any, unit: str) -> None:
    """Format ticks with SI prefixes: 2 GB, 30 k. Only bytes have a unit."""
    from matplotlib.ticker import EngFormatter

    if unit in ("B", "B/s", "requests/s", "1/s"):
        axis.set_major_formatter(EngFormatter(unit if unit.startswith("B") else "", sep=" "))


def use_whole_numbers(axis: Any, bins: int = 6) -> None:
    """Put ticks at whole numbers only, for counts."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(bins, integer=True))


def percent(share: float) -> str:
    """Format a share as ``31 %``, with one decimal near 0 % and 100 %."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def mark_features(axes: Any, names: Sequence[str], width: int) -> None:
    """Mark the features of an unrolled example on the x axis: lines between features, names centred."""
    middles = np.arange(len(names)) * width + width / 2
    for bound in range(1, len(names)):
        axes.axvline(bound * width - 0.5, color="#555555", linewidth=0.5)
    axes.set_xticks(middles - 0.5, distinct(names, 16), rotation=90 if len(names) > 8 else 0)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(names) * width - 0.5)


def runs_of(count: int) -> str:
    """Format a count: ``1 run``, ``4,883 runs``."""
    return "1 run" if count == 1 else f"{count:,} runs"


def seconds(value: float) -> str:
    """Format a duration in seconds, minutes or hours: ``35 s``, ``2.5 min``."""
    if value < 120:
        return f"{value:.4g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def quantity(value: float, unit: str) -> str:
    """Format a value of a telemetry column: ``64 %``, ``3.5 GB``, ``3.9``."""
    from matplotlib.ticker import EngFormatter

    if unit.startswith("%"):
        return percent(value / 100)
    unit = unit if unit.startswith("B") else ""
    return EngFormatter(unit, places=1 if value >= 1 else 2, sep=" " if unit or value >= 1000 else "")(value).strip()

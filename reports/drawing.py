"""Draw plots as SVG and PNG, with one style, fixed colours and sanitised names.

Colours and matplotlib style of all plots.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour-blind safe, in the order of classes (Okabe and Ito).
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")


#: matplotlib settings of every plot.
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
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


#: Colour-blind safe; black replaces yellow, which is invisible on white. The last colour is for the group of the rest.
COLORS = (*PALETTE[:6], "#000000", "#8a8a8a")
#: Fixed colours of common outcomes.
_KNOWN = {
    "passed": "#0072B2",
    "success": "#0072B2",
    "failed": "#D55E00",
    "failure": "#D55E00",
    "timeout": "#E69F00",
}
#: Line styles, so that lines differ without colour too.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), "-", (0, (5, 2)), (0, (1, 1.2)), "-")
#: Without math text, so that a hostile name is not parsed as a formula.
_STYLE: Any = {**STYLE, "text.parse_math": False, "axes.titlesize": 9, "axes.titlelocation": "left"}
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
        """Return one self-contained ``<svg>`` element."""
        return self._drawn[0]

    @property
    def png(self) -> bytes:
        """Return the plot as PNG."""
        return self._drawn[1]

    @cached_property
    def _drawn(self) -> tuple[str, bytes]:
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
        head, _, rest = text[text.index("<svg") :].partition("<metadata>")
        text = head + rest.partition("</metadata>")[2]
        return text, png.getvalue()


def shown(name: str, most: int = 26) -> str:
    """Return a name from outside as one printable line of at most ``most`` characters."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    plain = f" {plain}" if plain.startswith("_") else plain  # matplotlib leaves such names out of legends
    return plain if len(plain) <= most else f"{plain[: most - most // 2 - 1]}…{plain[-(most // 2) :]}"


def distinct(names: Sequence[str], most: int = 26) -> list[str]:
    """Shorten names as `shown` does, and keep them distinct: similar names keep the part in which they differ."""
    texts = [shown(name, most) for name in names]
    same: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        same.setdefault(text, []).append(index)
    for group in same.values():
        if len(group) > 1:
            parts = _differing_parts([names[index] for index in group], most)
            for number, (index, text) in enumerate(zip(group, parts, strict=True), 1):
                texts[index] = text if text not in texts else f"{shown(text, most - 4)} #{number}"
    return texts


def _differing_parts(names: Sequence[str], most: int) -> list[str]:
    """Return the part of each name that differs from the others, with as much around it as fits."""
    head = _common_prefix(names)
    tail = _common_prefix([name[head:][::-1] for name in names])
    longest = max(len(name) for name in names) - head - tail
    around = max(0, (most - 2 - longest) // 2)
    begin = max(0, head - around)
    end = max(0, tail - around)
    return [shown(f"{'…' if begin else ''}{name[begin : len(name) - end]}{'…' if end else ''}", most) for name in names]


def _common_prefix(names: Sequence[str]) -> int:
    """Return the length of the common prefix."""
    ends = (index for index, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1)
    return next(ends, min(map(len, names)))


def colors_of(names: Sequence[str]) -> list[str]:
    """Return a colour for each of at most eight names."""
    taken = {_KNOWN[name] for name in names if name in _KNOWN}
    free = iter([color for color in COLORS if color not in taken] + [COLORS[-1]] * len(names))
    last = len(names) - 1
    return [
        _KNOWN[name] if name in _KNOWN else COLORS[-1] if index == last == len(COLORS) - 1 else next(free)
        for index, name in enumerate(names)
    ]


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Add a legend of the lines and areas of ``axes`` below the figure, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0) + 6
    columns = min(columns, max(1, len(labels)), max(1, int(figure.get_figwidth() * _LEGEND_CHARACTERS) // longest))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=8.5)


def units(axis: Any, unit: str) -> None:
    """Format ticks with SI prefixes: 2 GB, 30 k. Only bytes have a unit."""
    from matplotlib.ticker import EngFormatter

    if unit in ("B", "B/s", "requests/s", "1/s"):
        axis.set_major_formatter(EngFormatter(unit if unit.startswith("B") else "", sep=" "))


def whole_numbers(axis: Any, bins: int = 6) -> None:
    """Put ticks at whole numbers only, for counts."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(bins, integer=True))


def percent(share: float) -> str:
    """Format a share as ``31 %``, with one decimal near 0 % and 100 %."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def feature_bounds(axes: Any, names: Sequence[str], width: int) -> None:
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

"""The plots of the report, each as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ciml.cli.demo.report.result import (
    AccountingLine,
    Confusion,
    DemoResult,
    PredictionLine,
    Profile,
    SpanLine,
    VersionLine,
)
from ciml.reports.drawing import PALETTE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {
    "run": "#0072B2",
    "repeat": "#56B4E9",
    "correction": "#009E73",
    "ignored": "#999999",
    "dead_letter": "#D55E00",
    "deferred": "#E69F00",
}


def draw(result: DemoResult) -> dict[str, str]:
    """Return name -> SVG of every plot that the result has data for."""
    plots: dict[str, Callable[[], str]] = {}
    if result.accounting:
        plots["accounting"] = lambda: accounting(result.accounting)
    if result.spans:
        plots["spans"] = lambda: spans(result.spans)
    if result.profiles:
        plots["profiles"] = lambda: profiles(result.profiles, result.profile_column, result.profile_interval_s)
    if result.versions:
        plots["versions"] = lambda: versions(result.versions)
    for number, confusion in enumerate(result.confusions):
        plots[f"confusion{number}"] = lambda confusion=confusion: confusion_matrix(confusion)  # type: ignore[misc]
    if any(line.latencies_ms for line in result.predictions):
        plots["latency"] = lambda: latency(result.predictions)
    return {name: plot() for name, plot in plots.items()}


def _svg(width: float, height: float, paint: Callable[[Axes], None]) -> str:
    """Return the drawing of ``paint`` as an SVG element, without matplotlib's global state, dates or ids."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    head, _, rest = text.partition("<metadata>")
    return head + rest.partition("</metadata>")[2]


def accounting(lines: Sequence[AccountingLine]) -> str:
    """Plot one bar for each (class, reason), on a scale that shows both 3 and 700."""

    def paint(axes: Axes) -> None:
        names = [
            f"{line.kind.replace('_', ' ')}{': ' + line.reason.replace('_', ' ') if line.reason else ''}"
            for line in lines
        ]
        y = list(range(len(lines)))[::-1]
        counts = [line.counted for line in lines]
        axes.barh(y, counts, color=[KINDS.get(line.kind, "#666666") for line in lines], height=0.7)
        expected = [line.expected for line in lines]
        axes.plot(expected, y, "|", color="black", markersize=13, markeredgewidth=1.5, label="expected")
        for position, count in zip(y, counts, strict=True):
            axes.annotate(f"{count}", (max(count, 0.8), position), (7, 0), textcoords="offset points", va="center")
        axes.set_yticks(y, names)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, max([*counts, *expected, 1]) * 2.2)
        axes.set_xlabel("(event, run), logarithmic")
        axes.grid(False, axis="y")
        axes.legend(loc="lower right")

    return _svg(5.6, 0.6 + 0.27 * max(len(lines), 3), paint)


def spans(lines: Sequence[SpanLine]) -> str:
    """Plot class counts by span, stacked, of the first data set (all select nearly the same runs)."""

    def paint(axes: Axes) -> None:
        mine = [line for line in lines if line.dataset == lines[0].dataset]
        classes = sorted({name for line in mine for name in line.classes})
        labels = [f"span {line.span}" + (f" v{line.version}" if line.version > 1 else "") for line in mine]
        bottom = [0] * len(mine)
        for color, name in zip(PALETTE, classes, strict=False):
            counts = [line.classes.get(name, 0) for line in mine]
            axes.bar(labels, counts, 0.65, bottom=bottom, color=color, label=name)
            for x, (count, base) in enumerate(zip(counts, bottom, strict=True)):
                if count:
                    axes.annotate(f"{count}", (x, base + count / 2), ha="center", va="center", color="white")
            bottom = [base + count for base, count in zip(bottom, counts, strict=True)]
        axes.set_ylabel("runs")
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(5.4, 3.0, paint)


def profiles(lines: Sequence[Profile], column: str, interval_s: float) -> str:
    """Plot the mean course of one column by provider."""

    def paint(axes: Axes) -> None:
        for color, line in zip(PALETTE, lines, strict=False):
            times = [interval_s * window for window in range(len(line.means))]
            axes.plot(times, line.means, color=color, label=f"{line.provider} ({line.runs})", linewidth=1.8)
        axes.set_xlabel("seconds from the first sample")
        axes.set_ylabel(column)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(6.4, 3.0, paint)


def versions(lines: Sequence[VersionLine]) -> str:
    """Plot accuracy with its interval by refresh, beside the base rate and the one-number baseline."""

    def paint(axes: Axes) -> None:
        models = list(dict.fromkeys(line.model for line in lines))
        ticks: dict[int, str] = {}
        start = 0
        for color, model in zip(PALETTE, models, strict=False):
            mine = [line for line in lines if line.model == model]
            positions = list(range(start, start + len(mine)))
            for x, line in zip(positions, mine, strict=True):
                ticks[x] = f"v{line.version}" + ("" if line.verdict == "pushed" else "\nkept")
                axes.plot([x - 0.3, x + 0.3], [line.base_rate] * 2, color="#888888", linewidth=2, linestyle=":")
                if line.one_number is not None:
                    axes.plot([x - 0.3, x + 0.3], [line.one_number] * 2, color="#D55E00", linewidth=2)
            middle = [line.accuracy for line in mine]
            low = [line.accuracy - line.low for line in mine]
            high = [line.high - line.accuracy for line in mine]
            axes.errorbar(positions, middle, yerr=[low, high], color=color, fmt="o-", capsize=4, label=model)
            for x, line in zip(positions, mine, strict=True):
                axes.annotate(f"{line.accuracy:.2f}", (x, line.low), (0, -13), textcoords="offset points", ha="center")
            start += len(mine) + 1
        axes.plot([], [], color="#888888", linewidth=2, linestyle=":", label="base rate")
        axes.plot([], [], color="#D55E00", linewidth=2, label="one number")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlim(-0.6, start - 1.2)
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("accuracy on held-out runs")
        axes.grid(False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(7.2, 3.2, paint)


def confusion_matrix(confusion: Confusion) -> str:
    """Plot counts, coloured by the share of the true class."""

    def paint(axes: Axes) -> None:
        size = list(range(len(confusion.classes)))
        shares = [[count / max(sum(row), 1) for count in row] for row in confusion.counts]
        axes.pcolormesh(size, size, shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", shading="nearest")
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for row in size:
            for column in size:
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.annotate(f"{confusion.counts[row][column]}", (column, row), ha="center", va="center", color=color)
        axes.set_xticks(size, confusion.classes)
        axes.set_yticks(size, confusion.classes)
        axes.set_xlabel("predicted")
        axes.set_ylabel("recorded")
        axes.set_title(f"{confusion.model} v{confusion.version}", fontsize=10)
        axes.grid(False)

    return _svg(3.5, 3.3, paint)


def latency(lines: Sequence[PredictionLine]) -> str:
    """Plot the latency of predictions, on a logarithmic scale."""

    def paint(axes: Axes) -> None:
        values = [value for line in lines for value in line.latencies_ms if value > 0]
        low = min(values)
        high = max(values) * 1.01
        edges = [low * (high / low) ** (step / 40) for step in range(41)] if high > low else [low * 0.9, low * 1.1]
        for color, line in zip(PALETTE, lines, strict=False):
            if line.latencies_ms:
                axes.hist(line.latencies_ms, bins=edges, color=color, histtype="step", linewidth=1.6, label=line.model)
                axes.axvline(line.p99_ms, color=color, linestyle="--", linewidth=1, label=f"p99 {line.p99_ms:,.0f} ms")
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds, logarithmic")
        axes.set_ylabel("predictions")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(6.4, 2.8, paint)

"""The picture of a run: a small SVG with the series of the run as lines over the band of passing runs.

It is inert: it has no script, link or style sheet, and no text from outside, because names and units are those of
`SERIES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

import numpy as np

from ciml.transforms.profiles import (
    MIN_RUNS,
    SERIES,
    Departure,
    Range,
    WindowMeans,
    departures,
    length_s,
    window_means,
    window_of,
)
from ciml.verdicts.evidence.observe import Subject, quantity, span

#: Series of a picture where no others are asked for.
_DEFAULT_SERIES = ("total cpu usage:usr", "load avg:1m", "memory usage:used")
MAX_PANELS = 3
#: Points of a line: with three panels and two lines each, a picture has 12 kB at most.
_POINTS = 150
_INK = "#1f2933"
_PALE = "#9aa5b1"
_BAND = "#cfe3f5"
_MARK = "#f5c6bc"
# Lengths in pixels: the picture and its margins, and from top to bottom title and plot of each panel, and the axis.
_WIDTH = 640
_LEFT = 70
_RIGHT = 14
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_TOP = 26
_TITLE = 20
_PLOT = 78
_AXIS = 44


def draw(subject: Subject, columns: Iterable[str] = ()) -> str:
    """Draw a run as SVG, below 20 kB.

    Args:
      subject: the run.
      columns: full names of the series to draw, the first first; others of the table follow, to three.

    Returns:
      The document; "" if the run has none of these series.
    """
    drawn = _drawn_columns(subject, columns)
    if not drawn:
        return ""
    length = length_s(subject.table)
    comparable = subject.profile.runs >= MIN_RUNS
    end_s = max(length, subject.profile.length_s[2] if comparable else 0.0, 1.0)
    height = _TOP + len(drawn) * (_TITLE + _PLOT) + _AXIS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Telemetry of the run next to that of passing runs</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(subject, comparable),
    ]
    deviations = departures(subject.table, subject.profile)
    for number, column in enumerate(drawn):
        top = _TOP + number * (_TITLE + _PLOT)
        parts += _panel(subject, column, top, end_s, deviations)
    parts += _axis(height - _AXIS, end_s, length, subject.profile.length_s if comparable else None)
    return "\n".join([*parts, "</svg>", ""])


def _drawn_columns(subject: Subject, columns: Iterable[str]) -> list[str]:
    """Return the known series with values in the run: those that are asked for, then others, at most `MAX_PANELS`."""
    drawn: list[str] = []
    for column in dict.fromkeys([*columns, *_DEFAULT_SERIES]):
        if column in SERIES and column in subject.table.column_names and len(drawn) < MAX_PANELS:
            means = window_means(subject.table, [column], window_of(length_s(subject.table))).means[column]
            if np.isfinite(means).any():
                drawn.append(column)
    return drawn


def _legend(subject: Subject, comparable: bool) -> list[str]:
    line = f'<path d="M{_LEFT} 12h18" stroke="{_INK}" stroke-width="2"/>'
    parts = [line, _text(_LEFT + 24, 16, "this run")]
    if comparable:
        whose = "" if subject.profile.job else " of all jobs"
        band = f"{subject.profile.runs} passing runs{whose}, 5 to 95 %"
        parts += [_rect(_LEFT + 90, 6, 18, 12, _BAND), _text(_LEFT + 114, 16, band)]
        parts += [_rect(_LEFT + 390, 6, 18, 12, _MARK), _text(_LEFT + 414, 16, "outside")]
    return parts


def _panel(subject: Subject, column: str, top: int, end_s: float, deviations: Iterable[Departure]) -> list[str]:
    """Draw one series: the windows outside of the passing range, the band, and a fine and a coarse line."""
    series = SERIES[column]
    length = length_s(subject.table)
    window_s = window_of(length)
    usual = subject.profile.ranges(window_s).get(column) if subject.profile.runs >= MIN_RUNS else None
    fine_s = max(1, math.ceil(length / _POINTS))
    coarse_s = window_s * max(1, math.ceil(length / window_s / _POINTS))
    fine = window_means(subject.table, [column], fine_s)
    coarse = window_means(subject.table, [column], coarse_s)
    largest = _largest(column, fine, coarse, usual)
    base = top + _TITLE + _PLOT - 6
    scale = (_PLOT - 8) / largest

    def y(value: float) -> float:
        return base - min(max(value, 0.0), largest) * scale

    def x(seconds: float) -> float:
        return _LEFT + seconds / end_s * _PLOT_WIDTH

    def line(windows: WindowMeans, step_s: int, colour: str, stroke: float) -> str:
        path = ""
        for start_s, mean in zip(windows.seconds.tolist(), windows.means[column].tolist(), strict=True):
            if np.isfinite(mean):
                stop_s = min(start_s + step_s, max(length, 1.0))
                path += f"{'L' if path else 'M'}{x(start_s):.0f} {y(mean):.0f}H{x(stop_s):.0f}"
        return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'

    words = series.words.removeprefix("the ")
    parts = [_text(_LEFT, top + 14, words[:1].upper() + words[1:])]
    for departure in deviations:
        if departure.column == column:
            start = x(departure.from_s)
            width = max(x(min(departure.until_s, length)) - start, 1.0)
            parts.append(_rect(start, y(largest), width, base - y(largest), _MARK))
    if usual is not None:
        parts.append(_rect(_LEFT, y(usual[2]) - 0.5, _PLOT_WIDTH, y(usual[0]) - y(usual[2]) + 1, _BAND))
    return [
        *parts,
        f'<path d="M{_LEFT} {base}H{_WIDTH - _RIGHT}" stroke="{_PALE}"/>',
        line(fine, fine_s, _PALE, 1.0),
        line(coarse, coarse_s, _INK, 1.8),
        _text(_LEFT - 6, y(largest) + 9, quantity(largest, series.unit), "end"),
        _text(_LEFT - 6, base + 3, quantity(0.0, series.unit) if series.unit == "%" else "0", "end"),
    ]


def _largest(column: str, fine: WindowMeans, coarse: WindowMeans, usual: Range | None) -> float:
    """Return the value at which the scale of a panel ends."""
    series = SERIES[column]
    highest = float(np.nanmax(coarse.means[column]))
    if usual is not None:
        highest = max(highest, usual[2])
    if series.unit == "%" and highest > 50:
        return 100.0
    # A peak of more than twice all else is cut off, so that the rest remains visible.
    peak = min(float(np.nanmax(fine.means[column])), 2 * highest) if highest > 0 else 0.0
    return _round_up(max(highest, peak, series.noise))


def _round_up(value: float) -> float:
    """Return the next value with which a scale may end, such as 200 for 186."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return power * next(step for step in steps if step * power >= value * 0.999)


def _axis(top: int, end_s: float, length: float, lengths: Range | None) -> list[str]:
    """Draw the axis of time, the end of the run, and the range in which passing runs end."""
    parts = [_text(_LEFT, top + 12, "0"), _text(_WIDTH - _RIGHT, top + 12, span(end_s), "end")]
    end_x = _LEFT + length / end_s * _PLOT_WIDTH
    parts.append(f'<path d="M{end_x:.0f} {_TOP}V{top}" stroke="{_INK}" stroke-dasharray="3 3"/>')
    if length < 0.85 * end_s:
        parts.append(_text(end_x, top + 12, f"ended: {span(length)}", "start" if length < end_s / 2 else "end"))
    if lengths is not None:
        low = _LEFT + lengths[0] / end_s * _PLOT_WIDTH
        high = _LEFT + lengths[2] / end_s * _PLOT_WIDTH
        parts.append(_rect(low, top + 20, max(high - low, 2.0), 6, _BAND))
        middle = min(max((low + high) / 2, _LEFT + 60), _WIDTH - _RIGHT - 60)
        parts.append(_text(middle, top + 38, "passing runs end", "middle"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'

"""The evidence of a stored prediction: its run is read again, and its picture is stored next to the prediction.

The picture is a small SVG with the series of the run as lines over the band of passing runs. It is inert: it has no
script, link or style sheet, and no text from outside, because names and units are those of `SERIES`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from typing import Any

import msgspec
import numpy as np

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.runs.known_subjects import with_claims
from ciml.runs.latest_runs import entries_of, row_of
from ciml.runs.reader import read_run
from ciml.runs.state import open_raw
from ciml.serving.predict.log import prediction_id
from ciml.serving.registry import Registry
from ciml.telemetry import BOOT, TIME
from ciml.transforms.profiles import (
    MIN_RUNS,
    SERIES,
    Departure,
    Profile,
    Profiles,
    departures,
    length_s,
    window_means,
    window_of,
)
from ciml.verdict_rules import PROFILES, exit_status_of
from ciml.verdicts.evidence.check import follows
from ciml.verdicts.evidence.observe import Subject, observations, quantity, span

_log = logging.getLogger(__name__)

#: Sentences of a message: more would not be read.
MAX_OBSERVATIONS = 3
_ID = re.compile(r"[0-9a-f]{32}")
_NONE = Profiles({}, Profile("", 0, (0.0, 0.0, 0.0), {}))
#: Series of a picture where no others are asked for.
_USUAL = ("total cpu usage:usr", "load avg:1m", "memory usage:used")
MAX_PANELS = 3
_WIDTH = 640
_LEFT = 70
_RIGHT = 14
_TOP = 26
_TITLE = 20
_PLOT = 78
_AXIS = 44
#: Points of a line: with three panels and two lines each, a picture has 12 kB at most.
_POINTS = 150
_INK = "#1f2933"
_PALE = "#9aa5b1"
_BAND = "#cfe3f5"
_MARK = "#f5c6bc"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run shows.

    Attributes:
      observations: at most three sentences, the most telling first. Each number follows from the run's telemetry, its
        facts, or the passing profile. Names from outside are in none of them.
      picture: path of an SVG below `DataRoot.predictions`; "" where there is nothing to draw.
      job: whose passing runs it was compared with; "" for those of all jobs.
      runs: number of these passing runs.
      dropped: sentences that did not follow when they were computed a second time: an error of ciml.
      length_s: from the run's first sample to its last.
      same_place: number of these passing runs on the run's kind of machine; None where the profile does not say it.
    """

    observations: tuple[str, ...]
    picture: str = ""
    job: str = ""
    runs: int = 0
    dropped: tuple[str, ...] = ()
    length_s: float = 0.0
    same_place: int | None = None


def evidence_of(data: DataRoot, prediction: Mapping[str, Any]) -> Evidence:
    """Compute the evidence of a prediction, and store its picture.

    Args:
      data: the data root of the prediction.
      prediction: its record, with ``run``.

    Raises:
      IntegrityError: the record is malformed, or the run or the model's profiles are missing or damaged.
      EngineError: the store does not answer.

    Example:
      >>> evidence_of(data, prediction).observations  # doctest: +SKIP
      ('It reached its time limit after 76 s; passing runs take 13 to 32 s.',)
    """
    try:
        facts = RunFacts.from_json(prediction["run"])
        model = str(prediction["model"])
        version = int(prediction["version"])
        path = prediction.get("path") or _path_of(data, facts.run_id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a prediction cannot be read for its evidence: {error!r:.200}") from None
    table = read_run(data.raw, path, columns=[TIME, BOOT, *SERIES])
    if not table.num_rows:
        raise IntegrityError(f"run {facts.run_id} has no samples")
    profile = profiles_of_version(data, model, version).of(facts.build_name)
    subject = Subject.of(facts, table, profile, _claimed(data, facts))
    evidence, picture = evidence_for(subject)
    if not picture:
        return evidence
    name = prediction.get("id", "")
    if not _ID.fullmatch(name):
        name = prediction_id(facts.run_id, model, version)
    data.evidence.replace(f"{name[:2]}/{name}.svg", picture.encode())
    return replace(evidence, picture=f"evidence/{name[:2]}/{name}.svg")


def evidence_for(subject: Subject) -> tuple[Evidence, str]:
    """Return the evidence of a run without a stored picture, and the picture as SVG ("" for none)."""
    candidates = observations(subject)
    confirmed = [observation for observation in candidates if follows(observation.text, subject)]
    dropped = tuple(observation.text for observation in candidates if observation not in confirmed)
    if dropped:
        _log.warning("evidence that does not follow from its run was dropped: %s", "; ".join(dropped))
    chosen = confirmed[:MAX_OBSERVATIONS]
    picture = draw(subject, [observation.column for observation in chosen if observation.column])
    profile = subject.profile
    places = profile.places
    same_place = None if places is None else places.get(subject.place, 0)
    evidence = Evidence(
        tuple(observation.text for observation in chosen),
        "",
        profile.job,
        profile.runs,
        dropped,
        length_s(subject.table),
        same_place,
    )
    return evidence, picture


def _claimed(data: DataRoot, facts: RunFacts) -> RunFacts | None:
    """Return a run's facts with what events claim that are believed less, such as its recorder's.

    None where the run's own event reports how its command ended: then nothing else is asked for.
    """
    if exit_status_of(facts.labels) is not None:
        return None
    _, state = open_raw(data.raw)
    return with_claims(facts, state.index.subjects.claims(facts.run_id))


def _path_of(data: DataRoot, run_id: str) -> str:
    """Return the path of a run whose prediction does not name it: the raw manifest is searched."""
    log = ManifestLog(data.raw)
    row = row_of(entries_of(log, log.end(), run_id))
    if row is None:
        raise IntegrityError(f"run {run_id} is in no manifest of {data.raw.url()}")
    path: str = row.record["file"]["path"]
    return path


@lru_cache(maxsize=8)
def profiles_of_version(data: DataRoot, model: str, version: int) -> Profiles:
    """Return the passing profiles in a model's assets; none where it has no such file."""
    registry = Registry(data, model)
    if f"assets/{PROFILES}" not in registry.state.files(version):
        return _NONE
    where = f"model {model}, version {version}: assets/{PROFILES}"
    try:
        return Profiles.from_json(msgspec.json.decode(registry.read_asset(version, PROFILES)), where)
    except (CimlError, msgspec.DecodeError) as error:
        raise IntegrityError(f"{where}: no passing profiles: {error}") from None


def draw(subject: Subject, columns: Iterable[str] = ()) -> str:
    """Draw a run as SVG, below 20 kB.

    Args:
      subject: the run.
      columns: full names of the series to draw, the first first; others of the table follow, to three.

    Returns:
      The document; "" where the run has none of these series.
    """
    length = length_s(subject.table)
    panels = list[str]()
    for column in dict.fromkeys([*columns, *_USUAL]):
        if column in SERIES and column in subject.table.column_names and len(panels) < MAX_PANELS:
            values = window_means(subject.table, [column], window_of(length)).means[column]
            if np.isfinite(values).any():
                panels.append(column)
    if not panels:
        return ""
    comparable = subject.profile.runs >= MIN_RUNS
    end = max(length, subject.profile.length_s[2] if comparable else 0.0, 1.0)
    deviations = departures(subject.table, subject.profile)
    height = _TOP + len(panels) * (_TITLE + _PLOT) + _AXIS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11" role="img">',
        "<title>Telemetry of the run beside that of passing runs</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(subject, comparable),
    ]
    for number, column in enumerate(panels):
        top = _TOP + number * (_TITLE + _PLOT)
        parts += _panel(
            subject, column, top, end, [deviation for deviation in deviations if deviation.column == column]
        )
    parts += _axis(height - _AXIS, end, length, subject.profile.length_s if comparable else None)
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{_INK}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _legend(subject: Subject, comparable: bool) -> list[str]:
    line = f'<path d="M{_LEFT} 12h18" stroke="{_INK}" stroke-width="2"/>'
    parts = [line, _text(_LEFT + 24, 16, "this run")]
    if comparable:
        whose = "" if subject.profile.job else " of all jobs"
        band = f"{subject.profile.runs} passing runs{whose}, 5 to 95 %"
        parts += [_rect(_LEFT + 90, 6, 18, 12, _BAND), _text(_LEFT + 114, 16, band)]
        parts += [_rect(_LEFT + 390, 6, 18, 12, _MARK), _text(_LEFT + 414, 16, "outside")]
    return parts


def _panel(subject: Subject, column: str, top: int, end: float, left: Sequence[Departure]) -> list[str]:
    series = SERIES[column]
    length = length_s(subject.table)
    seconds = window_of(length)
    usual = subject.profile.ranges(seconds).get(column) if subject.profile.runs >= MIN_RUNS else None
    fine = window_means(subject.table, [column], max(1, int(np.ceil(length / _POINTS))))
    coarse_s = seconds * max(1, int(np.ceil(length / seconds / _POINTS)))
    coarse = window_means(subject.table, [column], coarse_s)
    shown = [float(np.nanmax(coarse.means[column])), *([usual[2]] if usual else [])]
    # A moment above twice of all else is cut off, so that the rest stays visible.
    peak = min(float(np.nanmax(fine.means[column])), 2 * max(shown)) if max(shown) > 0 else 0.0
    largest = 100.0 if series.unit == "%" and max(shown) > 50 else _round_up(max(*shown, peak, series.noise))
    base = top + _TITLE + _PLOT - 6
    scale = (_PLOT - 8) / largest

    def y(value: float) -> float:
        return base - min(max(value, 0.0), largest) * scale

    width = _WIDTH - _LEFT - _RIGHT
    words = series.words.removeprefix("the ")
    parts = [_text(_LEFT, top + 14, words[:1].upper() + words[1:])]
    for departure in left:
        start = departure.from_s / end * width
        stop = min(departure.until_s, length) / end * width
        parts.append(_rect(_LEFT + start, y(largest), max(stop - start, 1.0), base - y(largest), _MARK))
    if usual is not None:
        parts.append(_rect(_LEFT, y(usual[2]) - 0.5, width, y(usual[0]) - y(usual[2]) + 1, _BAND))
    parts.append(f'<path d="M{_LEFT} {base}H{_WIDTH - _RIGHT}" stroke="{_PALE}"/>')
    for values, step, colour, stroke in (
        (fine, max(1, int(np.ceil(length / _POINTS))), _PALE, 1.0),
        (coarse, coarse_s, _INK, 1.8),
    ):
        steps = [
            (_LEFT + start_s / end * width, _LEFT + min(start_s + step, max(length, 1.0)) / end * width, y(value))
            for start_s, value in zip(values.seconds.tolist(), values.means[column].tolist(), strict=True)
            if np.isfinite(value)
        ]
        path = "".join(f"{'M' if not number else 'L'}{a:.0f} {c:.0f}H{b:.0f}" for number, (a, b, c) in enumerate(steps))
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>')
    parts += [
        _text(_LEFT - 6, y(largest) + 9, quantity(largest, series.unit), "end"),
        _text(_LEFT - 6, base + 3, quantity(0.0, series.unit) if series.unit == "%" else "0", "end"),
    ]
    return parts


def _round_up(value: float) -> float:
    """Return the next value with which a scale may end, such as 200 for 186."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(
        power * next(step for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)
    )


def _axis(top: int, end: float, length: float, lengths: tuple[float, float, float] | None) -> list[str]:
    width = _WIDTH - _LEFT - _RIGHT
    parts = [_text(_LEFT, top + 12, "0"), _text(_WIDTH - _RIGHT, top + 12, span(end), "end")]
    end_x = _LEFT + length / end * width
    parts.append(f'<path d="M{end_x:.0f} {_TOP}V{top}" stroke="{_INK}" stroke-dasharray="3 3"/>')
    if length < 0.85 * end:
        parts.append(_text(end_x, top + 12, f"ended: {span(length)}", "start" if length < end / 2 else "end"))
    if lengths is not None:
        low = _LEFT + lengths[0] / end * width
        high = _LEFT + lengths[2] / end * width
        parts.append(_rect(low, top + 20, max(high - low, 2.0), 6, _BAND))
        middle = min(max((low + high) / 2, _LEFT + 60), _WIDTH - _RIGHT - 60)
        parts.append(_text(middle, top + 38, "passing runs end", "middle"))
    return parts

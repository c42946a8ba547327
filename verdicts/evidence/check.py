"""The second computation of every number that is said of a run: from the text of its sentence, back to the telemetry.

It shares no code with the first: it reads the numbers out of the sentence, and computes each by Arrow's functions from
the stored table. A sentence that it cannot read, or with a number that does not follow, is not said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ciml.transforms.profiles import MIN_RUNS, SERIES
from ciml.verdicts.evidence.observe import Subject

_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS = {"s": 1, "min": 60, "h": 3600, "%": 1, "": 1, "/s": 1, **_BYTES} | {
    f"{unit}/s": scale for unit, scale in _BYTES.items()
}
_NUMBER = r"-?[0-9]+(?:\.[0-9])?"
_UNIT = r"(?: ?(?:%|s|min|h|/s|[kMGT]B(?:/s)?))?"
_VALUE = rf"({_NUMBER}{_UNIT})"
_RANGE = rf"({_NUMBER}(?: to {_NUMBER})?{_UNIT})"
_WHEN = r"(?:(?:second|minute) [0-9]+)"
_OTHERS = r"passing runs(?: of all jobs)?"
_WORDS = "|".join(re.escape(series.words) for series in SERIES.values())
_COLUMNS = {series.words: name for name, series in SERIES.items()}
_LARGEST = 1e18
_INFINITE = float("inf")
_NEVER = float("nan")


class _Said(NamedTuple):
    """A quantity of a sentence: its value, and how far the true one may be from it."""

    value: float
    within: float

    def fits(self, true: float | None) -> bool:
        return true is not None and abs(true - self.value) <= self.within * 1.000001 + 1e-9 * abs(true)


def follows(text: str, subject: Subject) -> bool:
    """Return whether a sentence of `ciml.verdicts.evidence.observe` follows from the run and its profile, number by
    number.

    Args:
      text: the sentence.
      subject: the run, as it was observed.
    """
    for pattern, check in _SENTENCES:
        if (match := pattern.fullmatch(text)) is not None:
            return check(match.groups(), subject)
    return False


def _said(text: str) -> _Said:
    digits, unit = re.fullmatch(rf"({_NUMBER}) ?(.*)", text).groups()  # type: ignore[union-attr]  # by its pattern
    scale = _UNITS[unit]
    # Numbers below 10 have a decimal, which is left out where it is 0; percentages have none.
    step = 0.1 if abs(float(digits)) < 10 and unit not in ("%",) else 1.0
    return _Said(float(digits) * scale, step * scale / 2)


def _said_range(text: str) -> tuple[_Said, _Said]:
    low, _, high = text.partition(" to ")
    if not high:
        return _said(low), _said(low)
    unit = re.sub(rf"^{_NUMBER}", "", high)
    return _said(low + unit), _said(high)


def _seconds(table: pa.Table) -> pa.Array:
    times = table.column("time").cast(pa.int64())
    return pc.divide(pc.cast(pc.subtract(times, pc.min(times)), pa.float64()), 1e6)


def _length(subject: Subject) -> float:
    return float(pc.max(_seconds(subject.table)).as_py() or 0.0)


def _valid(subject: Subject, column: str) -> pa.ChunkedArray:
    """Return a column with nulls for all that is no measurement of the run, samples since the boot included."""
    values = subject.table.column(column)
    valid = pc.fill_null(pc.less_equal(pc.abs(values), _LARGEST), False)  # NaN is not
    if "boot" in subject.table.column_names:
        valid = pc.and_not(valid, pc.fill_null(subject.table.column("boot"), False))
    return pc.if_else(valid, values, None)


def _mean(subject: Subject, column: str, start_s: float, end_s: float = _INFINITE) -> float | None:
    """Return the mean of a column from ``start_s`` until before ``end_s``; None where it has no values."""
    if column not in subject.table.column_names:
        return None
    seconds = _seconds(subject.table)
    chosen = pc.and_(pc.greater_equal(seconds, start_s), pc.less(seconds, end_s))
    mean: float | None = pc.mean(_valid(subject, column).filter(pc.fill_null(chosen, False))).as_py()
    return mean


def _step(subject: Subject) -> int:
    return 5 if _short(subject) else 60


def _window(
    subject: Subject, column: str, before_s: float = _INFINITE, from_s: float = 0
) -> tuple[float, float] | None:
    """Return start and mean of the first window with values from ``from_s``, or of the last before ``before_s``."""
    seconds = _seconds(subject.table)
    step = _step(subject)
    chosen = pc.and_(pc.less(seconds, before_s), pc.greater_equal(seconds, from_s))
    candidates = seconds.filter(pc.fill_null(pc.and_(chosen, pc.is_valid(_valid(subject, column))), False))
    sample_s = (pc.min(candidates) if before_s == _INFINITE else pc.max(candidates)).as_py()
    mean = None if sample_s is None else _mean(subject, column, sample_s // step * step, (sample_s // step + 1) * step)
    return None if mean is None else (sample_s // step * step, mean)


def _beyond(column: str, usual: tuple[float, float]) -> float:
    return max(SERIES[column].noise, (usual[1] - usual[0]) / 2)


def _is_outside(window: tuple[float, float] | None, column: str, usual: tuple[float, float], above: bool) -> bool:
    if window is None:
        return False
    beyond = _beyond(column, usual)
    return window[1] > usual[1] + beyond if above else window[1] < usual[0] - beyond


def _short(subject: Subject) -> bool:
    return _length(subject) < 180


def _usual(subject: Subject, column: str) -> tuple[float, float] | None:
    usual = (subject.profile.short if _short(subject) else subject.profile.columns).get(column)
    return None if usual is None else (usual[0], usual[2])


def _is_usual(text: str | None, usual: tuple[float, float] | None, subject: Subject) -> bool:
    """Return whether the passing range was said as it is; a sentence without one follows only from too few runs."""
    if text is None:
        return subject.profile.runs < MIN_RUNS
    if usual is None or subject.profile.runs < MIN_RUNS:
        return False
    low, high = _said_range(text)
    return low.fits(usual[0]) and high.fits(usual[1])


def _moment(text: str | None, subject: Subject) -> float:
    """Return the seconds of ``second 12`` or ``minute 3``; NaN, which fits nothing, where the run is said otherwise."""
    word, _, number = (text or "").partition(" ")
    if word != ("second" if _short(subject) else "minute"):
        return _NEVER
    return int(number) * (1 if word == "second" else 60)


def _check_end(parts: tuple[Any, ...], subject: Subject) -> bool:
    verb, status, claimed, after, usual = parts
    low, _, high = subject.profile.length_s
    length = _length(subject)
    if not _said(after).fits(length) or not _is_usual(usual, (low, high), subject):
        return False
    if status is not None:
        number = subject.exit_status
        is_whose = (claimed is not None) == subject.claimed
        return is_whose and number == int(status) and verb in (f"was ended by {_signal(number)} ",)
    return {
        "reached its time limit ": subject.outcome == "timeout",
        "took ": length > high and usual is not None,
        "ended ": length < low and usual is not None,
    }[verb]


def _signal(status: int) -> str:
    names = {134: "SIGABRT", 135: "SIGBUS", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM", 152: "SIGXCPU"}
    return names.get(status if status > 0 else 128 - status, "")


def _check_idle(parts: tuple[Any, ...], subject: Subject) -> bool:
    nothing, lasting, idle, usual = parts
    column = "total cpu usage:idl"
    duration = _said(lasting)
    step = _step(subject)
    usual_idle = _usual(subject, column)
    if usual_idle is None or not _is_usual(usual, usual_idle, subject):
        return False
    least = max(85.0, usual_idle[1] + _beyond(column, usual_idle))
    windows = pc.cast(pc.floor(pc.divide(_seconds(subject.table), float(step))), pa.int64())
    pairs = (
        pa.table({"window": windows, "idle": _valid(subject, column)}).group_by("window").aggregate([("idle", "mean")])
    )
    means = pairs.column("idle_mean")
    busy = pairs.filter(pc.fill_null(pc.less(means, least), True)).column("window")
    begin = 0 if not len(busy) else (pc.max(busy).as_py() + 1) * step
    mean = _mean(subject, column, begin)
    written = _mean(subject, "dsk/total:writ", begin)
    quiet = nothing is None or (written is not None and written < 20_000)
    return quiet and mean is not None and duration.fits(_length(subject) - begin) and _said(idle).fits(mean)


def _check_run_out(parts: tuple[Any, ...], subject: Subject) -> bool:
    words, free_text, total_text, when = parts
    group, free_column = ("memory usage", "avai") if words == "Memory available" else ("/", "free")
    table = subject.table
    if "boot" in table.column_names:
        table = table.filter(pc.invert(pc.fill_null(table.column("boot"), False)))
    free_values = table.column(f"{group}:{free_column}")
    used_values = table.column(f"{group}:used")
    both = pc.add(free_values, used_values)
    valid = pc.and_(pc.greater_equal(free_values, 0), pc.less_equal(pc.abs(both), 2 * _LARGEST))
    shares = pc.if_else(pc.fill_null(pc.and_(valid, pc.greater(both, 0)), False), pc.divide(free_values, both), 1.0)
    lowest = pc.min(shares).as_py()
    if lowest is None or lowest >= 0.03:
        return False
    row = pc.index(shares, lowest).as_py()
    times = table.column("time").cast(pa.int64())
    second = (times[row].as_py() - pc.min(subject.table.column("time").cast(pa.int64())).as_py()) / 1e6
    start = _moment(when, subject)
    step = 1 if _short(subject) else 60
    fits = _said(free_text).fits(free_values[row].as_py()) and _said(total_text).fits(both[row].as_py())
    return fits and start <= second < start + step


def _check_gap(parts: tuple[Any, ...], subject: Subject) -> bool:
    lasting, when = parts
    start = _moment(when, subject)
    step = 1 if _short(subject) else 60
    seconds = sorted(value for value in _seconds(subject.table).to_pylist() if value is not None)
    before = [value for value in seconds if start <= value < start + step]
    after = [value for value in seconds if before and value > before[-1]]
    return bool(after) and _said(lasting).fits(after[0] - before[-1]) and after[0] - before[-1] > 15


def _check_series(parts: tuple[Any, ...], subject: Subject) -> bool:
    start, end, until, words, value, usual = parts
    column = _COLUMNS[words]
    passing = _usual(subject, column)
    if end is not None:
        end = f"{(start or '').split(' ')[0]} {end}"
    begin = 0.0 if start is None else _moment(start, subject) or _NEVER  # the first window is called otherwise
    last = end if end is not None else until
    stop = _INFINITE if last is None else _moment(last, subject)
    mean = _mean(subject, column, begin, stop)
    if mean is None or passing is None or passing[0] <= mean <= passing[1]:
        return False
    return (
        _said(value).fits(mean)
        and _is_usual(usual, passing, subject)
        and _are_edges(begin, stop, subject, column, passing, mean > passing[1])
    )


def _are_edges(
    begin: float, stop: float, subject: Subject, column: str, usual: tuple[float, float], above: bool
) -> bool:
    """Return whether a series is outside in the windows at both ends, and not in those before and after."""
    first = _window(subject, column, from_s=begin)
    if first is None or first[0] != begin or not _is_outside(first, column, usual, above):
        return False
    if begin and _is_outside(_window(subject, column, before_s=begin), column, usual, above):
        return False
    if stop == _INFINITE:
        return True
    last = _window(subject, column, before_s=stop)
    ends = last is not None and last[0] + _step(subject) == stop and _is_outside(last, column, usual, above)
    return ends and not _is_outside(_window(subject, column, from_s=stop), column, usual, above)


def _check_early_end(parts: tuple[Any, ...], subject: Subject) -> bool:
    early, whose, usual = parts
    last = pc.max(subject.table.column("time").cast(pa.int64())).as_py()
    passing = subject.profile.tail_s
    if subject.end_us is None or last is None or passing is None or bool(whose) == bool(subject.profile.job):
        return False
    tail = (subject.end_us - last) / 1e6
    return _said(early).fits(tail) and tail > passing[2] and _is_usual(usual, (passing[0], passing[2]), subject)


def _check_as_usual(parts: tuple[Any, ...], subject: Subject) -> bool:
    words, runs, whose = parts
    if int(runs) != subject.profile.runs or (whose == "this job") != bool(subject.profile.job):
        return False
    columns = {
        "cpu": "total cpu usage:usr",
        "load": "load avg:1m",
        "memory": "memory usage:used",
        "disk": "dsk/total:writ",
        "network": "net/total:recv",
    }
    for word in re.split(", | and ", words.lower()):
        mean = _mean(subject, columns[word], 0.0)
        passing = _usual(subject, columns[word])
        if mean is None or passing is None or not passing[0] <= mean <= passing[1]:
            return False
    return True


def _check_short(parts: tuple[Any, ...], subject: Subject) -> bool:
    return _said(parts[0]).fits(_length(subject)) and _length(subject) < 10


_Check = Callable[[tuple[Any, ...], Subject], bool]
_SENTENCES: tuple[tuple[re.Pattern[str], _Check], ...] = tuple(
    (re.compile(pattern), check)
    for pattern, check in (
        (
            r"It (reached its time limit |took |ended |was ended by SIG[A-Z]+ )"
            r"(?:\(exit status (-?[0-9]+)(, as its recorder reports)?\) )?"
            rf"(?:after )?{_VALUE}(?:; {_OTHERS} take {_RANGE})?\.",
            _check_end,
        ),
        (
            rf"It was nearly idle( and wrote nothing to disk)? for its last {_VALUE}: idle CPU was {_VALUE}; "
            rf"{_OTHERS} have {_RANGE}\.",
            _check_idle,
        ),
        (rf"(Memory available|Free disk) fell to {_VALUE} of {_VALUE} in ({_WHEN})\.", _check_run_out),
        (rf"No sample was taken for {_VALUE} from ({_WHEN})\.", _check_gap),
        (
            rf"(?:Throughout|From ({_WHEN})(?: to ([0-9]+))?|Until ({_WHEN})), ({_WORDS}) was {_VALUE}; "
            rf"{_OTHERS} have {_RANGE}\.",
            _check_series,
        ),
        (
            rf"Its telemetry ends {_VALUE} before the run did; that of passing runs( of all jobs)? {_RANGE}\.",
            _check_early_end,
        ),
        (r"([A-Za-z, ]+) (?:were|was) as in ([0-9]+) passing runs of (this job|all jobs)\.", _check_as_usual),
        (rf"Its telemetry of {_VALUE} is too short to compare with that of passing runs\.", _check_short),
        (r"Too few passing runs are known to compare it with\.", lambda _, subject: subject.profile.runs < MIN_RUNS),
        (r"Its telemetry says nothing\.", lambda *_: True),
    )
)

"""The second computation of every number in the sentences: from the text of its sentence, back to the telemetry.

It shares no code with the first: it reads the numbers out of the sentence, and computes each by Arrow's functions from
the stored table. A sentence that it cannot read, or with a number that does not follow, is not sent.

Each kind of sentence has one check, under its pattern. *Usual* is the range of the passing runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ciml.transforms.profiles import MIN_RUNS, SERIES
from ciml.verdicts.evidence.observe import Subject

_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS = {"s": 1, "min": 60, "h": 3600, "%": 1, "": 1, "/s": 1, **_BYTES} | {
    f"{unit}/s": scale for unit, scale in _BYTES.items()
}
_SIGNALS = {134: "SIGABRT", 135: "SIGBUS", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM", 152: "SIGXCPU"}
_COLUMNS = {series.words: name for name, series in SERIES.items()}
#: The columns that the sentence on a run as usual is about, by its words.
_COMPARED = {
    "cpu": "total cpu usage:usr",
    "load": "load avg:1m",
    "memory": "memory usage:used",
    "disk": "dsk/total:writ",
    "network": "net/total:recv",
}
_IDLE = "total cpu usage:idl"
_WRITTEN = "dsk/total:writ"
_LARGEST = 1e18
_INFINITE = float("inf")
_NEVER = float("nan")

# Parts of the patterns.
_NUMBER = r"-?[0-9]+(?:\.[0-9])?"
_UNIT = r"(?: ?(?:%|s|min|h|/s|[kMGT]B(?:/s)?))?"
_VALUE = rf"{_NUMBER}{_UNIT}"
_USUAL = rf"(?P<usual>{_NUMBER}(?: to {_NUMBER})?{_UNIT})"
_WHEN = r"(?:second|minute) [0-9]+"
_OTHERS = r"passing runs(?: of all jobs)?"
_WORDS = "|".join(re.escape(series.words) for series in SERIES.values())
_QUANTITY = re.compile(rf"(?P<digits>{_NUMBER}) ?(?P<unit>.*)")

_Sentence = re.Match[str]
_Check = Callable[[_Sentence, Subject], bool]
_CHECKS: list[tuple[re.Pattern[str], _Check]] = []


def follows(text: str, subject: Subject) -> bool:
    """Return whether each number of a sentence of `ciml.verdicts.evidence.observe` follows from the run.

    Args:
      text: the sentence.
      subject: the run and its profile, as they were observed.
    """
    for pattern, check in _CHECKS:
        sentence = pattern.fullmatch(text)
        if sentence is not None:
            return check(sentence, subject)
    return False


def _checks(pattern: str) -> Callable[[_Check], _Check]:
    """Register the check of the sentences of a pattern."""

    def register(check: _Check) -> _Check:
        _CHECKS.append((re.compile(pattern), check))
        return check

    return register


@_checks(
    r"It (?P<verb>reached its time limit|took|ended|was ended by SIG[A-Z]+) "
    r"(?:\(exit status (?P<status>-?[0-9]+)(?P<claimed>, as its recorder reports)?\) )?"
    rf"(?:after )?(?P<length>{_VALUE})(?:; {_OTHERS} take {_USUAL})?\."
)
def _check_end(sentence: _Sentence, subject: Subject) -> bool:
    low, _, high = subject.profile.length_s
    length = _length(subject)
    usual = sentence["usual"]
    if not _quantity(sentence["length"]).fits(length) or not _is_usual(usual, (low, high), subject):
        return False
    verb = sentence["verb"]
    if sentence["status"] is not None:
        status = subject.exit_status
        is_claimed = sentence["claimed"] is not None
        if is_claimed != subject.claimed or status != int(sentence["status"]):
            return False
        return verb == f"was ended by {_SIGNALS.get(status if status > 0 else 128 - status, '')}"
    return {
        "reached its time limit": subject.outcome == "timeout",
        "took": length > high and usual is not None,
        "ended": length < low and usual is not None,
    }[verb]


@_checks(
    rf"It was nearly idle(?P<nothing> and wrote nothing to disk)? for its last (?P<duration>{_VALUE}): "
    rf"idle CPU was (?P<idle>{_VALUE}); {_OTHERS} have {_USUAL}\."
)
def _check_idle(sentence: _Sentence, subject: Subject) -> bool:
    usual_idle = _usual(subject, _IDLE)
    if usual_idle is None or not _is_usual(sentence["usual"], usual_idle, subject):
        return False
    begin = _idle_from(subject, max(85.0, usual_idle[1] + _noise(_IDLE, usual_idle)))
    mean = _mean(subject, _IDLE, begin)
    written = _mean(subject, _WRITTEN, begin)
    is_quiet = sentence["nothing"] is None or (written is not None and written < 20_000)
    return (
        is_quiet
        and mean is not None
        and _quantity(sentence["duration"]).fits(_length(subject) - begin)
        and _quantity(sentence["idle"]).fits(mean)
    )


def _idle_from(subject: Subject, least: float) -> float:
    """Return the start of the first window from which on all windows with samples are at least ``least`` per cent idle.

    It is NaN, which fits nothing, if the last window is not.
    """
    step = _window_s(subject)
    windows = pc.cast(pc.floor(pc.divide(_seconds(subject.table), float(step))), pa.int64())
    by_window = pa.table({"window": windows, "idle": _valid(subject, _IDLE)}).group_by("window")
    means = by_window.aggregate([("idle", "mean")])
    busy = means.filter(pc.fill_null(pc.less(means.column("idle_mean"), least), True)).column("window")
    last_busy = pc.max(busy).as_py()
    number = pc.min(windows if last_busy is None else windows.filter(pc.greater(windows, last_busy))).as_py()
    return _NEVER if number is None else float(number * step)


@_checks(
    rf"(?P<words>Memory available|Free disk) fell to (?P<free>{_VALUE}) of (?P<total>{_VALUE}) in (?P<when>{_WHEN})\."
)
def _check_run_out(sentence: _Sentence, subject: Subject) -> bool:
    group, free_column = ("memory usage", "avai") if sentence["words"] == "Memory available" else ("/", "free")
    table = subject.table
    if "boot" in table.column_names:
        table = table.filter(pc.invert(pc.fill_null(table.column("boot"), False)))
    free = table.column(f"{group}:{free_column}")
    total = pc.add(free, table.column(f"{group}:used"))
    valid = pc.and_(pc.greater_equal(free, 0), pc.less_equal(pc.abs(total), 2 * _LARGEST))
    shares = pc.if_else(pc.fill_null(pc.and_(valid, pc.greater(total, 0)), False), pc.divide(free, total), 1.0)
    lowest = pc.min(shares).as_py()
    if lowest is None or lowest >= 0.03:
        return False
    row = pc.index(shares, lowest).as_py()
    first_us = pc.min(subject.table.column("time").cast(pa.int64())).as_py()
    second = (table.column("time").cast(pa.int64())[row].as_py() - first_us) / 1e6
    start = _moment(sentence["when"], subject)
    return (
        _quantity(sentence["free"]).fits(free[row].as_py())
        and _quantity(sentence["total"]).fits(total[row].as_py())
        and start <= second < start + _moment_s(subject)
    )


@_checks(rf"No sample was taken for (?P<duration>{_VALUE}) from (?P<when>{_WHEN})\.")
def _check_gap(sentence: _Sentence, subject: Subject) -> bool:
    start = _moment(sentence["when"], subject)
    seconds = sorted(value for value in _seconds(subject.table).to_pylist() if value is not None)
    steps = pairwise(seconds)
    gap = max((after - before for before, after in steps if start <= before < start + _moment_s(subject)), default=0)
    return _quantity(sentence["duration"]).fits(gap) and gap > 15


@_checks(
    rf"(?:Throughout|From (?P<start>{_WHEN})(?: to (?P<end>[0-9]+))?|Until (?P<until>{_WHEN})), (?P<words>{_WORDS}) "
    rf"was (?P<mean>{_VALUE}); {_OTHERS} have {_USUAL}\."
)
def _check_series(sentence: _Sentence, subject: Subject) -> bool:
    column = _COLUMNS[sentence["words"]]
    usual = _usual(subject, column)
    start = sentence["start"]
    begin = 0.0 if start is None else _moment(start, subject) or _NEVER  # the first window is called otherwise
    until = sentence["until"]
    if sentence["end"] is not None:
        unit, _, _ = start.partition(" ")
        until = f"{unit} {sentence['end']}"
    stop = _INFINITE if until is None else _moment(until, subject)
    mean = _mean(subject, column, begin, stop)
    if mean is None or usual is None or usual[0] <= mean <= usual[1]:
        return False
    return (
        _quantity(sentence["mean"]).fits(mean)
        and _is_usual(sentence["usual"], usual, subject)
        and _are_edges(begin, stop, subject, column, usual, mean > usual[1])
    )


def _are_edges(
    begin: float, stop: float, subject: Subject, column: str, usual: tuple[float, float], above: bool
) -> bool:
    """Return whether a series is outside in the windows at both ends, and not in those before and after."""
    first = _window(subject, column, from_s=begin)
    if first is None or first.start_s != begin or not _is_outside(first, column, usual, above):
        return False
    if begin and _is_outside(_window(subject, column, before_s=begin), column, usual, above):
        return False
    if stop == _INFINITE:
        return True
    last = _window(subject, column, before_s=stop)
    if last is None or last.start_s + _window_s(subject) != stop or not _is_outside(last, column, usual, above):
        return False
    return not _is_outside(_window(subject, column, from_s=stop), column, usual, above)


@_checks(
    rf"Its telemetry ends (?P<early>{_VALUE}) before the run did; that of passing runs(?P<all> of all jobs)? {_USUAL}\."
)
def _check_early_end(sentence: _Sentence, subject: Subject) -> bool:
    last_us = pc.max(subject.table.column("time").cast(pa.int64())).as_py()
    usual = subject.profile.tail_s
    is_of_all_jobs = not subject.profile.job
    if subject.end_us is None or last_us is None or usual is None or bool(sentence["all"]) != is_of_all_jobs:
        return False
    tail = (subject.end_us - last_us) / 1e6
    return (
        _quantity(sentence["early"]).fits(tail)
        and tail > usual[2]
        and _is_usual(sentence["usual"], (usual[0], usual[2]), subject)
    )


@_checks(r"(?P<words>[A-Za-z, ]+) (?:were|was) as in (?P<runs>[0-9]+) passing runs of (?P<whose>this job|all jobs)\.")
def _check_as_usual(sentence: _Sentence, subject: Subject) -> bool:
    is_of_this_job = bool(subject.profile.job)
    if int(sentence["runs"]) != subject.profile.runs or (sentence["whose"] == "this job") != is_of_this_job:
        return False
    for word in re.split(", | and ", sentence["words"].lower()):
        mean = _mean(subject, _COMPARED[word], 0.0)
        usual = _usual(subject, _COMPARED[word])
        if mean is None or usual is None or not usual[0] <= mean <= usual[1]:
            return False
    return True


@_checks(r"The machine behaved as usual\.")
def _check_all_usual(_: _Sentence, subject: Subject) -> bool:
    """Check that CPU and memory are compared, and that the mean of each compared series is in its passing range."""
    usual = {word: _usual(subject, column) for word, column in _COMPARED.items()}
    is_compared = bool(subject.profile.job) and subject.profile.runs >= MIN_RUNS and _length(subject) >= 10
    if not (is_compared and usual["cpu"] and usual["memory"]):
        return False
    return all(
        range_of is None or ((mean := _mean(subject, _COMPARED[word], 0.0)) is not None and _is_inside(mean, range_of))
        for word, range_of in usual.items()
    )


def _is_inside(value: float, usual: tuple[float, float]) -> bool:
    return usual[0] <= value <= usual[1]


@_checks(rf"Its telemetry of (?P<length>{_VALUE}) is too short to compare with that of passing runs\.")
def _check_short(sentence: _Sentence, subject: Subject) -> bool:
    return _quantity(sentence["length"]).fits(_length(subject)) and _length(subject) < 10


@_checks(r"Too few passing runs are known to compare it with\.")
def _check_too_few(_: _Sentence, subject: Subject) -> bool:
    return subject.profile.runs < MIN_RUNS


@_checks(r"Its telemetry says nothing\.")
def _check_nothing(_: _Sentence, _subject: Subject) -> bool:
    return True


class _Quantity(NamedTuple):
    """A quantity of a sentence: its value, and how far the true one may be from it."""

    value: float
    within: float

    def fits(self, true: float | None) -> bool:
        return true is not None and abs(true - self.value) <= self.within * 1.000001 + 1e-9 * abs(true)


def _quantity(text: str) -> _Quantity:
    match = _QUANTITY.fullmatch(text)
    assert match is not None  # the sentence has matched the same pattern
    digits = float(match["digits"])
    scale = _UNITS[match["unit"]]
    # Numbers below 10 have a decimal, which is left out where it is 0; percentages have none.
    step = 0.1 if abs(digits) < 10 and match["unit"] != "%" else 1.0
    return _Quantity(digits * scale, step * scale / 2)


def _is_usual(text: str | None, usual: tuple[float, float] | None, subject: Subject) -> bool:
    """Return whether the passing range was said as it is; a sentence without one follows only from too few runs."""
    if text is None:
        return subject.profile.runs < MIN_RUNS
    if usual is None or subject.profile.runs < MIN_RUNS:
        return False
    low, _, high = text.partition(" to ")
    if not high:
        return all(_quantity(low).fits(end) for end in usual)
    unit = re.sub(rf"^{_NUMBER}", "", high)
    return _quantity(low + unit).fits(usual[0]) and _quantity(high).fits(usual[1])


def _usual(subject: Subject, column: str) -> tuple[float, float] | None:
    usual = (subject.profile.short if _is_short(subject) else subject.profile.columns).get(column)
    return None if usual is None else (usual[0], usual[2])


def _noise(column: str, usual: tuple[float, float]) -> float:
    """Return how far a window's mean must be from the passing range to be outside."""
    return max(SERIES[column].noise, (usual[1] - usual[0]) / 2)


def _moment(text: str, subject: Subject) -> float:
    """Return the seconds of ``second 12`` or ``minute 3``; NaN, which fits nothing, where the text has another form."""
    word, _, number = text.partition(" ")
    if word != ("second" if _is_short(subject) else "minute"):
        return _NEVER
    return int(number) * _moment_s(subject)


def _moment_s(subject: Subject) -> int:
    """Return the unit of the moments of a run, seconds."""
    return 1 if _is_short(subject) else 60


def _window_s(subject: Subject) -> int:
    return 5 if _is_short(subject) else 60


def _is_short(subject: Subject) -> bool:
    return _length(subject) < 180


def _length(subject: Subject) -> float:
    return float(pc.max(_seconds(subject.table)).as_py() or 0.0)


def _seconds(table: pa.Table) -> pa.Array:
    times = table.column("time").cast(pa.int64())
    return pc.divide(pc.cast(pc.subtract(times, pc.min(times)), pa.float64()), 1e6)


def _mean(subject: Subject, column: str, start_s: float, end_s: float = _INFINITE) -> float | None:
    """Return the mean of a column from ``start_s`` until before ``end_s``; None if it has no values."""
    if column not in subject.table.column_names:
        return None
    seconds = _seconds(subject.table)
    chosen = pc.and_(pc.greater_equal(seconds, start_s), pc.less(seconds, end_s))
    mean: float | None = pc.mean(_valid(subject, column).filter(pc.fill_null(chosen, False))).as_py()
    return mean


def _valid(subject: Subject, column: str) -> pa.ChunkedArray:
    """Return a column with nulls for all that is not a measurement of the run, samples since the boot included."""
    values = subject.table.column(column)
    valid = pc.fill_null(pc.less_equal(pc.abs(values), _LARGEST), False)  # NaN is not
    if "boot" in subject.table.column_names:
        valid = pc.and_not(valid, pc.fill_null(subject.table.column("boot"), False))
    return pc.if_else(valid, values, None)


class _Window(NamedTuple):
    """A window of a column: its start, and the mean of its values."""

    start_s: float
    mean: float


def _window(subject: Subject, column: str, before_s: float = _INFINITE, from_s: float = 0) -> _Window | None:
    """Return the first window with values from ``from_s``, or the last before ``before_s``; None for no such window."""
    seconds = _seconds(subject.table)
    step = _window_s(subject)
    chosen = pc.and_(pc.less(seconds, before_s), pc.greater_equal(seconds, from_s))
    candidates = seconds.filter(pc.fill_null(pc.and_(chosen, pc.is_valid(_valid(subject, column))), False))
    sample_s = (pc.min(candidates) if before_s == _INFINITE else pc.max(candidates)).as_py()
    if sample_s is None:
        return None
    start_s = sample_s // step * step
    mean = _mean(subject, column, start_s, start_s + step)
    return None if mean is None else _Window(start_s, mean)


def _is_outside(window: _Window | None, column: str, usual: tuple[float, float], above: bool) -> bool:
    if window is None:
        return False
    noise = _noise(column, usual)
    return window.mean > usual[1] + noise if above else window.mean < usual[0] - noise

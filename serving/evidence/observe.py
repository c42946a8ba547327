"""Observations on a failed run: how it ended, whether it hung, what ran out, what left the passing range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.serving.evidence.subject import Subject
from ciml.serving.evidence.wording import moment, quantity, quantity_range, span, span_range
from ciml.transforms.profiles.departures import Departure, departures, margin
from ciml.transforms.profiles.profile import MIN_RUNS, Range
from ciml.transforms.profiles.series import SERIES
from ciml.transforms.profiles.windows import elapsed_s, length_s, tail_s, values_of, window_means, window_of
from ciml.verdicts import signal_of

IDLE, USER, WRITTEN = "total cpu usage:idl", "total cpu usage:usr", "dsk/total:writ"
USED, AVAILABLE = "memory usage:used", "memory usage:avai"
DISK_USED, DISK_FREE = "/:used", "/:free"

#: Signals that end a job that does not handle them.
SIGNALS: Mapping[int, str] = {6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM", 24: "SIGXCPU"}
#: Series of which less than usual says something, too: less of another only says that the run did less.
_LOW_COUNTS = frozenset({USER, DISK_FREE})
#: A machine with so much idle CPU does nothing, in per cent; and for how long, in seconds and as a share of the run.
_NEARLY_IDLE = 85.0
_IDLE_S, _IDLE_SHARE = 15, 0.2
#: Bytes a second below which nothing is written, but by the system itself.
NOTHING_WRITTEN = 20e3
#: The share of memory or disk below which it has run out.
RUN_OUT = 0.03
#: Seconds without a sample, and in usual intervals, from which a machine stood still.
_GAP_S, _GAP_INTERVALS = 15, 10
#: Seconds that telemetry may end before the run does; more, as a share of it.
_EARLY_S, _EARLY_SHARE = 15, 0.05
#: Lengths differ without a reason by so many seconds, or this share of the usual one.
_LENGTH_S, _LENGTH_SHARE = 3, 0.1
#: What a run that is as usual was compared by: words, and the column that shows it.
COMPARED = {
    "CPU": USER,
    "load": "load avg:1m",
    "memory": USED,
    "disk": WRITTEN,
    "network": "net/total:recv",
}
MIN_COMPARED_S = 10


class Observation(NamedTuple):
    """A sentence, and the column that a picture of it shows ("" where it is about none)."""

    text: str
    column: str = ""


def observations(subject: Subject) -> list[Observation]:
    """Return what is to be said of a run, the most telling first. Linear in its samples."""
    length = length_s(subject.table)
    found = [*_end(subject, length)]
    idle = list(_idle_end(subject, length))
    found += idle
    found += _run_out(subject, length)
    found += _gaps(subject.table, length)
    left = departures(subject.table, subject.profile)
    said = {SERIES[one.column].group for one in idle}
    found += [_departure(one, subject, length) for one in _first_of_group(left, said)]
    found += _early_end(subject)
    if not any(one.column for one in found):
        found += _as_usual(subject, left, length)
    return found or [_nothing(subject, length)]


def passing(subject: Subject) -> str:
    """Return what the profile's runs are called."""
    return "passing runs" if subject.profile.job else "passing runs of all jobs"


def _comparable(subject: Subject) -> bool:
    return subject.profile.runs >= MIN_RUNS


def _end(subject: Subject, length: float) -> Iterator[Observation]:
    low, middle, high = subject.profile.length_s
    usual = f"; {passing(subject)} take {span_range(low, high)}." if _comparable(subject) else "."
    beyond = max(_LENGTH_S, _LENGTH_SHARE * middle, (high - low) / 2)
    if subject.outcome == "timeout":
        yield Observation(f"It reached its time limit after {span(length)}{usual}")
    elif (name := signal_name(subject.exit_status)) is not None:
        whose = ", as its recorder reports" if subject.claimed else ""
        status = f"(exit status {subject.exit_status}{whose})"
        yield Observation(f"It was ended by {name} {status} after {span(length)}{usual}")
    elif _comparable(subject) and length > high + beyond:
        yield Observation(f"It took {span(length)}{usual}")
    elif _comparable(subject) and length < low - min(beyond, low / 3):
        yield Observation(f"It ended after {span(length)}{usual}")


def signal_name(status: int | None) -> str | None:
    """Return the name of the signal that an exit status means: -9 and 137 are SIGKILL; None for any other status."""
    return SIGNALS.get(signal_of(status) or 0)


def _idle_end(subject: Subject, length: float) -> Iterator[Observation]:
    seconds = window_of(length)
    usual = subject.profile.ranges(seconds).get(IDLE)
    if usual is None or not _comparable(subject) or IDLE not in subject.table.column_names:
        return
    windows = window_means(subject.table, [IDLE, WRITTEN], seconds)
    busy = np.flatnonzero(~(windows.means[IDLE] >= max(_NEARLY_IDLE, usual[2] + margin(IDLE, usual))))
    first = int(busy[-1]) + 1 if busy.size else 0
    if first == windows.seconds.size or length - windows.seconds[first] < max(_IDLE_S, _IDLE_SHARE * length):
        return
    last = windows.seconds.size - 1
    idle = quantity(windows.mean(IDLE, first, last), "%")
    wrote = WRITTEN in windows.means and windows.counts[WRITTEN][first:].all()
    nothing = " and wrote nothing to disk" if wrote and windows.mean(WRITTEN, first, last) < NOTHING_WRITTEN else ""
    yield Observation(
        f"It was nearly idle{nothing} for its last {span(length - windows.seconds[first])}: idle CPU was {idle}; "
        f"{passing(subject)} have {quantity_range(usual[0], usual[2], '%')}.",
        IDLE,
    )


def _run_out(subject: Subject, length: float) -> Iterator[Observation]:
    for words, used, free in (("Memory available", USED, AVAILABLE), ("Free disk", DISK_USED, DISK_FREE)):
        if not {used, free} <= set(subject.table.column_names):
            continue
        left, whole = values_of(subject.table, free), values_of(subject.table, used)
        whole += left
        shares = np.divide(left, whole, out=np.full(left.size, np.inf), where=(whole > 0) & (left >= 0))
        at, usual = int(np.argmin(shares)), subject.profile.ranges(window_of(length)).get(free)
        is_usual = usual is not None and _comparable(subject) and left[at] >= usual[0]
        if shares[at] < RUN_OUT and not is_usual:
            when = moment(elapsed_s(subject.table)[at], length)
            yield Observation(
                f"{words} fell to {quantity(left[at], 'B')} of {quantity(whole[at], 'B')} in {when}.",
                used if used == USED else free,
            )


def _gaps(table: pa.Table, length: float) -> Iterator[Observation]:
    times = np.sort(elapsed_s(table))
    steps = np.diff(times)
    if not steps.size:
        return
    at = int(np.argmax(steps))
    if steps[at] > max(_GAP_S, _GAP_INTERVALS * float(np.median(steps))):
        yield Observation(f"No sample was taken for {span(steps[at])} from {moment(times[at], length)}.")


def _first_of_group(left: Iterable[Departure], said: set[str]) -> Iterator[Departure]:
    for one in left:
        group = SERIES[one.column].group if one.column in SERIES else ""
        if not group or group in said or (one.mean < one.low and one.column not in _LOW_COUNTS):
            continue
        said.add(group)
        yield one


def _departure(one: Departure, subject: Subject, length: float) -> Observation:
    series = SERIES[one.column]
    whole = one.until_s > length
    start, end = moment(one.from_s, length), moment(one.until_s, length)
    if one.from_s == 0:
        when = "Throughout" if whole else f"Until {end}"
    else:
        when = f"From {start}" if whole else f"From {start} to {end.split()[1]}"
    usual = quantity_range(one.low, one.high, series.unit)
    text = f"{when}, {series.words} was {quantity(one.mean, series.unit)}; {passing(subject)} have {usual}."
    return Observation(text, one.column)


def _early_end(subject: Subject) -> Iterator[Observation]:
    """Say that telemetry ends earlier before the run did than that of passing runs, whose logs are stored then."""
    early, usual, length = tail_s(subject.table, subject.end_us), subject.profile.tail_s, length_s(subject.table)
    if early is None or usual is None or not _comparable(subject):
        return
    low, _, high = usual
    # More than the telemetry's own length: the clocks of recorder and CI system differ.
    if max(_EARLY_S, _EARLY_SHARE * length) < early - high and low >= 0 and early < max(length, 4 * _EARLY_S) + high:
        ends = f"that of {passing(subject)} {span_range(low, high)}"
        yield Observation(f"Its telemetry ends {span(early)} before the run did; {ends}.")


def _as_usual(subject: Subject, left: Iterable[Departure], length: float) -> Iterator[Observation]:
    grouped = any(one.column in SERIES and SERIES[one.column].group for one in left)
    if not _comparable(subject) or length < MIN_COMPARED_S or grouped:
        return
    usual = subject.profile.ranges(window_of(length))
    words = [word for word, name in COMPARED.items() if name in usual and _is_usual(subject.table, name, usual[name])]
    if words:
        whose = "of this job" if subject.profile.job else "of all jobs"
        listed, be = _enumerated(words), "were" if words[1:] else "was"
        text = f"{listed[0].upper()}{listed[1:]} {be} as in {subject.profile.runs} passing runs {whose}."
        yield Observation(text)


def _is_usual(table: pa.Table, column: str, usual: Range) -> bool:
    """Return whether the mean of all values is in the passing range: also one that is outside within noise is not."""
    values = values_of(table, column) if column in table.column_names else np.zeros(0)
    known = values[np.isfinite(values)]
    return bool(known.size) and usual[0] <= known.mean() <= usual[2]


def _nothing(subject: Subject, length: float) -> Observation:
    if not _comparable(subject):
        return Observation("Too few passing runs are known to compare it with.")
    if length < MIN_COMPARED_S:
        return Observation(f"Its telemetry of {span(length)} is too short to compare with that of passing runs.")
    return Observation("Its telemetry says nothing.")


def _enumerated(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

"""Observations on a failed run: how it ended, whether it hung, what ran out, and what left the passing range.

An observation is a sentence. Its numbers, times and ranges have units and no more digits than a reader uses: `span`,
`moment`, `quantity` and the functions next to them write them. *Usual* is the range of the passing runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.events.outcomes import exit_status_of, signal_of
from ciml.events.records import RunFacts
from ciml.transforms.profiles import (
    MIN_RUNS,
    MINUTE_S,
    SERIES,
    SHORT_RUN_S,
    Departure,
    Profile,
    Range,
    Unit,
    departures,
    elapsed_s,
    length_s,
    margin,
    place_of,
    tail_s,
    values_of,
    window_means,
    window_of,
)

_HOUR_S = 3600
#: Least number of seconds that are shown in hours.
_HOURS_FROM_S = 2 * _HOUR_S
_SIZES = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}
IDLE = "total cpu usage:idl"
USER = "total cpu usage:usr"
WRITTEN = "dsk/total:writ"
USED = "memory usage:used"
AVAILABLE = "memory usage:avai"
DISK_USED = "/:used"
DISK_FREE = "/:free"

#: Signals that end a job that does not handle them.
SIGNALS: Mapping[int, str] = {6: "SIGABRT", 7: "SIGBUS", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM", 24: "SIGXCPU"}
#: Series for which less than usual is worth a sentence, too: less of any other only shows that the run did less.
_LOW_COUNTS = frozenset({USER, DISK_FREE})
#: A machine with so much idle CPU does nothing, in per cent; and the least time of that, in seconds and as a share of
#: the run.
_NEARLY_IDLE = 85.0
_IDLE_S = 15
_IDLE_SHARE = 0.2
#: Bytes a second below which nothing is written, but by the system itself.
NOTHING_WRITTEN = 20e3
#: The share of memory or disk below which it has run out.
RUN_OUT = 0.03
#: Time without a sample from which a machine stood still, in seconds and in usual intervals.
_GAP_S = 15
_GAP_INTERVALS = 10
#: Seconds that telemetry may end before the run does; more, as a share of it.
_EARLY_S = 15
_EARLY_SHARE = 0.05
#: Lengths differ without a reason by this number of seconds, or by this share of the usual length.
_LENGTH_S = 3
_LENGTH_SHARE = 0.1
#: The series by which a run without anomalies was compared: words, and the column that shows it.
COMPARED = {"CPU": USER, "load": "load avg:1m", "memory": USED, "disk": WRITTEN, "network": "net/total:recv"}
#: Length from which a run is compared with passing runs, seconds.
MIN_COMPARED_S = 10


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A run.

    Attributes:
      table: its telemetry as stored, with at least one sample.
      profile: of the passing runs of its job.
      outcome: such as ``failure`` or ``timeout``; "" if it is not known.
      exit_status: of its job, by `ciml.events.outcomes`; None if it is not known.
      claimed: whether only an event that is believed less than the run's own reports the exit status.
      end_us: when the CI system says that it ended, epoch microseconds; None if it is not known.
      place: its kind of machine, by `ciml.transforms.profiles.place_of`.
    """

    table: pa.Table
    profile: Profile
    outcome: str = ""
    exit_status: int | None = None
    end_us: int | None = None
    claimed: bool = False
    place: str = ""

    @classmethod
    def of(cls, facts: RunFacts, table: pa.Table, profile: Profile, claimed: RunFacts | None = None) -> Subject:
        """Return the subject of a run.

        Args:
          facts: of the run.
          table: its telemetry.
          profile: of the passing runs of its job.
          claimed: its facts, completed by what events claim that are believed less; None without such events.
        """
        status = exit_status_of(facts.labels)
        is_claimed = False
        if status is None and claimed is not None:
            status = exit_status_of(claimed.labels)
            is_claimed = status is not None
        return cls(table, profile, facts.outcome or "", status, facts.end_us, is_claimed, place_of(facts))


#: The sentence next to those on an output, where all series are as usual.
AS_USUAL = "The machine behaved as usual."


class Observation(NamedTuple):
    """A sentence on the telemetry of a run.

    Attributes:
      text: the sentence.
      column: the one that a picture of it shows; "" if it is about none.
      tells: whether it says how the run differs from passing runs.
    """

    text: str
    column: str = ""
    tells: bool = True


def observations(subject: Subject) -> list[Observation]:
    """Return the observations on a run, the most telling first; at least one. Linear in its samples."""
    length = length_s(subject.table)
    idle = list(_idle_end(subject, length))
    idle_groups = {SERIES[observation.column].group for observation in idle}
    deviations = departures(subject.table, subject.profile)
    sentences = [
        *_end(subject, length),
        *idle,
        *_run_out(subject, length),
        *_gaps(subject.table, length),
        *_departures(deviations, idle_groups, subject, length),
        *_early_end(subject),
    ]
    if not any(observation.column for observation in sentences):
        sentences += _as_usual(subject, deviations, length)
    return sentences or [_nothing(subject, length)]


def passing(subject: Subject) -> str:
    """Return the name of the profile's runs: of the run's job, or of all jobs."""
    return "passing runs" if subject.profile.job else "passing runs of all jobs"


def _comparable(subject: Subject) -> bool:
    return subject.profile.runs >= MIN_RUNS


def _end(subject: Subject, length: float) -> Iterator[Observation]:
    if not length:  # a single sample says nothing of it
        return
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
    for words, used, free_column in (("Memory available", USED, AVAILABLE), ("Free disk", DISK_USED, DISK_FREE)):
        if not {used, free_column} <= set(subject.table.column_names):
            continue
        remaining = values_of(subject.table, free_column)
        total = values_of(subject.table, used)
        total += remaining
        shares = np.divide(remaining, total, out=np.full(remaining.size, np.inf), where=(total > 0) & (remaining >= 0))
        lowest = int(np.argmin(shares))
        usual = subject.profile.ranges(window_of(length)).get(free_column)
        is_usual = usual is not None and _comparable(subject) and remaining[lowest] >= usual[0]
        if shares[lowest] < RUN_OUT and not is_usual:
            when = moment(elapsed_s(subject.table)[lowest], length)
            yield Observation(
                f"{words} fell to {quantity(remaining[lowest], 'B')} of {quantity(total[lowest], 'B')} in {when}.",
                used if used == USED else free_column,
            )


def _gaps(table: pa.Table, length: float) -> Iterator[Observation]:
    times = np.sort(elapsed_s(table))
    steps = np.diff(times)
    if not steps.size:
        return
    longest = int(np.argmax(steps))
    if steps[longest] > max(_GAP_S, _GAP_INTERVALS * float(np.median(steps))):
        yield Observation(f"No sample was taken for {span(steps[longest])} from {moment(times[longest], length)}.")


def _departures(
    deviations: Iterable[Departure], observed_groups: Iterable[str], subject: Subject, length: float
) -> Iterator[Observation]:
    """Yield the first departure of each group of series, but for groups that were observed already."""
    groups = set(observed_groups)
    for departure in deviations:
        group = _group(departure)
        if not group or group in groups or (departure.mean < departure.low and departure.column not in _LOW_COUNTS):
            continue
        groups.add(group)
        yield _departure(departure, subject, length)


def _group(departure: Departure) -> str:
    """Return the group of a departure's series; "" for a series that people do not know."""
    return SERIES[departure.column].group if departure.column in SERIES else ""


def _departure(departure: Departure, subject: Subject, length: float) -> Observation:
    series = SERIES[departure.column]
    is_to_end = departure.until_s > length
    start = moment(departure.from_s, length)
    end = moment(departure.until_s, length)
    if departure.from_s == 0:
        when = "Throughout" if is_to_end else f"Until {end}"
    else:
        when = f"From {start}" if is_to_end else f"From {start} to {end.split()[1]}"
    mean = quantity(departure.mean, series.unit)
    usual = quantity_range(departure.low, departure.high, series.unit)
    return Observation(f"{when}, {series.words} was {mean}; {passing(subject)} have {usual}.", departure.column)


def _early_end(subject: Subject) -> Iterator[Observation]:
    """Observe that telemetry ends earlier before the end of the run than the telemetry of passing runs."""
    early = tail_s(subject.table, subject.end_us)
    usual = subject.profile.tail_s
    length = length_s(subject.table)
    if early is None or usual is None or not _comparable(subject):
        return
    low, _, high = usual
    # Where it is more than the telemetry's own length, the clocks of recorder and CI system differ.
    if max(_EARLY_S, _EARLY_SHARE * length) < early - high and low >= 0 and early < max(length, 4 * _EARLY_S) + high:
        ends = f"that of {passing(subject)} {span_range(low, high)}"
        yield Observation(f"Its telemetry ends {span(early)} before the run did; {ends}.")


def _as_usual(subject: Subject, deviations: Iterable[Departure], length: float) -> Iterator[Observation]:
    if not _comparable(subject) or length < MIN_COMPARED_S or any(map(_group, deviations)):
        return
    usual = subject.profile.ranges(window_of(length))
    words = [word for word, name in COMPARED.items() if name in usual and _is_usual(subject.table, name, usual[name])]
    if words:
        whose = "of this job" if subject.profile.job else "of all jobs"
        enumeration = _enumerated(words)
        be = "were" if words[1:] else "was"
        text = f"{enumeration[0].upper()}{enumeration[1:]} {be} as in {subject.profile.runs} passing runs {whose}."
        yield Observation(text, tells=False)


def _is_usual(table: pa.Table, column: str, usual: Range) -> bool:
    """Return whether the mean of all values is in the passing range; one that is outside within noise is not."""
    values = values_of(table, column) if column in table.column_names else np.zeros(0)
    finite = values[np.isfinite(values)]
    return bool(finite.size) and usual[0] <= finite.mean() <= usual[2]


def _nothing(subject: Subject, length: float) -> Observation:
    if not _comparable(subject):
        return Observation("Too few passing runs are known to compare it with.", tells=False)
    if length < MIN_COMPARED_S:
        text = f"Its telemetry of {span(length)} is too short to compare with that of passing runs."
        return Observation(text, tells=False)
    return Observation("Its telemetry says nothing.", tells=False)


def _enumerated(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def span(seconds: float) -> str:
    """Return a length of time.

    Example:
      >>> span(75.2), span(840), span(9000)
      ('75 s', '14 min', '2.5 h')
    """
    scale, unit = _time_unit(seconds)
    return f"{number(seconds / scale)} {unit}"


def span_range(low: float, high: float) -> str:
    """Return a range of lengths, in one unit."""
    scale, unit = _time_unit(high)
    return f"{_range(number(low / scale), number(high / scale))} {unit}"


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < SHORT_RUN_S:
        return 1, "s"
    return (_HOUR_S, "h") if seconds >= _HOURS_FROM_S else (MINUTE_S, "min")


def moment(seconds: float, length: float) -> str:
    """Return a moment of a run of this length: ``second 12``, or ``minute 3`` from three minutes on."""
    return f"second {int(seconds)}" if length < SHORT_RUN_S else f"minute {int(seconds // MINUTE_S)}"


def quantity(value: float, unit: Unit) -> str:
    """Return a value with its unit.

    Example:
      >>> quantity(41.3, "%"), quantity(12_340_000_000, "B"), quantity(9.41, "")
      ('41 %', '12 GB', '9.4')
    """
    scale, name = _unit(value, unit)
    return f"{_digits(value / scale, unit)}{name}"


def quantity_range(low: float, high: float, unit: Unit) -> str:
    """Return a range of values, in one unit."""
    scale, name = _unit(max(abs(low), abs(high)), unit)
    return f"{_range(_digits(low / scale, unit), _digits(high / scale, unit))}{name}"


def number(value: float) -> str:
    """Return a number with one decimal below 10, none from there on."""
    rounded = round(value, 1) if abs(round(value, 1)) < 10 else float(round(value))
    return f"{rounded + 0.0:.1f}".removesuffix(".0")  # 0.0 is added to minus zero


def _digits(value: float, unit: Unit) -> str:
    return number(value) if unit != "%" else number(round(value))


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _unit(value: float, unit: Unit) -> tuple[float, str]:
    if unit not in ("B", "B/s"):
        return 1.0, {"%": " %", "": "", "/s": "/s"}[unit]
    name = next((name for name, size in _SIZES.items() if abs(value) >= size), "kB")
    return _SIZES[name], f" {name}{unit[1:]}"

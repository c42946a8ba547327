"""Context features: how a run ended, how it compares with passing runs of its job, and what failed near it.

One function serves data sets, the stream of predictions and predictions of files, so that they cannot differ. A value
that is unknown is 0, the value of a run without anything unusual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.raw.neighbours import Neighbours
from ciml.transforms.examples.downsample import Windows
from ciml.transforms.profiles.departures import margin
from ciml.transforms.profiles.profile import MIN_RUNS, Profile, Profiles, Range
from ciml.transforms.profiles.windows import length_s, window_means, window_of
from ciml.verdicts import exit_status_of, signal_of

#: Departures are counted up to this many margins, and lengths up to so many doublings.
_MOST_MARGINS, _MOST_DOUBLINGS = 10.0, 5.0


def with_context(
    windows: Windows,
    runs: Sequence[RunFacts],
    tables: Sequence[pa.Table],
    resolved: ResolvedDefinition,
    neighbours: Sequence[Neighbours | None] = (),
) -> Windows:
    """Return the windows of runs with their context features: values float32 [W, F]. Unchanged without context.

    Args:
      windows: of the runs, by `ciml.transforms.examples.downsample`: values float32 [W, number of columns].
      runs: the facts of each run.
      tables: the telemetry of each run, with the columns of the definition at least.
      resolved: the definition.
      neighbours: of each run; without them they are unknown.
    """
    if not resolved.definition.context:
        return windows
    near = neighbours or [None] * len(runs)
    values = np.zeros((len(runs), len(resolved.context_features)), np.float32)
    for row in np.flatnonzero(windows.n_windows > 0).tolist():
        values[row] = context_of(runs[row], tables[row], resolved, near[row])
    return replace(windows, values=np.concatenate([windows.values, values[windows.run]], axis=1))


def context_of(
    facts: RunFacts, table: pa.Table, resolved: ResolvedDefinition, neighbours: Neighbours | None = None
) -> np.ndarray:
    """Return the context of one run, float32, in the order of `ResolvedDefinition.context_features`."""
    found: list[float] = []
    for kind in resolved.definition.context or ():
        if kind == "outcome":
            found += _outcome(facts)
        elif kind == "neighbours":
            found += _neighbours(neighbours)
        else:
            found += _profile(table, resolved.columns, profiles_of(resolved).of(facts.build_name))
    return np.array(found, np.float32)


def _outcome(facts: RunFacts) -> tuple[float, float, float]:
    """Return whether the run timed out, its exit status (0 if unknown), and whether a signal ended it."""
    status = exit_status_of(facts.labels)
    timeout = facts.outcome == "timeout"
    # A recorder that stops a run at its timeout ends it by a signal: that is no news.
    killed = not timeout and signal_of(status) is not None
    return float(timeout), float(0 if timeout or killed else status or 0), float(killed)


def _neighbours(near: Neighbours | None) -> tuple[float, float]:
    return (0.0, 0.0) if near is None or not near.runs else (float(near.failed), near.failed / near.runs)


def _profile(table: pa.Table, columns: Sequence[str], profile: Profile) -> Iterator[float]:
    """Yield the doublings of the run's length, and by column the departures of mean, largest and last window."""
    if profile.runs < MIN_RUNS:
        yield from np.zeros(1 + 3 * len(columns)).tolist()
        return
    length = length_s(table)
    doublings = np.log2((length + 1.0) / (profile.length_s[1] + 1.0))
    yield float(np.clip(doublings, -_MOST_DOUBLINGS, _MOST_DOUBLINGS))
    seconds = window_of(length)
    ranges, means = profile.ranges(seconds), window_means(table, columns, seconds).means
    for column in columns:
        values, usual = means.get(column, np.zeros(0)), ranges.get(column)
        values = values[np.isfinite(values)]
        if usual is None or not values.size:
            yield from (0.0, 0.0, 0.0)
            continue
        for value in (values.mean(), values.max(), values[-1]):
            yield _departure(column, float(value), usual)


def _departure(column: str, value: float, usual: Range) -> float:
    """Return how far a value is outside of the passing range, in margins; 0 inside, negative below."""
    low, _, high = usual
    outside = value - high if value > high else min(value - low, 0.0)
    beyond = margin(column, usual)
    return float(np.clip(outside / beyond, -_MOST_MARGINS, _MOST_MARGINS)) if beyond > 0 else 0.0


_parsed: dict[str, Profiles] = {}
_MOST_PARSED = 16


def profiles_of(resolved: ResolvedDefinition) -> Profiles:
    """Return the passing profiles of a definition with the context ``profile``.

    Raises:
      IntegrityError: it has none.
    """
    found = _parsed.get(resolved.digest)
    if found is None:
        if resolved.profiles is None:
            raise IntegrityError(f"data set {resolved.definition.name!r}: its resolved definition has no profiles")
        found = Profiles.from_json(resolved.profiles, "profiles of the resolved definition")
        if len(_parsed) >= _MOST_PARSED:
            _parsed.clear()
        _parsed[resolved.digest] = found
    return found

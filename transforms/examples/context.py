"""Context features of a run: how it ended, how it compares with passing runs of its job, what failed near it, and what
its output names.

They are appended to the features of each of its windows. The same functions serve data sets, the stream of predictions
and predictions of files, so that these cannot differ. An unknown value is 0, as that of a run without anything unusual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import PROFILE_PARTS, ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.events.outcomes import exit_status_of, signal_of
from ciml.events.records import RunFacts
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.downsample import Windows
from ciml.transforms.logs.features import output_features
from ciml.transforms.logs.known import KnownOutputs
from ciml.transforms.logs.ranking import ScannedOutput
from ciml.transforms.profiles import MIN_RUNS, Profile, Profiles, Range, length_s, margin, window_means, window_of

_log = logging.getLogger(__name__)

#: Limits of features, so that a single unusual run does not determine the range of all.
_MAX_MARGINS = 10.0
_MAX_DOUBLINGS = 5.0
#: Decoded parts of resolved definitions by digest: decoding them takes longer than the context of a run.
_profiles: dict[str, Profiles] = {}
_known_outputs: dict[str, KnownOutputs] = {}
_MAX_DECODED = 16
T = TypeVar("T")
#: Returns the output of a run, given its id; None if it is unavailable.
OutputOf: TypeAlias = Callable[[str], ScannedOutput | None]


def with_context(
    windows: Windows,
    runs: Sequence[RunFacts],
    tables: Sequence[pa.Table],
    resolved: ResolvedDefinition,
    neighbours: Sequence[Neighbours | None] = (),
    output_of: OutputOf | None = None,
) -> Windows:
    """Append the context features of runs to their windows; return a definition's windows without context unchanged.

    Args:
      windows: the windows by `ciml.transforms.examples.downsample`: values float32 [W, number of columns].
      runs: the facts of each run.
      tables: the telemetry of each run, with the columns of the definition at least.
      resolved: the definition.
      neighbours: the neighbours of each run; empty if they are unknown.
      output_of: returns the output of a run; None if outputs are unavailable.

    Returns:
      The windows with values float32 [W, F].
    """
    if not resolved.definition.context:
        return windows
    nearby = neighbours or [None] * len(runs)
    values = np.zeros((len(runs), len(resolved.context_features)), np.float32)
    for row in np.flatnonzero(windows.n_windows > 0).tolist():
        values[row] = context_of(runs[row], tables[row], resolved, nearby[row], output_of)
    return replace(windows, values=np.concatenate([windows.values, values[windows.run]], axis=1))


def context_of(
    facts: RunFacts,
    table: pa.Table | None,
    resolved: ResolvedDefinition,
    neighbours: Neighbours | None = None,
    output_of: OutputOf | None = None,
) -> np.ndarray:
    """Compute the context of one run, float32, in the order of `ResolvedDefinition.context_features`.

    Without telemetry, ``table`` is None, and the context ``profile`` is 0.
    """
    features: list[float] = []
    for kind in resolved.definition.context or ():
        if kind == "outcome":
            features += _outcome_features(facts)
        elif kind == "neighbours":
            features += _neighbour_features(neighbours)
        elif kind == "log":
            known_outputs = known_outputs_of(resolved)
            output = output_of(facts.run_id) if output_of is not None and known_outputs.is_current else None
            features += output_features(output, known_outputs.of(facts.build_name))
        elif table is None:
            features += [0.0] * (1 + len(PROFILE_PARTS) * len(resolved.columns))
        else:
            features += _profile_features(table, resolved.columns, profiles_of(resolved).of(facts.build_name))
    return np.array(features, np.float32)


def _outcome_features(facts: RunFacts) -> tuple[float, float, float]:
    """Return whether the run timed out, its exit status (0 if unknown), and whether a signal ended it."""
    if facts.outcome == "timeout":
        return 1.0, 0.0, 0.0  # the signal, if any, is the recorder's, which ends a run at its timeout
    status = exit_status_of(facts.labels)
    if signal_of(status) is not None:
        return 0.0, 0.0, 1.0
    return 0.0, float(status or 0), 0.0


def _neighbour_features(neighbours: Neighbours | None) -> tuple[float, float]:
    """Return the number of failed neighbours, and their share."""
    if neighbours is None or not neighbours.runs:
        return 0.0, 0.0
    return float(neighbours.failed), neighbours.failed / neighbours.runs


def _profile_features(table: pa.Table, columns: Sequence[str], profile: Profile) -> Iterator[float]:
    """Yield the doublings of the run's length, and by column the departures of the mean, largest and last window."""
    if profile.runs < MIN_RUNS:
        yield from np.zeros(1 + 3 * len(columns)).tolist()
        return
    run_s = length_s(table)
    doublings = np.log2((run_s + 1.0) / (profile.length_s[1] + 1.0))
    yield float(np.clip(doublings, -_MAX_DOUBLINGS, _MAX_DOUBLINGS))
    window_s = window_of(run_s)
    ranges = profile.ranges(window_s)
    means = window_means(table, columns, window_s).means
    for column in columns:
        values = means.get(column, np.zeros(0))
        values = values[np.isfinite(values)]
        usual = ranges.get(column)
        if usual is None or not values.size:
            yield from (0.0, 0.0, 0.0)
            continue
        for value in (values.mean(), values.max(), values[-1]):
            yield _departure(column, float(value), usual)


def _departure(column: str, value: float, usual: Range) -> float:
    """Return the distance of a value from its passing range in margins: 0 inside, negative below."""
    low, _, high = usual
    distance = value - high if value > high else min(value - low, 0.0)
    unit = margin(column, usual)
    return float(np.clip(distance / unit, -_MAX_MARGINS, _MAX_MARGINS)) if unit > 0 else 0.0


def profiles_of(resolved: ResolvedDefinition) -> Profiles:
    """Return the passing profiles of a definition with the context ``profile``.

    Raises:
      IntegrityError: if it has none.
    """
    where = "profiles of the resolved definition"
    return _decoded(resolved, "profiles", lambda value: Profiles.from_json(value, where), _profiles)


def known_outputs_of(resolved: ResolvedDefinition) -> KnownOutputs:
    """Return what passing runs print, of a definition with the context ``log``.

    Outputs are not read for a definition of another vocabulary: its model would get features that it has not learned.

    Raises:
      IntegrityError: if it does not have that.
    """

    def decode(value: Any) -> KnownOutputs:
        outputs = KnownOutputs.from_json(value)
        if not outputs.is_current:
            name = resolved.definition.name
            _log.warning("%s; verdicts of its models do not use outputs", other_vocabulary(name))
        return outputs

    return _decoded(resolved, "outputs", decode, _known_outputs)


def other_vocabulary(name: str) -> str:
    """Return the message on a data set of another vocabulary, with the remedy."""
    return (
        f"data set {name!r}: another version of ciml read its outputs by other words; create a data set of another "
        "name from the same definition, and refresh the model from it"
    )


def _decoded(resolved: ResolvedDefinition, part: str, decode: Callable[[Any], T], decoded: dict[str, T]) -> T:
    """Return a part of a resolved definition from those that are decoded already; decode and add it if it is new."""
    content = decoded.get(resolved.digest)
    if content is None:
        value = getattr(resolved, part)
        if value is None:
            raise IntegrityError(f"data set {resolved.definition.name!r}: its resolved definition has no {part}")
        content = decode(value)
        if len(decoded) >= _MAX_DECODED:
            decoded.clear()
        decoded[resolved.digest] = content
    return content

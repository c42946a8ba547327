"""Examples: from windows to one row per run, and the same preparation for prediction.

The split of a run into train, dev or test by a keyed hash, so that runs stay when others are added.

Context features: how a run ended, how it compares with passing runs of its job, and what failed near it.

One function serves data sets, the stream of predictions and predictions of files, so that they cannot differ. A value
that is unknown is 0, the value of a run without anything unusual.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import FACT_COLUMNS, ResolvedDefinition
from ciml.datasets.schema import _TIME, schema_of
from ciml.digest import arrays_digest
from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.outcomes import exit_status_of, signal_of
from ciml.events.records import RunFacts
from ciml.runs.arrow import numbers, text_maps, texts, times
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.downsample import Windows, downsample
from ciml.transforms.profiles import MIN_RUNS, Profile, Profiles, Range, length_s, margin, window_means, window_of

SPLITS: Final = ("train", "dev", "test")
_RANGE = 1 << 64
#: Departures are counted up to this many margins, and lengths up to so many doublings.
_MOST_MARGINS = 10.0
_MOST_DOUBLINGS = 5.0
_MOST_PARSED = 16
#: Fields of `RunFacts` that examples do not hold.
NOT_HELD = ("log_url", "fork", "auth", "owner", "head", "url", "attempt_of", "subjects", "adapter", "head_project")


@lru_cache(maxsize=16)
def _hash(salt: str) -> Any:
    """Return the keyed hash; copy it before use. Creating it takes longer than hashing here."""
    key = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(key=key, digest_size=8, person=b"ciml split")


def subject_of(project: str, change: str, run_id: str) -> str:
    """Return what stays together in a split: the change of a run where known, else the run."""
    return f"change\0{project}\0{change}" if change else f"run\0{run_id}"


def split_of(project: str, change: str, run_id: str, salt: str, weights: tuple[int, int, int] = (7, 0, 3)) -> str:
    """Return the split of a run: that of its change where known, so that reruns of a change stay together.

    Args:
      project: the project of the change; may be empty.
      change: the tested change; empty where unknown.
      run_id: the encoded run id, which decides without a change.
      salt: key of the hash. Data sets that share it have the same splits.
      weights: of train, dev and test; whole numbers, not all 0.

    Returns:
      ``train``, ``dev`` or ``test``.
    """
    digest = _hash(salt).copy()
    digest.update(subject_of(project, change, run_id).encode("utf-8", "surrogatepass"))
    return SPLITS[bisect_right(_split_ends(weights), int.from_bytes(digest.digest(), "big"))]


@lru_cache(maxsize=16)
def _split_ends(weights: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the hash at which each split ends, as whole numbers: no rounding at the borders."""
    if not any(weights):
        raise ValueError(f"weights {weights}: at least one must be above 0")
    return tuple(-(-reached * _RANGE // sum(weights)) for reached in accumulate(weights))


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
    nearby = neighbours or [None] * len(runs)
    values = np.zeros((len(runs), len(resolved.context_features)), np.float32)
    for row in np.flatnonzero(windows.n_windows > 0).tolist():
        values[row] = context_of(runs[row], tables[row], resolved, nearby[row])
    return replace(windows, values=np.concatenate([windows.values, values[windows.run]], axis=1))


def context_of(
    facts: RunFacts, table: pa.Table, resolved: ResolvedDefinition, neighbours: Neighbours | None = None
) -> np.ndarray:
    """Return the context of one run, float32, in the order of `ResolvedDefinition.context_features`."""
    features: list[float] = []
    for kind in resolved.definition.context or ():
        if kind == "outcome":
            features += _outcome(facts)
        elif kind == "neighbours":
            features += _neighbours(neighbours)
        else:
            features += _profile(table, resolved.columns, profiles_of(resolved).of(facts.build_name))
    return np.array(features, np.float32)


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
    ranges = profile.ranges(seconds)
    means = window_means(table, columns, seconds).means
    for column in columns:
        values = means.get(column, np.zeros(0))
        usual = ranges.get(column)
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


def profiles_of(resolved: ResolvedDefinition) -> Profiles:
    """Return the passing profiles of a definition with the context ``profile``.

    Raises:
      IntegrityError: it has none.
    """
    profiles = _parsed.get(resolved.digest)
    if profiles is None:
        if resolved.profiles is None:
            raise IntegrityError(f"data set {resolved.definition.name!r}: its resolved definition has no profiles")
        profiles = Profiles.from_json(resolved.profiles, "profiles of the resolved definition")
        if len(_parsed) >= _MOST_PARSED:
            _parsed.clear()
        _parsed[resolved.digest] = profiles
    return profiles


class Excluded(NamedTuple):
    """A run without an example, and the reason: ``missing_column``, ``unknown_class``, ``no_label``, ``empty``, …"""

    run_id: str
    reason: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "reason": self.reason, **({"detail": self.detail} if self.detail else {})}


class Examples(NamedTuple):
    """One row per run in ``table`` (`schema_of`), by split, in the order of the runs; the others in ``excluded``."""

    table: pa.Table
    excluded: tuple[Excluded, ...]


def make_examples(
    runs: Sequence[RunFacts],
    tables: Sequence[pa.Table],
    resolved: ResolvedDefinition,
    neighbours: Sequence[Neighbours | None] = (),
) -> Examples:
    """Make the examples of runs. The result of a run does not depend on other runs.

    Args:
      runs: the facts of each run.
      tables: telemetry of each run, as stored.
      resolved: the resolved definition.
      neighbours: of each run, for the context ``neighbours``; without them they are unknown.

    Returns:
      The rows of all runs that have a label and at least one window, and the reasons for the others.
    """

    def windows_of(taken: Sequence[int]) -> Windows:
        chosen = [tables[index] for index in taken]
        nearby = [neighbours[index] for index in taken] if neighbours else ()
        return with_context(downsample(chosen, resolved), [runs[index] for index in taken], chosen, resolved, nearby)

    return examples_from(runs, windows_of, resolved)


def examples_from(
    runs: Sequence[RunFacts], windows_of: Callable[[Sequence[int]], Windows], resolved: ResolvedDefinition
) -> Examples:
    """Make examples as `make_examples`, with the windows of labelled runs from a call with their indices."""
    reasons: dict[int, Excluded] = {}
    labels: dict[int, tuple[int, str]] = {}
    for index, run in enumerate(runs):
        label = resolved.label_of(run)
        if isinstance(label, str):
            reasons[index] = Excluded(run.run_id, label)
        else:
            labels[index] = label
    labelled = list(labels)
    windows = windows_of(labelled)
    for row, rejected in windows.rejected:
        index = labelled[row]
        reasons[index] = Excluded(runs[index].run_id, rejected.reason, rejected.detail)
    min_windows = max(resolved.definition.min_windows or 1, 1)
    for row in np.flatnonzero((windows.n_windows > 0) & (windows.n_windows < min_windows)).tolist():
        detail = f"{windows.n_windows[row]} of {min_windows} windows"
        reasons[labelled[row]] = Excluded(runs[labelled[row]].run_id, "too_short", detail)
    weights = resolved.definition.tdt_split
    salt = resolved.definition.salt
    splits = {
        row: split_of(run.project, run.change, run.run_id, salt, weights)
        for row, run in (
            (row, runs[labelled[row]]) for row in np.flatnonzero(windows.n_windows >= min_windows).tolist()
        )
    }
    ordered = [
        row for split in SPLITS for row, run_split in splits.items() if run_split == split
    ]  # so that files are slices
    rows = [labelled[row] for row in ordered]
    table = _table(
        [runs[index] for index in rows],
        [labels[index] for index in rows],
        [splits[row] for row in ordered],
        windows,
        np.array(ordered, np.int64),
        resolved,
    )
    return Examples(table, tuple(reasons[index] for index in sorted(reasons)))


def prepare(table: pa.Table, resolved: ResolvedDefinition, facts: RunFacts | None = None) -> tuple[np.ndarray, int]:
    """Prepare one run as input of a model, as `prepare_many`.

    Returns:
      inputs float32 [L, F], not normalised, padded with zeros; and n_windows, the number of windows that are not
      padding.

    Raises:
      RejectedInput: ``missing_column``, ``no_time``, ``empty`` or ``out_of_range``.
    """
    inputs, n_windows, rejected = prepare_many([table], resolved, [facts] if facts is not None else None)
    if rejected:
        raise rejected[0][1]
    return inputs[0], int(n_windows[0])


def prepare_many(
    tables: Sequence[pa.Table],
    resolved: ResolvedDefinition,
    runs: Sequence[RunFacts] | None = None,
    neighbours: Sequence[Neighbours | None] = (),
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, RejectedInput]]]:
    """Prepare many runs as input of a model, by the same functions that make examples.

    Args:
      tables: telemetry of each run, with the columns of the definition at least.
      resolved: the definition.
      runs: the facts of each run, for a definition with context.
      neighbours: of each run, for the context ``neighbours``; without them they are unknown.

    Raises:
      CimlError: the definition has context, and the facts are missing.

    Returns:
      inputs float32 [n, L, F] and n_windows int32 [n], a row for each table; the row of a rejected run is zeros and
      its n_windows 0. Then (row, reason) of the rejected ones.
    """
    windows = downsample(tables, resolved)
    if resolved.definition.context:
        if runs is None:
            needed = f"{resolved.definition.name!r} has context: its predictions need the facts of each run"
            raise CimlError(f"data set {needed}, such as job and outcome")
        windows = with_context(windows, runs, tables, resolved, neighbours)
    inputs = np.zeros((len(tables), resolved.windows, len(resolved.features)), np.float32)
    inputs[windows.run, windows.position] = windows.values
    return inputs, windows.n_windows, list(windows.rejected)


def run_facts(examples: pa.Table) -> list[RunFacts]:
    """Return the facts of each example's run: all except `NOT_HELD`."""
    names = ["run_id", "build_uuid", "build_name", *FACT_COLUMNS, "start_time", "end_time", "labels"]
    plain = examples.select(names)
    for name in ("start_time", "end_time"):
        index = plain.column_names.index(name)
        plain = plain.set_column(index, name, plain.column(name).cast(pa.int64()))
    out = []
    for row in plain.to_pylist():
        start = row.pop("start_time")
        end = row.pop("end_time")
        labels = dict(row.pop("labels"))
        row["outcome"] = row["outcome"] or None
        out.append(RunFacts(**row, start_us=start, end_us=end, labels=labels))
    return out


def row_digest(run_id: str, arrays: np.ndarray, features: Sequence[str], n_windows: int) -> str:
    """Return the digest of an example, for comparing two computations of it. ``arrays`` float32 [F, L]."""
    return arrays_digest(run_id, zip(features, arrays, strict=True), n_windows)


def row_digests(
    run_ids: Sequence[str], unrolled: np.ndarray, features: Sequence[str], n_windows: Sequence[int]
) -> Iterator[str]:
    """Yield the `row_digest` of many examples: ``unrolled`` float32 [F, rows, L], without NaN."""
    F, _, L = unrolled.shape
    width = 4 * L
    if not unrolled.size:
        return
    shape = f"<f4({L},)".encode()
    heads = [
        struct.pack("<q", len(name := feature.encode()))
        + name
        + struct.pack("<q", len(shape))
        + shape
        + struct.pack("<q", width)
        for feature in features
    ]
    values = [memoryview(unrolled[feature].reshape(-1)).cast("B") for feature in range(F)]
    ends = {count: struct.pack("<qq", 8, count) for count in set(n_windows)}
    # One list for all rows: the run's own parts are inserted between the headers.
    parts: list[bytes | memoryview] = [b"", b"", *chain.from_iterable((head, b"") for head in heads), b""]
    for row, (run_id, count) in enumerate(zip(run_ids, n_windows, strict=True)):
        begin = row * width
        parts[1] = name = run_id.encode()
        parts[0], parts[-1] = struct.pack("<q", len(name)), ends[count]
        parts[3:-1:2] = [column[begin : begin + width] for column in values]
        yield hashlib.sha256(b"".join(parts)).hexdigest()


def _table(
    runs: Sequence[RunFacts],
    labels: Sequence[tuple[int, str]],
    splits: Sequence[str],
    windows: Windows,
    kept: np.ndarray,
    resolved: ResolvedDefinition,
) -> pa.Table:
    """Return the rows of the runs at the indices ``kept`` int64 [m] of ``windows``."""
    L = resolved.windows
    row_of = np.full(windows.n_windows.size, -1)
    row_of[kept] = np.arange(kept.size)
    row = row_of[windows.run]
    position = windows.position
    values = windows.values
    if (left_out := row < 0).any():
        row = row[~left_out]
        position = position[~left_out]
        values = values[~left_out]
    unrolled = np.zeros((len(resolved.features), kept.size, L), np.float32)
    unrolled[:, row, position] = values.T
    n_windows = windows.n_windows[kept]
    run_ids = [run.run_id for run in runs]
    columns: dict[str, pa.Array] = {
        "run_id": texts(run_ids),
        "build_uuid": texts([run.build_uuid for run in runs]),
        "build_name": texts([run.build_name for run in runs]),
        "label": numbers(np.array([label for label, _ in labels], np.int64)),
        "label_name": texts([name for _, name in labels]),
        "split": texts(splits),
        "n_windows": numbers(n_windows),
        "digest": texts(list(row_digests(run_ids, unrolled, resolved.features, n_windows.tolist()))),
        **{name: texts([fact or "" for fact in map(attrgetter(name), runs)]) for name in FACT_COLUMNS},
        "start_time": times([run.start_us for run in runs], _TIME),
        "end_time": times([run.end_us for run in runs], _TIME),
        "labels": text_maps([run.labels for run in runs]),
    }
    schema = schema_of(resolved)
    for feature, name in enumerate(resolved.features):
        flat = numbers(unrolled[feature].reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def run_means(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
    """Return the mean of each feature over a run's windows, float64 [n, F].

    Args:
      inputs: float32 [n, L, F], not normalised, 0 after the run's windows.
      n_windows: int [n], at least 1.
    """
    means: np.ndarray = inputs.sum(axis=1, dtype=np.float64) / n_windows[:, None]
    return means

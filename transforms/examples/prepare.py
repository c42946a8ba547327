"""Prepare runs for models: one row per run in a data set (an *example*), and the same values as input of a prediction.

Examples have a *split*, train, dev or test: a keyed hash of the run's change, so that runs stay where they are when
others are added. Their *digest* shows whether two computations of an example are equal.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import FACT_COLUMNS, ResolvedDefinition
from ciml.datasets.schema import _TIME, schema_of
from ciml.digest import arrays_digest
from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.runs.arrow import numbers, text_maps, texts, times
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.context import with_context
from ciml.transforms.examples.downsample import Windows, downsample

SPLITS: Final = ("train", "dev", "test")
#: Fields of `RunFacts` that examples lack.
NOT_HELD = ("log_url", "fork", "auth", "owner", "head", "url", "attempt_of", "subjects", "adapter", "head_project")
_HASH_RANGE = 1 << 64


class Excluded(NamedTuple):
    """A run without an example, and the reason, such as ``missing_column``, ``no_label`` or ``empty``."""

    run_id: str
    reason: str
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        fields = {"run_id": self.run_id, "reason": self.reason}
        return {**fields, "detail": self.detail} if self.detail else fields


class Examples(NamedTuple):
    """The examples of runs.

    Attributes:
      table: a row per run, by split, in the order of the runs (`ciml.datasets.schema.schema_of`).
      excluded: the runs without an example, in order.
    """

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
      neighbours: the neighbours of each run, for the context ``neighbours``; empty if they are unknown.

    Returns:
      The rows of all runs that have a label and at least one window, and the reasons for the others.
    """

    def windows_of(indices: Sequence[int]) -> Windows:
        chosen_runs = [runs[index] for index in indices]
        chosen_tables = [tables[index] for index in indices]
        chosen_neighbours = [neighbours[index] for index in indices] if neighbours else ()
        windows = downsample(chosen_tables, resolved)
        return with_context(windows, chosen_runs, chosen_tables, resolved, chosen_neighbours)

    return examples_from(runs, windows_of, resolved)


def examples_from(
    runs: Sequence[RunFacts], windows_of: Callable[[Sequence[int]], Windows], resolved: ResolvedDefinition
) -> Examples:
    """Make examples as `make_examples`; ``windows_of`` computes the windows of the labelled runs from their indices."""
    excluded: dict[int, Excluded] = {}
    labels: dict[int, tuple[int, str]] = {}
    for index, run in enumerate(runs):
        label = resolved.label_of(run)
        if isinstance(label, str):
            excluded[index] = Excluded(run.run_id, label)
        else:
            labels[index] = label
    labelled = list(labels)
    windows = windows_of(labelled)  # their row numbers are positions in ``labelled``
    for row, rejected in windows.rejected:
        index = labelled[row]
        excluded[index] = Excluded(runs[index].run_id, rejected.reason, rejected.detail)
    min_windows = max(resolved.definition.min_windows or 1, 1)
    for row in np.flatnonzero((windows.n_windows > 0) & (windows.n_windows < min_windows)).tolist():
        index = labelled[row]
        detail = f"{windows.n_windows[row]} of {min_windows} windows"
        excluded[index] = Excluded(runs[index].run_id, "too_short", detail)
    splits: dict[int, str] = {}
    for row in np.flatnonzero(windows.n_windows >= min_windows).tolist():
        run = runs[labelled[row]]
        weights = resolved.definition.tdt_split
        splits[row] = split_of(run.project, run.change, run.run_id, resolved.definition.salt, weights)
    rows = sorted(splits, key=lambda row: SPLITS.index(splits[row]))  # so that the files of splits are slices
    table = _table(
        [runs[labelled[row]] for row in rows],
        [labels[labelled[row]] for row in rows],
        [splits[row] for row in rows],
        windows,
        np.array(rows, np.int64),
        resolved,
    )
    return Examples(table, tuple(excluded[index] for index in sorted(excluded)))


def _table(
    runs: Sequence[RunFacts],
    labels: Sequence[tuple[int, str]],
    splits: Sequence[str],
    windows: Windows,
    rows: np.ndarray,
    resolved: ResolvedDefinition,
) -> pa.Table:
    """Build the table of the runs at the indices ``rows`` int64 [m] of ``windows``."""
    row_of = np.full(windows.n_windows.size, -1)
    row_of[rows] = np.arange(rows.size)
    row = row_of[windows.run]
    is_used = row >= 0
    unrolled = np.zeros((len(resolved.features), rows.size, resolved.windows), np.float32)
    unrolled[:, row[is_used], windows.position[is_used]] = windows.values[is_used].T
    n_windows = windows.n_windows[rows]
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
      neighbours: the neighbours of each run, for the context ``neighbours``; empty if they are unknown.

    Returns:
      inputs float32 [n, L, F] and n_windows int32 [n], a row for each table; the row of a rejected run is zeros and
      its n_windows 0. Then (row, reason) of the rejected ones.

    Raises:
      CimlError: the definition has context, and the facts are missing.
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


def run_means(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
    """Return the mean of each feature over a run's windows, float64 [n, F].

    Args:
      inputs: float32 [n, L, F], not normalised, 0 after the run's windows.
      n_windows: int [n], at least 1.
    """
    means: np.ndarray = inputs.sum(axis=1, dtype=np.float64) / n_windows[:, None]
    return means


def subject_of(project: str, change: str, run_id: str) -> str:
    """Return the unit of a split: the change of a run, or the run if its change is unknown."""
    return f"change\0{project}\0{change}" if change else f"run\0{run_id}"


def split_of(project: str, change: str, run_id: str, salt: str, weights: tuple[int, int, int] = (7, 0, 3)) -> str:
    """Return the split of a run. All runs of a change are in one split.

    Args:
      project: the project of the change; may be empty.
      change: the tested change; empty if unknown.
      run_id: the encoded run id, which decides the split of a run without a change.
      salt: key of the hash. Data sets that share it have the same splits.
      weights: of train, dev and test; whole numbers, not all 0.

    Returns:
      ``train``, ``dev`` or ``test``.
    """
    digest = _hash(salt).copy()
    digest.update(subject_of(project, change, run_id).encode("utf-8", "surrogatepass"))
    return SPLITS[bisect_right(_split_ends(weights), int.from_bytes(digest.digest(), "big"))]


@lru_cache(maxsize=16)
def _hash(salt: str) -> Any:
    """Return the keyed hash, to be copied before use: creating it takes longer than hashing a run."""
    key = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(key=key, digest_size=8, person=b"ciml split")


@lru_cache(maxsize=16)
def _split_ends(weights: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the hash at which each split ends, as whole numbers, so that the borders are not rounded."""
    if not any(weights):
        raise ValueError(f"weights {weights}: at least one must be above 0")
    return tuple(-(-total * _HASH_RANGE // sum(weights)) for total in accumulate(weights))


def run_facts(examples: pa.Table) -> list[RunFacts]:
    """Return the facts of each example's run: all except `NOT_HELD`."""
    names = ["run_id", "build_uuid", "build_name", *FACT_COLUMNS, "start_time", "end_time", "labels"]
    table = examples.select(names)
    for name in ("start_time", "end_time"):
        table = table.set_column(names.index(name), name, table.column(name).cast(pa.int64()))
    facts = []
    for row in table.to_pylist():
        start_us = row.pop("start_time")
        end_us = row.pop("end_time")
        labels = dict(row.pop("labels"))
        row["outcome"] = row["outcome"] or None
        facts.append(RunFacts(**row, start_us=start_us, end_us=end_us, labels=labels))
    return facts


def row_digest(run_id: str, arrays: np.ndarray, features: Sequence[str], n_windows: int) -> str:
    """Return the digest of an example, for comparing two computations of it. ``arrays`` float32 [F, L]."""
    return arrays_digest(run_id, zip(features, arrays, strict=True), n_windows)


def row_digests(
    run_ids: Sequence[str], unrolled: np.ndarray, features: Sequence[str], n_windows: Sequence[int]
) -> Iterator[str]:
    """Yield the `row_digest` of many examples: ``unrolled`` float32 [F, rows, L], without NaN.

    The bytes are those of `ciml.digest.arrays_digest`. What rows have in common is encoded once, and each row is hashed
    in one call.
    """
    if not unrolled.size:
        return
    L = unrolled.shape[2]
    row_bytes = 4 * L
    shape = f"<f4({L},)".encode()
    headers = [_sized(feature.encode()) + _sized(shape) + struct.pack("<q", row_bytes) for feature in features]
    columns = [memoryview(values.reshape(-1)).cast("B") for values in unrolled]
    tails = {count: struct.pack("<qq", 8, count) for count in set(n_windows)}
    for row, (run_id, count) in enumerate(zip(run_ids, n_windows, strict=True)):
        start = row * row_bytes
        parts: list[bytes | memoryview] = [_sized(run_id.encode())]
        for header, column in zip(headers, columns, strict=True):
            parts += (header, column[start : start + row_bytes])
        parts.append(tails[count])
        yield hashlib.sha256(b"".join(parts)).hexdigest()


def _sized(data: bytes) -> bytes:
    return struct.pack("<q", len(data)) + data

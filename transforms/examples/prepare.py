"""Prepare runs for models: one row per run in a data set (an *example*), and the same values as input of a prediction.

Examples have a *split*, train, dev or test: a keyed hash of the run's change, so that added runs do not change the
splits of others. Their *digest* shows whether two computations of an example are equal.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ciml.datasets.definition import FACT_COLUMNS, SPLITS, ResolvedDefinition, is_of_telemetry
from ciml.datasets.schema import TIME, schema_of
from ciml.digest import row_digests
from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.runs.arrow import numbers, text_maps, texts, times
from ciml.runs.neighbours import Neighbours
from ciml.transforms.examples.context import OutputOf, context_of, with_context
from ciml.transforms.examples.downsample import Windows, downsample

#: Fields of `RunFacts` that are columns of examples under the same names.
_TEXT_FACTS = ("run_id", "build_uuid", "build_name", *FACT_COLUMNS)
#: All fields of `RunFacts` that examples have (`run_facts`).
HELD_FACTS = frozenset({*_TEXT_FACTS, "start_us", "end_us", "labels"})
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


def examples_from(
    runs: Sequence[RunFacts], windows_of: Callable[[Sequence[int]], Windows], resolved: ResolvedDefinition
) -> Examples:
    """Make the examples of runs. The result of a run does not depend on other runs.

    Args:
      runs: the facts of each run.
      windows_of: computes the windows of the labelled runs from their indices.
      resolved: the resolved definition.

    Returns:
      The rows of all runs that have a label and at least one window, and the reasons for the others.
    """
    excluded: dict[int, Excluded] = {}  # by index among ``runs``, as in `_LabelledRun`
    labelled: list[_LabelledRun] = []
    for index, facts in enumerate(runs):
        label = resolved.label_of(facts)
        if isinstance(label, str):
            excluded[index] = Excluded(facts.run_id, label)
        else:
            labelled.append(_LabelledRun(index, facts, *label))
    # From here on, a run's number is its position in ``labelled``: the windows count runs so.
    windows = windows_of([run.run_index for run in labelled])
    for number, rejected in windows.rejected:
        run = labelled[number]
        excluded[run.run_index] = Excluded(run.facts.run_id, rejected.reason, rejected.detail)
    definition = resolved.definition
    min_windows = max(definition.min_windows or 1, 1)
    for number in np.flatnonzero((windows.n_windows > 0) & (windows.n_windows < min_windows)).tolist():
        run = labelled[number]
        detail = f"{windows.n_windows[number]} of {min_windows} windows"
        excluded[run.run_index] = Excluded(run.facts.run_id, "too_short", detail)
    splits: dict[int, str] = {}
    for number in np.flatnonzero(windows.n_windows >= min_windows).tolist():
        facts = labelled[number].facts
        splits[number] = split_of(facts.project, facts.change, facts.run_id, definition.salt, definition.tdt_split)
    # In the order of splits, so that the files of splits are slices.
    run_numbers = sorted(splits, key=lambda number: SPLITS.index(splits[number]))
    table = _table(
        [labelled[number] for number in run_numbers],
        [splits[number] for number in run_numbers],
        windows,
        np.array(run_numbers, np.int64),
        resolved,
    )
    return Examples(table, tuple(excluded[index] for index in sorted(excluded)))


class _LabelledRun(NamedTuple):
    """A run with a label: its index among all runs, its facts, and its label with the label's name."""

    run_index: int
    facts: RunFacts
    label: int
    label_name: str


def _table(
    runs: Sequence[_LabelledRun],
    splits: Sequence[str],
    windows: Windows,
    run_numbers: np.ndarray,
    resolved: ResolvedDefinition,
) -> pa.Table:
    """Build the table of runs: a row per run. ``run_numbers`` int64 [rows] are their numbers in ``windows``."""
    row_of_run = np.full(windows.n_windows.size, -1)  # -1: the run has no row
    row_of_run[run_numbers] = np.arange(run_numbers.size)
    row_of_window = row_of_run[windows.run]
    is_used = row_of_window >= 0
    unrolled = np.zeros((len(resolved.features), run_numbers.size, resolved.windows), np.float32)
    unrolled[:, row_of_window[is_used], windows.position[is_used]] = windows.values[is_used].T
    n_windows = windows.n_windows[run_numbers]
    facts = [run.facts for run in runs]
    run_ids = [run.run_id for run in facts]
    columns: dict[str, pa.Array] = {
        **{name: texts([text or "" for text in map(attrgetter(name), facts)]) for name in _TEXT_FACTS},
        "label": numbers(np.array([run.label for run in runs], np.int64)),
        "label_name": texts([run.label_name for run in runs]),
        "split": texts(splits),
        "n_windows": numbers(n_windows),
        "digest": texts(list(row_digests(run_ids, unrolled, resolved.features, n_windows.tolist()))),
        "start_time": times([run.start_us for run in facts], TIME),
        "end_time": times([run.end_us for run in facts], TIME),
        "labels": text_maps([run.labels for run in facts]),
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
    output_of: OutputOf | None = None,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, RejectedInput]]]:
    """Prepare many runs as input of a model, by the same functions that make examples.

    Args:
      tables: telemetry of each run, with the columns of the definition at least.
      resolved: the definition.
      runs: the facts of each run, for a definition with context.
      neighbours: the neighbours of each run, for the context ``neighbours``; empty if they are unknown.
      output_of: returns the output of a run, for the context ``log``; None if outputs are unavailable.

    Returns:
      inputs float32 [n, L, F] and n_windows int32 [n], a row for each table; the row of a rejected run is zeros and
      its n_windows 0. Then (row, reason) of the rejected ones.

    Raises:
      CimlError: if the definition has context, and the facts are missing.
    """
    windows = downsample(tables, resolved)
    if resolved.definition.context:
        if runs is None:
            needed = f"{resolved.definition.name!r} has context: its predictions need the facts of each run"
            raise CimlError(f"data set {needed}, such as job and outcome")
        windows = with_context(windows, runs, tables, resolved, neighbours, output_of)
    inputs = np.zeros((len(tables), resolved.windows, len(resolved.features)), np.float32)
    inputs[windows.run, windows.position] = windows.values
    return inputs, windows.n_windows, list(windows.rejected)


def prepare_without_telemetry(
    runs: Sequence[RunFacts],
    resolved: ResolvedDefinition,
    neighbours: Sequence[Neighbours | None] = (),
    output_of: OutputOf | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Prepare failed runs without a window of telemetry: their context is known, and all else is 0.

    Arguments and result are as for `prepare_many`.
    """
    inputs = np.zeros((len(runs), resolved.windows, len(resolved.features)), np.float32)
    nearby = neighbours or [None] * len(runs)
    for row, facts in enumerate(runs):
        inputs[row, 0, len(resolved.columns) :] = context_of(facts, None, resolved, nearby[row], output_of)
    return withhold_telemetry(inputs, resolved)


def withhold_telemetry(inputs: np.ndarray, resolved: ResolvedDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of runs, and their n_windows, as if they had no telemetry.

    Args:
      inputs: float32 [n, L, F] by `prepare_many`.
      resolved: their definition.
    """
    windows = max(len(resolved.definition.aggregation_functions), 1)
    is_known = [not is_of_telemetry(feature) for feature in resolved.features]
    withheld = np.zeros_like(inputs)
    withheld[:, :windows, is_known] = inputs[:, :1, is_known]
    return withheld, np.full(len(inputs), windows, np.int32)


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
    """Return the keyed hash, to be copied before use: its creation takes longer than the hash of a run."""
    key = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).digest()
    return hashlib.blake2b(key=key, digest_size=8, person=b"ciml split")


@lru_cache(maxsize=16)
def _split_ends(weights: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the hash at which each split ends, as whole numbers, so that the borders are not rounded."""
    if not any(weights):
        raise ValueError(f"weights {weights}: at least one must be above 0")
    return tuple(-(-total * _HASH_RANGE // sum(weights)) for total in accumulate(weights))


def run_facts(examples: pa.Table) -> list[RunFacts]:
    """Return the facts of each example's run: its `HELD_FACTS`."""
    names = [*_TEXT_FACTS, "start_time", "end_time", "labels"]
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

"""Read the runs of a data set for a report: facts of all runs, and arrays of as many as fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.data_root import StoredDataset
from ciml.datasets.definition import ResolvedDefinition, label_of
from ciml.datasets.state import DatasetState, ExampleFile
from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import SPLITS, run_facts
from ciml.transforms.examples.spans import inputs_of, read_examples

#: Limit of float32 values in memory (256 MiB); larger data sets are sampled.
MOST_VALUES = 1 << 26

_FACTS = ("run_id", "build_name", "label", "split", "n_windows", "outcome", "start_time", "end_time")


@dataclass(frozen=True)
class Runs:
    """The examples of a data set.

    Attributes:
      dataset: name of the data set.
      resolved: its definition.
      excluded: number of selected runs that are no examples, by reason.
      run_id, build_name, split, outcome: str [n].
      label: int64 [n], index into the definition's classes.
      n_windows: int32 [n].
      day: datetime64[D] [n], the UTC day of a run's start, else of its end, else NaT.
      facts: str [n] by name: further facts, see `read_runs`; "" where a run has none.
      sampled: int64 [m], indices of the runs that have arrays, ascending.
      inputs: float32 [m, L, F] of the sampled runs, not normalised.
      normalisation: from all runs of the training split.
    """

    dataset: str
    resolved: ResolvedDefinition
    excluded: Mapping[str, int]
    run_id: np.ndarray
    build_name: np.ndarray
    split: np.ndarray
    outcome: np.ndarray
    label: np.ndarray
    n_windows: np.ndarray
    day: np.ndarray
    facts: Mapping[str, np.ndarray]
    sampled: np.ndarray
    inputs: np.ndarray
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.run_id)

    @cached_property
    def class_name(self) -> np.ndarray:
        """Return the class of each run, str [n]."""
        names: np.ndarray = np.array(self.resolved.classes, object)[self.label]
        return names

    @property
    def interval_s(self) -> float:
        """Return the length of a window in seconds."""
        return self.resolved.definition.interval_us / 1e6

    @property
    def aggregated(self) -> bool:
        """Whether examples are aggregates of a run's windows."""
        return bool(self.resolved.definition.aggregation_functions)


def read_runs(
    dataset: StoredDataset,
    *,
    splits: Sequence[str] = SPLITS,
    only: str | None = None,
    at_least: int = 1,
    facts: Sequence[str] = (),
    most_values: int = MOST_VALUES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Runs:
    """Read a data set, file by file.

    Args:
      dataset: a data set.
      splits: splits to read. The normalisation always comes from the training split.
      only: class to read; all by default.
      at_least: minimum number of windows of a run.
      facts: names for `ciml.datasets.definition.label_of` to read for each run.
      most_values: limit of float32 values in memory; beyond it, runs are sampled.
      seed: random seed of the sample.
      progress: called with the number of files read and the total.

    Raises:
      CimlError: when there is no such data set or class, or no matching example.
      IntegrityError: when a file differs from the manifest.
    """
    state = dataset.state()
    name = dataset.name
    resolved = state.resolved
    if resolved is None:
        raise CimlError(f"data set {name!r} has no sealed span yet: ciml dataset update {name} --seal")
    if only is not None and only not in resolved.classes:
        raise CimlError(f"data set {name!r} has no class {only!r}, but {', '.join(resolved.classes)}")
    total = _count(state, splits, only, at_least)
    if total == 0:
        of_class = f" of class {only!r}" if only else ""
        length = f" with {at_least} windows or more" if at_least > 1 else ""
        raise CimlError(f"data set {name!r} has no example{of_class}{length} in {', '.join(splits)}")
    sampled = _sample(total, max(1, most_values // (resolved.windows * len(resolved.features))), seed)
    files = _files(state)
    ranges: list[_Range] = []
    tables: list[pa.Table] = []
    values_by_fact: dict[str, list[str]] = {fact: [] for fact in facts}
    inputs: list[np.ndarray] = []
    begin = 0
    for finished, (split, file) in enumerate(files):
        progress("files", finished, len(files))
        if split not in splits and split != "train":
            continue
        table = read_examples(dataset.store, file)
        arrays = inputs_of(table, resolved)
        if split == "train":
            ranges.append(_Range.of(arrays))
        if split not in splits:
            continue
        table, arrays = _select(table, arrays, only, at_least)
        tables.append(table.select(_FACTS))
        if facts:
            for run in run_facts(table):
                for fact, values in values_by_fact.items():
                    values.append(label_of(run, fact, {}) or "")
        end = begin + len(arrays)
        rows = sampled[(sampled >= begin) & (sampled < end)] - begin
        inputs.append(arrays if len(rows) == len(arrays) else arrays[rows])
        begin = end
    table = pa.concat_tables(tables)
    sampled_inputs = np.concatenate(inputs)
    return Runs(
        dataset=name,
        resolved=resolved,
        excluded=dict(state.excluded()),
        run_id=_texts(table, "run_id"),
        build_name=_texts(table, "build_name"),
        split=_texts(table, "split"),
        outcome=_texts(table, "outcome"),
        label=table["label"].to_numpy(),
        n_windows=table["n_windows"].to_numpy(),
        day=_days(table),
        facts={fact: np.array(values, object) for fact, values in values_by_fact.items()},
        sampled=sampled,
        inputs=sampled_inputs,
        # Without training runs it comes from those that were read.
        normalisation=_normalisation(ranges) if ranges else Normalisation.of(sampled_inputs),
    )


class _Range(NamedTuple):
    """The sum and the range of each unrolled feature over the runs of a file, and their number."""

    total: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int

    @classmethod
    def of(cls, arrays: np.ndarray) -> _Range:
        return cls(arrays.sum(axis=0, dtype=np.float64), arrays.min(axis=0), arrays.max(axis=0), len(arrays))


def _normalisation(ranges: Sequence[_Range]) -> Normalisation:
    mean = np.sum([part.total for part in ranges], axis=0) / sum(part.runs for part in ranges)
    low = np.min([part.low for part in ranges], axis=0)
    return Normalisation.of_range(mean, low, np.max([part.high for part in ranges], axis=0))


def _count(state: DatasetState, splits: Sequence[str], only: str | None, at_least: int) -> int:
    """Return the number of matching runs."""
    return sum(
        run.n_windows >= at_least and only in (None, run.label_name)
        for span in state.latest()
        for run in span.runs
        if run.split in splits
    )


def _files(state: DatasetState) -> list[tuple[str, ExampleFile]]:
    """Return (split, file) of all files, in a stable order."""
    return [(split, file) for span in state.latest() for split in SPLITS for file in span.files.get(split, ())]


def _select(table: pa.Table, arrays: np.ndarray, only: str | None, at_least: int) -> tuple[pa.Table, np.ndarray]:
    """Return the matching runs of a file, and their arrays."""
    selected = table["n_windows"].to_numpy() >= at_least
    if only is not None:
        selected &= _texts(table, "label_name") == only
    return (table, arrays) if selected.all() else (table.filter(pa.array(selected)), arrays[selected])


def _sample(total: int, limit: int, seed: int) -> np.ndarray:
    """Return the indices of all runs, or of a random sample of ``limit`` runs, ascending."""
    if total <= limit:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))


def _texts(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), object)


def _days(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    times = pc.coalesce(table["start_time"], table["end_time"])
    return np.asarray(times.to_numpy(zero_copy_only=False)).astype("datetime64[D]")

"""Read the runs of a data set for a report: columns of all runs, and arrays of as many as fit in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.data_root import StoredDataset
from ciml.datasets.definition import SPLITS, ResolvedDefinition, label_of
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, IntegrityError
from ciml.progress import Progress, no_progress
from ciml.training.data.analysis import SpanAnalysis, normalisation_of
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import run_facts
from ciml.transforms.examples.spans import inputs_of, read_examples

#: Limit of float32 values in memory (256 MiB); larger data sets are sampled.
MAX_VALUES = 1 << 26
#: Columns of `Runs` in the files of examples.
_COLUMNS = ("run_id", "build_name", "label", "split", "n_windows", "outcome", "start_time", "end_time")


@dataclass(frozen=True)
class Runs:
    """The examples of a data set.

    Attributes:
      dataset: name of the data set.
      resolved: its definition.
      excluded: number of selected runs that are not examples, by reason.
      run_id, build_name, split, outcome: str [n].
      label: int64 [n], index into the definition's classes.
      n_windows: int32 [n].
      day: datetime64[D] [n], the UTC day of a run's start; of its end where it has no start; NaT where it has neither.
      facts: str [n] by name: the further facts that were chosen by ``fact_names``; "" if a run has none.
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
    class_name: str | None = None,
    min_windows: int = 1,
    fact_names: Sequence[str] = (),
    max_values: int = MAX_VALUES,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Runs:
    """Read a data set, file by file.

    Args:
      dataset: a data set.
      splits: splits to read. The normalisation always comes from the training split.
      class_name: class to read; all by default.
      min_windows: minimum number of windows of a run.
      fact_names: names of further facts to read for each run, see `ciml.datasets.definition.label_of`.
      max_values: limit of float32 values in memory; beyond it, runs are sampled.
      seed: random seed of the sample.
      progress: called with the number of files read and the total.

    Raises:
      CimlError: if there is no such data set or class, or no matching example.
      IntegrityError: if a file differs from the manifest.
    """
    state = dataset.state()
    name = dataset.name
    resolved = state.resolved
    if resolved is None:
        raise CimlError(f"data set {name!r} has no sealed span yet: ciml dataset update {name} --seal")
    if class_name is not None and class_name not in resolved.classes:
        raise CimlError(f"data set {name!r} has no class {class_name!r}, but {', '.join(resolved.classes)}")
    selection = _Selection(splits, class_name, min_windows)
    total = selection.count(state)
    if total == 0:
        of_class = f" of class {class_name!r}" if class_name else ""
        length = f" with {min_windows} windows or more" if min_windows > 1 else ""
        raise CimlError(f"data set {name!r} has no example{of_class}{length} in {', '.join(splits)}")
    sampled = _sample(total, max(1, max_values // (resolved.windows * len(resolved.features))), seed)
    analyses: list[SpanAnalysis] = []
    tables: list[pa.Table] = []
    facts: dict[str, list[str]] = {fact: [] for fact in fact_names}
    inputs: list[np.ndarray] = []
    start = 0  # index of the file's first selected run among those of all files, as in `sampled`
    for split, table, arrays in _read_files(dataset, state, resolved, {"train", *splits}, progress):
        if split == "train":
            # Before the selection: all runs of the split count.
            analyses.append(SpanAnalysis.of([arrays], resolved.windows, len(resolved.features)))
        if split not in splits:
            continue
        selected, selected_arrays = selection.filter(table, arrays)
        tables.append(selected.select(_COLUMNS))
        _add_facts(facts, selected)
        end = start + len(selected_arrays)
        inputs.append(selected_arrays[sampled[(sampled >= start) & (sampled < end)] - start])
        start = end
    if start != total:
        raise IntegrityError(f"data set {name!r}: its files hold {start} matching examples, its manifest {total}")
    runs = pa.concat_tables(tables)
    sampled_inputs = np.concatenate(inputs)
    return Runs(
        dataset=name,
        resolved=resolved,
        excluded=dict(state.excluded()),
        run_id=_texts(runs, "run_id"),
        build_name=_texts(runs, "build_name"),
        split=_texts(runs, "split"),
        outcome=_texts(runs, "outcome"),
        label=runs["label"].to_numpy(),
        n_windows=runs["n_windows"].to_numpy(),
        day=_days(runs),
        facts={fact: np.array(values, object) for fact, values in facts.items()},
        sampled=sampled,
        inputs=sampled_inputs,
        # Without training runs it comes from those that were read.
        normalisation=normalisation_of(analyses, resolved) if analyses else Normalisation.of(sampled_inputs),
    )


class _Selection(NamedTuple):
    """The examples to read; see `read_runs`."""

    splits: Sequence[str]
    class_name: str | None
    min_windows: int

    def count(self, state: DatasetState) -> int:
        """Return the number of selected examples, by the manifest."""
        return sum(
            run.n_windows >= self.min_windows and self.class_name in (None, run.label_name)
            for span in state.latest()
            for run in span.runs
            if run.split in self.splits
        )

    def filter(self, table: pa.Table, arrays: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        """Return the selected examples of a file of one of the splits, and their arrays."""
        is_selected = table["n_windows"].to_numpy() >= self.min_windows
        if self.class_name is not None:
            is_selected &= _texts(table, "label_name") == self.class_name
        if is_selected.all():
            return table, arrays
        return table.filter(pa.array(is_selected)), arrays[is_selected]


def _read_files(
    dataset: StoredDataset,
    state: DatasetState,
    resolved: ResolvedDefinition,
    splits: Collection[str],
    progress: Progress,
) -> Iterator[tuple[str, pa.Table, np.ndarray]]:
    """Yield (split, examples, their arrays) of the files of some splits, always in the same order."""
    files = [
        (split, file)
        for span in state.latest()
        for split in SPLITS
        if split in splits
        for file in span.files.get(split, ())
    ]
    for finished, (split, file) in enumerate(files):
        progress("files", finished, len(files))
        table = read_examples(dataset.store, file)
        yield split, table, inputs_of(table, resolved)
    progress("files", len(files), len(files))


def _add_facts(facts: Mapping[str, list[str]], table: pa.Table) -> None:
    """Append the facts of each run in a table to the lists of their names; "" if a run has none."""
    if not facts:
        return
    for run in run_facts(table):
        for name, values in facts.items():
            values.append(label_of(run, name, {}) or "")


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

"""Reads the examples of a snapshot as arrays, and checks each row against the snapshot.

`read_dataset` reads a whole data set with the facts of its runs, for experiments. `read_snapshot_examples` reads some
roles of a snapshot. `file_tasks` and `read_rows` divide that reading into files, for pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.data_root import StoredDataset
from ciml.datasets.definition import METADATA_COLUMNS, ResolvedDefinition, label_of
from ciml.datasets.state import DatasetState, ExampleFile
from ciml.digest import row_digests
from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.storage import Store
from ciml.training.changes import number_changes
from ciml.training.data.snapshot import Role, Snapshot, SnapshotRun, snapshot_of
from ciml.training.estimators import Rows
from ciml.training.exclusions import Exclusions
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import run_facts
from ciml.transforms.examples.spans import inputs_of, read_examples, read_span
from ciml.trust import TrustPolicy

#: Facts by which figures are sliced: the slice's name, and the fact's name in a listing.
SLICES = {"job": "build_name", "provider": "provider"}


@dataclass(frozen=True)
class InMemoryDataset:
    """The examples of a snapshot.

    Attributes:
      snapshot: the selected runs.
      facts: facts of each of the n runs, in the snapshot's order.
      rows: the same runs, not normalised.
      roles: role of each run, str [n].
      in_train: bool [n], whether the run is in the split ``train``, from which normalisation is computed.
      raw: the raw store of the runs, if available.
    """

    snapshot: Snapshot
    facts: tuple[RunFacts, ...]
    rows: Rows
    roles: np.ndarray
    in_train: np.ndarray
    raw: Store | None

    def of(self, *roles: Role) -> np.ndarray:
        """Return the positions of the runs with one of the roles, int64 [m]."""
        return np.flatnonzero(np.isin(self.roles, roles))

    def normalisation(self) -> Normalisation:
        """Compute the normalisation of the training split; it equals that of `ciml.training.data.materialise`."""
        return Normalisation.of(self.rows.inputs[self.in_train])

    def changes(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the change of each of some runs, int64 [m]."""
        return number_changes([self.facts[position] for position in positions])

    def slices(self, positions: np.ndarray) -> dict[str, list[str]]:
        """Return the values of the `SLICES` of some runs, by name; facts that no run has are omitted."""
        runs = [self.facts[position] for position in positions]
        slices: dict[str, list[str]] = {}
        for name, fact in SLICES.items():
            values = facts_of(runs, fact)
            if any(values):
                slices[name] = [value or "unknown" for value in values]
        return slices


def read_dataset(dataset: StoredDataset, policy: TrustPolicy, exclusions: Exclusions | None = None) -> InMemoryDataset:
    """Read all trusted examples of a data set; arguments are those of `read_snapshot_facts`.

    Raises:
      CimlError: if the data set does not exist, or has no sealed span.
      IntegrityError: if files and manifest disagree.
    """
    state = dataset.state()
    return _read_examples(dataset, state, *read_snapshot_facts(dataset, state, policy, exclusions))


def read_snapshot_dataset(dataset: StoredDataset, snapshot: Snapshot) -> InMemoryDataset:
    """Read the examples of a snapshot, with the facts that they hold. Errors are those of `read_dataset`."""
    return _read_examples(dataset, dataset.state(), snapshot, read_facts(dataset.store, snapshot))


def _read_examples(
    dataset: StoredDataset, state: DatasetState, snapshot: Snapshot, facts: Mapping[str, RunFacts]
) -> InMemoryDataset:
    runs, examples = read_snapshot_examples(dataset.store, snapshot)
    return InMemoryDataset(
        snapshot,
        tuple(facts[run.run_id] for run in runs),
        examples,
        np.array([run.role for run in runs], "U5"),
        np.array([run.split == "train" for run in runs], bool),
        dataset.raw(state) if state.listing is None else None,
    )


def read_snapshot_facts(
    dataset: StoredDataset, state: DatasetState, policy: TrustPolicy, exclusions: Exclusions | None = None
) -> tuple[Snapshot, dict[str, RunFacts]]:
    """Select the trusted examples of a data set by the facts that the examples hold.

    The facts are joined with the updates in the raw manifest. Without a raw store there are no updates, and facts that
    examples do not hold (fork, auth, owner) are unknown.

    Args:
      dataset: a data set.
      state: its state.
      policy: the trust policy.
      exclusions: runs to exclude; by default those that are stored (`ciml exclude`).

    Returns:
      The snapshot, and the facts of all runs by run id.

    Raises:
      CimlError: if the data set has no sealed span.
      IntegrityError: if files and manifest disagree.
    """
    spans = [span for span in state.latest() if span.files]
    root = dataset.store
    facts = {run.run_id: run for span in spans for run in run_facts(read_span(root, span, columns=METADATA_COLUMNS))}
    return snapshot_of(dataset, state, facts, policy, exclusions), facts


def facts_of(runs: Sequence[RunFacts], name: str) -> list[str]:
    """Return a fact of each run by its name (``job``, ``flavour``, any metadata); "" where it is missing."""
    return [label_of(run, "build_name" if name == "job" else name, {}) or "" for run in runs]


@dataclass(frozen=True)
class Examples(Rows):
    """Rows of a snapshot, not normalised.

    Attributes:
      ordinals: int64 [n], each row's position in `Snapshot.runs()`.
    """

    ordinals: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Examples], windows: int = 1, features: int = 1) -> Examples:
        """Concatenate rows. Without any, the inputs have the shape [0, windows, features]."""
        no_rows = cls(
            np.zeros((0, windows, features), np.float32),
            np.zeros(0, np.int32),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
        )
        names = ("inputs", "n_windows", "labels", "ordinals")
        return cls(*(np.concatenate([getattr(part, name) for part in (no_rows, *parts)]) for name in names))


def read_snapshot_examples(root: Store, snapshot: Snapshot, *roles: Role) -> tuple[list[SnapshotRun], Examples]:
    """Read all runs of the given roles in the snapshot's order, not normalised.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: names the files and their rows.
      roles: roles of the runs to read; all by default.

    Returns:
      The runs, and their examples in the same order.

    Raises:
      IntegrityError: if files and snapshot disagree.
    """
    resolved = snapshot.resolved
    parts = [read_rows(root, task, resolved) for task in file_tasks(snapshot, *roles)]
    runs = list(snapshot.runs())
    examples = Examples.of(parts, resolved.windows, len(resolved.features))
    examples = examples.take(np.argsort(examples.ordinals))
    ordinals = [ordinal for ordinal, run in enumerate(runs) if not roles or run.role in roles]
    if examples.ordinals.tolist() != ordinals:
        raise IntegrityError(f"{root.url()}: the files lack some of the snapshot's {len(ordinals)} runs")
    if snapshot.weights is not None:
        examples = replace(examples, weights=snapshot.weights[examples.ordinals])
    return [runs[ordinal] for ordinal in ordinals], examples


def read_facts(root: Store, snapshot: Snapshot) -> dict[str, RunFacts]:
    """Read the facts in the files of a snapshot, by run id. The files may hold runs that the snapshot omits."""
    files = [file for span in snapshot.spans for paths in span.files.values() for file in paths]
    return {run.run_id: run for file in files for run in run_facts(read_examples(root, file, METADATA_COLUMNS))}


class ExpectedRow(NamedTuple):
    """The row of a run according to its snapshot: its position in `Snapshot.runs()`, its label and its digest."""

    ordinal: int
    label: int
    digest: str


class FileTask(NamedTuple):
    """A file of a span version, and the expected rows to read from it, by run id."""

    span: int
    split: str
    file: ExampleFile
    expected: Mapping[str, ExpectedRow]


def file_tasks(snapshot: Snapshot, *roles: Role) -> list[FileTask]:
    """Return a task for each file with runs of the given roles (default: all), in order."""
    tasks: list[FileTask] = []
    ordinal = 0
    for span in snapshot.spans:
        expected_by_split: dict[str, dict[str, ExpectedRow]] = {}
        for run in span.runs:
            if not roles or run.role in roles:
                expected_by_split.setdefault(run.split, {})[run.run_id] = ExpectedRow(ordinal, run.label, run.digest)
            ordinal += 1
        for split, expected in sorted(expected_by_split.items()):
            tasks += [FileTask(span.span, split, file, expected) for file in span.files.get(split, ())]
    return tasks


def read_rows(root: Store, task: FileTask, resolved: ResolvedDefinition) -> Examples:
    """Read the expected rows of a file, in the file's order.

    Args:
      root: the data set's folder.
      task: the file and its expected rows.
      resolved: the data set's definition.

    Raises:
      IntegrityError: if the file is missing or broken, or a row differs from the snapshot.
    """
    names = ["run_id", "label", "n_windows", *resolved.features]
    table = read_examples(root, task.file, names)
    all_run_ids = table.column("run_id").to_pylist()
    rows = [row for row, run_id in enumerate(all_run_ids) if run_id in task.expected]
    if len(rows) < len(all_run_ids):
        table = table.take(pa.array(rows, pa.int64()))
    run_ids = [all_run_ids[row] for row in rows]
    expected_rows = [task.expected[run_id] for run_id in run_ids]
    inputs = inputs_of(table, resolved)
    labels = np.array(table.column("label").to_pylist(), np.int64)
    n_windows = np.array(table.column("n_windows").to_pylist(), np.int32)
    where = root.url(task.file.path)
    if not np.isfinite(inputs).all():
        raise IntegrityError(f"{where} holds values that are not finite")
    unrolled = np.ascontiguousarray(inputs.transpose(2, 0, 1))
    digests = row_digests(run_ids, unrolled, resolved.features, n_windows.tolist())
    for run_id, label, digest, expected in zip(run_ids, labels.tolist(), digests, expected_rows, strict=True):
        if digest != expected.digest:
            raise IntegrityError(f"{where}: the digest of example {run_id} differs from the manifest")
        if label != expected.label:
            raise IntegrityError(f"{where}: the label of example {run_id} differs from the manifest")
    return Examples(inputs, n_windows, labels, np.array([expected.ordinal for expected in expected_rows], np.int64))

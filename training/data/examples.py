"""The examples of a snapshot as arrays, checked against it, and those of a data set with the facts of their runs.

Trust is evaluated on the facts stored in the examples, joined with the updates in the raw manifest. Without a raw store
there are no updates, and facts that examples do not hold (fork, auth, owner) are unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ciml.data_root import StoredDataset
from ciml.datasets.definition import METADATA_COLUMNS, ResolvedDefinition, label_of
from ciml.datasets.state import DatasetState, ExampleFile
from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.storage import Store
from ciml.training.data.snapshot import Role, Snapshot, SnapshotRun, snapshot_of
from ciml.training.estimators import Rows
from ciml.training.exclusions import Exclusions
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import row_digests, run_facts
from ciml.transforms.examples.spans import inputs_of, read_examples, read_span
from ciml.trust import TrustPolicy

TRANSFORM_FOLDER = "transform"
RECORDS_FOLDER = "records"


def shard_name(role: Role, first: int, rows: int) -> str:
    """Return the file name of a batch's rows of one role.

    It follows from the rows, so a retried bundle overwrites it.
    """
    return f"{role}/{first:09d}-{rows}.tfrecord"


class Wanted(NamedTuple):
    """The expected row of a run: its position in the snapshot, its label and its digest."""

    ordinal: int
    label: int
    digest: str


class FileTask(NamedTuple):
    """A file of a span version, and the expected rows to read from it, by run id."""

    span: int
    split: str
    file: ExampleFile
    wanted: Mapping[str, Wanted]


@dataclass(frozen=True)
class Examples(Rows):
    """Rows of a snapshot, not normalised.

    Attributes:
      ordinals: int64 [n], each row's position in `Snapshot.runs()`.
    """

    ordinals: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Examples], windows: int = 1, features: int = 1) -> Examples:
        """Concatenate rows; ``windows`` and ``features`` are the shape where there are none."""
        nothing = np.zeros(0, np.int64)
        empty = cls(np.zeros((0, windows, features), np.float32), nothing.astype(np.int32), nothing, nothing)
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in (empty, *parts)), strict=True)))


def file_tasks(snapshot: Snapshot, *roles: Role) -> list[FileTask]:
    """Return the files with runs of the given roles (default: all), in order."""
    tasks: list[FileTask] = []
    ordinal = 0
    for span in snapshot.spans:
        expected: dict[str, dict[str, Wanted]] = {}
        for run in span.runs:
            if not roles or run.role in roles:
                expected.setdefault(run.split, {})[run.run_id] = Wanted(ordinal, run.label, run.digest)
            ordinal += 1
        for split, rows in sorted(expected.items()):
            tasks.extend(FileTask(span.span, split, file, rows) for file in span.files.get(split, ()))
    return tasks


def read_rows(root: Store, task: FileTask, resolved: ResolvedDefinition) -> Examples:
    """Read the expected rows of a file, in the file's order.

    Args:
      root: the data set's folder.
      task: what to read.
      resolved: the data set's definition.

    Raises:
      IntegrityError: if the file is missing or broken, or a row differs from the snapshot.
    """
    names = ["run_id", "label", "n_windows", *resolved.features]
    table = read_examples(root, task.file, names)
    ids = table.column("run_id").to_pylist()
    rows = [row for row, run_id in enumerate(ids) if run_id in task.wanted]
    if len(rows) < len(ids):
        table = table.take(pa.array(rows, pa.int64()))
    expected = [task.wanted[ids[row]] for row in rows]
    inputs = inputs_of(table, resolved)
    labels = np.array(table.column("label").to_pylist(), np.int64)
    n_windows = np.array(table.column("n_windows").to_pylist(), np.int32)
    where = root.url(task.file.path)
    if not np.isfinite(inputs).all():
        raise IntegrityError(f"{where} holds values that are not finite")
    run_ids = [ids[row] for row in rows]
    unrolled = np.ascontiguousarray(inputs.transpose(2, 0, 1))
    digests = row_digests(run_ids, unrolled, resolved.features, n_windows.tolist())
    for run_id, label, digest, want in zip(run_ids, labels.tolist(), digests, expected, strict=True):
        if digest != want.digest:
            raise IntegrityError(f"{where}: the digest of example {run_id} differs from the manifest")
        if label != want.label:
            raise IntegrityError(f"{where}: the label of example {run_id} differs from the manifest")
    return Examples(inputs, n_windows, labels, np.array([item.ordinal for item in expected], np.int64))


def read_snapshot_examples(root: Store, snapshot: Snapshot, *roles: Role) -> tuple[list[SnapshotRun], Examples]:
    """Read all runs of the given roles in the snapshot's order, not normalised.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: what to read.
      roles: roles of the runs to read; all by default.

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
    return [runs[ordinal] for ordinal in ordinals], examples


def read_facts(root: Store, snapshot: Snapshot) -> dict[str, RunFacts]:
    """Return the facts that the examples of a snapshot's files hold, by run id; files may hold further runs.

    Args:
      root: the folder of the snapshot's data set.
      snapshot: names the files.
    """
    files = [file for span in snapshot.spans for paths in span.files.values() for file in paths]
    return {run.run_id: run for file in files for run in run_facts(read_examples(root, file, METADATA_COLUMNS))}


def batches(examples: Examples, size: int) -> Iterator[Examples]:
    """Yield batches of at most ``size`` rows."""
    for start in range(0, len(examples), size):
        yield examples.take(slice(start, start + size))


#: Facts by which metrics are sliced, named as in a listing.
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
        """Normalisation of the training split, equal to that of `ciml.training.data.materialise`."""
        return Normalisation.of(self.rows.inputs[self.in_train])

    def slices(self, positions: np.ndarray) -> dict[str, list[str]]:
        """Return the slicing facts of some runs, by name; facts that no run has are omitted."""
        runs = [self.facts[position] for position in positions]
        by_name = {name: facts_of(runs, fact) for name, fact in SLICES.items()}
        return {name: [value or "unknown" for value in values] for name, values in by_name.items() if any(values)}


def read_snapshot_facts(
    dataset: StoredDataset, state: DatasetState, policy: TrustPolicy, exclusions: Exclusions | None = None
) -> tuple[Snapshot, dict[str, RunFacts]]:
    """Select the trusted examples of a data set by the facts that the examples hold.

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


def read_dataset(dataset: StoredDataset, policy: TrustPolicy, exclusions: Exclusions | None = None) -> InMemoryDataset:
    """Read all trusted examples of a data set.

    Raises `CimlError` if the data set does not exist; arguments and other errors: see `read_snapshot_facts`.
    """
    state = dataset.state()
    root = dataset.store
    snapshot, facts = read_snapshot_facts(dataset, state, policy, exclusions)
    runs, examples = read_snapshot_examples(root, snapshot)
    return InMemoryDataset(
        snapshot,
        tuple(facts[run.run_id] for run in runs),
        examples,
        np.array([run.role for run in runs], "U5"),
        np.array([run.split == "train" for run in runs], bool),
        dataset.raw(state) if state.listing is None else None,
    )


def facts_of(runs: Sequence[RunFacts], name: str) -> list[str]:
    """Return a fact of each run by name (``build_name``, ``flavour``, any metadata); "" where missing."""
    return [label_of(run, "build_name" if name == "job" else name, {}) or "" for run in runs]

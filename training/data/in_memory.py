"""A data set's examples in memory, with the facts of their runs, for experiments.

Trust is evaluated on the facts stored in the examples, joined with the updates in the raw manifest. Without a raw store
there are no updates, and facts that examples do not hold (fork, auth, owner) are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ciml.data_root import StoredDataset
from ciml.datasets.definition import METADATA_COLUMNS
from ciml.datasets.labels import label_of
from ciml.datasets.state import DatasetState
from ciml.events.records import RunFacts
from ciml.storage.open import Store
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.snapshot import Role, Snapshot, joined_facts, snapshot_of
from ciml.training.estimators import Rows
from ciml.training.exclusion_store import stored_exclusions
from ciml.training.exclusions import Exclusions
from ciml.training.normalise import Normalisation
from ciml.transforms.examples.prepare import run_facts
from ciml.transforms.examples.spans import read_span
from ciml.transforms.ingest.trust import TrustPolicy

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
        found = {name: facts_of(runs, fact) for name, fact in SLICES.items()}
        return {name: [value or "unknown" for value in values] for name, values in found.items() if any(values)}


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
    spans, root = [span for span in state.latest() if span.files], dataset.store
    known = {each.run_id: each for span in spans for each in run_facts(read_span(root, span, columns=METADATA_COLUMNS))}
    if exclusions is None:
        exclusions = stored_exclusions(dataset, state)
    joined = joined_facts(dataset, state, known)
    return snapshot_of(dataset.name, state, known, policy, exclusions, joined), known


def read_dataset(dataset: StoredDataset, policy: TrustPolicy, exclusions: Exclusions | None = None) -> InMemoryDataset:
    """Read all trusted examples of a data set.

    Raises `CimlError` if the data set does not exist; arguments and other errors: see `read_snapshot_facts`.
    """
    state, root = dataset.state(), dataset.store
    snapshot, known = read_snapshot_facts(dataset, state, policy, exclusions)
    runs, examples = read_snapshot_examples(root, snapshot)
    return InMemoryDataset(
        snapshot,
        tuple(known[run.run_id] for run in runs),
        Rows(examples.inputs, examples.n_windows, examples.labels),
        np.array([run.role for run in runs], "U5"),
        np.array([run.split == "train" for run in runs], bool),
        dataset.raw(state) if state.listing is None else None,
    )


def facts_of(runs: Sequence[RunFacts], name: str) -> list[str]:
    """Return a fact of each run by name (``build_name``, ``flavour``, any metadata); "" where missing."""
    return [label_of(run, "build_name" if name == "job" else name, {}) or "" for run in runs]

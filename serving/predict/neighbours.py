"""The neighbours of announced runs, from the raw manifest: the same as in the data set that a model learned from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ciml.manifest.log import ManifestLog
from ciml.raw.neighbours import NearbyRuns, Neighbours
from ciml.raw.run_log import StoredRunLog
from ciml.storage.open import Store
from transforms.ingest.trust import evaluate, former_policy

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition


class StoredNeighbours:
    """Neighbours of the runs of a raw store. Thread-safe. The first call reads the whole manifest, later ones its end.

    Args:
      raw: the raw store.
    """

    def __init__(self, raw: Store) -> None:
        self._log = StoredRunLog(ManifestLog(raw), partial(evaluate, former_policy()))
        self._near = NearbyRuns(lambda job: True)
        self._version = 0
        self._lock = threading.Lock()

    def of(self, run_ids: Sequence[str]) -> list[Neighbours | None]:
        """Return the neighbours of each run; None for one that did not fail, or whose place is unknown.

        Raises:
          IntegrityError: the manifest is damaged.
        """
        with self._lock:
            for version, delta in self._log.since(self._version):
                self._near.add(delta)
                self._version = version
            return [self._near.of(run_id) for run_id in run_ids]


def neighbours_of(raw: Store, definition: ResolvedDefinition) -> StoredNeighbours | None:
    """Return what finds the neighbours for a model; None if its definition does not ask for them."""
    return StoredNeighbours(raw) if "neighbours" in (definition.definition.context or ()) else None

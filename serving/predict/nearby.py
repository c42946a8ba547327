"""The neighbours of announced runs, for models whose definition has this context."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ciml.events.records import UNJUDGED
from ciml.manifest.log import ManifestLog
from ciml.raw.neighbours import NearbyRuns, Neighbours
from ciml.raw.run_log import StoredRunLog
from ciml.storage.open import Store

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition


class Nearby:
    """Finds neighbours as a data set does: it follows the raw manifest, from its first delta on. Thread-safe.

    Args:
      raw: the raw store.
      definition: that of the model.
    """

    def __init__(self, raw: Store, definition: ResolvedDefinition) -> None:
        self._log = StoredRunLog(ManifestLog(raw), lambda _: UNJUDGED)  # neighbours do not depend on trust
        self._runs = NearbyRuns(definition.definition.selects)
        self._version = 0
        self._lock = threading.Lock()

    def of(self, run_ids: Iterable[str]) -> list[Neighbours | None]:
        """Return the neighbours of stored runs; None where they are unknown, as for runs that did not fail."""
        with self._lock:
            for version, delta in self._log.since(self._version):
                self._runs.add(delta)
                self._version = version
            return [self._runs.of(run_id) for run_id in run_ids]


def nearby_of(raw: Store, definition: ResolvedDefinition) -> Nearby | None:
    """Return what finds the neighbours for a model; None if its definition does not ask for them."""
    return Nearby(raw, definition) if "neighbours" in (definition.definition.context or ()) else None

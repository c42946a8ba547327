"""The neighbours of announced runs, from the raw manifest: the same as in the data set that a model learned from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ciml.data_root import DataRoot
from ciml.datasets.history import digest_of
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import ManifestLog
from ciml.raw.neighbours import NEIGHBOURS_KIND, NearbyRuns, Neighbours
from ciml.raw.run_log import StoredRunLog
from ciml.transforms.ingest.trust import evaluate, former_policy

if TYPE_CHECKING:
    from ciml.datasets.definition import ResolvedDefinition

_log = logging.getLogger(__name__)
#: The bookmark, beside the manifest of predictions.
BOOKMARK = "_neighbours"
#: After so many runs the bookmark is replaced; to read as many again takes half a second.
_BOOKMARK_RUNS = 10_000


class StoredNeighbours:
    """Neighbours of the runs of a raw store. Thread-safe. The first call reads the manifest from its bookmark on.

    Args:
      data: the data root. Its folder of predictions has the bookmark.
      keep: whether to replace the bookmark as the manifest grows.
    """

    def __init__(self, data: DataRoot, *, keep: bool = False) -> None:
        self._keep = keep
        self._log = StoredRunLog(ManifestLog(data.raw), partial(evaluate, former_policy()))
        self._bookmarks = Bookmarks(data.predictions, BOOKMARK, NEIGHBOURS_KIND, partial(digest_of, self._log))
        self._near: NearbyRuns | None = None
        self._version = self._unsaved = 0
        self._lock = threading.Lock()

    def of(self, run_ids: Sequence[str]) -> list[Neighbours | None]:
        """Return the neighbours of each run; None for one that did not fail, or whose place is unknown.

        Raises:
          IntegrityError: the manifest is damaged.
        """
        with self._lock:
            near = self._near = self._near or self._resumed()
            for version, delta in self._log.since(self._version):
                near.add(delta)
                self._version = version
                self._unsaved += len(delta.rows)
            if self._keep and self._unsaved >= _BOOKMARK_RUNS:
                self._bookmarks.save(self._version, near.encode())
                self._unsaved = 0
            return [near.of(run_id) for run_id in run_ids]

    def _resumed(self) -> NearbyRuns:
        near = NearbyRuns(lambda job: True)
        if (found := self._bookmarks.load()) is not None:
            try:
                near.restore(found.state)
                self._version = found.version
            except msgspec.DecodeError as error:
                _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
        return near


def neighbours_of(data: DataRoot, definition: ResolvedDefinition, *, keep: bool = False) -> StoredNeighbours | None:
    """Return what finds the neighbours for a model; None if its definition does not ask for them."""
    return StoredNeighbours(data, keep=keep) if "neighbours" in (definition.definition.context or ()) else None

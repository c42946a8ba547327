"""What the runs of a data set depend on in all earlier deltas of the raw manifest: causes and neighbours.

An update reads them from the first delta, or continues from the bookmark that an earlier update left.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from ciml.datasets.definition import DatasetDefinition
from ciml.digest import sha256_hex, sha256_json
from ciml.manifest.bookmarks import Bookmarks
from ciml.raw.causes import CAUSE, CAUSES_KIND, Causes
from ciml.raw.neighbours import NEIGHBOURS_KIND, NearbyRuns, Neighbours
from ciml.raw.run_log import RunDelta, RunLog
from ciml.storage.open import Store

_log = logging.getLogger(__name__)
#: The bookmark of a data set, in its folder.
BOOKMARK = "_replay"
#: An update leaves a bookmark where the next one would read so many runs again; they take some tenths of a second.
_BOOKMARK_RUNS = 5000


class History:
    """The causes and neighbours of a data set's runs by the deltas that were added.

    Args:
      definition: of the data set. It says which of the two are asked for; the others are unknown.
      given: causes that reviewers gave, by run id.
      bookmarks: where the state is kept between updates; None to begin with the first delta.
    """

    def __init__(
        self,
        definition: DatasetDefinition,
        given: Mapping[str, str] | None = None,
        bookmarks: Bookmarks | None = None,
    ) -> None:
        self._causes = Causes(definition.selects, given) if definition.class_label == CAUSE else None
        self._near = NearbyRuns(definition.selects) if "neighbours" in (definition.context or ()) else None
        self.is_needed = self._causes is not None or self._near is not None
        self.given: Mapping[str, str] = (given or {}) if self._causes is not None else {}
        self._bookmarks, self._runs = bookmarks, 0

    def add(self, delta: RunDelta) -> set[str]:
        """Add the next delta; return the ids of the runs whose cause may have changed."""
        self._runs += len(delta.rows)
        if self._near is not None:
            self._near.add(delta)
        return self._causes.add(delta) if self._causes is not None else set()

    def cause_of(self, run_id: str) -> str:
        """Return the cause of a run that its own event does not name; "" where nothing says it."""
        return self._causes.of(run_id) if self._causes is not None else ""

    def near(self, run_id: str) -> Neighbours | None:
        """Return the neighbours of a failed run; None where they are unknown, or not asked for."""
        return self._near.of(run_id) if self._near is not None else None

    def resume(self, most: int) -> int:
        """Continue from a bookmark up to a version; return that of the last delta that it has, 0 without one.

        Raises:
          EngineError: the store does not answer.
        """
        found = self._bookmarks.load() if self._bookmarks is not None and most else None
        if found is None or found.version > most:
            return 0
        try:
            causes, near = msgspec.msgpack.decode(found.state, type=tuple[bytes, bytes])
            if self._causes is not None:
                self._causes.restore(causes)
            if self._near is not None:
                self._near.restore(near)
        except msgspec.DecodeError as error:
            _log.warning("the bookmark of the raw manifest cannot be read (%s); reading its first delta", error)
            return 0
        return found.version

    def keep(self, version: int) -> None:
        """Leave a bookmark after a delta that was just added, if many runs were read since the last one."""
        if self._bookmarks is not None and self._runs >= _BOOKMARK_RUNS:
            causes = self._causes.encode() if self._causes is not None else b""
            near = self._near.encode() if self._near is not None else b""
            self._bookmarks.save(version, msgspec.msgpack.encode((causes, near)))
            self._runs = 0


def bookmarks_of(definition: DatasetDefinition, root: Store, raw: RunLog) -> Bookmarks:
    """Return the bookmark of a data set.

    Args:
      definition: of the data set.
      root: its folder.
      raw: the raw manifest that it reads.
    """
    kind = sha256_json([CAUSES_KIND, NEIGHBOURS_KIND, definition.to_json()])
    return Bookmarks(root, BOOKMARK, kind, lambda version: digest_of(raw, version))


def digest_of(raw: RunLog, version: int) -> str:
    """Return the digest of the runs in a delta of a raw manifest."""
    return sha256_hex(msgspec.json.encode(raw.read(version)))

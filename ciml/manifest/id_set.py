"""A set of ids: a table on disk, and the ids since its checkpoint in memory."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.manifest.id_index import IdTable, Rows


class IdSet:
    """Fingerprints; none is ever removed.

    Args:
      table: the ids until a checkpoint; None for a set in memory alone.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        self._table = table
        self._recent: set[bytes] = set()
        self._seen: dict[bytes, bool] = {}  # cache of the last look-ups; a table never changes

    def prefetch(self, ids: Iterable[bytes]) -> None:
        """Look up ids in one batch. Until the next call, queries for them cannot fail."""
        if self._table is None:
            return
        seen = {identity: self._seen.get(identity) for identity in ids if identity not in self._recent}
        asked = [identity for identity, known in seen.items() if known is None]
        seen.update(zip(asked, self._table.contains(asked), strict=True))
        self._seen = {identity: bool(known) for identity, known in seen.items()}

    def __contains__(self, identity: bytes) -> bool:
        if identity in self._recent:
            return True
        if (seen := self._seen.get(identity)) is not None:
            return seen
        return self._table is not None and self._table.contains([identity])[0]

    def add(self, identity: bytes) -> None:
        """Add an id."""
        self._recent.add(identity)

    def recent(self) -> Rows:
        """Return the ids added since the checkpoint, as rows for the table.

        Raises:
          TypeError: the set has no table.
        """
        if self._table is None:
            raise TypeError("a set without a table has no rows for a table")
        return self._table.kind.rows(list(self._recent), {})

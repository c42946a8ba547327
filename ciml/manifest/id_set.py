"""A set of ids: what came since a checkpoint in memory, over a table on disk."""

from __future__ import annotations

from collections.abc import Iterable

from ciml.manifest.id_index import IdTable, Rows


class IdSet:
    """Fingerprints, never taken out.

    Args:
      table: those until a checkpoint; None for a set that is in memory alone.
    """

    def __init__(self, table: IdTable | None = None) -> None:
        self._table = table
        self._recent: set[bytes] = set()
        self._seen: dict[bytes, bool] = {}  # what was looked up last; a table never changes

    def prefetch(self, ids: Iterable[bytes]) -> None:
        """Look up at once what will be asked for next. Until the next call no question about it can fail."""
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
        """Take in an id."""
        self._recent.add(identity)

    def recent(self) -> Rows:
        """What was added, as rows for the table.

        Raises:
          TypeError: the set is in memory alone.
        """
        if self._table is None:
            raise TypeError("a set that is in memory alone has no rows for a table")
        return self._table.kind.rows(list(self._recent), {})

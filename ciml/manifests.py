"""A manifest log: numbered deltas, each created exclusively. The one place where a commit happens.

A reader opens ``_manifest/<version>.json`` in order from version 1. A writer computes delta N+1 from the state after
delta N and creates it; when another writer was first, it reads that delta and computes again (`commit`). So whatever is
killed, repeated or frozen, a delta is there whole or not at all, and each was computed from the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.storage import Store

Delta = dict[str, Any]


class State(Protocol):
    """What deltas add up to. ``version`` is that of the last one applied, 0 at first."""

    version: int

    def apply(self, version: int, delta: Delta) -> None:
        """Takes in the delta that follows."""


class ManifestLog:
    """The deltas below ``folder`` of a store. Cheap to make, safe to pickle."""

    def __init__(self, store: Store, folder: str = "_manifest") -> None:
        self.store = store
        self.folder = folder

    def path(self, version: int) -> str:
        return f"{self.folder}/{version:012d}.json"

    def read(self, version: int) -> Delta:
        """Delta ``version``; `FileNotFoundError` where it was not committed, `IntegrityError` where it is broken."""
        try:
            delta = json.loads(self.store.read(self.path(version)))
        except ValueError:
            raise IntegrityError(f"{self.store.url(self.path(version))} is not JSON: restore it from a copy") from None
        if not isinstance(delta, dict) or delta.get("version") != version:
            raise IntegrityError(f"{self.store.url(self.path(version))} does not hold version {version}")
        return delta

    def since(self, version: int) -> Iterator[tuple[int, Delta]]:
        """(version, delta) of all deltas after ``version``, in order, up to the present end."""
        while True:
            try:
                delta = self.read(version + 1)
            except FileNotFoundError:
                return
            version += 1
            yield version, delta

    def try_append(self, version: int, delta: Delta) -> bool:
        """Creates delta ``version``; False where another writer has created it before."""
        return self.store.create(self.path(version), canonical_json({**delta, "version": version}))


def catch_up(log: ManifestLog, state: State) -> None:
    """Applies to ``state`` all deltas that it has not seen."""
    for version, delta in log.since(state.version):
        state.apply(version, delta)


def commit(log: ManifestLog, state: State, build: Callable[[], Delta | None]) -> int | None:
    """Appends what ``build`` computes from ``state``, starting over for as long as other writers come first.

    Args:
      log: the log to append to.
      state: brought up to date before each call of ``build``, and after the commit.
      build: the delta from the present state, or None where there is nothing (left) to commit.

    Returns:
      The committed version, or None where ``build`` returned None.
    """
    while True:
        catch_up(log, state)
        delta = build()
        if delta is None:
            return None
        version = state.version + 1
        if log.try_append(version, delta):
            state.apply(version, {**delta, "version": version})
            return version

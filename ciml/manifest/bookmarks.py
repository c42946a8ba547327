"""Bookmarks: the state that a reader has derived from a manifest, so that the next process continues from there.

A checkpoint belongs to the state that writers commit from. A bookmark belongs to one reader, and nothing depends on it.
One that is missing, damaged, of another kind or of another history is ignored, and the reader begins with the first
delta.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from ciml.digest import canonical_json, sha256_hex
from ciml.errors import EngineError
from ciml.storage import Store

_log = logging.getLogger(__name__)
_FORMAT = 1


class Reader(Protocol):
    """A reader whose state a bookmark holds."""

    def restore(self, state: bytes) -> None:
        """Continue from a state. Raises `msgspec.DecodeError` for bytes that are not a state."""


R = TypeVar("R", bound=Reader)


class Bookmark(NamedTuple):
    """A reader's state after a delta.

    Attributes:
      version: of that delta.
      state: as the reader encodes it.
    """

    version: int
    state: bytes


class Bookmarks:
    """The bookmark of a reader, at a path of a store.

    Args:
      store: where it is.
      path: of the object there.
      kind: names all that the state depends on besides the deltas: its format, limits, a definition. A bookmark of
        another kind is ignored.
      digest_of: returns the digest of a delta, by which the bookmark of another history is recognised; raises
        `FileNotFoundError` for a version that does not exist.
    """

    def __init__(self, store: Store, path: str, kind: str, digest_of: Callable[[int], str]) -> None:
        self._store = store
        self._path = path
        self._kind = kind
        self._digest_of = digest_of

    def load(self) -> Bookmark | None:
        """Return the stored bookmark; None without a valid one.

        Raises:
          EngineError: the store does not answer.
        """
        try:
            head, _, state = self._store.read(self._path).partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(head)
            if fields["format"] != _FORMAT or fields["kind"] != self._kind or fields["sha256"] != sha256_hex(state):
                return None
            version = int(fields["version"])
            return Bookmark(version, state) if fields["delta"] == self._digest_of(version) else None
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            _log.warning("%s is not a bookmark of this manifest; reading it from its first delta", self._where)
            return None

    def resume(self, make: Callable[[], R]) -> tuple[R, int]:
        """Return a new reader and the version after which it continues: that of the bookmark; 0 without a usable one.

        Args:
          make: returns a reader before the first delta.

        Raises:
          EngineError: the store does not answer.
        """
        bookmark = self.load()
        if bookmark is not None:
            reader = make()
            try:
                reader.restore(bookmark.state)
                return reader, bookmark.version
            except msgspec.DecodeError as error:
                _log.warning("%s cannot be read (%s); reading the manifest from its first delta", self._where, error)
        return make(), 0

    def save(self, version: int, state: bytes) -> None:
        """Replace the bookmark. Where the store rejects it, a warning is logged: the next reader has more to read."""
        head = {
            "format": _FORMAT,
            "kind": self._kind,
            "version": version,
            "delta": self._digest_of(version),
            "sha256": sha256_hex(state),
        }
        try:
            self._store.replace(self._path, canonical_json(head) + b"\n" + state)
        except EngineError as error:
            _log.warning("%s: not written: %s", self._where, error)

    @property
    def _where(self) -> str:
        return self._store.url(self._path)

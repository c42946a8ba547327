"""A process's replica of a manifest's state, and bookmarks of readers.

A replica is kept up to date, committed to, and reloaded from newer checkpoints. A checkpoint belongs to the state that
writers commit from. A bookmark belongs to one reader, which may derive something else from the deltas: it stores that
result, so that the next process continues from there. Nothing depends on a bookmark. One that is missing, damaged, of
another kind or of another history is ignored, and the reader begins with the first delta.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from ciml.digest import canonical_json, sha256_hex
from ciml.errors import EngineError
from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Limits, Restorable
from ciml.manifest.id_index import IndexFileMissingError
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, catch_up, commit
from ciml.storage import Store

_log = logging.getLogger(__name__)
_FORMAT = 1
_RELOAD_EVERY = 100  # commits, or
_RELOAD_S = 60.0
_UNSEEN_S = 10.0
S = TypeVar("S", bound=Restorable)


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
      kind: what the state depends on beside the deltas: its format, limits, a definition. Another kind is left aside.
      digest_of: returns the digest of a delta, by which the bookmark of another history is left aside;
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
            _log.warning("%s is no bookmark of this manifest; reading it from its first delta", self._where)
            return None

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


class LogReplica(Generic[S]):
    """A manifest and a local copy of its state. Safe to use from threads.

    The state starts at the newest checkpoint, and moves to a newer one from time to time, so that its memory does not
    grow with the manifest.

    Args:
      log: the manifest. Its clock is used here too.
      kind: the kind of state.
      limits: when a checkpoint is due.
    """

    def __init__(self, log: ManifestLog, kind: Checkpointed[S], limits: Limits | None = None) -> None:
        self.log = log
        self._checkpoints = Checkpoints(log, kind, limits)
        self._held: S | None = None
        self._caught_up_s = 0.0
        self._reloaded_at = 0  # the version at the last check for a newer checkpoint, and its time
        self._reloaded_s = 0.0
        self._lock = threading.RLock()
        self._maintaining = threading.Lock()

    def append(self, build: Callable[[S], Delta | None]) -> int | None:
        """Commit the delta that ``build`` computes from the present state; see `ciml.manifest.log.commit`.

        Raises:
          EngineError: the store does not answer. The outcome of the commit is unknown; a retry is safe.
        """
        try:
            return self._append(build)
        except StaleWriterError:
            with self._lock:
                self._held = None  # it is far behind, and may include an invalid delta
            return self._append(build)

    def _append(self, build: Callable[[S], Delta | None]) -> int | None:
        with self._present() as state:
            version = commit(self.log, state, lambda: build(state))
            self._caught_up_s = self.log.clock()
            return version

    @contextmanager
    def state(self) -> Iterator[S]:
        """The state after the last delta. Read-only, and valid only within the ``with``."""
        with self._present() as state:
            self._catch_up(state)
            yield state

    def maintain(self, *, budget_s: float = 1.0) -> bool:
        """Make the checkpoint that is due, if any, and remove objects that older ones replaced.

        Call it every few seconds.

        With nothing due it touches the store only to read others' commits (at most every ten seconds) and to remove old
        objects (once an hour). A checkpoint is due after a thousand commits or 50,000 records. Making one takes
        seconds, of which a call spends about ``budget_s``; commits of other threads and processes continue meanwhile.
        Two processes that maintain the same log do the work twice, without harm.

        Returns:
          Whether there is more to do now.

        Raises:
          EngineError, IntegrityError: as `ciml.manifest.checkpoints.Checkpoints.maintain`.
        """
        if not self._maintaining.acquire(blocking=False):
            return False
        try:
            with self._present() as state:
                if not 0 <= self.log.clock() - self._caught_up_s < _UNSEEN_S:
                    self._catch_up(state)
                due = self._checkpoints.is_due(state)
            return self._checkpoints.maintain(due=due, budget_s=budget_s)
        finally:
            self._maintaining.release()

    def _catch_up(self, state: S) -> None:
        catch_up(self.log, state)
        self._caught_up_s = self.log.clock()

    @contextmanager
    def _present(self) -> Iterator[S]:
        """Yield the replica's state, from a checkpoint that is recent enough."""
        with self._lock:
            state = self._held
            if state is None or state.torn or self._is_passed(state):
                self._held = None
                state = self._checkpoints.open()
                self._catch_up(state)
                self._reloaded_at = state.version
                self._reloaded_s = self._caught_up_s
                self._held = state
            try:
                yield state
            except IndexFileMissingError:
                self._held = None  # its checkpoint is too old: the next call starts at the newest
                raise

    def _is_passed(self, state: S) -> bool:
        """Return whether the state should be reloaded from a newer checkpoint."""
        newest = self.log.checkpoint()
        if newest <= state.restored and self._checkpoints.is_due(state) and self._has_aged(state):
            self._reloaded_at, self._reloaded_s = state.version, self.log.clock()
            newest = self.log.newest_checkpoint()
        return newest > state.restored

    def _has_aged(self, state: S) -> bool:
        """Return whether another process may have made a checkpoint since the last check."""
        grown = state.version - self._reloaded_at >= _RELOAD_EVERY
        return grown or not 0 <= self.log.clock() - self._reloaded_s < _RELOAD_S

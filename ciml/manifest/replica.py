"""A process's replica of a manifest's state: kept up to date, committed to, and reloaded from newer checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Limits, Restorable
from ciml.manifest.index_files import IndexFileMissingError
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, catch_up, commit

_RELOAD_EVERY = 100  # commits, or
_RELOAD_S = 60.0
_UNSEEN_S = 10.0

S = TypeVar("S", bound=Restorable)


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
                self._reloaded_at, self._reloaded_s, self._held = state.version, self._caught_up_s, state
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

"""A process's replica of a manifest's state: kept up to date, committed to, and reloaded from newer checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Limits, Restorable
from ciml.manifest.id_index import IndexFileMissingError
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, catch_up, commit

#: A replica whose state has a due checkpoint looks for one by another process after this number of commits.
_RELOAD_COMMITS = 100
#: The same after this time, seconds.
_RELOAD_S = 60.0
#: Age of the state from which `LogReplica.maintain` reads the commits of other processes, seconds.
_STALE_S = 10.0
S = TypeVar("S", bound=Restorable)


class LogReplica(Generic[S]):
    """A manifest and a local copy of its state. Safe to use from threads.

    The state starts at the newest checkpoint. It is reloaded from a newer one from time to time, so that its memory
    does not grow with the manifest.

    Args:
      log: the manifest. Its clock is used here too.
      kind: the kind of state.
      limits: when a checkpoint is due.
    """

    def __init__(self, log: ManifestLog, kind: Checkpointed[S], limits: Limits | None = None) -> None:
        self.log = log
        self._checkpoints = Checkpoints(log, kind, limits)
        self._state: S | None = None
        self._caught_up_s = 0.0
        # The last check for a newer checkpoint: the version of the state, and the time.
        self._checked_version = 0
        self._checked_s = 0.0
        self._lock = threading.RLock()
        self._maintaining = threading.Lock()

    def append(self, build: Callable[[S], Delta | None]) -> int | None:
        """Commit the delta that ``build`` computes from the present state; see `ciml.manifest.log.commit`.

        Raises:
          EngineError: if the store does not answer. The outcome of the commit is unknown; a retry is safe.
        """
        try:
            return self._append(build)
        except StaleWriterError:
            with self._lock:
                self._state = None  # it is far behind, and may include an invalid delta
            return self._append(build)

    def _append(self, build: Callable[[S], Delta | None]) -> int | None:
        with self._recent_state() as state:
            version = commit(self.log, state, lambda: build(state))
            self._caught_up_s = self.log.clock()
            return version

    @contextmanager
    def state(self) -> Iterator[S]:
        """Yield the state after the last delta. It is read-only, and valid only within the ``with``."""
        with self._recent_state() as state:
            self._catch_up(state)
            yield state

    def maintain(self, *, budget_s: float = 1.0) -> bool:
        """Make the checkpoint that is due, if any, and remove objects that it replaced. Call it every few seconds.

        With nothing due it uses the store only to read others' commits, at most every ten seconds. Once an hour it
        removes old objects and looks for a checkpoint that is due by the bytes of its deltas alone. Making a checkpoint
        takes seconds, of which a call spends about ``budget_s``; commits of other threads and processes continue
        meanwhile. Two processes that maintain the same log do the work twice, without harm.

        Returns:
          Whether there is more to do now.

        Raises:
          EngineError, IntegrityError: if `ciml.manifest.checkpoints.Checkpoints.maintain` raises it.
        """
        if not self._maintaining.acquire(blocking=False):
            return False
        try:
            with self._recent_state() as state:
                if not 0 <= self.log.clock() - self._caught_up_s < _STALE_S:
                    self._catch_up(state)
                due = self._checkpoints.is_due(state)
            return self._checkpoints.maintain(due=due, budget_s=budget_s)
        finally:
            self._maintaining.release()

    def _catch_up(self, state: S) -> None:
        catch_up(self.log, state)
        self._caught_up_s = self.log.clock()

    @contextmanager
    def _recent_state(self) -> Iterator[S]:
        """Yield the replica's state, from a checkpoint that is recent enough."""
        with self._lock:
            state = self._state
            if state is None or state.torn or self._find_newer(state):
                self._state = None
                state = self._checkpoints.open()
                self._catch_up(state)
                self._checked_version = state.version
                self._checked_s = self._caught_up_s
                self._state = state
            try:
                yield state
            except IndexFileMissingError:
                self._state = None  # its checkpoint is too old: the next call starts at the newest
                raise

    def _find_newer(self, state: S) -> bool:
        """Look for a newer checkpoint than that of the state; return whether there is one."""
        newest = self.log.recent_checkpoint()
        if newest <= state.restored and self._checkpoints.is_due(state) and self._has_aged(state):
            self._checked_version = state.version
            self._checked_s = self.log.clock()
            newest = self.log.newest_checkpoint()
        return newest > state.restored

    def _has_aged(self, state: S) -> bool:
        """Return whether another process may have made a checkpoint since the last check."""
        grown = state.version - self._checked_version >= _RELOAD_COMMITS
        return grown or not 0 <= self.log.clock() - self._checked_s < _RELOAD_S

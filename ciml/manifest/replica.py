"""A state that a process keeps of a manifest: brought up to date, committed to, and begun anew at newer checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from ciml.manifest.checkpoints import Checkpointed, Checkpoints, Limits, Restorable
from ciml.manifest.index_files import IndexFileMissingError
from ciml.manifest.log import Delta, ManifestLog, StaleWriterError, catch_up, commit

_RELOAD_EVERY = 100
_UNSEEN_S = 10.0

S = TypeVar("S", bound=Restorable)


class LogReplica(Generic[S]):
    """A manifest and what its deltas add up to. Safe to use from threads.

    The state begins at the newest checkpoint, and goes over to a newer one from time to time, so that its memory does
    not grow with the manifest.

    Args:
      log: the manifest. Its clock is the clock here.
      kind: what its deltas add up to.
      limits: when a checkpoint is due.
    """

    def __init__(self, log: ManifestLog, kind: Checkpointed[S], limits: Limits | None = None) -> None:
        self.log = log
        self._checkpoints = Checkpoints(log, kind, limits)
        self._held: S | None = None
        self._caught_up_s = 0.0
        self._reloaded_at = 0  # the version at which a newer checkpoint was looked for
        self._lock = threading.RLock()
        self._maintaining = threading.Lock()

    def append(self, build: Callable[[S], Delta | None]) -> int | None:
        """Commit what ``build`` makes of the present state; see `ciml.manifest.log.commit`.

        Raises:
          EngineError: the store does not answer. Whether it is committed is not known; asking again does no harm.
        """
        try:
            return self._append(build)
        except StaleWriterError:
            with self._lock:
                self._held = None  # it has missed a lot, and may have read what nobody should have written
            return self._append(build)

    def _append(self, build: Callable[[S], Delta | None]) -> int | None:
        with self._present() as state:
            version = commit(self.log, state, lambda: build(state))
            self._caught_up_s = self.log.clock()
            return version

    @contextmanager
    def state(self) -> Iterator[S]:
        """The state after the last delta there is. To be looked at only, and only within the ``with``."""
        with self._present() as state:
            self._catch_up(state)
            yield state

    def maintain(self, *, budget_s: float = 1.0) -> bool:
        """Make the checkpoint that is due, if one is, and removes what older ones replaced. Call it every few seconds.

        With nothing due it touches the store only to see what others committed, where nobody here has looked for ten
        seconds, and once an hour to see what is old. A checkpoint is due after a thousand commits or 50,000 records; to
        make one takes seconds, of which a call spends about ``budget_s``. Commits of other threads and processes go on
        meanwhile. With two that do so, one does it for nothing.

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
        """The state that is held, from a checkpoint that is not too old."""
        with self._lock:
            state = self._held
            if state is None or state.torn or self._is_passed(state):
                self._held = None
                state = self._checkpoints.open()
                self._catch_up(state)
                self._reloaded_at, self._held = state.version, state
            try:
                yield state
            except IndexFileMissingError:
                self._held = None  # from a checkpoint of long ago: the next call begins at the newest
                raise

    def _is_passed(self, state: S) -> bool:
        """Return whether there is a checkpoint that the state should begin at instead."""
        newest = self.log.checkpoint()
        if (
            newest <= state.restored
            and self._checkpoints.is_due(state)
            and state.version - self._reloaded_at >= _RELOAD_EVERY
        ):
            self._reloaded_at = state.version
            newest = self.log.newest_checkpoint()
        return newest > state.restored

"""The one that commits: batches that are settled become deltas of the raw manifest."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ciml.accounting import reconcile
from ciml.checkpoints import Checkpoints, Limits
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.letters import put_aside
from ciml.manifests import Delta, ManifestLog, catch_up, commit
from ciml.part_files import PartGone
from ciml.raw_state import RAW, RawState
from ciml.records import Batch, OffsetRange, Outcome
from ciml.storage import Store


class Committer:
    """A raw manifest and what its deltas add up to, which is kept and brought up to date. Safe to use from threads.

    Its state begins at the newest checkpoint, and goes over to a newer one from time to time, so that its memory does
    not grow with the manifest.

    Args:
      raw: the raw store.
      clock: the time, epoch seconds.
      limits: when a checkpoint is due.
    """

    def __init__(self, raw: Store, clock: Callable[[], float] = time.time, limits: Limits | None = None) -> None:
        self.log = ManifestLog(raw, clock=clock)
        self._checkpoints = Checkpoints(self.log, RAW, limits)
        self._held: RawState | None = None
        self._caught_up_s = 0.0
        self._looked = 0  # the version at which a newer checkpoint was looked for
        self._lock = threading.RLock()
        self._maintaining = threading.Lock()
        self._clock = clock

    def commit(self, batches: Iterable[Batch]) -> int | None:
        """Commits what of ``batches`` is not settled yet. Returns the version, or None where there was nothing left.

        Raises:
          EngineError: the store does not answer. Whether it is committed is not known; asking again does no harm.
          IntegrityError: see `ciml.accounting.reconcile`. Nothing is committed then.
        """
        whole = list(batches)
        with self._present() as state:
            version = commit(self.log, state, lambda: self._build(state, whole))
            self._caught_up_s = self._clock()
            return version

    def _build(self, state: RawState, batches: list[Batch]) -> Delta | None:
        delta = reconcile(state, batches, int(self._clock() * 1e6))
        return delta and put_aside(self.log.store, delta)

    @contextmanager
    def state(self) -> Iterator[RawState]:
        """The state after the last delta there is. To be looked at only, and only within the ``with``."""
        with self._present() as state:
            self._catch_up(state)
            yield state

    def _catch_up(self, state: RawState) -> None:
        catch_up(self.log, state)
        self._caught_up_s = self._clock()

    def maintain(self, *, budget_s: float = 1.0) -> bool:
        """Makes the checkpoint that is due, if one is, and removes what older ones replaced. Call it every few seconds.

        With nothing due it touches the store only to see what others committed, where `commit` and `state` have not
        done so for ten seconds, and once an hour to see what is old. A checkpoint is due after a thousand commits or
        50,000 records; to make one takes seconds, of which a call spends about ``budget_s``. Commits of other
        threads and processes go on meanwhile. With two that do so, one does it for nothing.

        Returns:
          Whether there is more to do now.

        Raises:
          EngineError, IntegrityError: as `ciml.checkpoints.Checkpoints.maintain`.
        """
        if not self._maintaining.acquire(blocking=False):
            return False
        try:
            with self._present() as state:
                if not 0 <= self._clock() - self._caught_up_s < _UNSEEN_S:
                    self._catch_up(state)
                due = self._checkpoints.is_due(state)
            more = self._checkpoints.maintain(due=due, budget_s=budget_s)
            if due and not more:
                self._looked = 0
            return more
        finally:
            self._maintaining.release()

    @contextmanager
    def _present(self) -> Iterator[RawState]:
        """The state that is held, from a checkpoint that is not too old."""
        with self._lock:
            state = self._held
            if state is None or state.torn or self._is_passed(state):
                self._held = None
                state = self._checkpoints.open()
                self._catch_up(state)
                self._looked, self._held = state.version, state
            try:
                yield state
            except PartGone:
                self._held = None  # from a checkpoint of long ago: the next call begins at the newest
                raise

    def _is_passed(self, state: RawState) -> bool:
        """Whether there is a checkpoint that the state should begin at instead."""
        newest = self.log.checkpoint()
        if newest <= state.restored and self._checkpoints.is_due(state) and state.version - self._looked >= _LOOK_EVERY:
            self._looked = state.version
            newest = self.log.look_again()
        return newest > state.restored


_LOOK_EVERY = 100
_UNSEEN_S = 10.0
_committers: dict[tuple[int, str], Committer] = {}
_committers_lock = threading.Lock()


def committer(raw: Store) -> Committer:
    """The process's committer for a raw store: the state of a long manifest takes a while to add up."""
    key = (os.getpid(), raw.root)
    with _committers_lock:
        if key not in _committers:
            _committers[key] = Committer(raw)
        return _committers[key]


def seal(batch: Batch) -> bytes:
    """A settled batch as JSON, for the way to the committer.

    Raises:
      IntegrityError: for a batch that is not settled.
    """
    if batch.messages or batch.candidates:
        raise IntegrityError(f"{batch.covers}: a batch that is not settled cannot be committed")
    covers = batch.covers
    place = [covers.topic, covers.topic_id, covers.partition, covers.start, covers.end] if covers else None
    return canonical_json({"covers": place, "settled": [outcome.to_json() for outcome in batch.settled]})


def unseal(data: bytes) -> Batch:
    """The inverse of `seal`."""
    value = json.loads(data)
    covers = OffsetRange(*value["covers"]) if value["covers"] else None
    return Batch(covers, settled=[Outcome.from_json(record) for record in value["settled"]])

"""The one that commits: batches that are settled become deltas of the raw manifest."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ciml.accounting import RawState, reconcile
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.manifests import ManifestLog, catch_up, commit
from ciml.records import Batch, OffsetRange, Outcome
from ciml.storage import Store


class Committer:
    """A raw manifest and what its deltas add up to, which is kept and brought up to date. Safe to use from threads."""

    def __init__(self, raw: Store, clock: Callable[[], float] = time.time) -> None:
        self.log = ManifestLog(raw)
        self._state = RawState()
        self._lock = threading.RLock()
        self._clock = clock

    def commit(self, batches: Iterable[Batch]) -> int | None:
        """Commits what of ``batches`` is not settled yet. Returns the version, or None where there was nothing left.

        Raises:
          IntegrityError: see `ciml.accounting.reconcile`. Nothing is committed then.
        """
        whole = list(batches)
        with self._lock:
            return commit(self.log, self._state, lambda: reconcile(self._state, whole, int(self._clock() * 1e6)))

    @contextmanager
    def state(self) -> Iterator[RawState]:
        """The state after the last delta there is. To be looked at only, and only within the ``with``."""
        with self._lock:
            catch_up(self.log, self._state)
            yield self._state


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

"""The one that commits: batches that are settled become deltas of the raw manifest."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable

from ciml.digest import canonical_json
from ciml.errors import IntegrityError, RejectedInput
from ciml.events.payloads import offload_payloads
from ciml.events.records import Batch, OffsetRange, Outcome
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import Delta, ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.raw.accounting import reconcile
from ciml.raw.state import RAW, RawState
from ciml.storage.open import Store
from transforms.guard import attempt, bisect


class Committer(LogReplica[RawState]):
    """A raw manifest and what its deltas add up to. Safe to use from threads.

    Args:
      raw: the raw store.
      clock: the time, epoch seconds.
      limits: when a checkpoint is due.
    """

    def __init__(self, raw: Store, clock: Callable[[], float] = time.time, limits: Limits | None = None) -> None:
        super().__init__(ManifestLog(raw, clock=clock), RAW, limits)

    def commit(self, batches: Iterable[Batch]) -> int | None:
        """Commit what of ``batches`` is not settled yet. Return the version, or None where there was nothing left.

        Raises:
          EngineError: the store does not answer. Whether it is committed is not known; asking again does no harm.
          IntegrityError: see `ciml.raw.accounting.reconcile`. Nothing is committed then.
        """
        whole = list(batches)
        return self.commit_found(lambda state: whole)

    def commit_found(self, find: Callable[[RawState], Iterable[Batch]]) -> int | None:
        """As `commit`, of batches that follow from the state: ``find`` is asked anew when another commits first."""

        def build(state: RawState) -> Delta | None:
            delta = reconcile(state, find(state), int(self.log.clock() * 1e6))
            return delta and offload_payloads(self.log.store, delta)

        return self.append(build)


_committers: dict[tuple[int, str], Committer] = {}
_committers_lock = threading.Lock()


def committer(raw: Store) -> Committer:
    """Return the process's committer for a raw store: the state of a long manifest takes a while to add up."""
    key = (os.getpid(), raw.root)
    with _committers_lock:
        if key not in _committers:
            _committers[key] = Committer(raw)
        return _committers[key]


def seal(batch: Batch) -> bytes:
    """Return a settled batch as JSON, for the way to the committer.

    Raises:
      IntegrityError: for a batch that is not settled.
    """
    if batch.messages or batch.pending_runs:
        raise IntegrityError(f"{batch.covers}: a batch that is not settled cannot be committed")
    covers = batch.covers
    place = [covers.topic, covers.topic_id, covers.partition, covers.start, covers.end] if covers else None
    return canonical_json({"covers": place, "settled": [outcome.to_json() for outcome in batch.settled]})


def seal_guarded(batch: Batch) -> bytes:
    """`seal`, where an outcome that cannot be written as JSON costs itself alone: a dead letter of its origin."""
    sealed = attempt("seal", seal, batch)
    if not isinstance(sealed, RejectedInput):
        return sealed
    settled: list[Outcome] = []
    for some, made in bisect("seal", batch.settled, lambda some: seal(Batch(batch.covers, settled=list(some)))):
        if isinstance(made, RejectedInput):  # nothing of it but its place is known to be sound
            some = [Outcome("dead_letter", some[0].origin, reason=made.reason, detail=made.detail)]
        settled += some
    return seal(Batch(batch.covers, settled=settled))


def unseal(data: bytes) -> Batch:
    """Return the inverse of `seal`."""
    value = json.loads(data)
    covers = OffsetRange(*value["covers"]) if value["covers"] else None
    return Batch(covers, settled=[Outcome.from_json(record) for record in value["settled"]])

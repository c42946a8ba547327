"""Settle: run all stages on pending runs in one call, without deferring any.

The error channel: errors for people, kept beside a runner that would turn them into its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Origin, Outcome, PendingRun
from ciml.limits import SMALL_PART_BYTES
from ciml.runs.writer import store
from ciml.storage import Store
from ciml.transforms.fetch.fetch import fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import guarded_runs
from ciml.transforms.parse.logs import parse
from ciml.trust import TrustPolicy, evaluate_batch

_MOST_KEPT = 100
_kept: list[CimlError] = []
_times_cleared = 0
_PAUSES_S = (0.5, 2.0)
_ENOUGH = 10  # so many unreadable logs without a readable one are an outage


@contextmanager
def keep_error() -> Iterator[None]:
    """Keep an error for people, which on its way through a runner would become one about Beam: see `kept_error`.

    One of a call that began before all were forgotten is of an earlier job, and is not kept.
    """
    cleared = _times_cleared
    try:
        yield
    except CimlError as error:
        if cleared == _times_cleared and len(_kept) < _MOST_KEPT:
            _kept.append(error)
        raise


def kept_error(*, clear: bool = False) -> CimlError | None:
    """Return the error for people that a stage raised in this process, or None.

    It is the first error that no further try can fix, if there is one.

    Args:
      clear: whether to forget all of them.
    """
    global _times_cleared
    kept = next((error for error in _kept if not isinstance(error, EngineError)), _kept[0] if _kept else None)
    if clear:
        _times_cleared += 1
        _kept.clear()
    return kept


#: Transient reasons, which do not depend on the log itself.
PASSING = frozenset({"log_unavailable", "log_timeout", "log_cut"})
_one_at_a_time = threading.Lock()  # of memory-intensive parts, over all threads of a process


def settle(
    batches: Sequence[Batch],
    trust: TrustPolicy,
    policy: FetchPolicy,
    raw: Store,
    *,
    outages: bool = True,
    sleep: Callable[[float], object] = time.sleep,
    now_us: int | None = None,
) -> list[Batch]:
    """Judge, fetch, parse and store the pending runs of batches together.

    None is deferred: a log exists or not. Transient failures are retried at once.

    Args:
      batches: without messages.
      trust: policy that judges the runs.
      policy: the allowed addresses of logs. Its ``delays_s`` are ignored.
      raw: the raw store.
      outages: whether to raise where no log can be read for transient reasons.
      sleep: waits before the next try of unreadable logs.
      now_us: the present time, epoch microseconds.

    Returns:
      The same batches, settled; none of their outcomes is ``deferred``.

    Raises:
      EngineError: the raw store does not answer, or ten or more logs are unreadable and no other is readable.
    """
    judged = [guarded_runs("trust", lambda part: evaluate_batch(part, trust), batch) for batch in batches]
    waiting = [pending for batch in judged for pending in batch.pending_runs]
    outcomes: list[Outcome] = []
    for part in _fetched(waiting, policy, outages=outages, sleep=sleep, now_us=now_us):
        outcomes += _stored(part, raw)
        del part
    return _shared_out(judged, outcomes)


def take_logs(batch: Batch, policy: FetchPolicy, raw: Store, now_us: int, seconds: list[float] | None = None) -> Batch:
    """Fetch, parse and store the logs of a batch part by part, so that memory is bounded.

    Args:
      batch: its pending runs are judged.
      policy: the allowed addresses of logs, and the delays of retries.
      raw: the raw store.
      now_us: the present time, epoch microseconds.
      seconds: see `ciml.transforms.fetch.fetch.fetch`.

    Returns:
      The batch, settled.

    Raises:
      EngineError: the raw store does not answer.
    """
    settled = list(batch.settled)
    for part in fetch_in_parts(batch, policy, now_us, seconds):
        settled += _stored(part, raw)
        del part
    return Batch(batch.covers, batch.messages, settled=settled)


def _stored(part: Batch, raw: Store) -> list[Outcome]:
    size = sum(len(pending.log or b"") for pending in part.pending_runs)
    with _one_at_a_time if size > SMALL_PART_BYTES else nullcontext():
        parsed = guarded_runs("parse", parse, part)
        return guarded_runs("store", lambda some: store(some, raw), parsed).settled


def read_logs(
    pending_runs: Sequence[PendingRun], policy: FetchPolicy, *, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Batch]:
    """Fetch and parse the logs of pending runs, part by part. Arguments and errors: see `settle`.

    Yields:
      Batches in which a pending run has its ``telemetry`` or is settled; each is in one of them, as a copy.
    """
    for part in _fetched(pending_runs, policy, sleep=sleep):
        yield guarded_runs("parse", parse, part)
        del part


def _fetched(
    pending_runs: Sequence[PendingRun],
    policy: FetchPolicy,
    *,
    outages: bool = True,
    sleep: Callable[[float], object] = time.sleep,
    now_us: int | None = None,
) -> Iterator[Batch]:
    """Yield the parts of `fetch_in_parts`, in as many rounds as transient failures require.

    Arguments and errors: see `settle`.
    """
    moment = int(time.time() * 1e6) if now_us is None else now_us
    policy = policy.replace(delays_s=())
    waiting = list(pending_runs)
    by_key = {(pending.origin, pending.mention.run_id): pending for pending in waiting}
    lost: list[Outcome] = []
    pauses = list(_PAUSES_S)
    answered = False
    while waiting:
        later: list[Outcome] = []
        passing = False
        for part in fetch_in_parts(Batch(None, pending_runs=waiting), policy, moment):
            settled: list[Outcome] = []
            for pending in part.settled:
                once_more = pending.reason == "batch_full" or (pauses and pending.reason in PASSING)
                (later if once_more else settled).append(pending)
            answered = (
                answered or bool(part.pending_runs) or any(pending.reason not in PASSING for pending in part.settled)
            )
            passing = passing or any(pending.reason in PASSING for pending in part.settled)
            lost += [pending for pending in settled if pending.reason in PASSING]
            part.settled = settled
            yield part
            del part
        if passing and pauses:
            sleep(pauses.pop(0))
        waiting = [by_key[pending.origin, pending.run_id] for pending in later]
    if outages and not answered and len(lost) >= _ENOUGH:
        raise EngineError(f"none of {len(lost)} logs can be read: {lost[0].reason}, {lost[0].detail:.200}")


def _shared_out(batches: Sequence[Batch], done: Sequence[Outcome]) -> list[Batch]:
    """Return the outcomes, each in the batch of its pending run."""
    by_key: dict[tuple[Origin, str], Outcome] = {(outcome.origin, outcome.run_id): outcome for outcome in done}
    return [
        Batch(
            batch.covers,
            settled=batch.settled + [by_key[outcome.origin, outcome.mention.run_id] for outcome in batch.pending_runs],
        )
        for batch in batches
    ]

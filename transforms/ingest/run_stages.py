"""Take pending runs through the stages of an ingest in order: trust, fetch, parse, store.

`take_logs` is for an ingest, which defers a run whose log is unavailable. `settle` and `read_logs` are for listings and
replays: a log exists or not, so they retry transient failures and defer nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from ciml.errors import EngineError, RejectedInput
from ciml.events.records import Batch, Outcome, PendingRun
from ciml.limits import SMALL_PART_BYTES
from ciml.runs.writer import store
from ciml.storage import Store
from ciml.transforms.fetch.fetch import NOT_STORED, fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import dead_letter, guarded_runs
from ciml.transforms.ingest.outputs import with_outputs
from ciml.transforms.parse.logs import parse
from ciml.trust import PolicySource, evaluate_batch

#: Reasons that do not depend on the log itself.
TRANSIENT = frozenset({"log_unavailable", "log_timeout", "log_cut"})
_PAUSES_S = (0.5, 2.0)  # before the retries of transient failures
_OUTAGE_LOGS = 10  # so many unreadable logs, without a readable one, are an outage
#: Large parts are parsed one at a time in a process, because of their memory.
_large_part_lock = threading.Lock()


def settle(
    batches: Sequence[Batch],
    trust: PolicySource,
    policy: FetchPolicy,
    raw: Store,
    *,
    outages: bool = True,
    sleep: Callable[[float], object] = time.sleep,
    now_us: int | None = None,
) -> list[Batch]:
    """Judge, fetch, parse and store the pending runs of batches together, then their outputs.

    Transient failures of logs are retried.

    Args:
      batches: without messages.
      trust: policy that judges the runs.
      policy: the allowed addresses of logs. Its ``delays_s`` are ignored.
      raw: the raw store.
      outages: whether to raise if no log can be read for transient reasons.
      sleep: waits before the next try of unreadable logs.
      now_us: the present time, epoch microseconds.

    Returns:
      The same batches, settled; none of their outcomes is ``deferred``.

    Raises:
      EngineError: if the raw store does not answer, or no log is readable and ten or more failed for transient reasons.
    """
    judged = [guarded_runs("trust", lambda part: evaluate_batch(part, trust), batch) for batch in batches]
    waiting = [pending for batch in judged for pending in batch.pending_runs]
    outcomes = {}
    by_key = {(pending.origin, pending.mention.run_id): pending for pending in waiting}
    for part in _fetch_with_retries(waiting, policy, outages=outages, sleep=sleep, now_us=now_us):
        stored = _parse_and_store(part, raw)
        del part  # with its telemetry, before the outputs and the next part are fetched
        stored = with_outputs(stored, by_key, policy, raw, policy.batch_s)
        outcomes.update({(outcome.origin, outcome.run_id): outcome for outcome in stored})
    settled_batches = []
    for batch in judged:
        settled = [outcomes[pending.origin, pending.mention.run_id] for pending in batch.pending_runs]
        settled_batches.append(Batch(batch.covers, settled=batch.settled + settled))
    return settled_batches


def take_logs(batch: Batch, policy: FetchPolicy, raw: Store, now_us: int, seconds: list[float] | None = None) -> Batch:
    """Fetch, parse and store the logs of a batch part by part, so that memory is bounded, and the outputs of each part.

    Args:
      batch: its pending runs are judged.
      policy: the allowed addresses of logs, and the delays of retries.
      raw: the raw store.
      now_us: the present time, epoch microseconds.
      seconds: see `ciml.transforms.fetch.fetch.Fetcher.fetch`.

    Returns:
      The batch, settled.

    Raises:
      EngineError: if the raw store does not answer.
    """
    settled = list(batch.settled)
    end = time.monotonic() + policy.batch_s
    by_key = {(pending.origin, pending.mention.run_id): pending for pending in batch.pending_runs}
    for part in fetch_in_parts(batch, policy, now_us, seconds):
        stored = _parse_and_store(part, raw)
        del part  # with its telemetry, before the outputs and the next part are fetched
        for outcome in with_outputs(stored, by_key, policy, raw, end - time.monotonic()):
            pending = by_key.get((outcome.origin, outcome.run_id)) if outcome.reason == "batch_full" else None
            if pending is not None and pending.address:
                outcome = dead_letter(pending, RejectedInput("log_timeout", f"{outcome.detail}{NOT_STORED}")).replace(
                    first_seen_us=outcome.first_seen_us
                )
            settled.append(outcome)
    return Batch(batch.covers, batch.messages, settled=settled)


def read_logs(
    pending_runs: Sequence[PendingRun], policy: FetchPolicy, *, sleep: Callable[[float], object] = time.sleep
) -> Iterator[Batch]:
    """Fetch and parse the logs of pending runs, part by part. Arguments and errors: see `settle`.

    Yields:
      Batches in which a pending run has its ``telemetry`` or is settled; each is in one of them, as a copy.
    """
    for part in _fetch_with_retries(pending_runs, policy, sleep=sleep):
        yield guarded_runs("parse", parse, part)
        del part


def _fetch_with_retries(
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
    moment_us = int(time.time() * 1e6) if now_us is None else now_us
    policy = policy.replace(delays_s=())
    by_key = {(pending.origin, pending.mention.run_id): pending for pending in pending_runs}
    waiting = list(pending_runs)
    pauses_s = list(_PAUSES_S)
    unreadable: list[Outcome] = []
    any_answer = False
    while waiting:
        retried: list[PendingRun] = []
        any_transient = False
        for part in fetch_in_parts(Batch(None, pending_runs=waiting), policy, moment_us):
            settled: list[Outcome] = []
            for outcome in part.settled:
                is_transient = outcome.reason in TRANSIENT
                any_transient |= is_transient
                any_answer |= not is_transient
                if outcome.reason == "batch_full" or (is_transient and pauses_s):
                    retried.append(by_key[outcome.origin, outcome.run_id])
                    continue
                settled.append(outcome)
                if is_transient:
                    unreadable.append(outcome)
            any_answer |= bool(part.pending_runs)
            part.settled = settled
            yield part
            del part
        if any_transient and pauses_s:
            sleep(pauses_s.pop(0))
        waiting = retried
    if outages and not any_answer and len(unreadable) >= _OUTAGE_LOGS:
        first = unreadable[0]
        raise EngineError(f"none of {len(unreadable)} logs can be read: {first.reason}, {first.detail:.200}")


def _parse_and_store(part: Batch, raw: Store) -> list[Outcome]:
    size = sum(len(pending.log or b"") for pending in part.pending_runs)
    with _large_part_lock if size > SMALL_PART_BYTES else nullcontext():
        parsed = guarded_runs("parse", parse, part)
        return guarded_runs("store", lambda parsed_part: store(parsed_part, raw), parsed).settled

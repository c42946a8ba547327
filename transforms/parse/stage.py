"""The parse stage: fetched logs become telemetry."""

from __future__ import annotations

from ciml.errors import RejectedInput, drop_frames
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Outcome, PendingRun
from ciml.transforms.parse.logs import Log, parse_logs


def parse(batch: Batch) -> Batch:
    """Parse the logs of a batch's pending runs: ``log`` becomes ``telemetry``.

    Returns:
      The batch; a rejected log has become a dead letter with the parser's reason.
    """
    if not batch.pending_runs:
        return batch
    logs = [
        Log(pending_run.log or b"", pending_run.mention.start_us, pending_run.mention.end_us)
        for pending_run in batch.pending_runs
    ]
    parsed: list[PendingRun] = []
    settled = list(batch.settled)
    for pending, result in zip(batch.pending_runs, parse_logs(logs), strict=True):
        pending.log = None
        if isinstance(result, RejectedInput):
            drop_frames(result)
            settled.append(_dead_letter(pending, result))
        else:
            pending.telemetry = result
            parsed.append(pending)
    return Batch(batch.covers, batch.messages, parsed, settled)


def _dead_letter(pending: PendingRun, rejected: RejectedInput) -> Outcome:
    return Outcome(
        "dead_letter",
        pending.origin,
        pending.event_key,
        pending.mention,
        rejected.reason,
        rejected.detail,
        pending.trust,
        payload=payload_of(pending.message) if pending.message else None,
        attempts=pending.attempts,
        first_seen_us=pending.first_seen_us,
    )

"""Replay: a dead letter is decoded like a new message, with today's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.cloudevents import decode_message
from ciml.events.listing import Line, Reading, is_listing
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, OffsetRange, Outcome, PendingRun
from ciml.events.redaction import REDACTED
from ciml.events.run_facts import ANY_SOURCE
from ciml.events.run_id import RunId
from ciml.raw.state import retry
from ciml.transforms.guard import guarded_messages
from ciml.transforms.ingest.decode import ALL_JOBS, ReadEvent, decode
from ciml.transforms.ingest.decode_listing import decode_lines


def read_again(
    dead_letter: Outcome,
    payload: Mapping[str, Any] | None,
    selection: Sequence[str] = ALL_JOBS,
    names: Mapping[str, str] | None = None,
    logs: str = "",
    read_event: ReadEvent = decode_message,
) -> Batch:
    """Decode a dead letter again.

    Args:
      dead_letter: the recorded dead letter.
      payload: its whole payload (`ciml.events.payloads.read_payload`); None if it has none, as after a deferred log.
      selection: globs of the selected jobs.
      names: CloudEvent source -> source name in the run ids, as in ingest. A dead letter's known run keeps its id.
      logs: the present folder of a listing's logs; "" for the original one.
      read_event: decodes a message, as in ingest.

    Returns:
      A batch without range and messages: pending runs, and outcomes without a log. It holds the dead letter's run where
      that is known, else all runs of its message.

    Raises:
      RejectedInput: ``not_held``, ``secret_not_held`` or ``other_run``; no configuration can replay it.
    """
    if payload is None or "value" not in payload:
        if payload is not None or dead_letter.mention is None or not dead_letter.mention.log_url:
            raise RejectedInput("not_held", "the manifest does not hold the message; read it again at its origin")
        return _checked(dead_letter, Batch(None, pending_runs=[retry(dead_letter)]))
    try:
        message = message_of(payload, dead_letter.origin.offset)
    except (IntegrityError, ValueError):
        raise RejectedInput("not_held", "the payload is damaged") from None
    if is_listing(dead_letter.origin.topic):
        return _checked(dead_letter, _read_line(dead_letter, message, logs))
    return _checked(dead_letter, _read_message(dead_letter, message, Decoding(selection, names or {}, read_event)))


def _read_line(dead_letter: Outcome, message: Message, logs: str) -> Batch:
    try:
        reading = Reading.of(message.headers)
    except (CimlError, ValueError):
        raise RejectedInput("not_held", "the reading options of the line are missing") from None
    if logs:
        reading = replace(reading, logs=logs)
    return decode_lines(_place_of(dead_letter), [Line(dead_letter.origin.offset, message.value or b"")], reading)


class Decoding(NamedTuple):
    """How messages are decoded; see `ciml.transforms.ingest.decode.decode`."""

    selection: Sequence[str]
    names: Mapping[str, str]
    read_event: ReadEvent


def _read_message(dead_letter: Outcome, message: Message, decoding: Decoding) -> Batch:
    covers = _place_of(dead_letter)
    batch = _decoded(covers, message, decoding)
    if dead_letter.run_id and dead_letter.run_id not in _runs(batch):
        known = RunId.decode(dead_letter.run_id).source  # the name of its source at ingestion
        batch = _decoded(covers, message, decoding._replace(names={ANY_SOURCE: known}))
    return batch


def _decoded(covers: OffsetRange, message: Message, decoding: Decoding) -> Batch:
    return guarded_messages("decode", lambda part: decode(part, *decoding), Batch(covers, [message]))


def _place_of(dead_letter: Outcome) -> OffsetRange:
    topic, partition, offset = dead_letter.origin.topic, dead_letter.origin.partition, dead_letter.origin.offset
    return OffsetRange(topic, "", partition, offset, offset + 1)


def _runs(batch: Batch) -> set[str]:
    return {each.run_id for each in batch.settled} | {each.mention.run_id for each in batch.pending_runs}


def _checked(dead_letter: Outcome, batch: Batch) -> Batch:
    """Reduce the batch to the dead letter's run, where that is known."""
    pending_runs, settled = batch.pending_runs, batch.settled
    if dead_letter.run_id:
        pending_runs = [each for each in pending_runs if each.mention.run_id == dead_letter.run_id]
        settled = [each for each in settled if each.run_id == dead_letter.run_id]
        if not pending_runs and not settled:
            reasons = [each for each in batch.settled if not each.run_id]
            if not reasons:
                raise RejectedInput("other_run", "the message now decodes to another run")
            settled = [reasons[0].replace(mention=dead_letter.mention)]  # it cannot be decoded any more
    for pending in pending_runs:
        if dead_letter.run_id and _holds_secret(pending):
            raise RejectedInput(
                "secret_not_held", "the log's address held a secret, which is not stored; send the event again"
            )
        pending.attempts = dead_letter.attempts + 1
        pending.first_seen_us = dead_letter.first_seen_us
    return Batch(None, pending_runs=pending_runs, settled=settled)


def _holds_secret(pending: PendingRun) -> bool:
    return f"={REDACTED}" in (pending.address or pending.mention.log_url)

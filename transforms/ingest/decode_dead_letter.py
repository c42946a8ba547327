"""Again: a dead letter is read as a new message would be, by what is known and allowed today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.listing import Line, Reading, is_listing
from ciml.events.mentions import ANY_SOURCE
from ciml.events.payloads import message_of
from ciml.events.records import Batch, Message, OffsetRange, Outcome, PendingRun
from ciml.events.redaction import REDACTED
from ciml.events.run_id import RunId
from ciml.raw.state import retry
from transforms.guard import guarded_messages
from transforms.ingest.decode import ALL_JOBS, decode
from transforms.ingest.decode_listing import decode_lines

#: Why a letter cannot be tried again, whatever is allowed: a closed set.
UNTRIED = ("not_held", "secret_not_held", "other_run")


def read_again(
    letter: Outcome,
    payload: Mapping[str, Any] | None,
    selection: Sequence[str] = ALL_JOBS,
    names: Mapping[str, str] | None = None,
    logs: str = "",
) -> Batch:
    """Decodes a dead letter again.

    Args:
      letter: as it was recorded.
      payload: its whole payload (`ciml.events.payloads.whole_payload`); None if it has none, as after a deferred log.
      selection: globs of the jobs to take.
      names: CloudEvent source -> the run ids' source, as ingest has it. The run of a letter that has one keeps its id.
      logs: of a letter of a listing, where its logs are now; "" for where they were.

    Returns:
      A batch that covers nothing and has no messages: candidates, and what is settled without a log. Of a letter whose
      run is known it says that run's fate; of one that could not be decoded, that of all runs that its message names.

    Raises:
      RejectedInput: with a reason of `UNTRIED`.
    """
    if payload is None or "value" not in payload:
        if payload is not None or letter.mention is None or not letter.mention.log_url:
            raise RejectedInput("not_held", "the manifest does not hold the message: read it again at its origin")
        return _checked(letter, Batch(None, candidates=[retry(letter)]))
    try:
        message = message_of(payload, letter.origin.offset)
    except (IntegrityError, ValueError):
        raise RejectedInput("not_held", "the payload is broken") from None
    if is_listing(letter.origin.topic):
        return _checked(letter, _read_line(letter, message, logs))
    return _checked(letter, _read_message(letter, message, selection, names or {}))


def _read_line(letter: Outcome, message: Message, logs: str) -> Batch:
    try:
        reading = Reading.of(message.headers)
    except (CimlError, ValueError):
        raise RejectedInput("not_held", "it is not said how the line was read") from None
    if logs:
        reading = replace(reading, logs=logs)
    return decode_lines(_place_of(letter), [Line(letter.origin.offset, message.value or b"")], reading)


def _read_message(letter: Outcome, message: Message, selection: Sequence[str], names: Mapping[str, str]) -> Batch:
    covers = _place_of(letter)
    batch = _decoded(covers, message, selection, names)
    if letter.run_id and letter.run_id not in _runs(batch):
        known = RunId.decode(letter.run_id).source  # the name that its source had when it came
        batch = _decoded(covers, message, selection, {ANY_SOURCE: known})
    return batch


def _decoded(covers: OffsetRange, message: Message, selection: Sequence[str], names: Mapping[str, str]) -> Batch:
    return guarded_messages("decode", lambda part: decode(part, selection, names), Batch(covers, [message]))


def _place_of(letter: Outcome) -> OffsetRange:
    topic, partition, offset = letter.origin.topic, letter.origin.partition, letter.origin.offset
    return OffsetRange(topic, "", partition, offset, offset + 1)


def _runs(batch: Batch) -> set[str]:
    return {each.run_id for each in batch.settled} | {each.mention.run_id for each in batch.candidates}


def _checked(letter: Outcome, batch: Batch) -> Batch:
    """The batch, of a letter's one run alone where it has one."""
    candidates, settled = batch.candidates, batch.settled
    if letter.run_id:
        candidates = [each for each in candidates if each.mention.run_id == letter.run_id]
        settled = [each for each in settled if each.run_id == letter.run_id]
        if not candidates and not settled:
            reasons = [each for each in batch.settled if not each.run_id]
            if not reasons:
                raise RejectedInput("other_run", "its message names another run now")
            settled = [reasons[0].replace(mention=letter.mention)]  # it cannot be decoded any more
    for candidate in candidates:
        if letter.run_id and _holds_secret(candidate):
            raise RejectedInput(
                "secret_not_held", "the log's address held a secret, which is not kept: send the event anew"
            )
        candidate.attempts = letter.attempts + 1
        candidate.first_seen_us = letter.first_seen_us
    return Batch(None, candidates=candidates, settled=settled)


def _holds_secret(candidate: PendingRun) -> bool:
    return f"={REDACTED}" in (candidate.address or candidate.mention.log_url)

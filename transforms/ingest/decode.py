"""Replay: a dead letter is decoded like a new message, with today's configuration.

Decode: messages become pending runs, or are settled as ignored or as dead letters.

Decode lines of a listing to pending runs, like messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ciml.digest import sha256_json
from ciml.errors import CimlError, IntegrityError, RejectedInput
from ciml.events.cloudevents import Event, decode_message
from ciml.events.listing import Line, Reading, dead_letter_of, decode_line, is_listing
from ciml.events.outcomes import NEVER_RAN, normal_word
from ciml.events.payloads import message_of, payload_of
from ciml.events.records import COMPLETES, Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RawFile, RunFacts
from ciml.events.redaction import REDACTED
from ciml.events.run_id import ANY_SOURCE, RunId
from ciml.globs import glob_pattern
from ciml.runs.state import retry
from ciml.transforms.guard import bisect, guarded_messages, unread_dead_letter

#: Why a decoded run is ignored: a closed set. The first that applies is recorded.
IGNORED = ("not_finished", "cancelled", "skipped", "node_lost", "never_started", "job_not_selected", "no_run")

#: Decodes a message: `decode_message`, or `ciml.integrations.registry.read_event`, which knows the messages of CI
#: systems too.
ReadEvent = Callable[[Message, Mapping[str, str] | None], Event]

ALL_JOBS = ("*",)


def decode(
    batch: Batch,
    selection: Sequence[str] = ALL_JOBS,
    names: Mapping[str, str] | None = None,
    read_event: ReadEvent = decode_message,
) -> Batch:
    """Decode a batch's messages.

    Args:
      batch: with ``covers``, the topic and partition of its messages.
      selection: globs of the selected jobs; ``all`` and ``*`` select every job.
      names: CloudEvent source -> source name in the run ids (`ciml.events.run_id.source_name`).
      read_event: decodes a message.

    Returns:
      A batch without messages: finished runs of selected jobs are pending; the others settled, ``ignored`` with a
      reason of `IGNORED`, or ``dead_letter`` with one of `ciml.events.cloudevents.REASONS` and the message as payload.
    """
    if batch.covers is None:
        if batch.messages:
            raise CimlError("a batch of messages needs its range of offsets")
        return batch
    topic = batch.covers.topic
    partition = batch.covers.partition
    selected = glob_pattern(selection).fullmatch
    pending_runs = list(batch.pending_runs)
    settled = list(batch.settled)
    for message in batch.messages:
        origin = Origin(topic, partition, message.offset)
        try:
            event = read_event(message, names)
        except RejectedInput as rejected:
            settled.append(dead_letter(origin, message, rejected))
            continue
        if event.ignored:
            settled.append(Outcome("ignored", origin, event.key, None, "no_run", event.ignored))
        if event.updates:
            settled.append(Outcome("update", origin, event.key, updates=event.updates))
        for facts in event.run_facts:
            reason = why_ignored(facts)
            if not reason and not selected(facts.build_name):
                reason = "job_not_selected"
            if reason:
                settled.append(Outcome("ignored", origin, event.key, facts, reason))
                continue
            run_message = event.message_for(facts.run_id, message)
            if not facts.log_url:
                settled.append(
                    dead_letter(origin, run_message, RejectedInput("missing_field", "log_url"), event.key, facts)
                )
                continue
            address = event.addresses.get(facts.run_id, "")
            pending_runs.append(PendingRun(origin, event.key, facts, run_message, address=address))
        for facts, fault in event.rejections:
            run_message = event.message_for(facts.run_id, message)
            settled.append(dead_letter(origin, run_message, fault, event.key, facts))
    return Batch(batch.covers, [], pending_runs, settled)


def why_ignored(facts: RunFacts) -> str:
    """Return the reason of `IGNORED` for the run itself, or ""."""
    if facts.phase != "finished":
        return "not_finished"
    if facts.outcome == "cancellation":
        return "cancelled"
    if facts.outcome == "skip":
        return "skipped"
    return NEVER_RAN.get(normal_word(facts.result), "") if facts.outcome == "error" else ""


def dead_letter(
    origin: Origin, message: Message, rejected: RejectedInput, event_key: str = "", facts: RunFacts | None = None
) -> Outcome:
    """Return the dead letter of a message, or of one of its runs, which can be tried again."""
    payload = payload_of(message)
    return Outcome("dead_letter", origin, event_key, facts, rejected.reason, rejected.detail, payload=payload)


class CompletedRow(NamedTuple):
    """A stored row with facts of its line that it lacked. Its raw object stays."""

    facts: RunFacts
    file: RawFile

    def outcome(self, origin: Origin) -> Outcome:
        """Return the outcome of the line. Its event key follows from the facts, so they complete the row once."""
        key = f"complete {sha256_json(self.facts.to_json())[:32]}"
        return Outcome("run", origin, event_key=key, mention=self.facts, reason=COMPLETES, file=self.file)


def decode_lines(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int] = frozenset(),
    completed: Mapping[int, CompletedRow] | None = None,
) -> Batch:
    """Decode the lines of a range.

    Args:
      covers: the range; ``lines`` outside of it are ignored.
      lines: the lines, without blank ones.
      reading: how the lines are read.
      known: numbers of lines whose runs have raw rows: their logs are not read again.
      completed: the rows that lines complete, by the line's number: their logs are not read again either.

    Returns:
      A batch of pending runs; ignored and known runs and dead letters are settled, as in
      `ciml.transforms.ingest.decode`. An unexpected exception affects only its own line (`ciml.transforms.guard`).
    """
    decoded = Batch(covers)
    for part_lines, decoded_part in bisect(
        "decode", lines, lambda part: _decode(covers, part, reading, known, completed or {})
    ):
        if isinstance(decoded_part, Batch):
            decoded.pending_runs += decoded_part.pending_runs
            decoded.settled += decoded_part.settled
        elif covers.start <= part_lines[0].number < covers.end:
            origin = Origin(covers.topic, covers.partition, part_lines[0].number)
            decoded.settled.append(unread_dead_letter(origin, part_lines[0].message(reading), decoded_part))
    return decoded


def _decode(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int],
    completed: Mapping[int, CompletedRow],
) -> Batch:
    pending_runs: list[PendingRun] = []
    settled: list[Outcome] = []
    for line in lines:
        if not covers.start <= line.number < covers.end:
            continue
        origin = Origin(covers.topic, covers.partition, line.number)
        if line.sha256:
            settled.append(dead_letter_of(origin, line))
            continue
        message = line.message(reading)
        try:
            run = decode_line(line.data, reading)
        except RejectedInput as rejected:
            settled.append(dead_letter(origin, message, rejected))
            continue
        facts = run.facts
        if run.fault is not None:
            settled.append(dead_letter(origin, message, run.fault, facts=facts))
        elif reason := why_ignored(facts):
            settled.append(Outcome("ignored", origin, mention=facts, reason=reason))
        elif (row := completed.get(line.number)) is not None:
            settled.append(row.outcome(origin))
        elif line.number in known:  # the accounting makes it a correction if the outcome differs
            settled.append(Outcome("repeat", origin, mention=facts, reason="run"))
        else:
            address = run.address if run.address != facts.log_url else ""
            pending_runs.append(PendingRun(origin, "", facts, message, address=address))
    return Batch(covers, [], pending_runs, settled)


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
        source = RunId.decode(dead_letter.run_id).source  # the name of its source at ingestion
        batch = _decoded(covers, message, decoding._replace(names={ANY_SOURCE: source}))
    return batch


def _decoded(covers: OffsetRange, message: Message, decoding: Decoding) -> Batch:
    return guarded_messages("decode", lambda part: decode(part, *decoding), Batch(covers, [message]))


def _place_of(dead_letter: Outcome) -> OffsetRange:
    topic = dead_letter.origin.topic
    partition = dead_letter.origin.partition
    offset = dead_letter.origin.offset
    return OffsetRange(topic, "", partition, offset, offset + 1)


def _runs(batch: Batch) -> set[str]:
    return {item.run_id for item in batch.settled} | {item.mention.run_id for item in batch.pending_runs}


def _checked(dead_letter: Outcome, batch: Batch) -> Batch:
    """Reduce the batch to the dead letter's run, where that is known."""
    pending_runs = batch.pending_runs
    settled = batch.settled
    if dead_letter.run_id:
        pending_runs = [pending_run for pending_run in pending_runs if pending_run.mention.run_id == dead_letter.run_id]
        settled = [pending_run for pending_run in settled if pending_run.run_id == dead_letter.run_id]
        if not pending_runs and not settled:
            reasons = [pending_run for pending_run in batch.settled if not pending_run.run_id]
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

"""Decode messages, lines of a listing, and dead letters: to pending runs, or to outcomes if there is no log to fetch.

`decode` is the stage of an ingest. `decode_lines` decodes a listing with the same results. `read_again` decodes a dead
letter like a new message, with the present configuration. A rejected input becomes a dead letter.
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
from ciml.events.records import (
    COMPLETES,
    Batch,
    Message,
    OffsetRange,
    Origin,
    Outcome,
    OutputFile,
    PendingRun,
    RawFile,
    RunFacts,
)
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

#: The selection of every job.
ALL_JOBS = ("*",)


class CompletedRow(NamedTuple):
    """A stored row, completed with facts from its line. Its raw object is unchanged."""

    facts: RunFacts
    file: RawFile
    output: OutputFile | None = None

    def outcome(self, origin: Origin) -> Outcome:
        """Return the outcome of the line. Its event key is a digest of the facts, so they complete the row once."""
        key = f"complete {sha256_json(self.facts.to_json())[:32]}"
        return Outcome(
            "run", origin, event_key=key, mention=self.facts, reason=COMPLETES, file=self.file, output=self.output
        )


class Decoding(NamedTuple):
    """The configuration of `decode`."""

    selection: Sequence[str]
    names: Mapping[str, str]
    read_event: ReadEvent


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
      A batch without messages. Finished runs of selected jobs are pending. Others are settled: ``ignored`` with a
      reason of `IGNORED`, or ``dead_letter`` with one of `ciml.events.cloudevents.REASONS` and the message as payload.
    """
    if batch.covers is None:
        if batch.messages:
            raise CimlError("a batch of messages needs its range of offsets")
        return batch
    is_selected = glob_pattern(selection).fullmatch
    decoded = Batch(batch.covers, [], list(batch.pending_runs), list(batch.settled))
    for message in batch.messages:
        origin = Origin(batch.covers.topic, batch.covers.partition, message.offset)
        try:
            event = read_event(message, names)
        except RejectedInput as rejected:
            decoded.settled.append(_dead_letter(origin, message, rejected))
            continue
        if event.ignored:
            decoded.settled.append(Outcome("ignored", origin, event.key, None, "no_run", event.ignored))
        if event.updates:
            decoded.settled.append(Outcome("update", origin, event.key, updates=event.updates))
        for facts in event.run_facts:
            reason = why_ignored(facts)
            if not reason and not is_selected(facts.build_name):
                reason = "job_not_selected"
            if reason:
                decoded.settled.append(Outcome("ignored", origin, event.key, facts, reason))
                continue
            run_message = event.message_for(facts.run_id, message)
            if not facts.log_url:
                no_log = RejectedInput("missing_field", "log_url")
                decoded.settled.append(_dead_letter(origin, run_message, no_log, event.key, facts))
                continue
            address = event.addresses.get(facts.run_id, "")
            output = event.outputs.get(facts.run_id, "")
            pending = PendingRun(origin, event.key, facts, run_message, address=address, output_address=output)
            decoded.pending_runs.append(pending)
        for facts, fault in event.rejections:
            run_message = event.message_for(facts.run_id, message)
            decoded.settled.append(_dead_letter(origin, run_message, fault, event.key, facts))
    return decoded


def why_ignored(facts: RunFacts) -> str:
    """Return the reason of `IGNORED` that the run itself gives, or ""."""
    if facts.phase != "finished":
        return "not_finished"
    if facts.outcome == "cancellation":
        return "cancelled"
    if facts.outcome == "skip":
        return "skipped"
    return NEVER_RAN.get(normal_word(facts.result), "") if facts.outcome == "error" else ""


def _dead_letter(
    origin: Origin, message: Message, rejected: RejectedInput, event_key: str = "", facts: RunFacts | None = None
) -> Outcome:
    """Return the dead letter of a message, or of one of its runs, with the payload for a retry."""
    payload = payload_of(message)
    return Outcome("dead_letter", origin, event_key, facts, rejected.reason, rejected.detail, payload=payload)


def decode_lines(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int] = frozenset(),
    completed: Mapping[int, CompletedRow] | None = None,
) -> Batch:
    """Decode the lines of a range of a listing.

    Args:
      covers: the range; lines outside of it are left out.
      lines: the lines, without blank ones.
      reading: how the lines are read.
      known: numbers of lines whose runs have raw rows: their logs are not read again.
      completed: the rows that lines complete, by the line's number: their logs are not read again either.

    Returns:
      A batch of pending runs; ignored and known runs and dead letters are settled, as by `decode`. An unexpected
      exception affects only its own line (`ciml.transforms.guard`).
    """
    covered = [line for line in lines if covers.start <= line.number < covers.end]
    decoded = Batch(covers)
    for part, result in bisect(
        "decode", covered, lambda part: _decode_lines(covers, part, reading, known, completed or {})
    ):
        if isinstance(result, Batch):
            decoded.pending_runs += result.pending_runs
            decoded.settled += result.settled
        else:
            origin = Origin(covers.topic, covers.partition, part[0].number)
            decoded.settled.append(unread_dead_letter(origin, part[0].message(reading), result))
    return decoded


def _decode_lines(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int],
    completed: Mapping[int, CompletedRow],
) -> Batch:
    pending_runs: list[PendingRun] = []
    settled: list[Outcome] = []
    for line in lines:
        origin = Origin(covers.topic, covers.partition, line.number)
        if line.sha256:
            settled.append(dead_letter_of(origin, line))
            continue
        message = line.message(reading)
        try:
            run = decode_line(line.data, reading)
        except RejectedInput as rejected:
            settled.append(_dead_letter(origin, message, rejected))
            continue
        facts = run.facts
        if run.fault is not None:
            settled.append(_dead_letter(origin, message, run.fault, facts=facts))
        elif why_ignored(facts):
            settled.append(Outcome("ignored", origin, mention=facts, reason=why_ignored(facts)))
        elif line.number in completed:
            settled.append(completed[line.number].outcome(origin))
        elif line.number in known:  # the accounting makes it a correction if the outcome differs
            settled.append(Outcome("repeat", origin, mention=facts, reason="run"))
        else:
            address = run.address if run.address != facts.log_url else ""
            pending_runs.append(PendingRun(origin, "", facts, message, address=address, output_address=run.output))
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
      A batch without range and messages: pending runs, and outcomes of runs without a log to fetch. It has the dead
      letter's run if that is known, else all runs of its message.

    Raises:
      RejectedInput: ``not_held``, ``secret_not_held`` or ``other_run``: no configuration can replay it.
    """
    if payload is None or "value" not in payload:
        has_address = dead_letter.mention is not None and bool(dead_letter.mention.log_url)
        if payload is not None or not has_address:
            raise RejectedInput("not_held", "the manifest does not hold the message; read it again at its origin")
        return _select_run(dead_letter, Batch(None, pending_runs=[retry(dead_letter)]))
    try:
        message = message_of(payload, dead_letter.origin.offset)
    except (IntegrityError, ValueError):
        raise RejectedInput("not_held", "the payload is damaged") from None
    if is_listing(dead_letter.origin.topic):
        return _select_run(dead_letter, _read_line(dead_letter, message, logs))
    decoding = Decoding(selection, names or {}, read_event)
    return _select_run(dead_letter, _read_message(dead_letter, message, decoding))


def _read_line(dead_letter: Outcome, message: Message, logs: str) -> Batch:
    try:
        reading = Reading.of(message.headers)
    except (CimlError, ValueError):
        raise RejectedInput("not_held", "the reading options of the line are missing") from None
    if logs:
        reading = replace(reading, logs=logs)
    return decode_lines(_place_of(dead_letter), [Line(dead_letter.origin.offset, message.value or b"")], reading)


def _read_message(dead_letter: Outcome, message: Message, decoding: Decoding) -> Batch:
    batch = _decode_message(dead_letter, message, decoding)
    run_ids = {outcome.run_id for outcome in batch.settled}
    run_ids |= {pending.mention.run_id for pending in batch.pending_runs}
    if dead_letter.run_id and dead_letter.run_id not in run_ids:
        source = RunId.decode(dead_letter.run_id).source  # the name of its source at ingestion
        batch = _decode_message(dead_letter, message, decoding._replace(names={ANY_SOURCE: source}))
    return batch


def _decode_message(dead_letter: Outcome, message: Message, decoding: Decoding) -> Batch:
    batch = Batch(_place_of(dead_letter), [message])
    return guarded_messages("decode", lambda part: decode(part, *decoding), batch)


def _place_of(dead_letter: Outcome) -> OffsetRange:
    origin = dead_letter.origin
    return OffsetRange(origin.topic, "", origin.partition, origin.offset, origin.offset + 1)


def _select_run(dead_letter: Outcome, batch: Batch) -> Batch:
    """Return the dead letter's run in a batch, or all if it is unknown. Its pending runs continue the earlier tries."""
    pending_runs = batch.pending_runs
    settled = batch.settled
    if dead_letter.run_id:
        pending_runs = [pending for pending in pending_runs if pending.mention.run_id == dead_letter.run_id]
        settled = [outcome for outcome in settled if outcome.run_id == dead_letter.run_id]
        if not pending_runs and not settled:
            undecodable = [outcome for outcome in batch.settled if not outcome.run_id]
            if not undecodable:
                raise RejectedInput("other_run", "the message now decodes to another run")
            settled = [undecodable[0].replace(mention=dead_letter.mention)]
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

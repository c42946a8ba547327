"""Decode: messages become pending runs, or are settled as ignored or as dead letters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ciml.errors import CimlError, RejectedInput
from ciml.events.cloudevents import decode_message
from ciml.events.event import Event
from ciml.events.outcomes import NEVER_RAN, normal_word
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Message, Origin, Outcome, PendingRun, RunFacts
from ciml.globs import glob_pattern

#: Why a decoded run is ignored: a closed set. The first that applies is recorded.
IGNORED = ("not_finished", "cancelled", "skipped", "node_lost", "never_started", "job_not_selected", "no_run")

#: Decodes a message: `decode_message`, or `ciml.adapters.registry.read_event`, which knows the messages of CI systems
#: too.
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
      names: CloudEvent source -> source name in the run ids (`ciml.events.run_facts.source_name`).
      read_event: decodes a message.

    Returns:
      A batch without messages: finished runs of selected jobs are pending; the others settled, ``ignored`` with a
      reason of `IGNORED`, or ``dead_letter`` with one of `ciml.events.cloudevents.REASONS` and the message as payload.
    """
    if batch.covers is None:
        if batch.messages:
            raise CimlError("a batch of messages needs its range of offsets")
        return batch
    topic, partition = batch.covers.topic, batch.covers.partition
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
            own = event.message_for(facts.run_id, message)
            if not facts.log_url:
                settled.append(dead_letter(origin, own, RejectedInput("missing_field", "log_url"), event.key, facts))
                continue
            address = event.addresses.get(facts.run_id, "")
            pending_runs.append(PendingRun(origin, event.key, facts, own, address=address))
        for facts, fault in event.rejections:
            own = event.message_for(facts.run_id, message)
            settled.append(dead_letter(origin, own, fault, event.key, facts))
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

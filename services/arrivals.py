"""The first events of a source: on the topic, and in the raw manifest once ingest has committed them.

For a dead letter of a source that was just connected, it names the remedy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka.admin import OffsetSpec

from ciml.data_root import DataRoot
from ciml.events.records import Batch, FactUpdate, Message, OffsetRange, Origin, Outcome, records_of
from ciml.integrations.registry import ADAPTER, SOURCE, read_event
from ciml.kafka.options import KafkaOptions
from ciml.pipelines.kafka.broker import offsets_of, topic_of
from ciml.pipelines.kafka.plan import Reader
from ciml.runs.state import open_raw
from ciml.transforms.ingest.decode import decode

REMEDIES: Mapping[str, str] = {
    "address_not_allowed": "add the host to hosts of the fetch policy, or to private_hosts if its address is private; "
    "restart ingest",
    "log_not_found": "check that the job stores its telemetry there; name its path in log_paths, or its artifact in "
    "artifact_names, of the fetch policy",
    "log_forbidden": "check the token of the host, and its rights",
    "log_unavailable": "check that ingest can reach the host, and its certificate",
    "log_timeout": "check that ingest can reach the host",
    "missing_field": "the job reports no such fact: let it store its telemetry and say where, as ciml connect prints; "
    "only later events have it",
    "unknown_type": "check the event types that the sender sends, and the adapter of the source",
    "broken_json": "check that the sender sends JSON: content type application/json",
    "bad_field": "see docs/adapters.md for the field; a new adapter can replay the dead letter",
    "not_an_event": "the topic has messages that no receiver of ciml produced; give receivers a topic of their own",
    "not_telemetry": "check that the file at this address is the CSV of dstat, dool or ciml record",
    "empty_telemetry": "check that the sampler ran: the file has no sample",
}
_OTHER = "see docs/dead-letters.md; ciml dead-letters show has the whole message"


#: Reasons whose dead letters a replay may settle, once their cause is gone.
_AGAIN = frozenset({"address_not_allowed", "log_not_found", "log_forbidden", "log_unavailable", "log_timeout"})
_READ = 100
_POLL_S = 0.2
_COMMIT_POLL_S = 1.0
_BACK_DELTAS = 2000  # more than ingest commits in the minutes before the command


def remedy(reason: str, *, closed: bool = True) -> str:
    """Return the remedy for an input of this reason. ``closed``: ingest does not retry it."""
    text = REMEDIES.get(reason, _OTHER)
    return f"{text}; then: ciml dead-letters replay" if closed and reason in _AGAIN else text


@dataclass(frozen=True)
class Became:
    """What became of a part of an event, or will.

    Attributes:
      text: for people.
      final: whether it is a run or a dead letter, so that the source is connected.
      updates: whether it is an update: all that Gerrit sends, and no more than a part of what other systems send.
      rejected: whether it is a dead letter.
      pending: the run whose log ingest still fetches, "" for none.
    """

    text: str
    final: bool = False
    updates: bool = False
    rejected: bool = False
    pending: str = ""


@dataclass(frozen=True)
class Arrival:
    """An event of the source: where it is, and what the adapter makes of it."""

    origin: Origin
    became: tuple[Became, ...]


def arrivals(
    kafka: KafkaOptions, topic: str, source: str, adapter: str, since_s: float, until_s: float
) -> Iterator[Arrival]:
    """Yield the events of a source, as they come.

    Args:
      kafka: connection to the broker.
      topic: of deliveries.
      source, adapter: as a receiver produces them.
      since_s: the earliest time of a message, epoch seconds.
      until_s: when to end, by `time.monotonic`.

    Raises:
      EngineError: the broker does not answer, or has no such topic.
    """
    _, partitions = topic_of(kafka, topic)
    begins = offsets_of(kafka, topic, partitions, OffsetSpec.for_timestamp(int(since_s * 1000)))
    ends = offsets_of(kafka, topic, partitions, OffsetSpec.latest())
    readers = {number: Reader(kafka, topic, number) for number in partitions}
    try:
        for number, reader in readers.items():
            reader.seek(begins[number] if begins[number] >= 0 else ends[number])
        while time.monotonic() < until_s:
            for number, reader in readers.items():
                for message in reader.read(_READ, _POLL_S):
                    if {(SOURCE, source.encode()), (ADAPTER, adapter.encode())}.issubset(message.headers):
                        yield arrival(topic, number, message)
    finally:
        for reader in readers.values():
            reader.close()


def arrival(topic: str, partition: int, message: Message) -> Arrival:
    """Describe the events that the adapter decodes from a message."""
    origin = Origin(topic, partition, message.offset)
    covers = OffsetRange(topic, "", partition, message.offset, message.offset + 1)
    decoded = decode(Batch(covers, [message]), read_event=read_event)
    parts: list[Became] = []
    for facts in (run.mention for run in decoded.pending_runs):
        text = f"run {facts.run_id}: {facts.build_name}, {facts.outcome}; its log is fetched from {facts.log_url}"
        parts.append(Became(text, final=True, pending=facts.run_id))
    return Arrival(origin, (*parts, *map(became, decoded.settled)))


def _said(update: FactUpdate) -> str:
    """Return the facts of an update in a line; a review with its reviewer and its condition."""
    facts = ", ".join(f"{name} {value}" for name, value in update.facts.items())
    by = f" by {update.by}" if update.by else ""
    only = f" (of {', '.join(f'{name} {value}' for name, value in update.only.items())})" if update.only else ""
    return f"{update.subject}: {facts}{by}{only}"


def became(outcome: Outcome) -> Became:
    """Describe a settled outcome."""
    facts = outcome.mention
    subject = f"run {facts.run_id} ({facts.build_name}, {facts.outcome or facts.phase})" if facts else "the event"
    reason = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
    if outcome.kind == "update":
        lines = (_said(update) for update in outcome.updates if update.facts)
        return Became(f"update of the runs of {'; '.join(lines)}", updates=True)
    if outcome.kind == "dead_letter":
        return Became(f"{subject} is a dead letter, {reason}\n    {remedy(outcome.reason)}", final=True, rejected=True)
    if outcome.kind == "deferred":
        text = f"{subject} is deferred, {reason}; ingest tries again\n    {remedy(outcome.reason, closed=False)}"
        return Became(text, pending=outcome.run_id)
    if outcome.kind == "ignored":
        return Became(f"{subject} is ignored, {reason}")
    trust = outcome.trust
    if outcome.kind in ("run", "reclaim") and trust is not None:
        word = f"trusted by the rule {trust.rule!r}" if trust.trusted else f"not trusted: {trust.rule!r}"
        return Became(f"{subject} is stored, {word}", final=True)
    return Became(f"{subject}: {outcome.kind} {reason}".rstrip(), final=True)


def committed(data_path: str, origin: Origin, until_s: float) -> Iterator[Became]:
    """Yield what ingest commits for an event, until each of its runs is settled.

    A run whose log is not there yet is yielded as deferred, and again when it is settled. So is a change of its trust
    in the same commit.

    Raises:
      CimlError, IntegrityError: the data root cannot be read.
    """
    data = DataRoot.open(data_path)
    read = -1
    waits: set[str] = set()
    runs: set[str] = set()
    needle = json.dumps(origin.to_json(), separators=(",", ":")).encode()
    while time.monotonic() < until_s:
        log, state = open_raw(data.raw)
        read = max(0, state.version - _BACK_DELTAS) if read < 0 else read
        for version, raw in log.raw_since(read):
            read = version
            if needle not in raw:
                continue
            delta = log.parse(version, raw)
            for _, record in records_of(delta):
                if record["origin"] == origin.to_json():
                    outcome = Outcome.from_json(record)
                    (waits.add if outcome.kind == "deferred" else waits.discard)(outcome.run_id)
                    runs.add(outcome.run_id)
                    yield became(outcome)
            for change in delta.get("trust_changes", ()):
                if change["run_id"] in runs:
                    word = "trusted" if change["trust"]["trusted"] else "not trusted"
                    yield Became(
                        f"run {change['run_id']} is {word} now, by the rule {change['trust']['rule']!r}", final=True
                    )
        if origin.offset in state.covered(origin.topic, origin.partition) and not waits:
            return
        time.sleep(_COMMIT_POLL_S)

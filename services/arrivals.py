"""Describes the first events of a source for ``ciml connect --wait``.

An *arrival* is an event on the topic. Its *effects* are what the adapter makes of it, and later what ingest commits:
runs, updates, ignored events and dead letters, each with its remedy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka.admin import OffsetSpec

from ciml.data_root import DataRoot
from ciml.events.records import Batch, FactUpdate, Message, OffsetRange, Origin, Outcome, RunFacts, records_of
from ciml.integrations.registry import ADAPTER, SOURCE, read_event
from ciml.kafka import KafkaOptions
from ciml.manifest.log import Delta
from ciml.pipelines.kafka.broker import offsets_of, topic_of
from ciml.pipelines.kafka.reader import Reader
from ciml.runs.state import open_raw
from ciml.transforms.ingest.decode import decode

#: What removes the cause of a dead letter, by its reason.
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
_OTHER_REMEDY = "see docs/dead-letters.md; ciml dead-letters show has the whole message"
#: Reasons whose dead letters a replay may settle, once their cause is removed.
_REPLAYABLE = frozenset({"address_not_allowed", "log_not_found", "log_forbidden", "log_unavailable", "log_timeout"})
_MESSAGES_PER_READ = 100
_POLL_S = 0.2
_COMMIT_POLL_S = 1.0
_BACK_DELTAS = 2000  # more than ingest commits in the minutes before the command


@dataclass(frozen=True)
class Effect:
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
    effects: tuple[Effect, ...]


def read_arrivals(
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
    starts = offsets_of(kafka, topic, partitions, OffsetSpec.for_timestamp(int(since_s * 1000)))
    ends = offsets_of(kafka, topic, partitions, OffsetSpec.latest())
    source_headers = {(SOURCE, source.encode()), (ADAPTER, adapter.encode())}
    readers = {partition: Reader(kafka, topic, partition) for partition in partitions}
    try:
        for partition, reader in readers.items():
            start = starts[partition]
            reader.seek(start if start >= 0 else ends[partition])  # -1: no message is that young
        while time.monotonic() < until_s:
            for partition, reader in readers.items():
                for message in reader.read(_MESSAGES_PER_READ, _POLL_S):
                    if source_headers.issubset(message.headers):
                        yield decode_arrival(topic, partition, message)
    finally:
        for reader in readers.values():
            reader.close()


def decode_arrival(topic: str, partition: int, message: Message) -> Arrival:
    """Return the event of a message with the effects that the adapter decodes from it."""
    covers = OffsetRange(topic, "", partition, message.offset, message.offset + 1)
    decoded = decode(Batch(covers, [message]), read_event=read_event)
    pending = [_pending_effect(run.mention) for run in decoded.pending_runs]
    settled = [effect_of(outcome) for outcome in decoded.settled]
    return Arrival(Origin(topic, partition, message.offset), (*pending, *settled))


def _pending_effect(facts: RunFacts) -> Effect:
    text = f"run {facts.run_id}: {facts.build_name}, {facts.outcome}; its log is fetched from {facts.log_url}"
    return Effect(text, final=True, pending=facts.run_id)


def follow_commits(data_path: str, origin: Origin, until_s: float) -> Iterator[Effect]:
    """Yield the effects that ingest commits for an event, until each of its runs is settled.

    A run whose log is unavailable is yielded as deferred, and again when it is settled. So is a change of its trust.

    Raises:
      CimlError, IntegrityError: the data root cannot be read.
    """
    raw = DataRoot.open(data_path).raw
    needle = json.dumps(origin.to_json(), separators=(",", ":")).encode()
    commits = _Commits(origin)
    version: int | None = None
    while time.monotonic() < until_s:
        log, state = open_raw(raw)
        if version is None:
            version = max(0, state.version - _BACK_DELTAS)
        for delta_version, data in log.raw_since(version):
            version = delta_version
            if needle in data:
                yield from commits.effects(log.parse(version, data))
        if origin.offset in state.covered(origin.topic, origin.partition) and not commits.deferred_ids:
            return
        time.sleep(_COMMIT_POLL_S)


class _Commits:
    """What ingest has committed for one event.

    Attributes:
      deferred_ids: ids of its runs whose logs are unavailable.
    """

    def __init__(self, origin: Origin) -> None:
        self.deferred_ids: set[str] = set()
        self._origin = origin.to_json()
        self._run_ids: set[str] = set()

    def effects(self, delta: Delta) -> Iterator[Effect]:
        """Apply the next delta, and yield its effects."""
        for _, record in records_of(delta):
            if record["origin"] != self._origin:
                continue
            outcome = Outcome.from_json(record)
            self._run_ids.add(outcome.run_id)
            if outcome.kind == "deferred":
                self.deferred_ids.add(outcome.run_id)
            else:
                self.deferred_ids.discard(outcome.run_id)
            yield effect_of(outcome)
        for change in delta.get("trust_changes", ()):
            if change["run_id"] in self._run_ids:
                word = "trusted" if change["trust"]["trusted"] else "not trusted"
                text = f"run {change['run_id']} is {word} now, by the rule {change['trust']['rule']!r}"
                yield Effect(text, final=True)


def effect_of(outcome: Outcome) -> Effect:
    """Return the effect of a settled outcome."""
    facts = outcome.mention
    subject = f"run {facts.run_id} ({facts.build_name}, {facts.outcome or facts.phase})" if facts else "the event"
    reason = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
    trust = outcome.trust
    match outcome.kind:
        case "update":
            updates = "; ".join(_update_text(update) for update in outcome.updates if update.facts)
            return Effect(f"update of the runs of {updates}", updates=True)
        case "dead_letter":
            text = f"{subject} is a dead letter, {reason}\n    {remedy(outcome.reason)}"
            return Effect(text, final=True, rejected=True)
        case "deferred":
            # Ingest retries it, so no replay is needed.
            cause_remedy = REMEDIES.get(outcome.reason, _OTHER_REMEDY)
            text = f"{subject} is deferred, {reason}; ingest tries again\n    {cause_remedy}"
            return Effect(text, pending=outcome.run_id)
        case "ignored":
            return Effect(f"{subject} is ignored, {reason}")
        case "run" | "reclaim" if trust is not None:
            judgement = f"trusted by the rule {trust.rule!r}" if trust.trusted else f"not trusted: {trust.rule!r}"
            return Effect(f"{subject} is stored, {judgement}", final=True)
    return Effect(f"{subject}: {outcome.kind} {reason}".rstrip(), final=True)


def _update_text(update: FactUpdate) -> str:
    """Return the facts of an update in a line; a review with its reviewer and its condition."""
    facts = ", ".join(f"{name} {value}" for name, value in update.facts.items())
    reviewer = f" by {update.by}" if update.by else ""
    terms = ", ".join(f"{name} {value}" for name, value in update.only.items())
    condition = f" (of {terms})" if terms else ""
    return f"{update.subject}: {facts}{reviewer}{condition}"


def remedy(reason: str) -> str:
    """Return the remedy for a dead letter of this reason."""
    text = REMEDIES.get(reason, _OTHER_REMEDY)
    return f"{text}; then: ciml dead-letters replay" if reason in _REPLAYABLE else text

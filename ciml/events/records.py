"""What travels between the stages of ingest, and what a raw manifest records.

Everything here is a frozen record or a plain data class whose ``to_json`` is what the manifest holds. Times are epoch
microseconds in UTC (int), so that they compare, sort and encode in one way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import msgspec

if TYPE_CHECKING:
    import pyarrow as pa

Phase = Literal["queued", "started", "finished"]
#: One vocabulary for outcomes (OpenTelemetry CI/CD); the producer's own word stays beside it in ``result``.
OutcomeWord = Literal["success", "failure", "error", "timeout", "cancellation", "skip"]
#: What became of one (event, run). ``deferred`` is the only one that is not final: its log is tried again later.
#: ``reclaim`` is the raw row that a trusted event gives to a run whose row came from an untrusted one.
Kind = Literal["run", "reclaim", "repeat", "correction", "ignored", "dead_letter", "deferred"]
#: The list of a delta that holds the records of each kind.
LISTS: Mapping[Kind, str] = {
    "run": "runs",
    "reclaim": "reclaims",
    "repeat": "repeats",
    "correction": "corrections",
    "ignored": "ignored",
    "dead_letter": "dead_letters",
    "deferred": "deferred",
}


#: The lists of `LISTS` that a delta leaves out where they are empty: deltas of older versions do not have them.
_LEFT_OUT = frozenset({"reclaims"})


def records_of(delta: Mapping[str, Any]) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Yield the records of a delta of the raw manifest with their kinds, in the order in which they apply."""
    for kind, name in LISTS.items():
        for record in delta.get(name, ()) if name in _LEFT_OUT else delta[name]:
            yield kind, record


def rows_of(delta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the raw rows of a delta: its runs, then its reclaims. A row's index in a position counts in this list."""
    return [*delta["runs"], *delta.get("reclaims", ())]


def lists_of(records: Mapping[Kind, list[Any]]) -> dict[str, list[Any]]:
    """Return the lists of a delta that holds these records, as JSON."""
    lists = {name: [record.to_json() for record in records.get(kind, ())] for kind, name in LISTS.items()}
    return {name: found for name, found in lists.items() if found or name not in _LEFT_OUT}


class Record(msgspec.Struct, frozen=True, gc=False):
    """What there are hundreds of thousands of: made in a quarter of a data class's time, and left alone by the garbage
    collector, for a record holds no records in a circle."""

    def to_json(self) -> Any:
        """What a manifest holds of it: an object, or a list where the class is ``array_like``."""
        return msgspec.to_builtins(self)

    def replace(self, **changes: Any) -> Self:
        """Return the same but for these fields."""
        return msgspec.structs.replace(self, **changes)


class Origin(Record, frozen=True, array_like=True, gc=False):
    """Where an input came from: a Kafka position, or a line of a listing (topic ``listing:<digest>``, partition 0)."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def from_json(cls, value: list[Any]) -> Origin:
        return cls(value[0], value[1], value[2])

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] {self.offset}"


class RunFacts(Record, frozen=True, omit_defaults=True, gc=False):
    """What one event says of one run: the typed form of hostile input, after decoding.

    ``run_id`` is the encoded form (`RunId.encode`), ``build_uuid`` the native id, ``build_name`` the job.
    ``start_us`` and ``end_us`` are epoch microseconds UTC. ``labels`` holds any further metadata (framework, size, …).
    """

    run_id: str
    build_uuid: str
    build_name: str = ""
    phase: Phase = "finished"
    outcome: OutcomeWord | None = None
    result: str = ""
    source: str = ""
    event: str = ""
    pipeline: str = ""
    project: str = ""
    branch: str = ""
    change: str = ""
    patchset: str = ""
    review: str = ""
    provider: str = ""
    region: str = ""
    flavour: str = ""
    log_url: str = ""
    start_us: int | None = None
    end_us: int | None = None
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that hold their default: manifests stay small. The phase is always said."""
        return {**msgspec.to_builtins(self), "phase": self.phase}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunFacts:
        return cls(**value)


class Trust(Record, frozen=True, gc=False):
    """The trust decision for a run: the rule that decided is kept with it."""

    trusted: bool
    rule: str
    policy: str  # digest of the policy file, so that a decision can be traced

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trust:
        return _trust(value["trusted"], value["rule"], value["policy"])


@lru_cache(maxsize=256)
def _trust(trusted: bool, rule: str, policy: str) -> Trust:
    """What many runs share is made once."""
    return Trust(trusted, rule, policy)


#: The trust of what no policy has judged: none. Where it is stored it is left out.
UNJUDGED = Trust(False, "not judged", "")


class RawFile(Record, frozen=True, gc=False):
    """The raw object of a run, relative to the raw store's root.

    ``digest`` is the sha256 of the canonical encoding (`ciml.digest.telemetry_digest`), not of the Parquet bytes:
    it stays the same when objects are compacted or written by another library version.
    """

    path: str
    digest: str
    rows: int
    size: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RawFile:
        return cls(**value)


class Outcome(Record, frozen=True, omit_defaults=True, gc=False):
    """What became of one (event, run), or of a message that could not be decoded (then without ``facts``).

    ``event_key`` is ``source id`` of the CloudEvent (the same event has the same key). ``payload`` is, in a dead
    letter, all that is needed to try again: ``{"value": base64, "headers": [[name, base64], …], "timestamp_ms": …}``.
    ``attempts`` counts the tries to fetch the log; above 1 the record settles an earlier ``deferred`` one.
    ``not_before_us`` is when a deferred log is to be tried again.
    """

    kind: Kind
    origin: Origin
    event_key: str = ""
    mention: RunFacts | None = None
    reason: str = ""
    detail: str = ""
    trust: Trust = UNJUDGED
    file: RawFile | None = None
    payload: Mapping[str, Any] | None = None
    attempts: int = 1
    first_seen_us: int | None = None
    not_before_us: int | None = None

    @property
    def run_id(self) -> str:
        return self.mention.run_id if self.mention else ""

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that hold their default."""
        told: dict[str, Any] = msgspec.to_builtins(self)
        return told if self.mention is None else {**told, "mention": self.mention.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        parts = dict(value)
        parts["origin"] = Origin.from_json(parts["origin"])
        for name, kind in (("mention", RunFacts), ("trust", Trust), ("file", RawFile)):
            if name in parts:
                parts[name] = kind.from_json(parts[name])
        return cls(**parts)


class Message(NamedTuple):
    """One Kafka message as it was read. A header's value may be None; so may the value (a tombstone).

    A tuple, since one is made for each event that ever comes: a frozen data class takes three times as long.
    """

    offset: int
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    key: bytes | None = None
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Positions [start, end) of a partition, all of which are settled once the batch that holds it is committed.

    ``topic_id`` is the broker's UUID of the topic ("" where the broker has none): a topic made anew is another topic.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int


@dataclass(slots=True)
class PendingRun:
    """A run on its way to the raw store. Stages fill it in; one that fails becomes an `Outcome` instead.

    ``address`` is where the log is fetched from when that differs from ``mention.log_url``, which is free of secrets
    (a signed address). It is never stored.
    """

    origin: Origin
    event_key: str
    mention: RunFacts
    message: Message | None = None  # for the payload of a dead letter; None in a retry or a backfill
    trust: Trust = UNJUDGED
    attempts: int = 1
    first_seen_us: int | None = None
    address: str = ""
    log: bytes | None = None  # as fetched, decompressed
    telemetry: pa.Table | None = None  # as parsed


@dataclass(slots=True)
class Batch:
    """The unit of work of ingest: the messages of one range of one partition, kept together until the commit.

    ``covers`` is None for retries of deferred logs. Each stage takes a batch and returns it with fewer ``messages``
    or ``pending_runs`` and more ``settled``; the commit takes batches that hold nothing but ``settled``.
    """

    covers: OffsetRange | None
    messages: list[Message] = field(default_factory=list)
    pending_runs: list[PendingRun] = field(default_factory=list)
    settled: list[Outcome] = field(default_factory=list)

"""Records that pass between the stages of ingest, and the records of a raw manifest.

Each is a frozen record or a plain data class, and ``to_json`` returns its form in the manifest. Times are epoch
microseconds in UTC (int), so that they compare, sort and encode in one way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional

import msgspec
from msgspec.structs import force_setattr

if TYPE_CHECKING:
    from typing import Self

    import pyarrow as pa

Phase = Literal["queued", "started", "finished"]
#: One vocabulary for outcomes (OpenTelemetry CI/CD); ``result`` holds the producer's own word.
OutcomeWord = Literal["success", "failure", "error", "timeout", "cancellation", "skip"]
#: The kind of an outcome of one (event, run). Only ``deferred`` is not final: its log is tried again later.
#: ``reclaim`` is a raw row from an event that is believed more than the one that the run's row came from. ``update``
#: holds the facts that an event reports about the runs of other events.
Kind = Literal["run", "reclaim", "repeat", "correction", "ignored", "dead_letter", "deferred", "update"]
#: The list of a delta that holds the records of each kind.
LISTS: Mapping[Kind, str] = {
    "run": "runs",
    "reclaim": "reclaims",
    "repeat": "repeats",
    "correction": "corrections",
    "ignored": "ignored",
    "dead_letter": "dead_letters",
    "deferred": "deferred",
    "update": "updates",
}
#: The reason of a reclaim that completes facts which the run's row lacks; its raw object is kept.
COMPLETES = "facts"
#: The words for each kind in a count.
KIND_WORDS: Mapping[Kind, str] = {
    **{kind: name.replace("_", " ") for kind, name in LISTS.items()},
    "reclaim": "reclaimed runs",
    "deferred": "waiting for a log",
}

#: The lists of `LISTS` that a delta omits where they are empty; deltas of older versions lack them.
_LEFT_OUT = frozenset({"reclaims", "updates"})


class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of high-volume objects.

    Construction takes a quarter of a data class's time. The garbage collector ignores records: they form no cycles.
    """

    def to_json(self) -> Any:
        """Return the JSON form in a manifest: an object, or a list where the class is ``array_like``."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the record of a JSON form.

        Raises:
          msgspec.ValidationError: a value has another type, or the class forbids unknown keys, and a later version
            added one.
        """
        return msgspec.convert(value, cls)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return msgspec.structs.replace(self, **changes)


class Origin(Record, frozen=True, array_like=True, gc=False):
    """The origin of an input: a Kafka position, or a line of a listing (topic ``listing:<digest>``, partition 0)."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] {self.offset}"


class RunFacts(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The facts of one run from one event: the typed form of hostile input, after decoding.

    ``run_id`` is the encoded form (`RunId.encode`), ``build_uuid`` the native id, ``build_name`` the job.
    ``start_us`` and ``end_us`` are epoch microseconds UTC. ``labels`` holds any further metadata (framework, size, …).
    ``fork`` is "yes", "no" or "" (unknown); ``auth`` says how a receiver proved who sent the event, "" without proof;
    ``adapter`` names the adapter that read the event, "" for ciml's own events and in records before 0.2.0;
    ``head`` is the commit that was tested, ``head_project`` the repository whose branch it is (a fork);
    ``url`` is the run's page, ``output_url`` what its job printed, where the event names it;
    the attempts of one job share ``attempt_of``;
    ``subjects`` name what the run belongs to, so that later updates find it (`ciml.events.updates`).
    """

    run_id: str
    build_uuid: str
    build_name: str = ""
    phase: Phase = "finished"
    outcome: Optional[OutcomeWord] = None  # msgspec evaluates these types, in a recorder on Python 3.9
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
    start_us: Optional[int] = None
    end_us: Optional[int] = None
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    fork: str = ""
    auth: str = ""
    owner: str = ""
    head: str = ""
    url: str = ""
    attempt_of: str = ""
    subjects: tuple[str, ...] = ()
    adapter: str = ""
    head_project: str = ""
    output_url: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, and always the phase, so that manifests are small."""
        return {**msgspec.to_builtins(self), "phase": self.phase}

    @property
    def tested(self) -> str:
        """What stands for the tested change: the change, or else its commit, or else the series of attempts, or "".

        GitHub's events of jobs have no change, and those of a fork never get one.
        """
        return self.change or self.head or self.attempt_of


class Trust(Record, frozen=True, forbid_unknown_fields=True, gc=False):
    """The trust decision for a run, and the rule that decided."""

    trusted: bool
    rule: str
    policy: str  # digest of the policy file, so that a decision can be traced


#: The trust before any policy was evaluated: none. Stored records leave it out.
UNJUDGED = Trust(False, "not judged", "")


class FactUpdate(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An update of the runs of one subject of a source (`ciml.events.updates`).

    Attributes:
      source: the name of the source, as in run ids. An update never concerns runs of another source.
      subject: the runs concerned: those whose `RunFacts.subjects` hold it.
      facts: names of `ciml.events.updates.UPDATABLE` -> text, checked.
      auth: how a receiver proved who sent the event, "" without proof.
      time_us: the event's own time, epoch microseconds; None if it has none.
      only: the condition: it counts for runs with these facts alone, such as ``{"change": "12", "branch": "main"}``.
      by: the account whose review it is; "" without a reviewer.
    """

    source: str
    subject: str
    facts: Mapping[str, str]
    auth: str = ""
    time_us: int | None = None
    only: Mapping[str, str] = msgspec.field(default_factory=dict)
    by: str = ""


class RawFile(Record, frozen=True, forbid_unknown_fields=True, gc=False):
    """The raw object of a run, relative to the raw store's root.

    ``digest`` is the sha256 of the canonical encoding (`ciml.digest.telemetry_digest`), not of the Parquet bytes:
    it does not change when objects are compacted or written by another library version.
    """

    path: str
    digest: str
    rows: int
    size: int


class OutputFile(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What is stored of a job's output: its lines without colours, overwritten parts and secrets.

    Attributes:
      path: the object, relative to the raw store's root; "" if no output is stored.
      digest: hex sha256 of the stored text.
      size: of the stored text, bytes.
      lines: of the whole output, dropped ones included.
      head_lines: lines before the gap; 0 without a gap.
      dropped_lines: lines in the gap.
      dropped_bytes: bytes in the gap, and those that were cut from long lines.
      missing: why no output is stored, a reason of `ciml.transforms.fetch.fetch`; "" if one is.
      name: of the file that it was read from, without ".gz"; "" if it was no file, or is not known.
    """

    path: str = ""
    digest: str = ""
    size: int = 0
    lines: int = 0
    head_lines: int = 0
    dropped_lines: int = 0
    dropped_bytes: int = 0
    missing: str = ""
    name: str = ""


class Outcome(Record, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The outcome of one (event, run), or of a message that could not be decoded (then without ``mention``).

    ``event_key`` is ``source id`` of the CloudEvent (the same event has the same key). A dead letter's ``payload``
    suffices to try it again: ``{"value": base64, "headers": [[name, base64], …], "timestamp_ms": …}``.
    ``attempts`` counts the tries to fetch the log; above 1 the record settles an earlier ``deferred`` one.
    ``not_before_us`` is the time of a deferred log's next try. ``updates`` are those of an ``update``. ``lowered``
    marks a correction by an untrusted event of a run that was trusted when it was stored, and is not any more.
    ``joined`` holds the facts of a raw row that earlier updates changed. ``output`` is the output of a raw row's job;
    None if none was looked for.
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
    updates: tuple[FactUpdate, ...] = ()
    lowered: bool = False
    joined: Mapping[str, str] = msgspec.field(default_factory=dict)
    output: OutputFile | None = None

    @property
    def run_id(self) -> str:
        return self.mention.run_id if self.mention else ""

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the outcome of a JSON form. Its payload is not copied: the outcomes of one message share it."""
        payload = value.get("payload")
        outcome = super().from_json(value if payload is None else {**value, "payload": None})
        force_setattr(outcome, "payload", payload)
        force_setattr(outcome, "trust", _shared(outcome.trust))
        return outcome

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        if self.mention is not None:
            fields["mention"]["phase"] = self.mention.phase  # as `RunFacts.to_json`, whose fields are here already
        return fields


class Message(NamedTuple):
    """One Kafka message as it was read. A header's value may be None; the value is None for a tombstone.

    A tuple, because each event makes one: a frozen data class takes three times as long.
    """

    offset: int
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    key: bytes | None = None
    timestamp_ms: int = 0


@dataclass(frozen=True)
class OffsetRange:
    """Positions [start, end) of a partition, settled as a whole once its batch is committed.

    ``topic_id`` is the broker's UUID of the topic ("" if the broker has none). A recreated topic has another id.
    """

    topic: str
    topic_id: str
    partition: int
    start: int
    end: int


@dataclass
class PendingRun:
    """A run on its way to the raw store. Stages fill it in; one that fails becomes an `Outcome` instead.

    ``address`` is the address to fetch the log from, where it differs from ``mention.log_url``, which holds no secret
    (a signed address). It is never stored. So is ``output_address``, that of the job's output, where it differs from
    ``mention.output_url``.
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
    output_address: str = ""

    def outcome(
        self,
        kind: Kind,
        reason: str = "",
        detail: str = "",
        *,
        file: RawFile | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Return the outcome of the run's (event, run)."""
        facts = (self.origin, self.event_key, self.mention)
        return Outcome(kind, *facts, reason, detail, self.trust, file, payload, self.attempts, self.first_seen_us)


@dataclass
class Batch:
    """The unit of work of ingest: the messages of one range of one partition, kept together until the commit.

    ``covers`` is None for retries of deferred logs. Each stage returns the batch with fewer ``messages`` or
    ``pending_runs`` and more ``settled``. The commit takes batches that hold only ``settled``.
    """

    covers: OffsetRange | None
    messages: list[Message] = field(default_factory=list)
    pending_runs: list[PendingRun] = field(default_factory=list)
    settled: list[Outcome] = field(default_factory=list)


@lru_cache(maxsize=256)
def _shared(trust: Trust) -> Trust:
    """Return one object for equal decisions: many deferred runs are held in memory."""
    return trust


def records_of(delta: Mapping[str, Any]) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """Yield the records of a delta of the raw manifest with their kinds, in the order in which they apply."""
    for kind, name in LISTS.items():
        for record in delta.get(name, ()) if name in _LEFT_OUT else delta[name]:
            yield kind, record


def rows_of(delta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the raw rows of a delta: its runs, then its reclaims. A row's index in a position counts in this list."""
    return [*delta["runs"], *delta.get("reclaims", ())]


def change_of(facts: RunFacts) -> str:
    """Return the project and tested change of a run (`RunFacts.tested`); its id if nothing stands for a change."""
    return f"{facts.project} {facts.tested}".strip() if facts.tested else facts.run_id


def facts_of_row(row: Mapping[str, Any]) -> RunFacts:
    """Return the facts of a raw row as they were known when it was stored. No later update changes them."""
    return RunFacts.from_json({**row["mention"], **row.get("joined", {})})


def lists_of(records: Mapping[Kind, list[Any]]) -> dict[str, list[Any]]:
    """Return the lists of a delta that holds these records, as JSON."""
    lists = {name: [record.to_json() for record in records.get(kind, ())] for kind, name in LISTS.items()}
    return {name: rows for name, rows in lists.items() if rows or name not in _LEFT_OUT}


def totals_of(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Return the totals of counts by (kind, reason): the number of each kind, zeros included."""
    return {kind: sum(number for (counted_kind, _), number in counts.items() if counted_kind == kind) for kind in LISTS}


def reasons_of(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """Return counts by (kind, reason) as JSON: by kind, then by reason."""
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, reason), number in sorted(counts.items()):
        by_kind.setdefault(kind, {})[reason] = number
    return by_kind

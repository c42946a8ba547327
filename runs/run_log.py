"""The runs in a raw manifest, typed: the fields that data sets read.

A delta is decoded straight into records. Via dicts, decoding takes four times as long and five times the memory.

The *standing* of a run or an event is how far it is believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from ciml.errors import IntegrityError
from ciml.events.records import UNJUDGED, Kind, OutputFile, RawFile, Record, RunFacts, Trust, records_of
from ciml.manifest.log import ManifestLog

#: How far a run or an event is believed: its sender was not proved, was proved, or the trust policy trusts it.
STANDINGS = UNPROVED, PROVED, TRUSTED = (0, 1, 2)
#: Returns the trust decision for a run's facts: `ciml.trust.evaluate` with a policy.
Judge = Callable[[RunFacts], Trust]


def standing_of(trusted: bool, proved: bool) -> int:
    """Return the standing of a run or an event, one of `STANDINGS`."""
    return TRUSTED if trusted else PROVED if proved else UNPROVED


class RunRecord(Record, frozen=True, omit_defaults=True, gc=False):
    """A raw row: one of a delta's ``runs`` or ``reclaims``."""

    mention: RunFacts
    file: RawFile
    trust: Trust = UNJUDGED
    joined: Mapping[str, str] = msgspec.field(default_factory=dict)
    output: OutputFile | None = None

    @property
    def facts(self) -> RunFacts:
        """The facts as they were known when the row was stored. No later update changes them."""
        return self.mention.replace(**self.joined) if self.joined else self.mention

    @property
    def standing(self) -> int:
        """How far the row was believed when it was stored, one of `ciml.runs.run_log.STANDINGS`."""
        return standing_of(self.trust.trusted, bool(self.mention.auth))


class Correction(Record, frozen=True, gc=False):
    """One of a delta's ``corrections``: an event's outcome of a run that was stored before."""

    mention: RunFacts
    trust: Trust = UNJUDGED
    lowered: bool = False

    @property
    def binding(self) -> bool:
        """Whether it counts for a row that was trusted: its event is trusted too, or the row is not any more."""
        return self.trust.trusted or self.lowered

    @property
    def fix(self) -> tuple[str, str]:
        """The outcome, "" without one, and the producer's own word."""
        return self.mention.outcome or "", self.mention.result


class TrustChange(Record, frozen=True, gc=False):
    """One of a delta's ``trust_changes``: the decision on a stored run, by updates of that delta."""

    run_id: str
    trust: Trust


_Judged = TypeVar("_Judged", RunRecord, Correction)


class RunDelta(Record, frozen=True, gc=False):
    """The runs in a delta of a raw manifest.

    Attributes:
      runs: rows of new runs.
      reclaims: rows that replace an earlier row of the same run.
      corrections: further outcomes of runs. They apply after all rows of the delta.
      trust_changes: further decisions on their trust. They apply after all corrections.
    """

    runs: tuple[RunRecord, ...] = ()
    reclaims: tuple[RunRecord, ...] = ()
    corrections: tuple[Correction, ...] = ()
    trust_changes: tuple[TrustChange, ...] = ()
    version: int = 0

    @property
    def rows(self) -> tuple[RunRecord, ...]:
        """All rows in the order of `ciml.events.records.rows_of`: a position's index counts in this order."""
        return self.runs + self.reclaims if self.reclaims else self.runs


class RunLog(Protocol):
    """A source of run records: a raw manifest (`StoredRunLog`), or a substitute."""

    def since(self, version: int) -> Iterator[tuple[int, RunDelta]]:
        """Yield (version, delta) of the deltas after a version."""

    def read(self, version: int) -> RunDelta:
        """Return one delta; `FileNotFoundError` where it does not exist."""

    def url(self) -> str:
        """Return the address, for messages."""


class StoredRunLog:
    """A raw manifest. Raises `IntegrityError` for a damaged delta.

    Args:
      log: the manifest.
      judge: decides on records that older versions stored without a decision: they judged only events whose log they
        fetched. By default these are `UNJUDGED`.
    """

    def __init__(self, log: ManifestLog, judge: Judge = lambda facts: UNJUDGED) -> None:
        self._log = log
        self._judge = judge
        self._decoder = msgspec.json.Decoder(RunDelta)

    def since(self, version: int) -> Iterator[tuple[int, RunDelta]]:
        for number, data in self._log.raw_since(version):
            yield number, self._parse(number, data)

    def read(self, version: int) -> RunDelta:
        return self._parse(version, self._log.read_raw(version))

    def url(self) -> str:
        return self._log.url()

    def _parse(self, version: int, data: bytes) -> RunDelta:
        delta = self._log.decode(version, data, self._decoder.decode, lambda delta: delta.version)
        return delta.replace(
            runs=self._judged(delta.runs),
            reclaims=self._judged(delta.reclaims),
            corrections=self._judged(delta.corrections),
        )

    def _judged(self, records: tuple[_Judged, ...]) -> tuple[_Judged, ...]:
        if all(record.trust is not UNJUDGED for record in records):
            return records
        return tuple(
            record.replace(trust=self._judge(record.mention)) if record.trust is UNJUDGED else record
            for record in records
        )


def find_rows(log: ManifestLog, run_ids: Iterable[str]) -> dict[str, RunRecord]:
    """Return the last rows of those runs that are stored, by run id. The manifest is read once for all runs."""
    wanted = set(run_ids)
    rows: dict[str, RunRecord] = {}
    if wanted:
        for _, delta in StoredRunLog(log).since(0):
            rows |= {row.mention.run_id: row for row in delta.rows if row.mention.run_id in wanted}
    return rows


def stored_rows(log: ManifestLog, run_ids: Iterable[str]) -> dict[str, RunRecord]:
    """Return `find_rows` of runs that are known to be stored. Raises `IntegrityError` if one is not."""
    run_set = set(run_ids)
    rows = find_rows(log, run_set)
    if missing := run_set - rows.keys():
        raise IntegrityError(f"{log.url()}: the raw manifest does not have the run {min(missing)}")
    return rows


class RunFiles:
    """The raw objects of stored runs by run id. Of the manifest, each delta is read once, on the next `find`."""

    def __init__(self, log: ManifestLog) -> None:
        self._log = StoredRunLog(log)
        self._version = 0
        self._files: dict[str, RawFile] = {}

    def find(self, run_id: str) -> RawFile | None:
        """Return the raw object of a run, from its last row; None if the run is not stored."""
        for version, delta in self._log.since(self._version):
            self._files |= {row.mention.run_id: row.file for row in delta.rows}
            self._version = version
        return self._files.get(run_id)


class Settled(NamedTuple):
    """The outcomes of the inputs of a topic.

    Attributes:
      counts: number of outcomes by kind.
      untrusted: number of raw rows and dead letters that were not trusted when they were recorded.
    """

    counts: Counter[Kind]
    untrusted: int = 0


def outcomes_of(log: ManifestLog, topic: str) -> Settled:
    """Count the outcomes of the inputs of a topic. A replay of a dead letter counts once more."""
    counts: Counter[Kind] = Counter()
    untrusted = 0
    for _, delta in log.since(0):
        for kind, record in records_of(delta):
            if record["origin"][0] == topic:
                counts[kind] += 1
                is_judged = kind in ("run", "reclaim", "dead_letter")
                untrusted += is_judged and not record.get("trust", {}).get("trusted", False)
    return Settled(counts, untrusted)

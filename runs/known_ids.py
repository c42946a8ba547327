"""The ids in a raw manifest: events, runs and open dead letters, in memory or over a sorted index on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from ciml.digest import sha256_hex
from ciml.errors import IntegrityError
from ciml.events.records import Origin
from ciml.manifest.id_index import IdSet, IdTable, Rows, TableKind, fingerprint
from ciml.runs.known_subjects import TABLES as SUBJECT_TABLES
from ciml.runs.known_subjects import Subjects
from ciml.runs.run_log import STANDINGS, TRUSTED, standing_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: (event key, run id), with a standing or a digest behind the run id: see `recorded_ids`. The run id is empty where the
#: event could not be decoded.
Event = tuple[str, str]
#: (origin, run id) of a dead letter. The run id is empty where the message could not be decoded.
DeadLetterKey = tuple[Origin, str]


class KnownRun(NamedTuple):
    """A run with a raw row.

    Attributes:
      outcome: the current one.
      digest: of the telemetry of the current row: the first, or the reclaim.
      trusted: whether it is trusted, by the event that the row came from and the updates that were joined since.
      proved: whether a receiver proved who sent that event.
      lowered: whether it was trusted when it was stored, and is not any more.
    """

    outcome: str
    digest: str
    trusted: bool
    proved: bool = False
    lowered: bool = False

    @property
    def standing(self) -> int:
        """How far its facts are believed, one of `ciml.runs.run_log.STANDINGS`."""
        return standing_of(self.trusted, self.proved)

    def judged(self, trusted: bool) -> KnownRun:
        """Return the run with another decision on its trust, by an update."""
        return self._replace(trusted=trusted, lowered=not trusted and (self.trusted or self.lowered))


class OpenDeadLetter(NamedTuple):
    """A dead letter that no later delta has closed: its version and its reason."""

    version: int
    reason: str


class Index(Protocol):
    """All ids ever seen. Only the index grows with every event, so it is replaceable.

    Attributes:
      subjects: what updates say, and the runs that they concern.
    """

    subjects: Subjects

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        """Look up ids in one batch, for speed.

        Until the next call, queries for these ids cannot fail.
        """

    def has_event(self, event_key: str, run_id: str) -> bool:
        """Return whether this event named this run before (with an empty run id: was seen but not decoded)."""

    def add_event(self, event_key: str, run_id: str) -> None: ...

    def run(self, run_id: str) -> KnownRun | None: ...

    def put_run(self, run_id: str, run: KnownRun) -> None: ...

    def run_count(self) -> int: ...

    def dead_letter(self, key: DeadLetterKey) -> OpenDeadLetter | None: ...

    def put_dead_letter(self, key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> None:
        """Open a dead letter, or close it (None)."""

    def dead_letters(self) -> Iterator[tuple[DeadLetterKey, OpenDeadLetter]]:
        """Return all open dead letters. The index must not change meanwhile."""


class MemoryIndex:
    """All ids in memory: about 150 bytes per (event, run), 300 more per run."""

    def __init__(self) -> None:
        self.subjects = Subjects()
        self._events = IdSet()
        self._runs: dict[str, KnownRun] = {}
        self._dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        """Do nothing: all ids are in memory."""

    def has_event(self, event_key: str, run_id: str) -> bool:
        return fingerprint(event_key, run_id) in self._events

    def add_event(self, event_key: str, run_id: str) -> None:
        self._events.add(fingerprint(event_key, run_id))

    def run(self, run_id: str) -> KnownRun | None:
        return self._runs.get(run_id)

    def put_run(self, run_id: str, run: KnownRun) -> None:
        self._runs[run_id] = run

    def run_count(self) -> int:
        return len(self._runs)

    def dead_letter(self, key: DeadLetterKey) -> OpenDeadLetter | None:
        return self._dead_letters.get(key)

    def put_dead_letter(self, key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> None:
        if dead_letter is None:
            self._dead_letters.pop(key, None)
        else:
            self._dead_letters[key] = dead_letter

    def dead_letters(self) -> Iterator[tuple[DeadLetterKey, OpenDeadLetter]]:
        for key, dead_letter in self._dead_letters.items():
            if dead_letter is not None:
                yield key, dead_letter


def _are_closed(values: Mapping[str, pa.Array]) -> np.ndarray:
    import numpy as np

    versions: np.ndarray = np.from_dlpack(values["version"])
    closed: np.ndarray = versions == 0
    return closed


#: The tables of a `LayeredIndex`. An outcome is its index in `_OUTCOMES`, plus flags: `_UNTRUSTED` for an untrusted
#: run, `_PROVED` and `_LOWERED` as in `KnownRun`. A closed dead letter has version 0.
TABLES: Mapping[str, TableKind] = {
    "events": TableKind(),
    "runs": TableKind({"outcome": "uint8", "digest": "binary"}),
    "letters": TableKind(
        {
            "version": "int64",
            "reason": "string",
            "topic": "string",
            "partition": "int32",
            "offset": "int64",
            "run_id": "string",
        },
        is_removed=_are_closed,
    ),
    **SUBJECT_TABLES,
}
_UNTRUSTED = 0x80  # older versions did not store it: such runs count as trusted
_PROVED = 0x40
_LOWERED = 0x20
_OUTCOMES = ("", "success", "failure", "error", "timeout", "cancellation", "skip")


class LayeredIndex:
    """The tables of a checkpoint, and the ids since then in memory.

    Args:
      tables: those of `TABLES`, as of the checkpoint.
      runs: number of runs in them.
    """

    def __init__(self, tables: Mapping[str, IdTable], runs: int) -> None:
        self._tables = tables
        self.subjects = Subjects(tables)
        self._run_count = runs
        self._events = IdSet(tables["events"])
        self._runs: dict[str, KnownRun] = {}
        self._dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}
        self._found_runs: dict[str, KnownRun | None] = {}  # cache of the last look-ups; tables never change
        self._found_dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        self._events.prefetch(fingerprint(*event) for event in events)
        unread = set(runs) - self._runs.keys()
        before = self._found_runs
        runs_found = self._find_runs([run_id for run_id in unread if run_id not in before])
        self._found_runs = {run_id: before[run_id] for run_id in unread if run_id in before} | runs_found
        self._found_dead_letters = self._find_dead_letters(set(dead_letters) - self._dead_letters.keys())

    def _find_runs(self, run_ids: Collection[str]) -> dict[str, KnownRun | None]:
        values = self._tables["runs"].get([fingerprint(run_id) for run_id in run_ids])
        return {run_id: _known_run(value) for run_id, value in zip(run_ids, values, strict=True)}

    def _find_dead_letters(self, keys: Collection[DeadLetterKey]) -> dict[DeadLetterKey, OpenDeadLetter | None]:
        values = self._tables["letters"].get([_dead_letter_id(key) for key in keys])
        return {key: _open_dead_letter(value) for key, value in zip(keys, values, strict=True)}

    def has_event(self, event_key: str, run_id: str) -> bool:
        return fingerprint(event_key, run_id) in self._events

    def add_event(self, event_key: str, run_id: str) -> None:
        self._events.add(fingerprint(event_key, run_id))

    def run(self, run_id: str) -> KnownRun | None:
        if (cached := self._runs.get(run_id)) is not None:
            return cached
        if run_id not in self._found_runs:
            self._found_runs.update(self._find_runs([run_id]))
        return self._found_runs[run_id]

    def put_run(self, run_id: str, run: KnownRun) -> None:
        if self.run(run_id) is None:
            self._run_count += 1
        self._runs[run_id] = run

    def run_count(self) -> int:
        return self._run_count

    def dead_letter(self, key: DeadLetterKey) -> OpenDeadLetter | None:
        if key in self._dead_letters:
            return self._dead_letters[key]
        if key not in self._found_dead_letters:
            self._found_dead_letters.update(self._find_dead_letters([key]))
        return self._found_dead_letters[key]

    def put_dead_letter(self, key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> None:
        self._dead_letters[key] = dead_letter

    def dead_letters(self) -> Iterator[tuple[DeadLetterKey, OpenDeadLetter]]:
        for rows in self._tables["letters"].scan():
            for row in range(len(rows)):
                value = rows.row(row)
                key = (Origin(value["topic"], value["partition"], value["offset"]), value["run_id"])
                if key not in self._dead_letters:
                    yield key, OpenDeadLetter(value["version"], value["reason"])
        for key, dead_letter in self._dead_letters.items():
            if dead_letter is not None:
                yield key, dead_letter

    def recent(self) -> dict[str, Rows]:
        """Return the ids since the checkpoint, as rows for its tables."""
        runs = self._runs
        dead_letters = self._dead_letters
        return {
            **self.subjects.recent(),
            "events": self._events.recent(),
            "runs": TABLES["runs"].rows(
                [fingerprint(run_id) for run_id in runs],
                {
                    "outcome": [_outcome_number(run) for run in runs.values()],
                    "digest": [_pack(run.digest) for run in runs.values()],
                },
            ),
            "letters": TABLES["letters"].rows(
                [_dead_letter_id(key) for key in dead_letters],
                {
                    "version": [dead_letter.version if dead_letter else 0 for dead_letter in dead_letters.values()],
                    "reason": [dead_letter.reason if dead_letter else "" for dead_letter in dead_letters.values()],
                    "topic": [origin.topic for origin, _ in dead_letters],
                    "partition": [origin.partition for origin, _ in dead_letters],
                    "offset": [origin.offset for origin, _ in dead_letters],
                    "run_id": [run_id for _, run_id in dead_letters],
                },
            ),
        }


def _dead_letter_id(key: DeadLetterKey) -> bytes:
    origin, run_id = key
    return fingerprint(origin.topic, str(origin.partition), str(origin.offset), run_id)


def _open_dead_letter(value: Mapping[str, Any] | None) -> OpenDeadLetter | None:
    return OpenDeadLetter(value["version"], value["reason"]) if value is not None and value["version"] else None


def _known_run(value: Mapping[str, Any] | None) -> KnownRun | None:
    if value is None:
        return None
    flags: int = value["outcome"]
    return KnownRun(
        _OUTCOMES[flags & ~(_UNTRUSTED | _PROVED | _LOWERED)],
        _unpack(value["digest"]),
        trusted=not flags & _UNTRUSTED,
        proved=bool(flags & _PROVED),
        lowered=bool(flags & _LOWERED),
    )


def _outcome_number(run: KnownRun) -> int:
    try:
        return (
            _OUTCOMES.index(run.outcome)
            | (0 if run.trusted else _UNTRUSTED)
            | (_PROVED if run.proved else 0)
            | (_LOWERED if run.lowered else 0)
        )
    except ValueError:
        raise IntegrityError(f"raw manifest: {run.outcome!r} is not an outcome") from None


def _pack(digest: str) -> bytes:
    """Encode a digest, a hex one in half the bytes; the first byte names the encoding."""
    try:
        data = bytes.fromhex(digest)
    except ValueError:
        data = b""
    return b"\0" + data if data.hex() == digest else b"\1" + digest.encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> str:
    return data[1:].decode("utf-8", "surrogatepass") if data[0] else data[1:].hex()


def recorded_ids(event_key: str, run_id: str, facts: Mapping[str, Any], standing: int) -> list[Event]:
    """Return the ids to remember of an event and one of its runs.

    Senders choose the ids of their events. An event that is believed less could name a run by the id of a later event
    that is believed more, and so make that a repeat. So an id counts for events of its own standing and of lower ones.
    An event that is equal in all facts is a repeat whatever its standing: updates and policies change that.

    The ids of trusted events are plain, as those of all events in tables of older versions. These stay repeats.

    Args:
      event_key: of the event, not empty.
      run_id: of the run, "" without one.
      facts: of the run, as in the raw manifest; empty without one.
      standing: of the event, as recorded.
    """
    if not run_id or standing == TRUSTED:
        return [(event_key, run_id)]
    return [_of_standing(event_key, run_id, standing), _of_facts(event_key, run_id, facts)]


def ids_of_repeats(event_key: str, run_id: str, facts: Mapping[str, Any], standing: int) -> list[Event]:
    """Return the ids of which one is remembered if the event is a repeat. The arguments are those of `recorded_ids`."""
    if not run_id:
        return [(event_key, run_id)]
    ids = [(event_key, run_id), _of_facts(event_key, run_id, facts)]
    return ids + [_of_standing(event_key, run_id, level) for level in STANDINGS[standing:TRUSTED]]


def _of_standing(event_key: str, run_id: str, standing: int) -> Event:
    return event_key, f"{run_id}\0{standing}"


def _of_facts(event_key: str, run_id: str, facts: Mapping[str, Any]) -> Event:
    return event_key, f"{run_id}\0{sha256_hex(msgspec.json.encode(facts, order='sorted'))}"

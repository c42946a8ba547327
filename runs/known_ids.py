"""The ids in a raw manifest: events, runs and open dead letters, in memory or over a sorted index on disk.

By these ids, the accounting recognises an event that comes again, and a run that is stored already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ciml.digest import sha256_hex
from ciml.errors import IntegrityError
from ciml.events.records import Origin
from ciml.manifest.id_index import IdTable, Rows, TableKind, fingerprint
from ciml.manifest.id_maps import Codec, IdMap, IdSet
from ciml.runs.known_subjects import TABLES as SUBJECT_TABLES
from ciml.runs.known_subjects import Subjects
from ciml.runs.run_log import STANDINGS, TRUSTED, standing_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: (event key, run id), with a standing or a digest behind the run id: see `recorded_ids`. The run id is empty if the
#: event could not be decoded.
Event = tuple[str, str]
#: (origin, run id) of a dead letter. The run id is empty if the message could not be decoded.
DeadLetterKey = tuple[Origin, str]
_UNTRUSTED = 0x80  # older versions did not store it: such runs count as trusted
_PROVED = 0x40
_LOWERED = 0x20
_OUTCOMES = ("", "success", "failure", "error", "timeout", "cancellation", "skip")


class KnownRun(NamedTuple):
    """A run with a raw row.

    Attributes:
      outcome: the current one.
      digest: the digest of the telemetry of its last row.
      trusted: whether it is trusted, by the event that the row came from and the updates that were joined since.
      proved: whether a receiver proved who sent that event.
      lowered: whether an update has revoked its trust.
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


def _are_closed(rows: pa.RecordBatch) -> np.ndarray:
    import numpy as np

    closed: np.ndarray = np.from_dlpack(rows["version"]) == 0
    return closed


#: The tables of an `Index`. An outcome is its index in `_OUTCOMES`, plus flags: `_UNTRUSTED` for an untrusted
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


class Index:
    """All ids of a raw manifest. Those since a checkpoint are in memory: 150 bytes per (event, run), 300 more per run.

    Args:
      tables: those of `TABLES`, as of the checkpoint; None for an index in memory alone.
      runs: number of runs in them.

    Attributes:
      subjects: the statements of updates, the runs that they concern, and claims about runs.
    """

    def __init__(self, tables: Mapping[str, IdTable] | None = None, runs: int = 0) -> None:
        stored = tables or {}
        self.subjects = Subjects(stored)
        self._run_count = runs
        self._events = IdSet(stored.get("events"))
        self._runs = IdMap(_RUNS, stored.get("runs"))
        self._stored_dead_letters = stored.get("letters")
        self._dead_letters = IdMap(_DEAD_LETTERS, self._stored_dead_letters)

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        """Look up ids in one batch, for speed. Until the next call, queries for them cannot fail."""
        self._events.prefetch(fingerprint(*event) for event in events)
        self._runs.prefetch(runs)
        self._dead_letters.prefetch(dead_letters)

    def has_event(self, event_key: str, run_id: str) -> bool:
        """Return whether this event named this run before (with an empty run id: was seen but not decoded)."""
        return fingerprint(event_key, run_id) in self._events

    def add_event(self, event_key: str, run_id: str) -> None:
        self._events.add(fingerprint(event_key, run_id))

    def run(self, run_id: str) -> KnownRun | None:
        return self._runs[run_id]

    def put_run(self, run_id: str, run: KnownRun) -> None:
        self._run_count += self._runs[run_id] is None
        self._runs[run_id] = run

    def run_count(self) -> int:
        return self._run_count

    def dead_letter(self, key: DeadLetterKey) -> OpenDeadLetter | None:
        return self._dead_letters[key]

    def put_dead_letter(self, key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> None:
        """Open a dead letter, or close it (None)."""
        self._dead_letters[key] = dead_letter

    def dead_letters(self) -> Iterator[tuple[DeadLetterKey, OpenDeadLetter]]:
        """Yield all open dead letters. The index must not change meanwhile."""
        recent = self._dead_letters.recent
        stored_rows = self._stored_dead_letters.scan() if self._stored_dead_letters is not None else ()
        for rows in stored_rows:
            for row in map(rows.row, range(len(rows))):
                key = (Origin(row["topic"], row["partition"], row["offset"]), row["run_id"])
                if key not in recent:
                    yield key, OpenDeadLetter(row["version"], row["reason"])
        for key, dead_letter in recent.items():
            if dead_letter is not None:
                yield key, dead_letter

    def recent(self) -> dict[str, Rows]:
        """Return the ids since the checkpoint, as rows for its tables.

        Raises:
          TypeError: it has no tables.
        """
        return {
            **self.subjects.recent(),
            "events": self._events.rows(),
            "runs": self._runs.rows(),
            "letters": self._dead_letters.rows(),
        }


def _dead_letter_id(key: DeadLetterKey) -> bytes:
    origin, run_id = key
    return fingerprint(origin.topic, str(origin.partition), str(origin.offset), run_id)


def _encode_dead_letter(key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> dict[str, Any]:
    origin, run_id = key
    state = dead_letter or OpenDeadLetter(0, "")
    return {**state._asdict(), **msgspec.structs.asdict(origin), "run_id": run_id}


def _decode_dead_letter(key: DeadLetterKey, row: Mapping[str, Any] | None) -> OpenDeadLetter | None:
    return OpenDeadLetter(row["version"], row["reason"]) if row is not None and row["version"] else None


def _encode_run(run_id: str, run: KnownRun | None) -> dict[str, Any]:
    if run is None or run.outcome not in _OUTCOMES:
        raise IntegrityError(f"raw manifest: {run and run.outcome!r} is not an outcome")
    flags = (0 if run.trusted else _UNTRUSTED) | (_PROVED if run.proved else 0) | (_LOWERED if run.lowered else 0)
    return {"outcome": _OUTCOMES.index(run.outcome) | flags, "digest": _encode_digest(run.digest)}


def _decode_run(run_id: str, row: Mapping[str, Any] | None) -> KnownRun | None:
    if row is None:
        return None
    flags: int = row["outcome"]
    return KnownRun(
        _OUTCOMES[flags & ~(_UNTRUSTED | _PROVED | _LOWERED)],
        _decode_digest(row["digest"]),
        trusted=not flags & _UNTRUSTED,
        proved=bool(flags & _PROVED),
        lowered=bool(flags & _LOWERED),
    )


_RUNS: Codec[str, KnownRun | None] = Codec(fingerprint, _encode_run, _decode_run)
_DEAD_LETTERS: Codec[DeadLetterKey, OpenDeadLetter | None] = Codec(
    _dead_letter_id, _encode_dead_letter, _decode_dead_letter
)


def _encode_digest(digest: str) -> bytes:
    """Encode a digest, a hex one in half the bytes; the first byte names the encoding."""
    try:
        data = bytes.fromhex(digest)
    except ValueError:
        data = b""
    return b"\0" + data if data.hex() == digest else b"\1" + digest.encode("utf-8", "surrogatepass")


def _decode_digest(data: bytes) -> str:
    return data[1:].decode("utf-8", "surrogatepass") if data[0] else data[1:].hex()


def recorded_ids(event_key: str, run_id: str, facts: Mapping[str, Any], standing: int) -> list[Event]:
    """Return the ids to remember of an event and one of its runs.

    Senders choose the ids of their events. An event that is believed less could name a run by the id of a later event
    that is believed more, and so make that a repeat. So an id counts for events of its own standing and of lower ones.
    An event that is equal in all facts is a repeat whatever its standing: updates and policies change that.

    The ids of trusted events are plain, as those of all events in tables of older versions. So events of those
    versions are still recognised as repeats.

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
    """Return ids, of which a repeat has at least one remembered. The arguments are as in `recorded_ids`."""
    if not run_id:
        return [(event_key, run_id)]
    ids = [(event_key, run_id), _of_facts(event_key, run_id, facts)]
    return ids + [_of_standing(event_key, run_id, level) for level in STANDINGS[standing:TRUSTED]]


def _of_standing(event_key: str, run_id: str, standing: int) -> Event:
    return event_key, f"{run_id}\0{standing}"


def _of_facts(event_key: str, run_id: str, facts: Mapping[str, Any]) -> Event:
    return event_key, f"{run_id}\0{sha256_hex(msgspec.json.encode(facts, order='sorted'))}"

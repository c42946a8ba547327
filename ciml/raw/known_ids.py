"""The ids that a raw manifest knows: events, runs and open dead letters, in memory or over a sorted index on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ciml.errors import IntegrityError
from ciml.events.records import Origin
from ciml.manifest.id_index import IdTable, Rows, TableKind, fingerprint
from ciml.manifest.id_set import IdSet

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: (event key, run id). The run id is empty where the event was seen and not understood.
Event = tuple[str, str]
#: Where a dead letter comes from, and the run that it is of ("" where it could not be decoded).
DeadLetterKey = tuple[Origin, str]


class KnownRun(NamedTuple):
    """A run that has its raw row.

    Attributes:
      outcome: the one that counts now.
      digest: of the telemetry of the row that counts: the first, or the reclaim's.
      trusted: whether the event that the row came from was trusted.
    """

    outcome: str
    digest: str
    trusted: bool


class OpenDeadLetter(NamedTuple):
    """A dead letter that no later delta has closed: where it is recorded, and why it is one."""

    version: int
    reason: str


class Index(Protocol):
    """The ids that were ever seen. The one thing here that grows with every event, so it can be replaced."""

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        """Says what will be asked for next, so that it can be looked up at once. Nothing depends on it but speed, and
        that no question about what was named here can fail until the next call."""

    def has_event(self, event_key: str, run_id: str) -> bool:
        """Whether this event was seen to name this run (or, with an empty run id, was seen and not understood)."""

    def add_event(self, event_key: str, run_id: str) -> None: ...

    def run(self, run_id: str) -> KnownRun | None: ...

    def put_run(self, run_id: str, run: KnownRun) -> None: ...

    def run_count(self) -> int: ...

    def dead_letter(self, key: DeadLetterKey) -> OpenDeadLetter | None: ...

    def put_dead_letter(self, key: DeadLetterKey, dead_letter: OpenDeadLetter | None) -> None:
        """Open a dead letter, or closes it (None)."""

    def dead_letters(self) -> Iterator[tuple[DeadLetterKey, OpenDeadLetter]]:
        """Return all open dead letters. The index must not change meanwhile."""


class MemoryIndex:
    """All ids in memory: about 150 bytes a (event, run), 300 more a run."""

    def __init__(self) -> None:
        self._events = IdSet()
        self._runs: dict[str, KnownRun] = {}
        self._dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        """Nothing to do."""

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


#: The tables of a `LayeredIndex`. An outcome is its place in `_OUTCOMES`, with `_UNTRUSTED` for a run that is not
#: trusted; a closed letter has the version 0.
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
        gone=_are_closed,
    ),
}
_UNTRUSTED = 0x80  # older versions did not say: such a run counts as trusted, which no untrusted event may correct
_OUTCOMES = ("", "success", "failure", "error", "timeout", "cancellation", "skip")


class LayeredIndex:
    """What came since a checkpoint in memory, over the tables of that checkpoint.

    Args:
      tables: those of `TABLES`, as of the checkpoint.
      runs: how many runs they hold.
    """

    def __init__(self, tables: Mapping[str, IdTable], runs: int) -> None:
        self._tables = tables
        self._run_count = runs
        self._events = IdSet(tables["events"])
        self._runs: dict[str, KnownRun] = {}
        self._dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}
        self._found_runs: dict[str, KnownRun | None] = {}  # what was looked up last; tables never change
        self._found_dead_letters: dict[DeadLetterKey, OpenDeadLetter | None] = {}

    def prefetch(
        self, events: Iterable[Event] = (), runs: Iterable[str] = (), dead_letters: Iterable[DeadLetterKey] = ()
    ) -> None:
        self._events.prefetch(fingerprint(*event) for event in events)
        wanted, before = set(runs) - self._runs.keys(), self._found_runs
        found = self._find_runs([run_id for run_id in wanted if run_id not in before])
        self._found_runs = {run_id: before[run_id] for run_id in wanted if run_id in before} | found
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
        if (known := self._runs.get(run_id)) is not None:
            return known
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
            for at in range(len(rows)):
                value = rows.row(at)
                key = (Origin(value["topic"], value["partition"], value["offset"]), value["run_id"])
                if key not in self._dead_letters:
                    yield key, OpenDeadLetter(value["version"], value["reason"])
        for key, dead_letter in self._dead_letters.items():
            if dead_letter is not None:
                yield key, dead_letter

    def recent(self) -> dict[str, Rows]:
        """What came since the checkpoint, as rows for its tables."""
        runs, dead_letters = self._runs, self._dead_letters
        return {
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
    outcome: int = value["outcome"]
    return KnownRun(_OUTCOMES[outcome & ~_UNTRUSTED], _unpack(value["digest"]), not outcome & _UNTRUSTED)


def _outcome_number(run: KnownRun) -> int:
    try:
        return _OUTCOMES.index(run.outcome) | (0 if run.trusted else _UNTRUSTED)
    except ValueError:
        raise IntegrityError(f"raw manifest: {run.outcome!r} is no outcome") from None


def _pack(digest: str) -> bytes:
    """Return a digest in half the bytes where it is one in hex; what it is stands before it."""
    try:
        data = bytes.fromhex(digest)
    except ValueError:
        data = b""
    return b"\0" + data if data.hex() == digest else b"\1" + digest.encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> str:
    return data[1:].decode("utf-8", "surrogatepass") if data[0] else data[1:].hex()

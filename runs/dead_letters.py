"""Dead letters in the raw manifest: find and select them, open or closed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from msgspec.structs import astuple

from ciml.errors import IntegrityError
from ciml.events.records import Origin, Outcome, records_of
from ciml.events.redaction import redact_text
from ciml.globs import matches_any
from ciml.manifest.log import Delta, ManifestLog
from ciml.runs.known_ids import DeadLetterKey
from ciml.runs.state import RawState

_ALL = ("*",)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter.

    Attributes:
      outcome: its record.
      version: the version of its delta.
      time_us: commit time of that delta, epoch microseconds.
      closed: the version that closed it; 0 if open.
      became: the outcomes of its event on closing, each as ``kind`` or ``kind reason``.
    """

    outcome: Outcome
    version: int
    time_us: int
    closed: int = 0
    became: tuple[str, ...] = ()

    @property
    def key(self) -> DeadLetterKey:
        return self.outcome.origin, self.outcome.run_id

    @property
    def job(self) -> str:
        """The job, or "" if it is unknown."""
        return self.outcome.mention.build_name if self.outcome.mention else ""

    def to_json(self, now_us: int) -> dict[str, Any]:
        """Return its JSON form without payload and without secrets."""
        value = {
            **described(self.outcome.to_json()),
            "version": self.version,
            "time_us": self.time_us,
            "age_s": (now_us - self.time_us) // 1_000_000,
            "open": not self.closed,
        }
        return {**value, "closed": self.closed, "became": list(self.became)} if self.closed else value


@dataclass(frozen=True, slots=True)
class Choice:
    """A selection of dead letters, which must match every field.

    Attributes:
      reasons, jobs, topics, runs: globs, one of which must match. The job and the run id of a message that could not
        be decoded are "".
      since_us, until_us: range of commit times, epoch microseconds; None for any time.
    """

    reasons: tuple[str, ...] = _ALL
    jobs: tuple[str, ...] = _ALL
    topics: tuple[str, ...] = _ALL
    runs: tuple[str, ...] = _ALL
    since_us: int | None = None
    until_us: int | None = None

    def may_match(self, key: DeadLetterKey, reason: str) -> bool:
        """Return whether a dead letter may match, as far as the index knows it."""
        origin, run_id = key
        return (
            matches_any(self.reasons, reason)
            and matches_any(self.topics, origin.topic)
            and matches_any(self.runs, run_id)
        )

    def matches(self, dead_letter: DeadLetter) -> bool:
        """Return whether a dead letter matches."""
        return (
            self.may_match(dead_letter.key, dead_letter.outcome.reason)
            and matches_any(self.jobs, dead_letter.job)
            and (self.since_us is None or dead_letter.time_us >= self.since_us)
            and (self.until_us is None or dead_letter.time_us < self.until_us)
        )


def open_dead_letters(
    log: ManifestLog, keys: Iterable[tuple[DeadLetterKey, int]], choice: Choice
) -> Iterator[DeadLetter]:
    """Yield the open dead letters of a choice, the oldest first. Only deltas that hold one are read.

    Args:
      log: the raw manifest.
      keys: from `open_keys`; dead letters closed meanwhile are still yielded.
      choice: the selection.
    """
    open_keys: dict[int, set[DeadLetterKey]] = defaultdict(set)
    for key, version in keys:
        open_keys[version].add(key)
    for version in sorted(open_keys):
        version_keys = open_keys.pop(version)
        for dead_letter in dead_letters_of(version, log.read(version)):
            if dead_letter.key in version_keys:
                version_keys.remove(dead_letter.key)
                if choice.matches(dead_letter):
                    yield dead_letter
        if version_keys:
            raise IntegrityError(f"raw manifest: version {version} lacks the dead letter of {min(version_keys)[0]}")


def open_keys(state: RawState, choice: Choice) -> list[tuple[DeadLetterKey, int]]:
    """Return (key, version) of the open dead letters that may match a choice. The state must not change meanwhile."""
    return [
        (key, dead_letter.version)
        for key, dead_letter in state.index.dead_letters()
        if choice.may_match(key, dead_letter.reason)
    ]


def all_dead_letters(log: ManifestLog, choice: Choice) -> Iterator[DeadLetter]:
    """Yield the dead letters of a choice, open or closed, the oldest first. Reads every delta."""
    chosen = filter(choice.matches, latest_dead_letters(log, log.end()))
    yield from sorted(chosen, key=_position)


def _position(dead_letter: DeadLetter) -> tuple[Any, ...]:
    return dead_letter.version, *astuple(dead_letter.outcome.origin), dead_letter.outcome.run_id


def latest_dead_letters(log: ManifestLog, until: int) -> Iterator[DeadLetter]:
    """Yield all dead letters up to a version, open or closed by then, the last committed first. Reads lazily."""
    # The closing version and outcomes of dead letters that are still to be read, since deltas are read backwards.
    closed: dict[DeadLetterKey, tuple[int, tuple[str, ...]]] = {}
    for version in range(until, 0, -1):
        delta = log.read(version)
        for dead_letter in reversed(list(dead_letters_of(version, delta))):
            closing_version, became = closed.pop(dead_letter.key, (0, ()))
            yield replace(dead_letter, closed=closing_version, became=became)
        if closes := closed_keys(delta) or _all_closes(delta):
            outcomes = _outcomes_by_origin(delta)
            closed |= {key: (version, _became(key, outcomes)) for key in closes}


def closed_keys(delta: Delta) -> list[DeadLetterKey]:
    """Return the dead letters that a delta closes; none for older deltas, which mix them with deferred runs."""
    return [(Origin.from_json(origin), run_id) for origin, run_id in delta.get("closed_letters", ())]


def _all_closes(delta: Delta) -> list[DeadLetterKey]:
    """Return what a delta closes, deferred runs among them."""
    return [(Origin.from_json(origin), run_id) for origin, run_id in delta["closes"]]


#: Run ids and outcomes of records, by origin.
_Outcomes = dict[Origin, list[tuple[str, str]]]


def _outcomes_by_origin(delta: Delta) -> _Outcomes:
    outcomes: _Outcomes = {}
    for kind, record in records_of(delta):
        outcome = f"{kind} {record.get('reason', '')}".rstrip()
        run_id = record.get("mention", {}).get("run_id", "")
        outcomes.setdefault(Origin.from_json(record["origin"]), []).append((run_id, outcome))
    return outcomes


def _became(key: DeadLetterKey, outcomes: _Outcomes) -> tuple[str, ...]:
    origin, run_id = key
    return tuple(outcome for other, outcome in outcomes.get(origin, ()) if run_id in ("", other))


def dead_letters_of(version: int, delta: Delta) -> Iterator[DeadLetter]:
    """Yield the dead letters that a delta adds, open."""
    for record in delta["dead_letters"]:
        yield DeadLetter(Outcome.from_json(record), version, delta["time_us"])


def described(record: dict[str, Any]) -> dict[str, Any]:
    """Return a dead letter's record for display and publishing: without payload, and without secrets in addresses."""
    facts = record.get("mention", {})
    value = {
        "origin": record["origin"],
        "run_id": facts.get("run_id", ""),
        "build_name": facts.get("build_name", ""),
        "reason": record["reason"],
        "detail": redact_text(record.get("detail", "")),
    }
    for name in ("event_key", "first_seen_us"):
        if name in record:
            value[name] = record[name]
    if facts.get("log_url"):
        value["log_url"] = facts["log_url"]
    return value

"""All records of one run in a raw manifest, and the other attempts of its job: the manifest is searched as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ciml.events.records import records_of
from ciml.manifest.log import Delta, ManifestLog
from ciml.raw.state import RawState

#: Called with (deltas done, deltas in all).
Progress = Callable[[int, int], None]

#: The kind of a change of trust among the records of a run; it is no `ciml.events.records.Kind`.
TRUST_CHANGE = "trust_change"


class RunEntry(NamedTuple):
    """A record of a run: its version, its kind (or `TRUST_CHANGE`), and its JSON."""

    version: int
    kind: str
    record: Mapping[str, Any]


def entries_of(log: ManifestLog, until: int, run_id: str, progress: Progress | None = None) -> list[RunEntry]:
    """Return all records of a run up to a version, in order."""
    found = []
    for version, delta in _deltas_with(log, until, run_id, progress):
        for kind, record in records_of(delta):
            if record.get("mention", {}).get("run_id") == run_id:
                found.append(RunEntry(version, kind, record))
        for change in delta.get("trust_changes", ()):
            if change["run_id"] == run_id:
                found.append(RunEntry(version, TRUST_CHANGE, change))
    return found


def row_of(entries: list[RunEntry]) -> RunEntry | None:
    """Return the raw row that counts: the last; None for a run without a row."""
    return next((entry for entry in reversed(entries) if entry.kind in ("run", "reclaim")), None)


class Attempt(NamedTuple):
    """An attempt of a job: run id, number, outcome with corrections, start (µs; None if unknown), kind of record."""

    run_id: str
    attempt: int
    outcome: str
    start_us: int | None
    kind: str


def attempts_of(
    log: ManifestLog, state: RawState, entries: list[RunEntry], progress: Progress | None = None
) -> list[Attempt]:
    """Return all attempts of the job of a run, itself included, by number and start; none where they are not linked.

    Args:
      log: the raw manifest.
      state: its present state.
      entries: the records of the run, from `entries_of`.
      progress: called while the manifest is searched.
    """
    mentions = [entry.record["mention"] for entry in entries if "mention" in entry.record]
    linked = next((mention["attempt_of"] for mention in reversed(mentions) if mention.get("attempt_of")), "")
    if not linked:
        return []
    source = mentions[0]["run_id"].partition("~")[0]
    found: dict[str, Attempt] = {}
    for _, delta in _deltas_with(log, state.version, linked, progress):
        for kind, record in records_of(delta):
            mention = record.get("mention", {})
            run_id: str = mention.get("run_id", "")
            if mention.get("attempt_of") != linked or run_id.partition("~")[0] != source:
                continue
            known = state.index.run(run_id)
            outcome = known.outcome if known else mention.get("outcome", "")
            kept = kind if run_id not in found or known is None else found[run_id].kind
            number = int(run_id.rpartition("~")[2])
            found[run_id] = Attempt(run_id, number, outcome, mention.get("start_us"), kept)
    return sorted(found.values(), key=lambda each: (each.attempt, each.start_us or 0, each.run_id))


def _deltas_with(log: ManifestLog, until: int, text: str, progress: Progress | None) -> Iterator[tuple[int, Delta]]:
    needle = json.dumps(text, ensure_ascii=False).encode()  # as the manifest encodes it: most deltas are not parsed
    for version, data in log.raw_since(0):
        if version > until:
            return
        if progress is not None:
            progress(version, until)
        if needle in data:
            yield version, log.parse(version, data)

"""What an erasure leaves of a run in the raw store: that there was one, in its job and on its day.

The accounting of the raw store counts each (event, run), and data sets name runs by their position. So an erased run
keeps its records, under another name and without its facts. Its telemetry becomes a table without samples. The new name
is derived from the run id. It recognises an event of the run that comes again, which is then ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from ciml.digest import telemetry_digest
from ciml.events.records import LISTS, Kind, RawFile, lists_of, records_of
from ciml.events.run_id import ERASED, erased_id
from ciml.manifest.log import Delta, ManifestLog
from ciml.runs.pack_index import RUNS, split_path
from ciml.runs.state import RawState
from ciml.runs.writer import write_run
from ciml.storage import Store
from ciml.telemetry import TIME

#: The records that depend on a decision on trust.
_JUDGED = frozenset({"run", "reclaim", "correction", "dead_letter"})
_KEPT = ("kind", "origin", "reason", "attempts", "first_seen_us", "not_before_us")
#: Where a record has the facts of its run.
_FACTS = ("mention", "joined")
#: What identifies a run and its objects in a record.
_IDENTITY = ("kind", "origin", "file", "output", "payload")
_NO_FOLDER = "job=erased/date=1970-01-01"


@dataclass(frozen=True)
class RunCriteria:
    """The runs to erase: those that match each given criterion.

    Attributes:
      run_id: one run.
      owner: who started the runs, as events or updates name them.
      change: the change of the runs, likewise.
      project: the project of that change, likewise.
      before_us: runs that ended before this time, epoch microseconds. Of a run without times, its event counts.
    """

    run_id: str = ""
    owner: str = ""
    change: str = ""
    project: str = ""
    before_us: int | None = None

    @property
    def by_time(self) -> bool:
        """Whether the time alone decides."""
        return self == RunCriteria(before_us=self.before_us)

    def facts(self) -> dict[str, str]:
        """Return the facts by which runs are selected, and which updates may change."""
        facts = {"owner": self.owner, "change": self.change, "project": self.project}
        return {name: value for name, value in facts.items() if value}

    def matches(self, mention: Mapping[str, Any], joined: Mapping[str, Any], time_us: int) -> bool:
        """Return whether a record's run is to be erased.

        Args:
          mention: the facts of the run in the record.
          joined: these facts with the updates of its subjects.
          time_us: of the delta.
        """
        ended_us = mention.get("end_us") or mention.get("start_us") or time_us
        return (
            (not self.run_id or mention["run_id"] == self.run_id)
            and all(value in (mention.get(name), joined.get(name)) for name, value in self.facts().items())
            and (self.before_us is None or ended_us < self.before_us)
        )

    def concerns(self, update: Mapping[str, Any]) -> bool:
        """Return whether an update names the owner: as the account of a review, or as the owner of its subject."""
        return bool(self.owner) and self.owner in (update.get("by"), update.get("facts", {}).get("owner"))

    def is_named(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record states that the owner started its run, now or when it was stored."""
        owners = (record.get(part, {}).get("owner") for part in _FACTS)
        return bool(self.owner) and self.owner in owners


@dataclass(frozen=True)
class ErasedRuns:
    """The runs of an erasure, and what is to be removed with them.

    Attributes:
      run_ids: the ids.
      origins: of messages that name such a run and are stored, because they could not be processed.
      criteria: by which the runs were found.
      subjects: (source, subject) whose updates still have to name the owner, because some of its runs remain.
      others: other people's runs, of which records that are not believed name the owner.
    """

    run_ids: frozenset[str]
    origins: frozenset[tuple[Any, ...]]
    criteria: RunCriteria
    subjects: frozenset[tuple[str, str]] = frozenset()
    others: frozenset[str] = frozenset()

    def of(self, delta: Delta, file_of: Callable[[str, str], RawFile]) -> Delta:
        """Return a delta of the raw manifest after the erasure; an equal one if it names none of the runs.

        Args:
          delta: as it was committed.
          file_of: returns the object without samples of a run, given its path and its run id before the erasure.
        """
        erased: Delta = {**delta}
        for kind, name in LISTS.items():
            if delta.get(name):
                erased[name] = [self._record(kind, record, file_of) for record in delta[name]]
        for name in ("closes", "closed_letters"):
            if delta.get(name):
                erased[name] = [[origin, self._id(run_id)] for origin, run_id in delta[name]]
        if "trust_changes" in delta:
            erased["trust_changes"] = [
                change for change in delta["trust_changes"] if change["run_id"] not in self.run_ids
            ]
        return erased

    def _id(self, run_id: str) -> str:
        return erased_id(run_id) if run_id in self.run_ids else run_id

    def _record(
        self, kind: Kind, record: Mapping[str, Any], file_of: Callable[[str, str], RawFile]
    ) -> Mapping[str, Any]:
        mention = record.get("mention")
        if mention is not None and mention["run_id"] in self.run_ids:
            return _erased_record(kind, record, file_of)
        if any(map(self._concerns, record.get("updates", ()))):
            return {**record, "updates": [self._update(update) for update in record["updates"]], "event_key": ""}
        if mention is not None and mention["run_id"] in self.others:
            record = {**record, **{name: self._without_owner(record[name]) for name in _FACTS if name in record}}
        if record.get("payload") is not None and tuple(record["origin"]) in self.origins:
            return {name: value for name, value in record.items() if name not in ("payload", "detail")}
        return record

    def _concerns(self, update: Mapping[str, Any]) -> bool:
        return self.criteria.concerns(update) and (update["source"], update["subject"]) not in self.subjects

    def _update(self, update: Mapping[str, Any]) -> Mapping[str, Any]:
        return _erased_update(update) if self._concerns(update) else update

    def _without_owner(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in facts.items() if name != "owner" or value != self.criteria.owner}


def _erased_update(update: Mapping[str, Any]) -> dict[str, Any]:
    return {"source": update["source"], "subject": ERASED, "facts": {}}


def _erased_record(kind: Kind, record: Mapping[str, Any], file_of: Callable[[str, str], RawFile]) -> dict[str, Any]:
    mention = record["mention"]
    run_id = mention["run_id"]
    erased: dict[str, Any] = {name: record[name] for name in _KEPT if name in record}
    erased["mention"] = _mention(erased_id(run_id), mention.get("phase", "finished"), mention.get("build_name", ""))
    if kind in _JUDGED:
        erased["trust"] = {"trusted": False, "rule": ERASED, "policy": ""}
    if record.get("file") is not None:
        erased["file"] = file_of(record["file"]["path"], run_id).to_json()
    if record.get("updates"):
        erased["updates"] = list(map(_erased_update, record["updates"]))
    return erased


def with_other_facts(delta: Delta, change: Callable[[Any], Any]) -> Delta:
    """Return a delta of the raw manifest with changed facts and updates; what identifies a run stays."""
    lists = {name: [_with_other_facts(record, change) for record in delta.get(name, ())] for name in LISTS.values()}
    return {**delta, **{name: records for name, records in lists.items() if name in delta}}


def _with_other_facts(record: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    changed = {name: value if name in _IDENTITY else change(value) for name, value in record.items()}
    if "mention" in record:
        changed["mention"] |= {name: record["mention"][name] for name in ("run_id", "build_uuid")}
    return changed


def store_without_samples(raw: Store, path: str, run_id: str) -> RawFile:
    """Write the object that stands for the telemetry of an erased run, and return it.

    Args:
      raw: the raw store.
      path: of the run's telemetry, in whose folder the object is.
      run_id: the run's id before the erasure.
    """
    name = erased_id(run_id)
    table = pa.table({TIME: pa.array([], pa.timestamp("us", tz="UTC"))})
    digest = telemetry_digest(name, table)
    parts = split_path(path)
    object_path = f"{RUNS}/{parts[0] if parts else _NO_FOLDER}/{name}.{digest[:16]}.parquet"
    data = write_run(table, object_path)
    raw.create(object_path, data)
    return RawFile(object_path, digest, 0, len(data))


def runs_without_time(log: ManifestLog, run_ids: Container[str]) -> set[str]:
    """Return those of some runs of which a record has neither start nor end."""
    mentions = (record.get("mention", {}) for _, delta in log.since(0) for _, record in records_of(delta))
    return {
        mention["run_id"]
        for mention in mentions
        if mention.get("run_id") in run_ids and mention.get("end_us") is None and mention.get("start_us") is None
    }


def erasing_delta(state: RawState, erased: ErasedRuns, time_us: int, without_time: Iterable[str] = ()) -> Delta:
    """Return the delta that begins an erasure: from then on, events of the runs are ignored, and no log is awaited.

    Args:
      state: of the raw manifest.
      erased: the runs.
      time_us: of the commit, epoch microseconds.
      without_time: ids of runs that no time identifies (`runs_without_time`), for an erasure by time alone.
    """
    letters = [key for key, _ in state.index.dead_letters() if key[1] in erased.run_ids]
    waiting = [key for key in state.deferred if key[1] in erased.run_ids]
    closes = [[msgspec.to_builtins(origin), run_id] for origin, run_id in (*waiting, *letters)]
    before_us = erased.criteria.before_us
    # The runs of an erasure by time alone are recognised by their time, since they may be millions. Those with an open
    # record are named, so that a second call does not close it again; and those without a time.
    by_time = erased.criteria.by_time
    named = {*without_time, *(run_id for _, run_id in closes)} if by_time else erased.run_ids
    return {
        "time_us": time_us,
        "offsets": {},
        **lists_of({}),
        "ignored": [
            {"kind": "ignored", "origin": origin, "reason": ERASED, "mention": _mention(run_id)}
            for origin, run_id in closes
        ],
        "closes": closes,
        **({"closed_letters": closes[len(waiting) :]} if letters else {}),
        "erases": sorted(map(erased_id, named)),
        **({"erases_before_us": before_us} if by_time else {}),
    }


def _mention(run_id: str, phase: str = "finished", job: str = "") -> dict[str, str]:
    return {"run_id": run_id, "build_uuid": "", "phase": phase, **({"build_name": job} if job else {})}

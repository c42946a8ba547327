"""The subjects of runs: what updates state of them, and which stored runs have a subject; in memory, or on disk.

A run names its *subjects*, such as its change and its commit. An update *states* facts of a subject, which join the
facts of its runs. Only runs that name a subject, or have a fact that examples do not hold, are here.

A recorder knows facts that its CI system does not report, such as the exit status. Its event may be believed less than
that of the system, which reclaims the run or comes first. So the *claims* of such events are stored apart from the
run's row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ciml.events.records import FactUpdate, RunFacts
from ciml.events.reviews import Statement, parent_subjects
from ciml.events.updates import changes_of, join_facts, merge_statements, statements_of, valid_statements
from ciml.limits import MAX_SUBJECT_RUNS
from ciml.manifest.id_index import IdTable, Rows, TableKind, fingerprint
from ciml.manifest.id_maps import Codec, IdMap
from ciml.runs.run_log import PROVED, STANDINGS, TRUSTED, standing_of

#: (source, subject).
Subject = tuple[str, str]
#: Returns the statements of updates about a subject, by fact.
StatementsOf = Callable[[Subject], Mapping[str, Statement]]

#: The statements of updates about a subject, by fact (JSON). Id: source and subject.
_STATED = TableKind({"said": "binary"})
#: A run of a subject. Id: half of the id of the subject's runs of one standing, then half of the run's id, so that a
#: subject's runs are adjacent, and runs that are believed less displace none that are believed more.
_MEMBERS = TableKind({"run": "binary"})
#: The facts by which a run is trusted, as its own event has them, and its subjects (JSON). Id: the run id. And the
#: claims about a run (JSON). Id: the run id and a word.
_OWN = TableKind({"facts": "binary"})
#: The tables of `Subjects`.
TABLES: Mapping[str, TableKind] = {"said": _STATED, "members": _MEMBERS, "facts": _OWN}

#: The facts that are stored of a run: all by which a policy may trust it, and all that conditions of reviews name.
STORED = ("source", "event", "pipeline", "project", "branch", "review", "fork", "auth", "owner", "adapter", "change")
#: Values of facts that are not stored. Examples hold the change, and versions before 0.2.0 did not store it here.
_DEFAULTS = dict.fromkeys(STORED[:-1], "")
#: What a recorder reports of a run's machine and command, and a CI system may not: fields of `RunFacts`, and labels.
CLAIMED_FACTS = ("provider", "region", "flavour")
CLAIMED_LABELS = ("exit_code", "signal", "node", "runner")
#: Facts of a run, besides its subjects, that examples do not hold.
_MARKS = frozenset({"subjects", "fork", "auth", "owner", "adapter"})
_HALF = 8

_statements_decoder = msgspec.json.Decoder(dict[str, Statement])


def _encode_statements(subject: Subject, statements: Mapping[str, Statement]) -> dict[str, bytes]:
    return {"said": msgspec.json.encode(statements, order="sorted")}


def _decode_statements(subject: Subject, row: Mapping[str, Any] | None) -> Mapping[str, Statement]:
    return {} if row is None else valid_statements(subject[1], _statements_decoder.decode(row["said"]))


def _subject_id(subject: Subject) -> bytes:
    return fingerprint(*subject)


def _run_fingerprint(run: bytes) -> bytes:
    return run


def _encode_own(run: bytes, facts: bytes | None) -> dict[str, bytes | None]:
    return {"facts": facts}


def _decode_own(run: bytes, row: Mapping[str, Any] | None) -> bytes | None:
    return None if row is None else row["facts"]


_STATEMENTS: Codec[Subject, Mapping[str, Statement]] = Codec(_subject_id, _encode_statements, _decode_statements)
_FACTS: Codec[bytes, bytes | None] = Codec(_run_fingerprint, _encode_own, _decode_own)


class Claim(NamedTuple):
    """The value that an event, other than the run's trusted row, gives for a fact of `CLAIMED_FACTS` or a label.

    Attributes:
      standing: of the event, one of `ciml.runs.run_log.STANDINGS`.
      value: the fact.
    """

    standing: int
    value: str


_claims_decoder = msgspec.json.Decoder(dict[str, Claim])


def subjects_of(facts: RunFacts) -> list[Subject]:
    """Return the subjects of a run. Their source is that of its run id: no other source updates it."""
    if not facts.subjects:
        return []
    source = source_of(facts)
    return [(source, subject) for subject in dict.fromkeys(facts.subjects)]


def source_of(facts: RunFacts) -> str:
    """Return the source of a run, as in its run id."""
    return facts.run_id.partition("~")[0]


def parents_of(facts: RunFacts, statements: StatementsOf) -> list[Subject]:
    """Return the subjects of the parents that a run executed, as far as updates of its subjects name them."""
    source = source_of(facts)
    updates = map(statements, subjects_of(facts))
    return [(source, parent) for update in updates for parent in parent_subjects(facts, update) if parent]


def changed_facts(facts: RunFacts, statements: StatementsOf) -> dict[str, str]:
    """Return the facts of a run that updates change."""
    if not facts.subjects:
        return {}
    source = source_of(facts)
    return changes_of(facts, map(statements, subjects_of(facts)), lambda subject: statements((source, subject)))


def joined_facts(facts: RunFacts, statements: StatementsOf) -> RunFacts:
    """Return a run's facts, joined with updates."""
    source = source_of(facts)
    return join_facts(facts, map(statements, subjects_of(facts)), lambda subject: statements((source, subject)))


def is_marked(facts: Mapping[str, Any]) -> bool:
    """Return whether a run (as JSON) is one of `Subjects`: it has subjects, or facts that examples do not hold."""
    return not _MARKS.isdisjoint(facts)


def claims_of(facts: Mapping[str, Any], standing: int) -> dict[str, Claim]:
    """Return the claims of an event about a run.

    Args:
      facts: of the run, as in the raw manifest.
      standing: of the event.
    """
    labels = facts.get("labels", {})
    values = {name: facts[name] for name in CLAIMED_FACTS if facts.get(name)}
    values |= {name: labels[name] for name in CLAIMED_LABELS if labels.get(name)}
    return {name: Claim(standing, value) for name, value in values.items()}


def with_claims(facts: RunFacts, claims: Mapping[str, Claim]) -> RunFacts:
    """Return a run's facts, completed by claims where they are missing. They are for people; no model learns them."""
    values = {name: claim.value for name, claim in claims.items()}
    missing = {name: values[name] for name in CLAIMED_FACTS if name in values and not getattr(facts, name)}
    labels = {name: values[name] for name in CLAIMED_LABELS if name in values}
    return facts.replace(**missing, labels={**labels, **facts.labels})


class Subjects:
    """Subjects and their runs, and the claims of events about runs.

    Args:
      tables: those of `TABLES`, as of a checkpoint; without them everything is in memory.
    """

    def __init__(self, tables: Mapping[str, IdTable] | None = None) -> None:
        self._tables = {name: table for name, table in (tables or {}).items() if name in TABLES}
        self._statements = IdMap(_STATEMENTS, self._tables.get("said"))
        self._own = IdMap(_FACTS, self._tables.get("facts"))
        self._members: dict[bytes, dict[bytes, None]] = {}

    def __bool__(self) -> bool:
        """Return whether anything is known of any run or subject."""
        return bool(self._statements.recent or self._own.recent or any(table.runs for table in self._tables.values()))

    def prefetch(self, subjects: Iterable[Subject]) -> None:
        """Look up subjects in one batch. Until the next call, `statements` cannot fail for them."""
        self._statements.prefetch(subjects)

    def statements(self, subject: Subject) -> Mapping[str, Statement]:
        """Return the statements of updates about a subject, by fact."""
        return self._statements[subject]

    def add_update(self, update: FactUpdate, event_key: str) -> None:
        """Add an update."""
        subject = (update.source, update.subject)
        self._statements[subject] = merge_statements(self.statements(subject), statements_of(update, event_key))
        if "parents" in update.facts:
            for standing in STANDINGS:
                for facts in self.runs(subject, MAX_SUBJECT_RUNS, standing):
                    self._add_members(facts, standing)

    def add_run(self, facts: RunFacts, *, trusted: bool = False) -> None:
        """Add a run that is marked, with its own facts; a later row of the run replaces them."""
        self._own[fingerprint(facts.run_id)] = _encode(facts)
        self._add_members(facts, standing_of(trusted, bool(facts.auth)))

    def trust_run(self, run_id: str) -> None:
        """Count a run among the trusted ones of its subjects, as an update has raised its trust."""
        (data,) = self._own.read([fingerprint(run_id)])
        if data is not None:
            self._add_members(_decode(data), TRUSTED)

    def _add_members(self, facts: RunFacts, standing: int) -> None:
        run = fingerprint(facts.run_id)
        for subject in (*subjects_of(facts), *parents_of(facts, self.statements)):
            self._members.setdefault(_members_id(subject, standing), {})[run] = None

    def claim(self, run_id: str, claims: Mapping[str, Claim]) -> None:
        """Add the claims of an event about a run. Of each fact, the first claim of the highest standing counts."""
        before = self.claims(run_id)
        after = {**claims, **before}
        after |= {name: claim for name, claim in claims.items() if claim.standing > after[name].standing}
        if after != before:
            self._own[_claims_id(run_id)] = msgspec.json.encode(after, order="sorted")

    def claims(self, run_id: str) -> dict[str, Claim]:
        """Return the claims of events about a run, other than its trusted row."""
        (data,) = self._own.read([_claims_id(run_id)])
        return _claims_decoder.decode(data) if data is not None else {}

    def runs(self, subject: Subject, most: int, standing: int | None = None) -> list[RunFacts]:
        """Return the own facts of runs of a subject, or with it as a parent, as far as trust needs them.

        Args:
          subject: the subject.
          most: the most runs of each standing.
          standing: that of the runs, the highest one that they had; None for all, the highest first.
        """
        standings = reversed(STANDINGS) if standing is None else (standing,)
        runs = dict.fromkeys(
            run
            for member_standing in standings
            for run in self._members_of(_members_id(subject, member_standing), most)
        )
        members = [_decode(data) for data in self._own.read(runs) if data is not None]
        # A reclaim may have left the subject.
        return [
            facts for facts in members if subject in subjects_of(facts) or subject in parents_of(facts, self.statements)
        ]

    def _members_of(self, identity: bytes, most: int) -> list[bytes]:
        runs = list(self._members.get(identity, ()))[:most]
        if self._tables:
            members = self._tables["members"].starting(identity[:_HALF], most)
            runs = list(dict.fromkeys([*runs, *(row["run"] for row in members)]))[:most]
        return runs

    def joined(self, runs: Mapping[str, RunFacts]) -> dict[str, RunFacts]:
        """Return the facts by which runs are trusted now: their own, joined with all updates.

        Args:
          runs: facts of stored runs by run id. Fork, proof, owner and subjects may be missing.
        """
        if not self:
            return dict(runs)
        encoded = self._own.read([fingerprint(run_id) for run_id in runs])
        tables = {
            run_id: facts if data is None else facts.replace(**_changes(data))
            for (run_id, facts), data in zip(runs.items(), encoded, strict=True)
        }
        self.prefetch_runs(tables.values())
        return {run_id: self.join(facts) for run_id, facts in tables.items()}

    def prefetch_runs(self, runs: Collection[RunFacts], *others: Subject) -> None:
        """Look up all subjects by which runs are joined, and others, as `prefetch` does."""
        subjects = [subject for facts in runs for subject in subjects_of(facts)]
        self.prefetch((*subjects, *others))
        parents = [parent for facts in runs for parent in parents_of(facts, self.statements)]
        if parents:
            self.prefetch((*subjects, *others, *parents))

    def join(self, facts: RunFacts) -> RunFacts:
        """Return a run's facts, joined with all updates so far."""
        return joined_facts(facts, self.statements)

    def recent(self) -> dict[str, Rows]:
        """Return the additions since the checkpoint, as rows for the tables."""
        members = [(subject, run) for subject, runs in self._members.items() for run in runs]
        return {
            "said": self._statements.rows(),
            "members": _MEMBERS.rows(
                [subject[:_HALF] + run[:_HALF] for subject, run in members], {"run": [run for _, run in members]}
            ),
            "facts": self._own.rows(),
        }


def _members_id(subject: Subject, standing: int) -> bytes:
    """Return the id of a subject's runs of a standing. That of proved runs is the one of all runs in older tables."""
    return fingerprint(*subject) if standing == PROVED else fingerprint(*subject, str(standing))


def _claims_id(run_id: str) -> bytes:
    return fingerprint(run_id, "claims")


def _encode(facts: RunFacts) -> bytes:
    stored: dict[str, Any] = {name: value for name in STORED if (value := getattr(facts, name))}
    if facts.subjects:
        stored["subjects"] = facts.subjects
    return msgspec.json.encode({"run_id": facts.run_id, **stored}, order="sorted")


def _changes(data: bytes) -> dict[str, Any]:
    stored = msgspec.json.decode(data)
    return {**_DEFAULTS, **stored, "subjects": tuple(stored.get("subjects", ()))}


def _decode(data: bytes) -> RunFacts:
    return RunFacts(build_uuid="", **_changes(data))

"""The subjects of runs, the statements of updates about them, and the claims of events about runs.

A run names its *subjects*, such as its change and its commit. An update *states* facts of a subject, which join the
facts of its runs. A run is *marked*, and stored here, if it names a subject or has a fact that examples do not hold.
The *standing* of a run or an event is how far it is believed (`ciml.runs.run_log`).

A recorder knows facts that its CI system does not report, such as the exit status. Its event may have a lower standing
than that of the system. Then the system's event supplies the run's row, at first or later as a *reclaim*, and the
recorder's facts are stored apart from the row, as *claims*.

Everything is in memory, or over the tables of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import msgspec

from ciml.events.records import FactUpdate, RunFacts
from ciml.events.reviews import Statement, parent_subjects
from ciml.events.run_id import source_of
from ciml.events.updates import changes_of, join_facts, merge_statements, statements_of, valid_statements
from ciml.limits import MAX_SUBJECT_RUNS
from ciml.manifest.id_index import IdTable, Rows, TableKind, fingerprint
from ciml.manifest.id_maps import Codec, IdMap
from ciml.runs.run_log import PROVED, STANDINGS, TRUSTED, standing_of
from ciml.trust import FACTS

#: (source, subject).
Subject = tuple[str, str]
#: Returns the statements of updates about a subject, by fact.
StatementsOf = Callable[[Subject], Mapping[str, Statement]]

#: The statements of updates about a subject, by fact (JSON). Id: source and subject.
_STATEMENTS_TABLE = TableKind({"said": "binary"})  # "said" is the name on disk
#: A run of a subject. Id: half of the id of the subject's runs of one standing, then half of the run's id, so that a
#: subject's runs are adjacent, and runs of a lower standing displace none of a higher one.
_MEMBERS_TABLE = TableKind({"run": "binary"})
#: Two kinds of values (JSON), told apart by the id: the own facts of a marked run (`_own_id`), which are `STORED_FACTS`
#: and the subjects as its own event has them; and the claims about any run (`_claims_id`).
_OWN_TABLE = TableKind({"facts": "binary"})
#: The tables of `Subjects`, by their names on disk.
TABLES: Mapping[str, TableKind] = {"said": _STATEMENTS_TABLE, "members": _MEMBERS_TABLE, "facts": _OWN_TABLE}

#: The facts that are stored of a marked run: all that a rule of a policy or a condition of a review may name.
STORED_FACTS = (*FACTS, "change")
#: A fact that is not stored is empty. The change is not among them: examples hold it, and versions before 0.2.0 did not
#: store it here.
_DEFAULTS = dict.fromkeys(FACTS, "")
#: Facts that a recorder reports of a run's machine and command, and a CI system may not: fields of `RunFacts`, and
#: labels.
CLAIMED_FACTS = ("provider", "region", "flavour")
CLAIMED_LABELS = ("exit_code", "signal", "node", "runner")
#: Fields of `RunFacts` that mark a run.
_MARKS = frozenset({"subjects", "fork", "auth", "owner", "adapter"})
_HALF = 8

_statements_decoder = msgspec.json.Decoder(dict[str, Statement])


def _encode_statements(subject: Subject, statements: Mapping[str, Statement]) -> dict[str, bytes]:
    return {"said": msgspec.json.encode(statements, order="sorted")}


def _decode_statements(subject: Subject, row: Mapping[str, Any] | None) -> Mapping[str, Statement]:
    return {} if row is None else valid_statements(subject[1], _statements_decoder.decode(row["said"]))


_STATEMENTS_CODEC: Codec[Subject, Mapping[str, Statement]] = Codec(
    lambda subject: fingerprint(*subject), _encode_statements, _decode_statements
)
_OWN_CODEC: Codec[bytes, bytes | None] = Codec(
    bytes, lambda _, data: {"facts": data}, lambda _, row: None if row is None else row["facts"]
)


def subjects_of(facts: RunFacts) -> list[Subject]:
    """Return the subjects of a run. Their source is that of its run id: no other source updates it."""
    if not facts.subjects:
        return []
    source = source_of(facts.run_id)
    return [(source, subject) for subject in dict.fromkeys(facts.subjects)]


def parents_of(facts: RunFacts, statements: StatementsOf) -> list[Subject]:
    """Return the subjects of the parents that a run executed, as far as updates of its subjects name them."""
    source = source_of(facts.run_id)
    updates = map(statements, subjects_of(facts))
    return [(source, parent) for update in updates for parent in parent_subjects(facts, update) if parent]


def changed_facts(facts: RunFacts, statements: StatementsOf) -> dict[str, str]:
    """Return the facts of a run that updates change."""
    if not facts.subjects:
        return {}
    source = source_of(facts.run_id)
    return changes_of(facts, map(statements, subjects_of(facts)), lambda subject: statements((source, subject)))


def join_updates(facts: RunFacts, statements: StatementsOf) -> RunFacts:
    """Return the facts of a run, joined with the updates of its subjects."""
    source = source_of(facts.run_id)
    return join_facts(facts, map(statements, subjects_of(facts)), lambda subject: statements((source, subject)))


def is_marked(facts: Mapping[str, Any]) -> bool:
    """Return whether a run is marked, by its facts as in the raw manifest, which leave out empty ones."""
    return not _MARKS.isdisjoint(facts)


class Claim(NamedTuple):
    """The value that an event, other than the run's trusted row, gives for a fact of `CLAIMED_FACTS` or a label.

    Attributes:
      standing: of the event, one of `ciml.runs.run_log.STANDINGS`.
      value: the fact.
    """

    standing: int
    value: str


_claims_decoder = msgspec.json.Decoder(dict[str, Claim])


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
    """Subjects, the statements of updates about them, and their runs.

    Args:
      tables: of a checkpoint, all of `TABLES`, among others; without them everything is in memory.
    """

    def __init__(self, tables: Mapping[str, IdTable] | None = None) -> None:
        self._tables = {name: table for name, table in (tables or {}).items() if name in TABLES}
        self._statements = IdMap(_STATEMENTS_CODEC, self._tables.get("said"))
        self._own = IdMap(_OWN_CODEC, self._tables.get("facts"))
        # Since the checkpoint: the ids of runs, by `_members_id`, in the order in which they were added.
        self._members: dict[bytes, dict[bytes, None]] = {}

    def __bool__(self) -> bool:
        """Return whether any run, claim or statement is stored."""
        return bool(self._statements.recent or self._own.recent or any(table.runs for table in self._tables.values()))

    def statements(self, subject: Subject) -> Mapping[str, Statement]:
        """Return the statements of updates about a subject, by fact."""
        return self._statements[subject]

    def add_update(self, update: FactUpdate, event_key: str) -> None:
        """Merge the statements of an update into those about its subject.

        Parents that it states are subjects of the subject's runs, too.
        """
        subject = (update.source, update.subject)
        before = self.statements(subject)
        merged = merge_statements(before, statements_of(update, event_key))
        self._statements[subject] = merged
        parents, known_parents = merged.get("parents"), before.get("parents")
        if parents is not None and (known_parents is None or parents.value != known_parents.value):
            for standing in STANDINGS:
                for facts in self.runs(subject, MAX_SUBJECT_RUNS, standing):
                    self._add_members(facts, standing)

    def add_run(self, facts: RunFacts, *, trusted: bool = False) -> None:
        """Store the own facts of a run, which replace those of an earlier row, and add it to its subjects."""
        self._own[_own_id(facts.run_id)] = _encode_facts(facts)
        self._add_members(facts, standing_of(trusted, bool(facts.auth)))

    def trust_run(self, run_id: str) -> None:
        """Add a run to the trusted ones of its subjects, because an update has raised its trust."""
        (data,) = self._own.read([_own_id(run_id)])
        if data is not None:
            self._add_members(_decode_facts(data), TRUSTED)

    def add_claims(self, run_id: str, claims: Mapping[str, Claim]) -> None:
        """Add the claims of an event about a run. For each fact, the first claim of the highest standing counts."""
        before = self.claims(run_id)
        after = {**claims, **before}
        after |= {name: claim for name, claim in claims.items() if claim.standing > after[name].standing}
        if after != before:
            self._own[_claims_id(run_id)] = msgspec.json.encode(after, order="sorted")

    def claims(self, run_id: str) -> dict[str, Claim]:
        """Return the claims about a run, by fact. No trusted row adds one."""
        (data,) = self._own.read([_claims_id(run_id)])
        return _claims_decoder.decode(data) if data is not None else {}

    def _add_members(self, facts: RunFacts, standing: int) -> None:
        run = _own_id(facts.run_id)
        for subject in (*subjects_of(facts), *parents_of(facts, self.statements)):
            self._members.setdefault(_members_id(subject, standing), {})[run] = None

    def runs(self, subject: Subject, most: int, standing: int | None = None) -> list[RunFacts]:
        """Return the stored facts of the runs that have a subject, or execute it as a parent.

        Args:
          subject: the subject.
          most: the limit for the runs of each standing.
          standing: the highest standing that the runs have had; None for all, in descending order.
        """
        standings = reversed(STANDINGS) if standing is None else (standing,)
        runs = dict.fromkeys(
            run
            for member_standing in standings
            for run in self._members_of(_members_id(subject, member_standing), most)
        )
        members = [_decode_facts(data) for data in self._own.read(runs) if data is not None]
        # Members are never removed, but the row of a reclaim may lack the subject.
        return [
            facts for facts in members if subject in subjects_of(facts) or subject in parents_of(facts, self.statements)
        ]

    def _members_of(self, identity: bytes, most: int) -> list[bytes]:
        runs = list(self._members.get(identity, ()))[:most]
        if table := self._tables.get("members"):
            members = table.starting(identity[:_HALF], most)
            runs = list(dict.fromkeys([*runs, *(row["run"] for row in members)]))[:most]
        return runs

    def join_all(self, runs: Mapping[str, RunFacts]) -> dict[str, RunFacts]:
        """Return the facts of stored runs, joined with all updates, by run id.

        Args:
          runs: facts by run id. Those that mark a run may be missing: the stored ones replace them.
        """
        if not self:
            return dict(runs)
        encoded = self._own.read([_own_id(run_id) for run_id in runs])
        completed = {
            run_id: facts if data is None else facts.replace(**_decode_fields(data))
            for (run_id, facts), data in zip(runs.items(), encoded, strict=True)
        }
        self.prefetch_runs(completed.values())
        return {run_id: self.join(facts) for run_id, facts in completed.items()}

    def prefetch_runs(self, runs: Collection[RunFacts], *others: Subject) -> None:
        """Look up the subjects of runs and of their parents, and others, in one batch.

        Until the next call, `statements` cannot fail for them.
        """
        subjects = [*others, *(subject for facts in runs for subject in subjects_of(facts))]
        self._statements.prefetch(subjects)
        # The statements that were looked up name the parents. The second call repeats the subjects, because it drops
        # all others from the cache.
        parents = [parent for facts in runs for parent in parents_of(facts, self.statements)]
        if parents:
            self._statements.prefetch((*subjects, *parents))

    def join(self, facts: RunFacts) -> RunFacts:
        """Return a run's facts, joined with all updates so far."""
        return join_updates(facts, self.statements)

    def recent(self) -> dict[str, Rows]:
        """Return the additions since the checkpoint, as rows for the tables."""
        members = [(subject, run) for subject, runs in self._members.items() for run in runs]
        return {
            "said": self._statements.rows(),
            "members": _MEMBERS_TABLE.rows(
                [subject[:_HALF] + run[:_HALF] for subject, run in members], {"run": [run for _, run in members]}
            ),
            "facts": self._own.rows(),
        }


def _members_id(subject: Subject, standing: int) -> bytes:
    """Return the id of a subject's runs of a standing.

    Older versions have all runs of a subject under the id of the proved ones.
    """
    return fingerprint(*subject) if standing == PROVED else fingerprint(*subject, str(standing))


def _own_id(run_id: str) -> bytes:
    return fingerprint(run_id)


def _claims_id(run_id: str) -> bytes:
    return fingerprint(run_id, "claims")


def _encode_facts(facts: RunFacts) -> bytes:
    stored: dict[str, Any] = {name: value for name in STORED_FACTS if (value := getattr(facts, name))}
    if facts.subjects:
        stored["subjects"] = facts.subjects
    return msgspec.json.encode({"run_id": facts.run_id, **stored}, order="sorted")


def _decode_fields(data: bytes) -> dict[str, Any]:
    stored = msgspec.json.decode(data)
    return {**_DEFAULTS, **stored, "subjects": tuple(stored.get("subjects", ()))}


def _decode_facts(data: bytes) -> RunFacts:
    return RunFacts(build_uuid="", **_decode_fields(data))

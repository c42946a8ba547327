"""Accounting of the raw store: each (event, run) has exactly one kind of outcome (`ciml.events.records.Kind`).

`reconcile` computes the delta that a set of batches adds to the state after the last delta. It is pure, and
`ciml.manifest.log.commit` calls it again whenever another writer came first. So a redelivered batch, a worker that
resumes late and a second committer store nothing twice: covered offsets are dropped, and known events count as repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from ciml.errors import IntegrityError
from ciml.events.records import (
    COMPLETES,
    LISTS,
    Batch,
    Kind,
    OffsetRange,
    Outcome,
    RunFacts,
    lists_of,
)
from ciml.events.reviews import Statement
from ciml.events.run_id import ERASED, erased_id
from ciml.events.updates import merge_statements, statements_of
from ciml.limits import MAX_SUBJECT_RUNS
from ciml.manifest.coverage import NewCoverage
from ciml.manifest.log import Delta
from ciml.runs.known_ids import DeadLetterKey, Event, KnownRun, ids_of_repeats, recorded_ids
from ciml.runs.known_subjects import Subject, Subjects, changed_facts, join_updates, parents_of, subjects_of
from ciml.runs.run_log import STANDINGS, UNPROVED, Judge, standing_of
from ciml.runs.state import RawState

#: A delta judges at most this many times `MAX_SUBJECT_RUNS` stored runs of each standing again. Each standing has its
#: own limit, so that runs of a lower one displace none of a higher one.
_SUBJECTS_AT_ONCE = 10
#: Reasons of ignored outcomes that describe how a run ended. For a stored run they are corrections.
_FINAL_IGNORED = frozenset({"cancelled", "skipped", "node_lost", "never_started"})


def reconcile(state: RawState, batches: Iterable[Batch], time_us: int, judge: Judge | None = None) -> Delta | None:
    """Return the delta that ``batches`` add to ``state``, or None if they add nothing.

    Args:
      state: not changed. It must be the state after the last delta (`ciml.manifest.log.commit` ensures it).
      batches: settled batches, in any order: only their ``settled`` is filled. A batch without ``covers`` holds
        retries: its outcomes settle open records of the same origin and run id; its other outcomes are dropped. Where
        an undecodable message is open, all outcomes of its origin replace it together: the batch must hold them all.
      time_us: the time of the commit.
      judge: decides again on the trust of runs for which updates are known, by the joined facts. Updates of this delta
        count after all its other records. None leaves the decisions as they are.

    Raises:
      IntegrityError: a batch that is not settled, outcomes outside its range, or a topic that was created again.
    """
    ordered = sorted(batches, key=_order)
    settled = [outcome for batch in ordered for outcome in batch.settled]
    state.index.prefetch(
        events=[event for outcome in settled for event in _ids_of_repeats(outcome, UNPROVED)],
        runs=[outcome.run_id for outcome in settled if outcome.run_id],
        dead_letters=[
            (outcome.origin, run_id)
            for batch in ordered
            if not batch.covers
            for outcome in batch.settled
            for run_id in (outcome.run_id, "")
        ],
    )
    state.index.subjects.prefetch_runs(
        [outcome.mention for outcome in settled if outcome.mention is not None],
        *((update.source, update.subject) for outcome in settled for update in outcome.updates),
    )
    draft = _Draft(state, judge)
    for batch in ordered:
        if batch.messages or batch.pending_runs:
            raise IntegrityError(f"{batch.covers}: cannot commit a batch with unsettled runs")
        settled = sorted(batch.settled, key=_position)
        if batch.covers is None:
            for _, outcomes in groupby(settled, key=_position):
                draft.settle_again(list(outcomes))
        else:
            draft.settle_range(batch.covers, settled)
    return draft.delta(time_us)


def _ids_of_repeats(outcome: Outcome, standing: int) -> list[Event]:
    """Return `ids_of_repeats` for the event of an outcome; no ids for an event without a key."""
    if not outcome.event_key:
        return []
    return ids_of_repeats(outcome.event_key, outcome.run_id, _facts_of(outcome), standing)


def _erased(facts: RunFacts) -> RunFacts:
    """Return the facts of a run after its erasure: its job and its phase."""
    return RunFacts(erased_id(facts.run_id), "", facts.build_name, facts.phase)


def _facts_of(outcome: Outcome) -> dict[str, Any]:
    return outcome.mention.to_json() if outcome.mention is not None else {}


def _order(batch: Batch) -> tuple[bool, str, int, int]:
    # Retries first: their events are older than all events read now.
    covers = batch.covers
    return (True, covers.topic, covers.partition, covers.start) if covers else (False, "", 0, 0)


def _position(outcome: Outcome) -> tuple[str, int, int]:
    # A stage settles the runs that it rejects before other stages settle the rest. Here they are in the order in which
    # they were sent, because the outcome sent last decides about a run.
    origin = outcome.origin
    return origin.topic, origin.partition, origin.offset


class _Draft:
    """A delta under construction, on top of the state that it follows."""

    def __init__(self, state: RawState, judge: Judge | None) -> None:
        self._state = state
        self._judge = judge
        # All statements about the subjects to which this delta's updates add a statement.
        self._statements: dict[Subject, dict[str, Statement]] = {}
        self._offsets = NewCoverage(state)
        self._events: set[Event] = set()
        self._runs: dict[str, KnownRun] = {}  # as this delta stores or corrects them
        self._closes: dict[DeadLetterKey, None] = {}  # in the order in which they are closed
        self._tried: set[DeadLetterKey] = set()  # open records that a retry has settled; later retries are dropped
        self._lists: dict[Kind, list[Outcome]] = {kind: [] for kind in LISTS}

    def settle_range(self, covers: OffsetRange, settled: list[Outcome]) -> None:
        """Settle the outcomes of a range of offsets, as far as no earlier delta covers them."""
        fresh = self._offsets.add(covers)
        generation = self._state.generation_of(covers.topic, covers.topic_id)
        settled_keys: set[DeadLetterKey] = set()
        for outcome in settled:
            origin = outcome.origin
            key = (origin, outcome.run_id)
            inside = covers.start <= origin.offset < covers.end
            if not inside or (origin.topic, origin.partition) != (covers.topic, covers.partition):
                raise IntegrityError(f"{origin} is outside the range of its batch, {covers}")
            # If the event names a run twice, the first outcome counts.
            if origin.offset in fresh and key not in settled_keys:
                settled_keys.add(key)
                if generation != origin.topic:
                    outcome = outcome.replace(origin=origin.replace(topic=generation))
                self._settle(outcome)

    def settle_again(self, outcomes: list[Outcome]) -> None:
        """Settle the outcomes of retries of one origin."""
        origin = outcomes[0].origin
        undecoded = (origin, "")
        if undecoded in self._tried:
            return
        if self._state.index.dead_letter(undecoded) is None:
            for outcome in outcomes:
                self._settle_retry(outcome)
        elif all(outcome.run_id or outcome.kind != "dead_letter" for outcome in outcomes):
            # The message is decoded now, into these runs and updates. Its first outcome for each run counts.
            self._tried.add(undecoded)
            self._closes[undecoded] = None
            for outcome in {outcome.run_id: outcome for outcome in reversed(outcomes)}.values():
                self._tried.add((origin, outcome.run_id))
                self._settle(outcome)

    def _settle_retry(self, outcome: Outcome) -> None:
        """Settle an open outcome again, unless the retry brings no progress."""
        key = (outcome.origin, outcome.run_id)
        if key in self._tried or (outcome.mention is not None and self._state.is_erased(outcome.mention)):
            return  # an erasure has closed it, or it was settled
        outcome = self._judged(outcome)
        before = self._state.deferred.get(key)
        if before is not None:
            if outcome.kind == "deferred" and outcome.attempts <= before.attempts:
                return  # a redelivery of an earlier try
            outcome = outcome.replace(
                payload=outcome.payload or before.payload,
                first_seen_us=outcome.first_seen_us or before.first_seen_us,
            )
        elif self._state.index.dead_letter(key) is None:
            return  # settled by another retry
        elif outcome.kind in ("dead_letter", "deferred") and _is_first(outcome, self._run(outcome.run_id)):
            return  # no progress; if the run has a raw row by now, it is a repeat
        self._tried.add(key)
        if self._settle(outcome, again=True) != "deferred":
            self._closes[key] = None

    def _settle(self, outcome: Outcome, *, again: bool = False) -> Kind:
        """Add the record of an outcome, and return its kind. A retry (``again``) is never a repeat of its event."""
        facts = outcome.mention
        if facts is not None and self._state.is_erased(facts):
            outcome = Outcome("ignored", outcome.origin, mention=_erased(facts), reason=ERASED)
        run_id = outcome.run_id
        run = self._run(run_id)
        outcome = self._judged(outcome)
        outcome = _classify(outcome, run, repeated=not again and self._is_repeat(outcome))
        if outcome.event_key:
            self._events.update(recorded_ids(outcome.event_key, run_id, _facts_of(outcome), _event_standing(outcome)))
        if outcome.kind in ("run", "reclaim"):
            outcome = self._store_row(outcome)
        elif outcome.kind == "correction" and run is not None:
            self._runs[run_id] = run._replace(outcome=(outcome.mention.outcome or "") if outcome.mention else "")
        elif outcome.kind == "update":
            self._statements |= self._new_statements(outcome)
        self._lists[outcome.kind].append(outcome)
        return outcome.kind

    def _is_repeat(self, outcome: Outcome) -> bool:
        """Return whether an outcome's event was seen before, and has no update that adds a statement."""
        ids = _ids_of_repeats(outcome, _event_standing(outcome))
        is_known = any(event in self._events or self._state.index.has_event(*event) for event in ids)
        return is_known and not self._new_statements(outcome)

    def _new_statements(self, outcome: Outcome) -> dict[Subject, dict[str, Statement]]:
        """Return all statements about each subject to which an outcome's updates add a statement."""
        news: dict[Subject, dict[str, Statement]] = {}
        for update in outcome.updates:
            subject = (update.source, update.subject)
            before = news.get(subject) or self._statements_of(subject)
            after = merge_statements(before, statements_of(update, outcome.event_key))
            if after != before:
                news[subject] = after
        return news

    def _statements_of(self, subject: Subject) -> Mapping[str, Statement]:
        return self._statements.get(subject) or self._subjects.statements(subject)

    def _store_row(self, outcome: Outcome) -> Outcome:
        """Store the run of a raw row, and return the row's record with the facts that earlier updates changed."""
        facts = outcome.mention
        file = outcome.file
        if facts is None or file is None:
            raise IntegrityError(f"{outcome.origin} {outcome.run_id}: run without a raw object")
        stored = KnownRun(facts.outcome or "", file.digest, outcome.trust.trusted, bool(facts.auth))
        self._runs[outcome.run_id] = stored
        changed = changed_facts(facts, self._subjects.statements)
        return outcome.replace(joined=changed) if changed else outcome

    def _judged(self, outcome: Outcome) -> Outcome:
        """Judge an outcome again where updates of earlier deltas concern its run.

        A retry was judged when it was deferred, perhaps by facts that a later update changed back.
        """
        facts = outcome.mention
        if facts is None or self._judge is None or not any(map(self._subjects.statements, subjects_of(facts))):
            return outcome
        return outcome.replace(trust=self._judge(self._subjects.join(facts)))

    def _trust_changes(self) -> list[dict[str, Any]]:
        """Return the changes of trust by the updates of this delta, by run id."""
        if self._judge is None or not self._statements:
            return []
        changes = {}
        for run_id, facts in self._updated_runs().items():
            if self._state.is_erased(facts):
                continue
            trust = self._judge(join_updates(facts, self._statements_of))
            stored = self._run(run_id)
            if stored is not None and stored.trusted != trust.trusted:
                changes[run_id] = {"run_id": run_id, "trust": trust.to_json()}
        return [changes[run_id] for run_id in sorted(changes)]

    def _updated_runs(self) -> dict[str, RunFacts]:
        """Return the own facts of the runs that updates of this delta may change; this delta may store some of them."""
        updated: dict[str, RunFacts] = {}
        for standing in reversed(STANDINGS):
            remaining = _SUBJECTS_AT_ONCE * MAX_SUBJECT_RUNS
            for subject in self._statements:
                runs = self._subjects.runs(subject, min(MAX_SUBJECT_RUNS, remaining), standing)
                updated |= {facts.run_id: facts for facts in runs}
                remaining -= len(runs)
        for outcome in (*self._lists["run"], *self._lists["reclaim"]):
            facts = outcome.mention
            if facts is None:
                continue
            subjects = (*subjects_of(facts), *parents_of(facts, self._statements_of))
            if facts.run_id in updated or not self._statements.keys().isdisjoint(subjects):
                updated[facts.run_id] = facts
        self._subjects.prefetch_runs(updated.values())
        self._state.index.prefetch(runs=updated)
        return updated

    @property
    def _subjects(self) -> Subjects:
        return self._state.index.subjects

    def _run(self, run_id: str) -> KnownRun | None:
        return (self._runs.get(run_id) or self._state.index.run(run_id)) if run_id else None

    def delta(self, time_us: int) -> Delta | None:
        """Return the delta, or None if nothing was settled and no offset is new."""
        offsets = self._offsets.to_json()
        if not offsets and not any(self._lists.values()):
            return None
        dead_letters = [[key[0].to_json(), key[1]] for key in self._closes if key not in self._state.deferred]
        trust_changes = self._trust_changes()
        return {
            "time_us": time_us,
            "offsets": offsets,
            **lists_of(self._lists),
            "closes": [[origin.to_json(), run_id] for origin, run_id in self._closes],
            **({"closed_letters": dead_letters} if dead_letters else {}),
            **({"trust_changes": trust_changes} if trust_changes else {}),
        }


def _classify(outcome: Outcome, run: KnownRun | None, *, repeated: bool) -> Outcome:
    """Return the record of an outcome, with its kind.

    Args:
      outcome: as a stage settled it.
      run: its run, if that has a raw row.
      repeated: whether its event was seen before.
    """
    if repeated:
        return _stripped(outcome, run).replace(kind="repeat", reason="event", updates=())
    has_no_effect = outcome.kind == "ignored" and outcome.reason not in _FINAL_IGNORED
    if run is None or _is_first(outcome, run) or has_no_effect:
        if run is not None and outcome.kind == "run":
            outcome = outcome.replace(kind="reclaim")
        stays_open = outcome.kind in ("dead_letter", "deferred")  # a retry needs the payload
        return outcome if stays_open or outcome.payload is None else outcome.replace(payload=None)
    if _completes(outcome, run):
        return outcome.replace(kind="reclaim")
    stripped = _stripped(outcome, run)
    new_outcome = outcome.mention.outcome if outcome.mention else None
    if not new_outcome or new_outcome == run.outcome:
        return stripped.replace(kind="repeat", reason="other_log" if stripped.file else "run")
    if _event_standing(outcome) < run.standing:
        rival = "trusted" if run.trusted else "proved"
        return stripped.replace(kind="ignored", reason="less_trusted", detail=f"a {rival} event says {run.outcome}")
    lowered = run.lowered and not outcome.trust.trusted
    return stripped.replace(kind="correction", reason="outcome", detail=f"was {run.outcome}", lowered=lowered)


def _event_standing(outcome: Outcome) -> int:
    """Return how far an event is believed about a run, one of `ciml.runs.run_log.STANDINGS`."""
    return standing_of(outcome.trust.trusted, outcome.mention is not None and bool(outcome.mention.auth))


def _completes(outcome: Outcome, run: KnownRun) -> bool:
    """Return whether an outcome completes the facts of a run's present row, with at least the standing of the row."""
    if outcome.kind != "run" or outcome.reason != COMPLETES or outcome.file is None:
        return False
    return outcome.file.digest == run.digest and _event_standing(outcome) >= run.standing


def _is_first(outcome: Outcome, run: KnownRun | None) -> bool:
    """Return whether an outcome is the first of its standing that names its run.

    Events of a lower standing decide nothing about it: it supplies its own row, or is deferred until its log exists.
    """
    return run is None or _event_standing(outcome) > run.standing


def _stripped(outcome: Outcome, run: KnownRun | None) -> Outcome:
    """Return an outcome without the fields of raw rows, dead letters and deferred runs.

    It keeps the file of a log that differs from that of the run's row.
    """
    file = outcome.file
    other_file = file if file is not None and run is not None and file.digest != run.digest else None
    return outcome.replace(detail="", file=other_file, payload=None, not_before_us=None, output=None)

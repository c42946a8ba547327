"""Facts about a run that arrive in another event than its outcome, for example that its change was merged.

An update names a subject. It concerns every run of its source that names the same subject, before or after it. The
updates of a subject are stored as one `Statement` for each fact. `merge_statements` is commutative, associative and
idempotent. So the facts of a run depend on the set of updates alone, not on the order in which runs and updates arrive.

Two facts limit what a review covers. A *condition* (``only``) belongs to a review of a commit, which may be in several
pull requests and target several branches: the review counts for runs of the same pull request and base branch.
Updates of one subject whose conditions differ contradict each other. Then the pull request of a run is unknown, and no
review of the commit counts. *Qualifiers* (``target``, ``parents``) belong to a review of a Gerrit patch set: they name
the branch of the review, and the other commits that a run of the patch set executes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import id_field, required_text_field
from ciml.events.records import FactUpdate, RunFacts
from ciml.events.run_id import path_safe
from ciml.limits import MAX_ID_CHARACTERS, MAX_REVIEWERS

#: Begins the subject of a commit.
COMMIT = "sha:"
#: The fields of `RunFacts` that an update may set.
UPDATABLE = ("event", "pipeline", "project", "branch", "change", "patchset", "review", "fork", "owner", "head_project")
#: Facts of a subject that qualify its review and are no facts of a run: the branch for which the review was given, and
#: the commits that a run of the subject executes too, separated by blanks.
QUALIFIERS = ("target", "parents")
#: The facts that the condition of an update may name.
CONDITIONS = ("event", "project", "branch", "change")
#: The review of a patch set that was approved by itself: `approved` for a run whose other commits (``parents``) are all
#: merged into the run's branch.
PARTLY_APPROVED = "partly_approved"
#: The review of a change that a reviewer blocked: only a merge ends it.
VETOED = "vetoed"
#: A review by the author or a pusher of a commit. It replaces every other review by the same account.
OWN = "own"
#: Values that no other value of their fact replaces, whatever the times: what was merged stays merged, and a run that
#: executed a fork's code stays one of a fork.
_LASTING = {("review", "merged"), ("review", VETOED), ("review", OWN), ("fork", "yes")}
#: What counts of a commit without a condition: facts that lower trust. Versions before 0.2.0 stored others too.
_LOWERING = {
    ("review", "dismissed"),
    ("review", "changes_requested"),
    ("review", VETOED),
    ("review", OWN),
    ("fork", "yes"),
}
_MANY = "*"  # no system has an account of this name


class Statement(NamedTuple):
    """The value of one fact of one subject, by updates: the greatest of all of them, in the order of the fields.

    Attributes:
      proved: whether a receiver proved who sent the event.
      lasting: whether no later value replaces this one.
      time_us: the event's own time; -1 where it has none.
      event_key: of the event: it decides between equal times.
      value: the fact.
    """

    proved: bool
    lasting: bool
    time_us: int
    event_key: str
    value: str


class _Scope(NamedTuple):
    """The scope of a statement on a subject: its key.

    Attributes:
      name: of the fact; "" where the entry says that the condition itself, or too many reviewers, were named.
      by: the account whose review it is; "" without a reviewer, `_MANY` for too many reviewers.
      only: the condition, sorted; empty for every run.
    """

    name: str
    by: str = ""
    only: tuple[tuple[str, str], ...] = ()

    @property
    def is_condition(self) -> bool:
        """Whether the entry says that a condition was named, and no fact."""
        return bool(self.only) and not self.name and not self.by

    @property
    def key(self) -> str:
        """The key in the stored form: the name alone, as in all versions, or a JSON list."""
        return json.dumps(self) if self.by or self.only else self.name


def _is_scoped(key: str) -> bool:
    """Return whether the key of a statement has a condition or a reviewer."""
    return key.startswith("[")


@lru_cache(maxsize=10_000)
def _scope(key: str) -> _Scope:
    if not _is_scoped(key):
        return _Scope(key)
    name, by, only = json.loads(key)
    return _Scope(name, by, tuple((fact, value) for fact, value in only))


def fact_update(
    source: str,
    subject: str,
    facts: Mapping[str, str],
    auth: str = "",
    time_us: int | None = None,
    only: Mapping[str, str] | None = None,
    by: str = "",
) -> FactUpdate:
    """Return an update whose fields were checked; see `FactUpdate`.

    Raises:
      RejectedInput: ``bad_field`` or ``missing_field``.
    """
    checked_subject = id_field({"subject": subject}, "subject")
    if not checked_subject:
        raise RejectedInput("missing_field", "subject")
    if not facts and not only:
        raise RejectedInput("missing_field", "facts")
    for name in facts:
        if name not in UPDATABLE and name not in QUALIFIERS:
            raise RejectedInput("bad_field", f"{name}: not a fact of {', '.join((*UPDATABLE, *QUALIFIERS))}")
        if (only or by) and name != "review":
            raise RejectedInput("bad_field", f"{name}: only a review has a condition or a reviewer")
    for name in only or ():
        if name not in CONDITIONS:
            raise RejectedInput("bad_field", f"only.{name}: not a fact of {', '.join(CONDITIONS)}")
    texts = {name: required_text_field(facts, name) for name in facts}
    if texts.get("fork", "yes") not in ("yes", "no"):
        raise RejectedInput("bad_field", "fork: want yes or no")
    conditions = {name: required_text_field(only, name, "only.") for name in only} if only else {}
    reviewer = required_text_field({"by": by}, "by") if by else ""
    return FactUpdate(source, checked_subject, texts, auth, time_us, conditions, reviewer)


def statements_of(update: FactUpdate, event_key: str) -> dict[str, Statement]:
    """Return the statements of an update, by the keys of their scopes."""
    when = -1 if update.time_us is None else update.time_us
    proved = bool(update.auth)
    only = tuple(sorted(update.only.items()))
    statements = {
        _Scope(name, update.by, only).key: Statement(proved, (name, value) in _LASTING, when, event_key, value)
        for name, value in update.facts.items()
    }
    if only:
        statements[_Scope("", "", only).key] = _marker(proved)
    return valid_statements(update.subject, statements)


def valid_statements(subject: str, statements: Mapping[str, Statement]) -> dict[str, Statement]:
    """Return the statements that count for a subject: of a commit, those with a condition or that lower trust."""
    if not subject.startswith(COMMIT):
        return dict(statements)
    valid: dict[str, Statement] = {}
    for key, statement in statements.items():
        scope = _scope(key)
        if scope.only or not scope.name or (scope.name, statement.value) in _LOWERING:
            valid[key] = statement
    return valid


def _marker(proved: bool) -> Statement:
    """Return a statement without a value: it says that its scope's condition, or too many reviewers, were named."""
    return Statement(proved, False, -1, "", "")


def merge_statements(first: Mapping[str, Statement], second: Mapping[str, Statement]) -> dict[str, Statement]:
    """Return the greater statement of each scope.

    The result is bounded: two contradicting conditions remain, and `MAX_REVIEWERS` reviewers.
    """
    statements = dict(first)
    for key, statement in second.items():
        statements[key] = max(statement, statements.get(key, statement))
    scoped = {_scope(key): entry for key, entry in statements.items() if _is_scoped(key)}
    if not scoped:
        return statements
    plain = {key: entry for key, entry in statements.items() if not _is_scoped(key)}
    bounded = _bounded_reviewers(_bounded_conditions(scoped))
    return plain | {scope.key: entry for scope, entry in bounded.items()}


def _bounded_conditions(scoped: dict[_Scope, Statement]) -> dict[_Scope, Statement]:
    """Keep two conditions where several contradict each other, and no review under them, because none counts.

    Unproved conditions do not contradict proved ones for a run whose event was proved, so its proved reviews stay.
    """
    ranked = sorted(((entry.proved, scope.only) for scope, entry in scoped.items() if scope.is_condition), reverse=True)
    if len(ranked) < 2:
        return scoped
    (_, first), (contradicted, second) = ranked[:2]

    def stays(scope: _Scope, entry: Statement) -> bool:
        if not scope.only or scope.is_condition:
            return scope.only in ((), first, second)
        return scope.only == first and entry.proved and not contradicted

    return {scope: entry for scope, entry in scoped.items() if stays(scope, entry)}


def _bounded_reviewers(scoped: dict[_Scope, Statement]) -> dict[_Scope, Statement]:
    """Replace the reviews under a condition by a marker where more accounts gave one than are remembered."""
    bounded = dict(scoped)
    for only in {scope.only for scope in scoped if scope.by}:
        many = _Scope("", _MANY, only)
        reviews = {scope: entry for scope, entry in scoped.items() if scope.by and scope.only == only and scope != many}
        for proved in (False, True):
            counted = sum(entry.proved >= proved for entry in reviews.values())
            if counted > MAX_REVIEWERS:
                bounded[many] = max(bounded.get(many, _marker(proved)), _marker(proved))
        if (marker := bounded.get(many)) is not None:
            for scope, entry in reviews.items():
                if entry.proved <= marker.proved:
                    del bounded[scope]
    return bounded


def merged_subject(project: str, branch: str, commit: str) -> str:
    """Return the subject of a commit that was merged into a branch; "" where a part is unknown. No run names it."""
    if not (project and branch and commit):
        return ""
    subject = f"merged:{path_safe(project)}/{path_safe(branch)}/{path_safe(commit)}"
    return subject if len(subject) <= MAX_ID_CHARACTERS else ""


def parent_subjects(facts: RunFacts, statements: Mapping[str, Statement]) -> list[str]:
    """Return the subjects of the parents that a run of a subject executes.

    Args:
      facts: the run's own facts.
      statements: those on the subject.
    """
    parents = statements["parents"].value.split() if "parents" in statements else []
    return [merged_subject(facts.project, facts.branch, parent) for parent in parents]


#: Returns the statements on a subject of the run's source.
LookUp = Callable[[str], Mapping[str, Statement]]


def _nothing(_subject: str) -> Mapping[str, Statement]:
    return {}


def join_facts(facts: RunFacts, by_subject: Iterable[Mapping[str, Statement]], look_up: LookUp = _nothing) -> RunFacts:
    """Return the facts of a run with the updates of its subjects: its own facts with `changes_of`."""
    changes = changes_of(facts, by_subject, look_up)
    return facts.replace(**changes) if changes else facts


def changes_of(
    facts: RunFacts, by_subject: Iterable[Mapping[str, Statement]], look_up: LookUp = _nothing
) -> dict[str, str]:
    """Return the facts of a run that updates of its subjects change.

    An update replaces the run's own fact, unless the own one is lasting (`merged`, fork). A run whose event was proved
    takes facts from proved updates alone. Its id, outcome, times, log and proof never change.

    Statements on an earlier subject take precedence over those on a later one: a run's own workflow run knows the
    branch, and a commit may be in pull requests of anybody, to any branch. Reviews with a condition count last, where
    the run meets the conditions of all updates of all its subjects.

    A review covers everything that the run executed, or is `PARTLY_APPROVED`: it was given for the run's branch, and
    the parents of the patch set are merged into that branch.

    Args:
      facts: as the run's own event has them.
      by_subject: the statements on each of its subjects, in their order.
      look_up: returns the statements on another subject.
    """
    statements: dict[str, Statement] = {}
    scoped: list[tuple[_Scope, Statement]] = []
    for of_subject in by_subject:
        for key, entry in of_subject.items():
            if facts.auth and not entry.proved:
                continue
            if _is_scoped(key):
                scoped.append((_scope(key), entry))
                continue
            before = statements.get(key)
            if before is None or (entry.proved, entry.lasting) > (before.proved, before.lasting):
                statements[key] = entry
    if "review" in statements:
        statements["review"] = _covering(statements["review"], facts, statements, look_up)
    changes = _changes(facts, statements)
    if scoped:
        review = _review(facts.replace(**changes), statements.get("review"), scoped)
        if review is not None:
            changes |= _changes(facts, {"review": review})
    return changes


def _changes(facts: RunFacts, statements: Mapping[str, Statement]) -> dict[str, str]:
    return {
        name: entry.value
        for name, entry in statements.items()
        if name not in QUALIFIERS
        and (entry.lasting or (name, getattr(facts, name)) not in _LASTING)
        and entry.value != getattr(facts, name)
    }


def _covering(review: Statement, facts: RunFacts, statements: Mapping[str, Statement], look_up: LookUp) -> Statement:
    """Return a review as far as it covers everything that the run executed, by its qualifiers."""
    target = statements.get("target")
    parents = statements.get("parents")
    if target is not None and (target.value != facts.branch or target.proved < review.proved):
        is_approval = review.value in (PARTLY_APPROVED, "merged")
        return review._replace(lasting=False, value=PARTLY_APPROVED) if is_approval else review
    if review.value != PARTLY_APPROVED or parents is None or parents.proved < review.proved:
        return review
    merges = [look_up(subject).get("review") for subject in parent_subjects(facts, statements)]
    covers = all(merge is not None and merge.value == "merged" and merge.proved >= review.proved for merge in merges)
    return review._replace(value="approved") if covers else review


def _review(facts: RunFacts, plain: Statement | None, scoped: Sequence[tuple[_Scope, Statement]]) -> Statement | None:
    """Return the review of a run by all statements; None if there is none.

    Each account has one review, its latest. A request for changes counts before approvals by others; a merge counts
    before both. The author, the pushers of the commit and who started the run approve nothing.

    Args:
      facts: joined with all facts that have no condition.
      plain: the review that has neither condition nor reviewer.
      scoped: the statements under conditions, or by reviewers.
    """
    decisive = plain
    has_too_many = False
    reviews: dict[str, Statement] = {}
    meets_conditions = all(getattr(facts, name) == value for scope, _ in scoped for name, value in scope.only)
    for scope, entry in scoped:
        if scope.only and not meets_conditions:
            continue
        if scope.by == _MANY:
            has_too_many = True
        elif scope.by:
            reviews[scope.by] = max(entry, reviews.get(scope.by, entry))
        elif scope.name:
            decisive = entry if decisive is None else max(decisive, entry)
    if decisive is not None and decisive.lasting:
        return decisive
    valid = {by: entry for by, entry in reviews.items() if entry.value != OWN}
    for value in ("changes_requested", "approved", "dismissed"):
        matches = [
            entry
            for by, entry in valid.items()
            if entry.value == value
            and (value != "approved" or not (has_too_many or by.casefold() == facts.owner.casefold()))
            and (value == "changes_requested" or decisive is None or entry > decisive)
        ]
        if matches:
            return max(matches)
    return decisive

"""Facts about a run that arrive in another event than its outcome, for example that its change was merged.

An update names a subject. It concerns every run of its source that names the same subject, before or after it. The
updates of a subject are stored as one `Statement` for each scope. `merge_statements` is commutative, associative and
idempotent. So the facts of a run depend on the set of updates alone, not on the order in which runs and updates arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ciml.errors import RejectedInput
from ciml.events.fields import id_field, required_text_field
from ciml.events.records import FactUpdate, RunFacts
from ciml.events.reviews import (
    CHANGES_REQUESTED,
    DISMISSED,
    MERGED,
    OWN,
    QUALIFIERS,
    VETOED,
    LookUp,
    Scope,
    Statement,
    bound_reviews,
    decide_review,
    is_limited,
    limit_to_run,
    marker,
)

#: Begins the subject of a commit.
COMMIT = "sha:"
#: The fields of `RunFacts` that an update may set.
UPDATABLE = ("event", "pipeline", "project", "branch", "change", "patchset", "review", "fork", "owner", "head_project")
#: The facts that the condition of an update may name.
CONDITIONS = ("event", "project", "branch", "change")
#: Values that no other value of their fact replaces, whatever the times: what was merged stays merged, and a run that
#: executed a fork's code stays one of a fork.
_LASTING = {("review", MERGED), ("review", VETOED), ("review", OWN), ("fork", "yes")}
#: The facts of a commit that count without a condition: they lower trust. Versions before 0.2.0 stored others too.
_LOWERING = {("fork", "yes")} | {("review", value) for value in (DISMISSED, CHANGES_REQUESTED, VETOED, OWN)}


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
      RejectedInput: ``missing_field`` for an absent subject or fact, ``bad_field`` for one that an update cannot set.
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
    time_us = -1 if update.time_us is None else update.time_us
    proved = bool(update.auth)
    only = tuple(sorted(update.only.items()))
    statements = {
        Scope(name, update.by, only).key: Statement(proved, (name, value) in _LASTING, time_us, event_key, value)
        for name, value in update.facts.items()
    }
    if only:
        statements[Scope("", "", only).key] = marker(proved)
    return valid_statements(update.subject, statements)


def valid_statements(subject: str, statements: Mapping[str, Statement]) -> dict[str, Statement]:
    """Return the statements that count for a subject: of a commit, those with a condition or that lower trust."""
    if not subject.startswith(COMMIT):
        return dict(statements)
    valid: dict[str, Statement] = {}
    for key, statement in statements.items():
        scope = Scope.parse(key)
        if scope.only or scope.is_too_many or (scope.name, statement.value) in _LOWERING:
            valid[key] = statement
    return valid


def merge_statements(first: Mapping[str, Statement], second: Mapping[str, Statement]) -> dict[str, Statement]:
    """Return the greater statement of each scope, bounded by `bound_reviews`."""
    statements = dict(first)
    for key, statement in second.items():
        statements[key] = max(statement, statements.get(key, statement))
    return bound_reviews(statements)


def _no_statements(_subject: str) -> Mapping[str, Statement]:
    return {}


def join_facts(
    facts: RunFacts, by_subject: Iterable[Mapping[str, Statement]], look_up: LookUp = _no_statements
) -> RunFacts:
    """Return the facts of a run with the updates of its subjects: its own facts with `changes_of`."""
    changes = changes_of(facts, by_subject, look_up)
    return facts.replace(**changes) if changes else facts


def changes_of(
    facts: RunFacts, by_subject: Iterable[Mapping[str, Statement]], look_up: LookUp = _no_statements
) -> dict[str, str]:
    """Return the facts of a run that updates of its subjects change.

    An update replaces the run's own fact, unless the own one is lasting (merged, vetoed, fork). A run whose event was
    proved takes facts from proved updates alone. Its id, outcome, times, log and proof never change.

    Statements on an earlier subject take precedence over those on a later one: a run's own workflow run knows the
    branch, and a commit may be in pull requests of anybody, to any branch. Reviews by an account or under a condition
    are considered last, because a condition is compared with the joined facts (`decide_review`).

    A review covers everything that the run executed, or is `PARTLY_APPROVED` (`limit_to_run`).

    Args:
      facts: the run's own facts, as in its event.
      by_subject: the statements on each of its subjects, in their order.
      look_up: returns the statements on another subject.
    """
    unlimited: dict[str, Statement] = {}
    limited: list[tuple[Scope, Statement]] = []
    for statements in by_subject:
        for key, statement in statements.items():
            if facts.auth and not statement.proved:
                continue
            if is_limited(key):
                limited.append((Scope.parse(key), statement))
            elif key not in unlimited or _outranks(statement, unlimited[key]):
                unlimited[key] = statement
    if "review" in unlimited:
        unlimited["review"] = limit_to_run(unlimited["review"], facts, unlimited, look_up)
    changes = _changes(facts, unlimited)
    if limited:
        review = decide_review(facts.replace(**changes), unlimited.get("review"), limited)
        if review is not None:
            changes |= _changes(facts, {"review": review})
    return changes


def _outranks(later: Statement, earlier: Statement) -> bool:
    """Return whether a statement on a later subject replaces one on an earlier subject.

    It does so only if it alone is proved or, between two that are equally proved, it alone is lasting.
    """
    if later.proved != earlier.proved:
        return later.proved
    return later.lasting and not earlier.lasting


def _changes(facts: RunFacts, statements: Mapping[str, Statement]) -> dict[str, str]:
    """Return the values that differ from the run's own facts and may replace them, by the names of the facts."""
    changes: dict[str, str] = {}
    for name, statement in statements.items():
        if name in QUALIFIERS:
            continue
        fact = getattr(facts, name)
        may_replace = statement.lasting or (name, fact) not in _LASTING
        if may_replace and statement.value != fact:
            changes[name] = statement.value
    return changes

"""Reviews: which of the statements on a run's subjects decides its review, and what that review covers.

Two facts limit what a review covers. A *condition* (``only``) belongs to a review of a commit, which may be in several
pull requests and target several branches: the review counts for runs of the same pull request and base branch.
Updates of one subject whose conditions differ contradict each other. Then the pull request of a run is unknown, and no
review of the commit counts. *Qualifiers* (``target``, ``parents``) belong to a review of a Gerrit patch set: they name
the branch of the review, and the other commits that a run of the patch set executes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from ciml.events.records import RunFacts
from ciml.events.run_id import path_safe
from ciml.limits import MAX_ID_CHARACTERS, MAX_REVIEWERS

#: Facts of a subject that qualify its review and are not facts of a run: the branch for which the review was given, and
#: the commits that a run of the subject executes too, separated by spaces.
QUALIFIERS = ("target", "parents")
APPROVED = "approved"
CHANGES_REQUESTED = "changes_requested"
DISMISSED = "dismissed"
MERGED = "merged"
#: The review of a patch set that was approved by itself: `APPROVED` for a run whose other commits (``parents``) are all
#: merged into the run's branch.
PARTLY_APPROVED = "partly_approved"
#: The review of a change that a reviewer blocked: only a merge ends it.
VETOED = "vetoed"
#: A review by the author or a pusher of a commit. It replaces every other review by the same account.
OWN = "own"
_TOO_MANY = "*"  # no system has an account of this name


class Statement(NamedTuple):
    """The value of one fact of one subject, by updates: the greatest of all of them, in the order of the fields.

    Attributes:
      proved: whether a receiver proved who sent the event.
      lasting: whether no later value replaces this one.
      time_us: the event's own time; -1 if it has none.
      event_key: key of the event; it decides between equal times.
      value: the fact.
    """

    proved: bool
    lasting: bool
    time_us: int
    event_key: str
    value: str


#: Returns the statements on a subject of the run's source.
LookUp = Callable[[str], Mapping[str, Statement]]


class Scope(NamedTuple):
    """The scope of a statement on a subject. It has one of four forms:

    ====================================  ========  =============  ==============================================
    statement                             ``name``  ``by``         ``only``
    ====================================  ========  =============  ==============================================
    a fact of all runs of the subject     any       ""             ()
    a review by an account, or under a    "review"  account or ""  condition, () for all runs of the subject
    condition
    a condition was named                 ""        ""             condition
    more accounts gave a review than are  ""        "*"            condition, () for all runs of the subject
    stored
    ====================================  ========  =============  ==============================================

    Attributes:
      name: name of the fact.
      by: the account that gave the review.
      only: the condition: sorted names and values of a run's facts.
    """

    name: str
    by: str = ""
    only: tuple[tuple[str, str], ...] = ()

    @property
    def is_condition(self) -> bool:
        """Whether the statement says that the condition was named."""
        return bool(self.only) and not self.name and not self.by

    @property
    def is_too_many(self) -> bool:
        """Whether the statement says that more accounts gave a review than are stored."""
        return self.by == _TOO_MANY

    @property
    def is_review(self) -> bool:
        """Whether the statement is a review by an account or under a condition."""
        return bool(self.name) and bool(self.by or self.only) and not self.is_too_many

    @property
    def key(self) -> str:
        """The key in the stored form: the name alone for a fact of all runs, otherwise a JSON list."""
        return json.dumps(self) if self.by or self.only else self.name

    @staticmethod
    @lru_cache(maxsize=10_000)
    def parse(key: str) -> Scope:
        """Return the scope with a key."""
        if not is_limited(key):
            return Scope(key)
        name, by, only = json.loads(key)
        return Scope(name, by, tuple((fact, value) for fact, value in only))


def is_limited(key: str) -> bool:
    """Return whether the key is of a scope with an account or a condition."""
    return key.startswith("[")


def marker(proved: bool) -> Statement:
    """Return the statement that a condition was named, or that too many accounts gave a review. It has no value."""
    return Statement(proved, False, -1, "", "")


def bound_reviews(statements: dict[str, Statement]) -> dict[str, Statement]:
    """Return statements, by key, with at most two conditions, and reviews of at most `MAX_REVIEWERS` accounts each."""
    limited = {Scope.parse(key): statement for key, statement in statements.items() if is_limited(key)}
    if not limited:
        return statements
    unlimited = {key: statement for key, statement in statements.items() if not is_limited(key)}
    bounded = _bound_reviewers(_bound_conditions(limited))
    return unlimited | {scope.key: statement for scope, statement in bounded.items()}


def _bound_conditions(statements: Mapping[Scope, Statement]) -> Mapping[Scope, Statement]:
    """Keep two of several conditions, because these contradict each other, and only reviews that still count.

    Unproved conditions do not contradict a proved one for a run whose event was proved. So the proved reviews under the
    only proved condition are kept.
    """
    conditions = sorted(
        ((statement.proved, scope.only) for scope, statement in statements.items() if scope.is_condition), reverse=True
    )
    if len(conditions) < 2:
        return statements
    (_, first), (second_is_proved, second) = conditions[:2]
    bounded: dict[Scope, Statement] = {}
    for scope, statement in statements.items():
        if not scope.only:
            is_kept = True
        elif scope.is_condition:
            is_kept = scope.only in (first, second)
        else:
            is_kept = scope.only == first and statement.proved and not second_is_proved
        if is_kept:
            bounded[scope] = statement
    return bounded


def _bound_reviewers(statements: Mapping[Scope, Statement]) -> Mapping[Scope, Statement]:
    """Replace the reviews under a condition by a marker where more than `MAX_REVIEWERS` accounts gave one.

    Proved reviews are replaced only where the proved ones alone are too many.
    """
    bounded = dict(statements)
    for only in {scope.only for scope in statements if scope.by}:
        reviews = {
            scope: statement
            for scope, statement in statements.items()
            if scope.is_review and scope.by and scope.only == only
        }
        too_many = Scope("", _TOO_MANY, only)
        if sum(review.proved for review in reviews.values()) > MAX_REVIEWERS:
            bounded[too_many] = marker(proved=True)
        elif len(reviews) > MAX_REVIEWERS:
            bounded.setdefault(too_many, marker(proved=False))
        if too_many in bounded:
            for scope, review in reviews.items():
                if review.proved <= bounded[too_many].proved:
                    del bounded[scope]
    return bounded


def merged_subject(project: str, branch: str, commit: str) -> str:
    """Return the subject of a commit that was merged into a branch; "" if a part is unknown. No run names it."""
    if not (project and branch and commit):
        return ""
    subject = f"merged:{path_safe(project)}/{path_safe(branch)}/{path_safe(commit)}"
    return subject if len(subject) <= MAX_ID_CHARACTERS else ""


def parent_subjects(facts: RunFacts, statements: Mapping[str, Statement]) -> list[str]:
    """Return the subjects of the parents that a run of a subject executes.

    Args:
      facts: the run's own facts.
      statements: the statements on the subject.
    """
    parents = statements["parents"].value.split() if "parents" in statements else []
    return [merged_subject(facts.project, facts.branch, parent) for parent in parents]


def limit_to_run(review: Statement, facts: RunFacts, statements: Mapping[str, Statement], look_up: LookUp) -> Statement:
    """Return a review as far as it covers everything that a run executed, by its qualifiers.

    Args:
      review: a review of all runs of a subject.
      facts: the run's own facts.
      statements: the statements on the run's subjects, with the qualifiers.
      look_up: returns the statements on a parent.
    """
    target = statements.get("target")
    if target is not None and (target.value != facts.branch or target.proved < review.proved):
        # Given for another branch, or nobody proved for which.
        if review.value in (PARTLY_APPROVED, MERGED):
            return review._replace(lasting=False, value=PARTLY_APPROVED)
        return review
    parents = statements.get("parents")
    if review.value != PARTLY_APPROVED or parents is None or parents.proved < review.proved:
        return review
    for subject in parent_subjects(facts, statements):
        merge = look_up(subject).get("review")
        if merge is None or merge.value != MERGED or merge.proved < review.proved:
            return review
    return review._replace(value=APPROVED)


def decide_review(
    facts: RunFacts, unlimited: Statement | None, limited: Iterable[tuple[Scope, Statement]]
) -> Statement | None:
    """Return the statement that decides the review of a run; None if there is none.

    Reviews are compared in the order of `Statement`. Each account has one review, its greatest; that of the author, of
    a pusher of the commit and of the account that started the run is `OWN`, which never decides. The first of these
    decides:

    1. the greatest review without an account, if it is lasting, such as a merge;
    2. a request for changes;
    3. an approval greater than the review of 1, unless too many accounts gave a review;
    4. a dismissal greater than the review of 1;
    5. the review of 1.

    Args:
      facts: the run's facts, joined with all facts that have no condition.
      unlimited: the review with neither a condition nor an account.
      limited: the scopes with a condition or an account, and their statements. Those under a condition count only if
        the run meets the conditions of all of them.
    """
    statements = list(limited)
    if any(getattr(facts, name) != value for scope, _ in statements for name, value in scope.only):
        statements = [(scope, statement) for scope, statement in statements if not scope.only]
    anonymous = unlimited
    by_account: dict[str, Statement] = {}
    for scope, statement in statements:
        if scope.is_review and scope.by:
            by_account[scope.by] = max(statement, by_account.get(scope.by, statement))
        elif scope.is_review:
            anonymous = statement if anonymous is None else max(anonymous, statement)
    if anonymous is not None and anonymous.lasting:
        return anonymous
    requests = [review for review in by_account.values() if review.value == CHANGES_REQUESTED]
    if requests:
        return max(requests)
    owner = facts.owner.casefold()
    approvals = [review for by, review in by_account.items() if review.value == APPROVED and by.casefold() != owner]
    if any(scope.is_too_many for scope, _ in statements):
        approvals = []
    dismissals = [review for review in by_account.values() if review.value == DISMISSED]
    for reviews in (approvals, dismissals):
        greater = [review for review in reviews if anonymous is None or review > anonymous]
        if greater:
            return max(greater)
    return anonymous

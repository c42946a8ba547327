"""Facts about a run that arrive in another event than its outcome, such as whether its change was merged.

An update names a subject, and concerns every run of its source that names the same subject, before or after it. What
updates say of a subject is kept as one `Said` for each fact. `merged` is commutative, associative and idempotent, so
the facts of a run depend on the set of updates alone, never on the order in which runs and updates arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import identifier, needed_text
from ciml.events.records import FactUpdate, RunFacts
from ciml.events.run_id import path_safe
from ciml.limits import MAX_ID_CHARACTERS

__all__ = [
    "PARTLY_APPROVED",
    "QUALIFIERS",
    "UPDATABLE",
    "VETOED",
    "FactUpdate",
    "Said",
    "changes_of",
    "fact_update",
    "joined",
    "merged",
    "merged_subject",
    "parent_subjects",
    "said_by",
]

#: The fields of `RunFacts` that an update may set.
UPDATABLE = ("event", "pipeline", "project", "branch", "change", "patchset", "review", "fork", "owner")
#: Facts of a subject that qualify its review and are no facts of a run: the branch for which the review was given, and
#: the commits that a run of the subject executes too, separated by blanks.
QUALIFIERS = ("target", "parents")
#: The review of a patch set that was approved by itself: `approved` for a run whose other commits (``parents``) are all
#: merged into the run's branch.
PARTLY_APPROVED = "partly_approved"
#: The review of a change that a reviewer blocked: only a merge ends it.
VETOED = "vetoed"
#: Values that no other value of their fact replaces, whatever the times: what was merged stays merged, and a run that
#: executed a fork's code stays one of a fork.
_LASTING = {("review", "merged"), ("review", VETOED), ("fork", "yes")}


class Said(NamedTuple):
    """What updates say of one fact of one subject: the greatest of all that were said, in the order of the fields.

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


def fact_update(
    source: str, subject: str, facts: Mapping[str, str], auth: str = "", time_us: int | None = None
) -> FactUpdate:
    """Check an update.

    Raises:
      RejectedInput: ``bad_field`` or ``missing_field``.
    """
    checked = identifier({"subject": subject}, "subject")
    if not checked:
        raise RejectedInput("missing_field", "subject")
    if not facts:
        raise RejectedInput("missing_field", "facts")
    for name in facts:
        if name not in UPDATABLE and name not in QUALIFIERS:
            raise RejectedInput("bad_field", f"{name}: not a fact of {', '.join((*UPDATABLE, *QUALIFIERS))}")
    texts = {name: needed_text(facts, name) for name in facts}
    if texts.get("fork", "yes") not in ("yes", "no"):
        raise RejectedInput("bad_field", "fork: want yes or no")
    return FactUpdate(source, checked, texts, auth, time_us)


def said_by(update: FactUpdate, event_key: str) -> dict[str, Said]:
    """Return what an update says, by fact."""
    when = -1 if update.time_us is None else update.time_us
    return {
        name: Said(bool(update.auth), (name, value) in _LASTING, when, event_key, value)
        for name, value in update.facts.items()
    }


def merged(one: Mapping[str, Said], other: Mapping[str, Said]) -> dict[str, Said]:
    """Return the greater of what two say of each fact."""
    return {name: max(each[name] for each in (one, other) if name in each) for name in {**one, **other}}


def merged_subject(project: str, branch: str, commit: str) -> str:
    """Return the subject of a commit in a branch; "" where a part is unknown. No run has it: a review may need it."""
    if not (project and branch and commit):
        return ""
    subject = f"merged:{path_safe(project)}/{path_safe(branch)}/{path_safe(commit)}"
    return subject if len(subject) <= MAX_ID_CHARACTERS else ""


def parent_subjects(facts: RunFacts, said: Mapping[str, Said]) -> list[str]:
    """Return the subjects of the parents that a run of a subject executes.

    Args:
      facts: the run's own facts.
      said: what was said of the subject.
    """
    parents = said["parents"].value.split() if "parents" in said else []
    return [merged_subject(facts.project, facts.branch, parent) for parent in parents]


#: Returns what was said of a subject of the run's source.
LookUp = Callable[[str], Mapping[str, Said]]


def _nothing(_subject: str) -> Mapping[str, Said]:
    return {}


def joined(facts: RunFacts, said: Iterable[Mapping[str, Said]], look_up: LookUp = _nothing) -> RunFacts:
    """Return the facts of a run with what updates say of its subjects: the own facts with `changes_of`."""
    changed = changes_of(facts, said, look_up)
    return facts.replace(**changed) if changed else facts


def changes_of(facts: RunFacts, said: Iterable[Mapping[str, Said]], look_up: LookUp = _nothing) -> dict[str, str]:
    """Return the facts of a run that updates of its subjects change.

    An update replaces the run's own fact, unless the own one is lasting (`merged`, fork). A run whose event was proved
    takes facts from proved updates alone. Its id, outcome, times, log and proof never change.

    What is said of an earlier subject counts before what is said of a later one: a run's own workflow run knows the
    branch, and a commit may be in pull requests of anybody, to any branch.

    A review covers everything that the run executed, or is `PARTLY_APPROVED`: it was given for the run's branch, and
    the parents of the patch set are merged into that branch.

    Args:
      facts: as the run's own event has them.
      said: what was said of each of its subjects, in their order.
      look_up: returns what was said of another subject.
    """
    found: dict[str, Said] = {}
    for one in said:
        for name, each in one.items():
            before = found.get(name)
            if before is None or (each.proved, each.lasting) > (before.proved, before.lasting):
                found[name] = each
    if "review" in found:
        found["review"] = _covering(found["review"], facts, found, look_up)
    return {
        name: each.value
        for name, each in found.items()
        if name not in QUALIFIERS
        and (each.proved or not facts.auth)
        and (each.lasting or (name, getattr(facts, name)) not in _LASTING)
        and each.value != getattr(facts, name)
    }


def _covering(review: Said, facts: RunFacts, found: Mapping[str, Said], look_up: LookUp) -> Said:
    """Return the review of a run as far as it covers everything that the run executed, by what qualifies it."""
    target, parents = found.get("target"), found.get("parents")
    if target is not None and (target.value != facts.branch or target.proved < review.proved):
        is_approval = review.value in (PARTLY_APPROVED, "merged")
        return review._replace(lasting=False, value=PARTLY_APPROVED) if is_approval else review
    if review.value != PARTLY_APPROVED or parents is None or parents.proved < review.proved:
        return review
    merges = [look_up(subject).get("review") for subject in parent_subjects(facts, found)]
    covers = all(merge is not None and merge.value == "merged" and merge.proved >= review.proved for merge in merges)
    return review._replace(value="approved") if covers else review

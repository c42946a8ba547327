"""Gerrit: events of its stream and of its webhooks plugin, which say who owns, reviewed and merged a change.

A receiver names the CI system whose runs test the changes as its source; the runs are found by their subjects.
Any field may be missing, and its form depends on the server: a project is a text or an object, a number a text or an
integer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.redaction import shown
from ciml.events.reviews import PARTLY_APPROVED, VETOED, merged_subject
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, RunUpdate, Said, reading
from ciml.integrations.fields import (
    change_subjects,
    epoch_at,
    event_id,
    non_empty,
    number_at,
    object_at,
    objects_at,
    required_text,
    text_at,
    texts_at,
    value_at,
)

NO_FACT = "events of this type change no fact of a run"
NO_VOTE = "the comment neither approves nor disapproves"
OWN_VOTE = "a vote of the change's owner, uploader or author is no review"
UNKNOWN_VOTER = "the voter is unknown"
CLOSED = "a vote on a closed change is no review"
NO_OWNER = "the change's owner is unknown"

#: The least vote of a label that approves a patch set. Other labels do not count; Verified is the CI system's own.
_APPROVES = {"Code-Review": 2, "Workflow": 1}
#: The vote of such a label that vetoes a change.
_VETOES = {"Code-Review": -2}
#: The review of a patch set by the effect of votes. If votes of one event have several effects, the first one counts.
_REVIEWS = {"veto": "changes_requested", "withdrawal": "dismissed", "approval": PARTLY_APPROVED}
#: Accounts whose votes approve nothing: the authors of the patch set.
_OWN = (("change", "owner"), ("patchSet", "uploader"), ("patchSet", "author"))
#: Kinds of patch sets with the same code as the one before. Gerrit creates them when it submits a change.
_SAME_CODE = frozenset({"TRIVIAL_REBASE", "TRIVIAL_REBASE_WITH_MESSAGE_UPDATE", "NO_CODE_CHANGE", "NO_CHANGE"})
_VOTE = re.compile(r"[+-]?[0-9]{1,2}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DEPENDS_ON = re.compile(r"^[ \t]*depends-on[ \t]*:", re.MULTILINE | re.IGNORECASE)
_BRANCHES = "refs/heads/"
#: The parent of a patch set whose runs also execute other changes. It is no commit, so it is never known as merged.
_OTHER_CHANGES = "depends-on"
_MOST_LABELS = 100
_MOST_PARENTS = 8
#: Limit of the time from the patch set that Gerrit creates at a submit to the event; 0 to 1 s were measured.
_SUBMIT_S = 10


def read(delivery: Delivery) -> Reading | Ignored:
    """Read the facts that an event reports about a patch set's runs (``review``, ``owner``, ``parents``) or commits."""
    body = delivery.json()
    kind = required_text(body, "type")
    event = _event_id(delivery, body, kind)
    reader = _READERS.get(kind)
    statements = NO_FACT if reader is None else reader(body)
    return reading(event, kind, epoch_at(body, "eventCreatedOn"), statements)


def _patchset_created(body: Mapping[str, Any]) -> Said:
    """Return the owner of a patch set, and its parents."""
    parents = (_OTHER_CHANGES,) if _has_dependencies(body) else _commits(body, "patchSet", "parents")
    facts = non_empty(owner=_account(body, "change", "owner"), parents=" ".join(parents))
    return (RunUpdate(_subject(body), facts),) if facts else NO_OWNER


def _change_merged(body: Mapping[str, Any]) -> Said:
    """Return that a patch set is merged, with the commits that are in the branch now.

    If Gerrit created the patch set when it submitted the change, the one before has the same code, on its own parents.
    """
    if _has_dependencies(body):
        updates = [_review(body, PARTLY_APPROVED, parents=_OTHER_CHANGES)]
    else:
        updates = [_review(body, "merged")]
    if _made_by_submit(body):
        updates.append(_review(body, PARTLY_APPROVED, patchset=number_at(body, "patchSet", "number") - 1))
    commits = (text_at(body, "patchSet", "revision"), text_at(body, "newRev"))
    return (*updates, *_merged(_project(body), _branch(body), commits))


def _ref_updated(body: Mapping[str, Any]) -> Said:
    """Return that the old and the new tip of a branch are in the branch."""
    branch = text_at(body, "refUpdate", "refName")
    if not branch.startswith(_BRANCHES):
        return NO_FACT
    project = text_at(body, "refUpdate", "project")
    commits = (text_at(body, "refUpdate", "oldRev"), text_at(body, "refUpdate", "newRev"))
    return _merged(project, branch.removeprefix(_BRANCHES), commits)


def _merged(project: str, branch: str, commits: Iterable[str]) -> tuple[RunUpdate, ...]:
    subjects = dict.fromkeys(
        merged_subject(project, branch, commit) for commit in commits if _COMMIT.fullmatch(commit) and int(commit, 16)
    )
    return tuple(RunUpdate(subject, {"review": "merged"}) for subject in subjects if subject)


def _made_by_submit(body: Mapping[str, Any]) -> bool:
    """Return whether Gerrit made the patch set when it submitted the change, with the code of the one before."""
    uploader = _account(body, "patchSet", "uploader")
    submitter = _account(body, "submitter")
    created, submitted = (value_at(body, *path) for path in (("patchSet", "createdOn"), ("eventCreatedOn",)))
    return (
        number_at(body, "patchSet", "number") > 1
        and text_at(body, "patchSet", "kind") in _SAME_CODE
        and bool(submitter)
        and uploader == submitter
        and type(created) is int
        and type(submitted) is int
        and 0 <= submitted - created <= _SUBMIT_S
    )


def _has_dependencies(body: Mapping[str, Any]) -> bool:
    """Return whether a check of the patch set may also execute other changes: Zuul reads Depends-On of its message."""
    message = value_at(body, "change", "commitMessage")
    return type(message) is not str or _DEPENDS_ON.search(message) is not None


def _commits(body: Mapping[str, Any], *path: str) -> tuple[str, ...]:
    """Return a list of commits; none if one of them is not a commit."""
    commits = texts_at(body, *path)
    valid = len(commits) <= _MOST_PARENTS and all(map(_COMMIT.fullmatch, commits))
    return commits if valid else ()


def _event_id(delivery: Delivery, body: Mapping[str, Any], kind: str) -> str:
    """Return the same id for the same event, whether it comes from the stream, a webhook or the REST API.

    A vote by the REST API has another id than by the stream: it has no comment, and its time is a little earlier.
    """
    try:
        identity = _identity(body, kind)
    except RejectedInput:
        identity = None
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32] if identity else event_id(delivery)


def _identity(body: Mapping[str, Any], kind: str) -> list[Any] | None:
    """Return the fields that identify an event; None if it has none. A vote can be given again, at another time."""
    patchset = [kind, _project(body), number_at(body, "change", "number"), number_at(body, "patchSet", "number")]
    if kind in ("patchset-created", "change-merged"):
        return patchset
    created = body.get("eventCreatedOn")
    comment = body.get("comment")
    if kind not in ("comment-added", "vote-deleted") or type(created) not in (int, float):
        return None
    who = _account(body, "author" if kind == "comment-added" else "reviewer")
    votes = sorted(
        [text_at(approval, "type"), _vote(approval, "value"), _vote(approval, "oldValue")]
        for approval in objects_at(body, "approvals", most=_MOST_LABELS)
    )
    return [*patchset, who, votes, created, comment if type(comment) is str else ""]


def _voted(body: Mapping[str, Any], voter: str) -> Said:
    """Return the review that a person's votes result in, or the rule by which they do not count."""
    effect = _effect(objects_at(body, "approvals", most=_MOST_LABELS))
    if not effect:
        return NO_VOTE
    if text_at(body, "change", "status") in ("MERGED", "ABANDONED"):
        return CLOSED
    if not _account(body, voter):
        return UNKNOWN_VOTER
    person = object_at(body, voter)
    if effect == "approval" and any(_may_be_same(person, object_at(body, *path)) for path in _OWN):
        return OWN_VOTE
    review = _review(body, _REVIEWS[effect])
    if effect != "veto":
        return (review,)
    # Gerrit keeps a veto on later patch sets, whose events do not name it: it holds until the change is merged.
    return (RunUpdate(_change_subject(body), {"review": VETOED}), review)


def _effect(approvals: Iterable[Mapping[str, Any]]) -> str:
    """Return the effect of votes, a key of `_REVIEWS`; "" if they have none."""
    effects = set()
    for approval in approvals:
        label = text_at(approval, "type")
        if label not in _APPROVES:
            continue
        vote = _vote(approval, "value")
        if label in _VETOES and vote <= _VETOES[label]:
            effects.add("veto")
        if _vote(approval, "oldValue") >= _APPROVES[label] > vote:
            effects.add("withdrawal")
        # Gerrit lists all votes of the person who comments. A vote without an old value was not given by this event:
        # it may have been copied from an earlier patch set.
        if vote >= _APPROVES[label] and text_at(approval, "oldValue"):
            effects.add("approval")
    return next((effect for effect in _REVIEWS if effect in effects), "")


def _review(body: Mapping[str, Any], review: str, *, patchset: int | None = None, **facts: str) -> RunUpdate:
    """Return a review of a patch set, by default of the event's, for the branch of the change: it can be moved."""
    return RunUpdate(_subject(body, patchset), {"review": review, "target": _branch(body), **facts})


def _subject(body: Mapping[str, Any], patchset: int | None = None) -> str:
    """Return the subject of the runs of a patch set, by default of the event's."""
    return _subjects(body, number_at(body, "patchSet", "number") if patchset is None else patchset)[0]


def _change_subject(body: Mapping[str, Any]) -> str:
    """Return the subject of the runs of all patch sets of a change."""
    return _subjects(body, number_at(body, "patchSet", "number"))[1]


def _subjects(body: Mapping[str, Any], patchset: int) -> tuple[str, ...]:
    subjects = change_subjects(_project(body), str(number_at(body, "change", "number")), str(patchset))
    if not subjects:
        raise RejectedInput("bad_field", "change.project: too long, or it holds a secret")
    return subjects


def _branch(body: Mapping[str, Any]) -> str:
    return required_text(body, "change", "branch").removeprefix(_BRANCHES)


def _project(body: Mapping[str, Any]) -> str:
    for path in (("change", "project"), ("project",)):
        project = value_at(body, *path)
        name = text_at(body, *path, "name") if type(project) is dict else text_at(body, *path)
        if name:
            return name
    raise RejectedInput("missing_field", "change.project")


def _vote(approval: Mapping[str, Any], name: str) -> int:
    text = text_at(approval, name) or "0"
    if not _VOTE.fullmatch(text):
        raise RejectedInput("bad_field", f"approvals.{name}: want a vote, not {shown(text)}")
    return int(text)


def _account(body: Mapping[str, Any], *path: str) -> str:
    account = object_at(body, *path)
    return text_at(account, "username") or text_at(account, "email") or text_at(account, "name")


def _may_be_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two accounts may be of one person: they share a user name, an address or, with neither, a name."""
    keys = [(text_at(one, key).casefold(), text_at(other, key).casefold()) for key in ("username", "email")]
    comparable = [(ours, theirs) for ours, theirs in keys if ours and theirs]
    if comparable:
        return any(ours == theirs for ours, theirs in comparable)
    return text_at(one, "name").casefold() == text_at(other, "name").casefold() != ""


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Said]] = {
    "patchset-created": _patchset_created,
    "change-merged": _change_merged,
    "comment-added": partial(_voted, voter="author"),
    "vote-deleted": partial(_voted, voter="reviewer"),
    "ref-updated": _ref_updated,
}
ADAPTER = Adapter("gerrit", (), read)

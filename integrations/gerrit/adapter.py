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

#: The least vote of a label that approves a patch set. Verified is the CI system's own.
_APPROVES = {"Code-Review": 2, "Workflow": 1}
#: The vote of a label that disapproves it.
_VETO = {"Code-Review": -2}
#: Accounts whose votes approve nothing: the authors of the patch set.
_OWN = (("change", "owner"), ("patchSet", "uploader"), ("patchSet", "author"))
#: Kinds of patch sets that hold the code of the one before, as Gerrit makes them when it submits a change.
_SAME_CODE = frozenset({"TRIVIAL_REBASE", "TRIVIAL_REBASE_WITH_MESSAGE_UPDATE", "NO_CODE_CHANGE", "NO_CHANGE"})
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_VOTE = re.compile(r"[+-]?[0-9]{1,2}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DEPENDS_ON = re.compile(r"^[ \t]*depends-on[ \t]*:", re.MULTILINE | re.IGNORECASE)
_BRANCHES = "refs/heads/"
_OTHER_CHANGES = "depends-on"  # the parents of a patch set whose runs also execute other changes: never merged
_MOST_LABELS = 100
_MOST_PARENTS = 8
_SUBMIT_S = 10  # between the patch set that Gerrit makes at a submit and the event: measured 0 to 1


def read(delivery: Delivery) -> Reading | Ignored:
    """Read what an event says of a patch set's runs (``review``, ``owner``, ``parents``), and which commits merged."""
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

    Where Gerrit made the patch set when it submitted the change, the one before has the same code, on its own parents.
    """
    subject = _subject(body)
    target = _target(body)
    covered = (
        {"review": PARTLY_APPROVED, "parents": _OTHER_CHANGES} if _has_dependencies(body) else {"review": "merged"}
    )
    updates = [RunUpdate(subject, covered | target)]
    if _made_by_submit(body):
        before = _number(body, "patchSet", "number") - 1
        updates.append(RunUpdate(_subject(body, before), {"review": PARTLY_APPROVED} | target))
    commits = (text_at(body, "patchSet", "revision"), text_at(body, "newRev"))
    return (*updates, *_merged(_project(body), target["target"], commits))


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
        _number(body, "patchSet", "number") > 1
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


def _target(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the branch for which a review was given: a change may be moved to another."""
    return {"target": required_text(body, "change", "branch").removeprefix(_BRANCHES)}


def _commits(body: Mapping[str, Any], *path: str) -> tuple[str, ...]:
    """Return a list of commits; none if one of them is not a commit."""
    commits = texts_at(body, *path)
    valid = len(commits) <= _MOST_PARENTS and all(map(_COMMIT.fullmatch, commits))
    return commits if valid else ()


def _event_id(delivery: Delivery, body: Mapping[str, Any], kind: str) -> str:
    """Return the same id for the same event, whether it comes from the stream, a webhook or the REST API."""
    try:
        identity = _identity(body, kind)
    except RejectedInput:
        identity = None
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32] if identity else event_id(delivery)


def _identity(body: Mapping[str, Any], kind: str) -> list[Any] | None:
    """Return what makes an event the same. A patch set is created and merged once; a vote may be given again."""
    patchset = [kind, _project(body), _number(body, "change", "number"), _number(body, "patchSet", "number")]
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
    """Return what the votes of a person make of the review, or the rule by which they make nothing of it."""
    approved = withdrawn = rejected = False
    for approval in objects_at(body, "approvals", most=_MOST_LABELS):
        label = text_at(approval, "type")
        vote = _vote(approval, "value")
        before = _vote(approval, "oldValue")
        least = _APPROVES.get(label)
        if least is not None:
            # Gerrit lists all votes of who comments. Only one that has an old value was given by this event: another
            # may have been copied from an earlier patch set.
            approved |= vote >= least and bool(text_at(approval, "oldValue"))
            withdrawn |= before >= least > vote
        rejected |= vote <= _VETO.get(label, -100)
    if not (approved or withdrawn or rejected):
        return NO_VOTE
    if text_at(body, "change", "status") in ("MERGED", "ABANDONED"):
        return CLOSED
    person = object_at(body, voter)
    if not _account(body, voter):
        return UNKNOWN_VOTER
    if rejected:
        # Gerrit keeps the vote on later patch sets, where no event names it: it holds until the change is merged.
        change = RunUpdate(_change_subject(body), {"review": VETOED})
        return (change, RunUpdate(_subject(body), {"review": "changes_requested"} | _target(body)))
    if withdrawn:
        return (RunUpdate(_subject(body), {"review": "dismissed"} | _target(body)),)
    if any(_may_be_same(person, object_at(body, *path)) for path in _OWN):
        return OWN_VOTE
    return (RunUpdate(_subject(body), {"review": PARTLY_APPROVED} | _target(body)),)


def _subject(body: Mapping[str, Any], patchset: int | None = None) -> str:
    """Return the subject of a patch set's runs: of the event's patch set by default."""
    return _subjects(body, _number(body, "patchSet", "number") if patchset is None else patchset)[0]


def _change_subject(body: Mapping[str, Any]) -> str:
    """Return the subject of the runs of all patch sets of a change."""
    return _subjects(body, _number(body, "patchSet", "number"))[1]


def _subjects(body: Mapping[str, Any], patchset: int) -> tuple[str, ...]:
    subjects = change_subjects(_project(body), str(_number(body, "change", "number")), str(patchset))
    if not subjects:
        raise RejectedInput("bad_field", "change.project: too long, or it holds a secret")
    return subjects


def _project(body: Mapping[str, Any]) -> str:
    for path in (("change", "project"), ("project",)):
        project = value_at(body, *path)
        name = text_at(body, *path, "name") if type(project) is dict else text_at(body, *path)
        if name:
            return name
    raise RejectedInput("missing_field", "change.project")


def _number(body: Mapping[str, Any], *path: str) -> int:
    text = required_text(body, *path)
    if not _NUMBER.fullmatch(text):
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want a number from 1, not {shown(text)}")
    return int(text)


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
    keys = [(text_at(one, name).casefold(), text_at(other, name).casefold()) for name in ("username", "email")]
    comparable = [(ours, theirs) for ours, theirs in keys if ours and theirs]
    if comparable:
        return any(ours == theirs for ours, theirs in comparable)
    return text_at(one, "name") == text_at(other, "name") != ""


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Said]] = {
    "patchset-created": _patchset_created,
    "change-merged": _change_merged,
    "comment-added": partial(_voted, voter="author"),
    "vote-deleted": partial(_voted, voter="reviewer"),
    "ref-updated": _ref_updated,
}
ADAPTER = Adapter("gerrit", (), read)

"""Gerrit: events of its stream and of its webhooks plugin, which say who owns, reviewed and merged a change.

A receiver names the CI system whose runs test the changes as its source; the runs are found by their subjects.
Any field may be missing, and its form depends on the server: a project is a text or an object, a number a text or an
integer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from adapters.adapter import Adapter, Delivery, Ignored, Reading, RunUpdate
from adapters.fields import change_subjects, epoch, event_id, maybe, moment, needed, objects, value, word
from ciml.errors import RejectedInput
from ciml.events.redaction import shown

NO_FACT = "events of this type change no fact of a run"
NO_VOTE = "the comment neither approves nor disapproves"
OWN_VOTE = "a vote of the change's owner or uploader is no review"
UNKNOWN_VOTER = "the voter is unknown"
CLOSED = "a vote on a closed change is no review"
NO_OWNER = "the change's owner is unknown"

#: The least vote of a label that approves a patch set. Verified is the CI system's own.
_APPROVES = {"Code-Review": 2, "Workflow": 1}
#: The vote of a label that disapproves it.
_VETO = {"Code-Review": -2}
#: Kinds of patch sets that hold the code of the one before, as Gerrit makes them when it submits a change.
_SAME_CODE = frozenset({"TRIVIAL_REBASE", "TRIVIAL_REBASE_WITH_MESSAGE_UPDATE", "NO_CODE_CHANGE", "NO_CHANGE"})
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_VOTE = re.compile(r"[+-]?[0-9]{1,2}")
_MOST_LABELS = 100


def read(delivery: Delivery) -> Reading | Ignored:
    """Read what an event says of a patch set's runs: ``review`` or ``owner``."""
    body = delivery.json()
    kind = needed(body, "type")
    event = _event_id(delivery, body, kind)
    facts: Mapping[str, str] | str
    if kind == "patchset-created":
        owner = _account(body, "change", "owner")
        facts = {"owner": owner} if owner else NO_OWNER
    elif kind == "change-merged":
        facts = {"review": "merged"}
    elif kind in ("comment-added", "vote-deleted"):
        facts = _voted(body, "author" if kind == "comment-added" else "reviewer")
    else:
        facts = NO_FACT
    if isinstance(facts, str):
        return Ignored(event, kind, facts)
    subjects = [_subject(body, number) for number in _patchsets(body, kind)]
    when = moment({"eventCreatedOn": epoch(body.get("eventCreatedOn"))}, "eventCreatedOn")
    return Reading(event, kind, when, updates=tuple(RunUpdate(subject, facts) for subject in subjects))


def _event_id(delivery: Delivery, body: Mapping[str, Any], kind: str) -> str:
    """Return the same id for the same event, whether it comes from the stream, a webhook or the REST API."""
    try:
        what = _identity(body, kind)
    except RejectedInput:
        what = None
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32] if what else event_id(delivery)


def _identity(body: Mapping[str, Any], kind: str) -> list[Any] | None:
    """Return what makes an event the same. A patch set is created and merged once; a vote may be given again."""
    patchset = [kind, _project(body), _number(body, "change", "number"), _number(body, "patchSet", "number")]
    if kind in ("patchset-created", "change-merged"):
        return patchset
    created, comment = body.get("eventCreatedOn"), body.get("comment")
    if kind not in ("comment-added", "vote-deleted") or type(created) not in (int, float):
        return None
    who = _account(body, "author" if kind == "comment-added" else "reviewer")
    votes = sorted(
        [word(each, "type"), _vote(each, "value"), _vote(each, "oldValue")]
        for each in objects(body, "approvals", most=_MOST_LABELS)
    )
    return [*patchset, who, votes, created, comment if type(comment) is str else ""]


def _voted(body: Mapping[str, Any], voter: str) -> Mapping[str, str] | str:
    """Return what the votes of a person make of the review, or the rule by which they make nothing of it."""
    approved = withdrawn = rejected = False
    for approval in objects(body, "approvals", most=_MOST_LABELS):
        label, vote, before = word(approval, "type"), _vote(approval, "value"), _vote(approval, "oldValue")
        least = _APPROVES.get(label)
        if least is not None:
            # Gerrit lists all votes of who comments. Only one that has an old value was given by this event: another
            # may have been copied from an earlier patch set.
            approved |= vote >= least and bool(word(approval, "oldValue"))
            withdrawn |= before >= least > vote
        rejected |= vote <= _VETO.get(label, -100)
    if not (approved or withdrawn or rejected):
        return NO_VOTE
    if word(body, "change", "status") in ("MERGED", "ABANDONED"):
        return CLOSED
    who = _account(body, voter)
    if not who:
        return UNKNOWN_VOTER
    if rejected:
        return {"review": "changes_requested"}
    if withdrawn:
        return {"review": "dismissed"}
    if who in (_account(body, "change", "owner"), _account(body, "patchSet", "uploader")):
        return OWN_VOTE
    return {"review": "approved"}


def _patchsets(body: Mapping[str, Any], kind: str) -> list[int]:
    """Return the patch sets that the event is about. A merge is also about the one before, if its code is the same."""
    number = _number(body, "patchSet", "number")
    same = kind == "change-merged" and number > 1 and word(body, "patchSet", "kind") in _SAME_CODE
    return [number, number - 1] if same else [number]


def _subject(body: Mapping[str, Any], patchset: int) -> str:
    subjects = change_subjects(_project(body), str(_number(body, "change", "number")), str(patchset))
    if not subjects:
        raise RejectedInput("bad_field", "change.project: too long, or it holds a secret")
    return subjects[0]


def _project(body: Mapping[str, Any]) -> str:
    for path in (("change", "project"), ("project",)):
        found = value(body, *path)
        name = word(body, *path, "name") if type(found) is dict else word(body, *path)
        if name:
            return name
    raise RejectedInput("missing_field", "change.project")


def _number(body: Mapping[str, Any], *path: str) -> int:
    text = needed(body, *path)
    if not _NUMBER.fullmatch(text):
        raise RejectedInput("bad_field", f"{'.'.join(path)}: want a number from 1, not {shown(text)}")
    return int(text)


def _vote(approval: Mapping[str, Any], name: str) -> int:
    text = word(approval, name) or "0"
    if not _VOTE.fullmatch(text):
        raise RejectedInput("bad_field", f"approvals.{name}: want a vote, not {shown(text)}")
    return int(text)


def _account(body: Mapping[str, Any], *path: str) -> str:
    account = maybe(body, *path)
    return word(account, "username") or word(account, "email") or word(account, "name")


ADAPTER = Adapter("gerrit", (), read)

"""Changes of Gerrit's REST API that were updated since a time, as the events that its stream would have had.

`Changes` reads them page by page; `events_of` makes the events of a change. A vote counts only as the API lists it,
never as the text of a message says: anyone writes messages. Only texts report that a vote was withdrawn, because the
API does not list that.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

from ciml.errors import EngineError, RejectedInput
from ciml.events.redaction import shown
from ciml.integrations.fields import object_at, objects_at, text_at, text_fields, value_at
from ciml.integrations.http import Rest, TooLarge, Unreadable, basic_auth
from ciml.limits import MAX_REVIEW_BYTES, MAX_REVIEW_CHANGES, MAX_REVIEW_VALUES, MAX_REVIEWED_CHANGES

#: What a query asks for, so that `events_of` finds it.
OPTIONS = ("ALL_COMMITS", "ALL_REVISIONS", "DETAILED_ACCOUNTS", "DETAILED_LABELS", "MESSAGES")
#: The types of events that a stream is asked for.
TYPES = ("patchset-created", "comment-added", "vote-deleted", "change-merged", "ref-updated")
_MAX_SKIPPED = 10  # changes of a comparison that are too large
_EARLIEST_S = 0.0  # times of a server's clock
_LATEST_S = 4e9
_PREFIX = b")]}'"
_MOST_ENTRIES = 10_000  # of a list
_MOST_LABELS = 100
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
#: Texts of Gerrit about votes, such as ``Patch Set 2: Code-Review+2 -Workflow``; a withdrawn vote begins with ``-``.
_VOTED = re.compile(r"Patch Set (\d{1,9}):((?: [^\s:]+)+)")
_GIVEN = re.compile(r"([A-Za-z][\w-]*)([+-]\d{1,2})")
_REMOVED = re.compile(r"^(?:\* |Removed )([A-Za-z][\w-]*)([+-]\d{1,2}) by (.{1,200})$", re.MULTILINE)

Event = dict[str, Any]


class Changes(Rest):
    """Reads changes from the API. Blocking; one thread at a time uses it.

    Args:
      base: its address, without a path of the API.
      user, password: HTTP credentials; without a password the user is anonymous.
      tls: settings for https.
    """

    call_s = 60.0

    def __init__(self, base: str, user: str, password: bytes, tls: ssl.SSLContext) -> None:
        address = f"{base.rstrip('/')}/a" if password else base
        rights = f"check user {user} and its HTTP password"
        header = partial(basic_auth, user)
        super().__init__(address, tls, lambda: password, rights, header, _PREFIX, MAX_REVIEW_BYTES, "MAX_REVIEW_BYTES")

    def now(self) -> float:
        """Return the server's time, epoch seconds. Raises as `get`, and `EngineError` for a time that is wrong."""
        try:
            return self._content("/config/server/version")[1]
        except TooLarge:
            raise self._wrong("its version is too long") from None

    def updated(self, after_s: float) -> Iterator[list[Mapping[str, Any] | None]]:
        """Yield pages of the changes that were updated since a time, the latest first; None stands for a large one.

        A change that is updated in between moves others behind the present position: some come twice, none is missed.

        Raises as `get`, and `EngineError` where there are too many, or the answer is none of Gerrit.
        """
        when = datetime.fromtimestamp(after_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        start = 0
        count = MAX_REVIEW_CHANGES
        skipped = 0
        while start < MAX_REVIEWED_CHANGES:
            query = {"q": f'after:"{when}"', "o": OPTIONS, "S": start, "n": count}
            try:
                changes = self._parse(self._content(f"/changes/?{urlencode(query, doseq=True)}")[0])
            except TooLarge:
                if count == 1:
                    yield [None]
                    start += 1
                    skipped += 1
                if skipped > _MAX_SKIPPED:
                    raise EngineError(f"{self.origin}: more than {_MAX_SKIPPED} changes are too large") from None
                count = max(1, count // 4)
                continue
            if len(changes) > count:
                raise EngineError(f"{self.origin} answers {len(changes)} changes, though {count} were asked for")
            yield [*changes]
            start += len(changes)
            count = min(count * 2, MAX_REVIEW_CHANGES)
            if not changes or not changes[-1].get("_more_changes"):
                return
        raise EngineError(f"{self.origin} lists more than {MAX_REVIEWED_CHANGES} changes (MAX_REVIEWED_CHANGES)")

    def _content(self, path: str) -> tuple[bytes, float]:
        """Return content and server time. Raises as `get`, and `TooLarge`."""
        answer = self.answer("GET", path)
        try:
            return answer.body(), self._date(answer.header(b"date").decode("latin-1"))
        except TooLarge:
            raise
        except Unreadable as error:
            raise self._wrong(f"it answers with {error}") from None

    def _wrong(self, problem: str) -> EngineError:
        return EngineError(f"{self.origin} is no REST API of Gerrit: {problem}")

    def _date(self, text: str) -> float:
        """Return the server's time of an answer; this machine's if the answer has none."""
        try:
            time_s = parsedate_to_datetime(text).timestamp()
        except ValueError:
            return datetime.now(UTC).timestamp()
        if not _EARLIEST_S <= time_s <= _LATEST_S:
            raise EngineError(f"{self.origin}: its clock is wrong: {shown(text)}")
        return time_s

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        if sum(map(body.count, (b",", b"[", b"{"))) > MAX_REVIEW_VALUES:
            raise TooLarge  # values take up to a hundred times the memory of their text
        try:
            changes = json.loads(body.removeprefix(_PREFIX))  # lenient: half a character affects its own change alone
        except (ValueError, RecursionError):
            changes = None
        if type(changes) is not list or not all(type(change) is dict for change in changes):
            raise self._wrong("it answers no list of changes")
        return changes


class _Change(NamedTuple):
    """A ``ChangeInfo`` in the form of events.

    Attributes:
      fields: the change in its events, with its present status.
      merged_s: when it was merged, epoch seconds; None if it is not.
      patchsets: the patch set in events, by its number.
      commit_messages: by the number of the patch set, as far as they are known.
    """

    fields: Mapping[str, Any]
    merged_s: int | None
    patchsets: Mapping[int, Mapping[str, Any]]
    commit_messages: Mapping[int, str]

    def event(self, kind: str, patchset: int, time_s: int | None, status: str = "", **fields: Any) -> Event:
        """Return an event; by default its change has the status of that time."""
        if not status:  # a vote is of an open change, though the change may be closed by now
            was_open = self.merged_s is None or (time_s or 0) <= self.merged_s
            status = "NEW" if was_open else self.fields["status"]
        change = {**self.fields, "status": status}
        if message := self.commit_messages.get(patchset):
            change["commitMessage"] = message
        return {
            **fields,
            "patchSet": dict(self.patchsets[patchset]),
            "change": change,
            "project": self.fields["project"],
            "type": kind,
            "eventCreatedOn": time_s,
        }


def events_of(change: Mapping[str, Any], after_s: float) -> list[Event]:
    """Return the events of a change since a time, by their time.

    A review counts by the parents of its patch set, and a merge may also be of the patch set before. So the creation of
    both is returned too, however old it is.

    Args:
      change: a ``ChangeInfo`` with `OPTIONS`.
      after_s: epoch seconds.

    Raises:
      RejectedInput: it is no ``ChangeInfo``.
    """
    info = _info(change)
    created = [
        info.event("patchset-created", number, patchset["createdOn"], uploader=patchset["uploader"])
        for number, patchset in info.patchsets.items()
    ]
    voted = [
        info.event(vote.kind, vote.patchset, vote.time_s, **vote.fields)
        for vote in (*_votes(change), *_withdrawals(change))
        if vote.patchset in info.patchsets
    ]
    merged = []
    current = _number(object_at(object_at(change, "revisions"), text_at(change, "current_revision")))
    if info.fields["status"] == "MERGED" and info.merged_s is not None and current in info.patchsets:
        submitter = _account(change, "submitter")
        merged.append(info.event("change-merged", current, info.merged_s, "MERGED", submitter=submitter))
    dated = [event for event in (*created, *voted, *merged) if event["eventCreatedOn"] is not None]
    recent_patchsets = {event["patchSet"]["number"] for event in dated if event["eventCreatedOn"] >= after_s}
    needed_patchsets = recent_patchsets | {number - 1 for number in recent_patchsets}
    recent = [
        event
        for event in dated
        if event["eventCreatedOn"] >= after_s
        or (event["type"] == "patchset-created" and event["patchSet"]["number"] in needed_patchsets)
    ]
    return sorted(recent, key=lambda event: event["eventCreatedOn"])


def seconds(text: str) -> int | None:
    """Return the epoch seconds of a time of the API, ``2026-11-26 18:00:00.000000000`` in UTC; None for no time."""
    match = _TIME.match(text)
    try:
        return int(datetime.fromisoformat(match[0]).replace(tzinfo=UTC).timestamp()) if match else None
    except ValueError:
        return None


def _info(change: Mapping[str, Any]) -> _Change:
    number = value_at(change, "_number")
    if type(number) is not int or not text_at(change, "project"):
        raise RejectedInput("missing_field", "_number or project")
    fields = {
        **text_fields(change, project="project", branch="branch", id="change_id", subject="subject", status="status"),
        "number": number,
        "owner": _account(change, "owner"),
        "createdOn": seconds(text_at(change, "created")),
    }
    patchsets: dict[int, dict[str, Any]] = {}
    commit_messages: dict[int, str] = {}
    revisions = object_at(change, "revisions")
    for sha in list(revisions)[:_MOST_ENTRIES]:
        patchset = _patchset(sha, object_at(revisions, sha))
        if patchset["number"]:
            patchsets[patchset["number"]] = patchset
        message = value_at(revisions, sha, "commit", "message")
        if type(message) is str:
            commit_messages[patchset["number"]] = message
    return _Change(fields, seconds(text_at(change, "submitted")), patchsets, commit_messages)


def _patchset(sha: str, revision: Mapping[str, Any]) -> dict[str, Any]:
    commit = object_at(revision, "commit")
    return {
        "number": _number(revision),
        "revision": sha,
        "parents": [text_at(parent, "commit") for parent in objects_at(commit, "parents", most=_MOST_ENTRIES)],
        **text_fields(revision, ref="ref", kind="kind"),
        "uploader": _account(revision, "uploader"),
        "author": _account(commit, "author"),
        "createdOn": seconds(text_at(revision, "created")),
    }


def _number(revision: Mapping[str, Any], name: str = "_number") -> int:
    """Return the number of a patch set, 0 if it is not a whole number."""
    number = value_at(revision, name)
    return number if type(number) is int else 0


class _Vote(NamedTuple):
    """A vote that was given or withdrawn: the number of its patch set, and type, time and fields of its event."""

    patchset: int
    kind: str
    time_s: int | None
    fields: Mapping[str, Any]


def _votes(change: Mapping[str, Any]) -> Iterator[_Vote]:
    """Yield the votes that were given; of an unknown patch set with the number 0.

    The API lists the votes on the newest patch set, and among them those that Gerrit copied from an earlier one, with
    the time of the copy. A vote that was given has a message of the same person and time, which names it and its patch
    set: a comment within the second of the copy does not name it.
    """
    patchsets: dict[tuple[str, str, str], int] = {}  # by account, time and the vote's text
    for message in objects_at(change, "messages", most=_MOST_ENTRIES):
        number = _number(message, "_revision_number")
        for text in _vote_texts(value_at(message, "message")):
            key = (text_at(message, "author", "_account_id"), text_at(message, "date"), text)
            patchsets[key] = min(number, patchsets.get(key, number))
    labels = object_at(change, "labels")
    for label in list(labels)[:_MOST_LABELS]:
        for vote in objects_at(labels, label, "all", most=_MOST_ENTRIES):
            points = vote.get("value")
            if type(points) is not int or not points:
                continue
            date = text_at(vote, "date")
            number = patchsets.get((text_at(vote, "_account_id"), date, f"{label}{points:+d}"), 0)
            yield _Vote(
                number, "comment-added", seconds(date), {"author": _person(vote), **_approval(label, points, 0)}
            )


def _withdrawals(change: Mapping[str, Any]) -> Iterator[_Vote]:
    """Yield the votes that were taken back by their voter, or deleted by another person."""
    votes: dict[tuple[str, str], str] = {}  # the present vote by account and label
    for message in objects_at(change, "messages", most=_MOST_ENTRIES):
        text = value_at(message, "message")
        number = value_at(message, "_revision_number")
        author = _account(message, "author")
        time_s = seconds(text_at(message, "date"))
        if type(text) is not str or type(number) is not int:
            continue
        account = text_at(message, "author", "_account_id")
        for vote in _vote_texts(text):
            label = vote[1:]
            if match := _GIVEN.fullmatch(vote):
                votes[account, match[1]] = match[2]
            elif vote.startswith("-") and (account, label) in votes:
                fields = {"author": author, **_approval(label, 0, votes.pop((account, label)))}
                yield _Vote(number, "comment-added", time_s, fields)
        if text.startswith("Removed "):
            for label, points, name in _REMOVED.findall(text):
                fields = {"reviewer": {"name": name.strip()}, "remover": author, **_approval(label, 0, points)}
                yield _Vote(number, "vote-deleted", time_s, fields)


def _vote_texts(text: Any) -> list[str]:
    """Return what Gerrit says of votes in the first line of a message, such as ``Code-Review+2``."""
    match = _VOTED.match(text) if type(text) is str else None
    return match[2].split() if match else []


def _approval(label: str, points: int, old_points: int | str) -> dict[str, Any]:
    return {"approvals": [{"type": label, "value": str(points), "oldValue": str(old_points).lstrip("+")}]}


def _account(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _person(object_at(body, name))


def _person(account: Mapping[str, Any]) -> dict[str, Any]:
    return {key: text for key in ("name", "email", "username") if (text := text_at(account, key))}

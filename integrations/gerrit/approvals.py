"""Changes of Gerrit's REST API that were updated since a time, as the events that its stream would have had.

A vote counts only as the API lists it, never as the text of a message says: anyone writes messages. Only texts report
that a vote was withdrawn, because the API does not list that.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from ciml.errors import EngineError, RejectedInput
from ciml.events.redaction import shown
from ciml.http.outgoing import TooLarge, Unreadable
from ciml.integrations.fields import maybe, objects, texts, value, word
from ciml.integrations.http import Rest, basic
from ciml.limits import MAX_REVIEW_BYTES, MAX_REVIEW_CHANGES, MAX_REVIEW_VALUES, MAX_REVIEWED_CHANGES

_MAX_SKIPPED = 10  # changes of a comparison
_TIMES_S = (0.0, 4e9)  # of a server's clock
_PREFIX = b")]}'"
#: What a query asks for, so that `events` finds it.
OPTIONS = ("ALL_COMMITS", "ALL_REVISIONS", "DETAILED_ACCOUNTS", "DETAILED_LABELS", "MESSAGES")
#: The types of events that a stream is asked for.
TYPES = ("patchset-created", "comment-added", "vote-deleted", "change-merged", "ref-updated")
_MOST = 10_000  # entries of a list


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
        header = partial(basic, user)
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
                changes = self._parsed(self._content(f"/changes/?{urlencode(query, doseq=True)}")[0])
            except TooLarge:
                if count == 1:
                    yield [None]
                    start = start + 1
                    skipped = skipped + 1
                if skipped > _MAX_SKIPPED:
                    raise EngineError(f"{self.origin}: more than {_MAX_SKIPPED} changes are too large") from None
                count = max(1, count // 4)
                continue
            if len(changes) > count:
                raise EngineError(f"{self.origin} answers {len(changes)} changes, though {count} were asked for")
            yield [*changes]
            start = start + len(changes)
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
        if not _TIMES_S[0] <= time_s <= _TIMES_S[1]:
            raise EngineError(f"{self.origin}: its clock is wrong: {shown(text)}")
        return time_s

    def _parsed(self, body: bytes) -> list[dict[str, Any]]:
        if sum(map(body.count, (b",", b"[", b"{"))) > MAX_REVIEW_VALUES:
            raise TooLarge  # values take up to a hundred times the memory of their text
        try:
            changes = json.loads(body.removeprefix(_PREFIX))
        except (ValueError, RecursionError):
            changes = None
        if type(changes) is not list or not all(type(change) is dict for change in changes):
            raise self._wrong("it answers no list of changes")
        return changes


_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_VOTED = re.compile(r"Patch Set (\d{1,9}):((?: [^\s:]+)+)")
_GIVEN = re.compile(r"([A-Za-z][\w-]*)([+-]\d{1,2})")
_REMOVED = re.compile(r"^(?:\* |Removed )([A-Za-z][\w-]*)([+-]\d{1,2}) by (.{1,200})$", re.MULTILINE)

Event = dict[str, Any]


def events(change: Mapping[str, Any], after_s: float) -> list[Event]:
    """Return the events of a change since a time, by their time.

    Args:
      change: a ``ChangeInfo`` with `OPTIONS`.
      after_s: epoch seconds.

    Raises:
      RejectedInput: it is no ``ChangeInfo``.
    """
    common = _common(change)
    revisions = {number: revision for revision in _revisions(change) if (number := revision["number"])}
    merged_s = seconds(word(change, "submitted"))
    current = revisions.get(_current(change), {})
    events_of_change = [
        _event("patchset-created", common, revision, revision["createdOn"], uploader=revision["uploader"])
        for revision in revisions.values()
    ]
    events_of_change += [
        _event(kind, common, revisions[number], when, **fields)
        for number, kind, when, fields in (*_votes(change), *_withdrawals(change))
        if number in revisions
    ]
    messages = _commit_messages(change)
    # A vote is of an open change, though the change may be closed by now.
    for event in events_of_change:
        open_then = merged_s is None or (event["eventCreatedOn"] or 0) <= merged_s
        event["change"] = {**common, "status": "NEW" if open_then else common["status"]}
    if common["status"] == "MERGED" and merged_s is not None and current:
        events_of_change.append(
            _event("change-merged", common, current, merged_s, submitter=_account(change, "submitter"))
        )
    for event in events_of_change:
        if message := messages.get(event["patchSet"]["number"]):
            event["change"]["commitMessage"] = message
    dated = [event for event in events_of_change if event["eventCreatedOn"] is not None]
    # A review counts by the parents of its patch set, which may be older; a merge may be of the one before, too.
    reviewed = {
        event["patchSet"]["number"] - back for event in dated if event["eventCreatedOn"] >= after_s for back in (0, 1)
    }
    recent = [
        event
        for event in dated
        if event["eventCreatedOn"] >= after_s
        or (event["type"] == "patchset-created" and event["patchSet"]["number"] in reviewed)
    ]
    return sorted(recent, key=lambda event: event["eventCreatedOn"])


def seconds(text: str) -> int | None:
    """Return the epoch seconds of a time of the API, ``2026-11-26 18:00:00.000000000`` in UTC; None for no time."""
    match = _TIME.match(text)
    try:
        return int(datetime.fromisoformat(match[0]).replace(tzinfo=UTC).timestamp()) if match else None
    except ValueError:
        return None


def _event(kind: str, change: Mapping[str, Any], made: Mapping[str, Any], when: int | None, **more: Any) -> Event:
    return {
        **more,
        "patchSet": dict(made),
        "change": dict(change),
        "project": change["project"],
        "type": kind,
        "eventCreatedOn": when,
    }


def _common(change: Mapping[str, Any]) -> dict[str, Any]:
    number = value(change, "_number")
    if type(number) is not int or not word(change, "project"):
        raise RejectedInput("missing_field", "_number or project")
    return {
        **texts(change, project="project", branch="branch", id="change_id", subject="subject", status="status"),
        "number": number,
        "owner": _account(change, "owner"),
        "createdOn": seconds(word(change, "created")),
    }


def _revisions(change: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    revisions = maybe(change, "revisions")
    for name in list(revisions)[:_MOST]:
        revision = maybe(revisions, name)
        commit = maybe(revision, "commit")
        yield {
            "number": _number(revision),
            "revision": name,
            "parents": [word(parent, "commit") for parent in objects(commit, "parents", most=_MOST)],
            **texts(revision, ref="ref", kind="kind"),
            "uploader": _account(revision, "uploader"),
            "author": _account(commit, "author"),
            "createdOn": seconds(word(revision, "created")),
        }


def _commit_messages(change: Mapping[str, Any]) -> dict[int, str]:
    """Return the commit message of each patch set, as far as it is known."""
    revisions = maybe(change, "revisions")
    messages = {
        _number(maybe(revisions, name)): value(revisions, name, "commit", "message") for name in list(revisions)[:_MOST]
    }
    return {number: message for number, message in messages.items() if type(message) is str}


def _current(change: Mapping[str, Any]) -> int:
    return _number(maybe(maybe(change, "revisions"), word(change, "current_revision")))


def _number(revision: Mapping[str, Any], name: str = "_number") -> int:
    """Return the number of a patch set, 0 where it is no whole number."""
    number = value(revision, name)
    return number if type(number) is int else 0


#: Patch set, type, time and further fields of an event.
_Voted = tuple[int, str, int | None, dict[str, Any]]


def _votes(change: Mapping[str, Any]) -> Iterator[_Voted]:
    """Yield the events of the votes that were given on a known patch set.

    The API lists the votes on the newest patch set, and among them those that Gerrit copied from an earlier one, with
    the time of the copy. A vote that was given has a message of the same person and time, which names it and its patch
    set: a comment within the second of the copy does not name it.
    """
    patchsets: dict[tuple[str, str, str], int] = {}
    for message in objects(change, "messages", most=_MOST):
        text = value(message, "message")
        number = _number(message, "_revision_number")
        for token in _tokens(text) if type(text) is str else ():
            key = (word(message, "author", "_account_id"), word(message, "date"), token)
            patchsets[key] = min(number, patchsets.get(key, number))
    labels = maybe(change, "labels")
    for label in list(labels)[:100]:
        for vote in objects(labels, label, "all", most=_MOST):
            cast = vote.get("value")
            date = word(vote, "date")
            if type(cast) is int and cast:
                number = patchsets.get((word(vote, "_account_id"), date, f"{label}{cast:+d}"), 0)
                yield number, "comment-added", seconds(date), {"author": _person(vote), **_approval(label, cast, 0)}


def _approval(label: str, vote: int | str, before: int | str) -> dict[str, Any]:
    return {"approvals": [{"type": label, "value": str(vote), "oldValue": str(before).lstrip("+")}]}


def _tokens(text: str) -> list[str]:
    """Return what Gerrit says of votes in the first line of a message, such as ``Code-Review+2``."""
    match = _VOTED.match(text)
    return match[2].split() if match else []


def _withdrawals(change: Mapping[str, Any]) -> Iterator[_Voted]:
    """Yield the events of the votes that were taken back or deleted."""
    before: dict[tuple[Any, str], str] = {}
    for message in objects(change, "messages", most=_MOST):
        text = value(message, "message")
        author = _account(message, "author")
        when = seconds(word(message, "date"))
        number = value(message, "_revision_number")
        if type(text) is not str or type(number) is not int:
            continue
        account = word(message, "author", "_account_id")
        if voted := _VOTED.match(text):
            for token in voted[2].split():
                if vote := _GIVEN.fullmatch(token):
                    before[account, vote[1]] = vote[2]
                elif token.startswith("-") and (old := before.pop((account, token[1:]), None)):
                    yield number, "comment-added", when, {"author": author, **_approval(token[1:], 0, old)}
        elif text.startswith("Removed "):
            for label, old, name in _REMOVED.findall(text):
                who = {"reviewer": {"name": name.strip()}, "remover": author}
                yield number, "vote-deleted", when, who | _approval(label, 0, old)


def _account(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _person(maybe(body, name))


def _person(account: Mapping[str, Any]) -> dict[str, Any]:
    return {key: text for key in ("name", "email", "username") if (text := word(account, key))}

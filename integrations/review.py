"""Clients of review systems: the values that they exchange, and their base class.

Each kind of review system has a subclass of `ReviewClient` in ``integrations/SYSTEM/review.py``. A client is blocking
and decides nothing: the outbox chooses when to call it and what to write.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

from ciml.integrations.http import Refused, Rest

#: The markup that a message is rendered for.
Format = Literal["github", "gerrit", "gitlab"]
#: The state of a change: ``missing`` if the system has no such change, or no open change contains the commit.
State = Literal["open", "merged", "abandoned", "missing"]

#: Largest number of accounts in each field of `Reactions`.
MAX_REACTIONS = 100
#: The beginnings of the names of the emojis 👍 and 👎.
_UP = ("+1", "thumbsup")
_DOWN = ("-1", "thumbsdown")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class ChangeRef:
    """A patch set of a change, as the facts of a run name it. All fields are hostile text: encode them in addresses.

    Attributes:
      project: ``owner/name``, a Gerrit project, or the path of a GitLab project.
      change: the number of the change or pull request, unchecked; "" if the event had none (GitHub, forks).
      patchset: the number of the patch set, or a commit; "" if unknown.
      head: the commit that was tested; "" if unknown.
      head_project, head_branch: the repository and branch of the commit; "" if unknown. If the number is unknown, they
        distinguish the change from someone else's change with the same commit.
    """

    project: str
    change: str
    patchset: str = ""
    head: str = ""
    head_project: str = ""
    head_branch: str = ""

    @property
    def number(self) -> str:
        """The number of the change, checked, as part of an address. Raises `Refused` if it is not a number."""
        return checked_number(self.change)

    @property
    def commit(self) -> str:
        """The first of ``head`` and ``patchset`` that is a commit id; "" if none is."""
        commits = (text for text in (self.head, self.patchset) if _COMMIT.fullmatch(text))
        return next(commits, "")


@dataclass(frozen=True, slots=True)
class Head:
    """The present state of a change, read from the system.

    Attributes:
      state: see `State`.
      change: the number of the change, found by the commit if the `ChangeRef` had none.
      patchset: number of the present patch set; "" if the system has no patch sets.
      head: the present commit.
      title: title of the change; hostile text.
      labels: labels of the change (hashtags and topic on Gerrit); hostile texts.
    """

    state: State
    change: str = ""
    patchset: str = ""
    head: str = ""
    title: str = ""
    labels: tuple[str, ...] = ()

    def is_at(self, change: ChangeRef) -> bool:
        """Return whether the patch set of a reference is the present one; False for an unknown patch set."""
        if change.head and self.head:
            return change.head == self.head
        return change.patchset != "" and change.patchset in (self.patchset, self.head)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message in the format of a client.

    Attributes:
      title: one line of plain, inert text: the title of a check run.
      body: the whole message with its marker; at most `ReviewClient.most_bytes` of UTF-8.
      marker: part of ``body``; the same for all messages on a change. `ReviewClient.find` searches for it.
      stamp: part of ``body``: the marker, patch set, verdict and a digest of the text. Equal stamps, equal messages.
      runs: ids of the runs on which ``body`` states a verdict one by one.
    """

    title: str
    body: str
    marker: str
    stamp: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Posted:
    """One of our messages in the system.

    Attributes:
      change: the change of the message, with its number.
      id: id of the message; with ``change`` it is all that `ReviewClient.edit` and `ReviewClient.reactions` need.
      url: address of the message, for people; "" if unknown.
      body: present text of the message, as the system returns it.
    """

    change: ChangeRef
    id: str
    url: str = ""
    body: str = ""


class Reaction(NamedTuple):
    """A reaction to a message.

    Attributes:
      account: who reacted.
      time_us: when, epoch microseconds by the clock of the system; 0 if unknown.
    """

    account: str
    time_us: int = 0


@dataclass(frozen=True, slots=True)
class Reactions:
    """Reactions to a message, the last of each account, without our own; at most `MAX_REACTIONS` in each field.

    Attributes:
      up, down: by 👍 or 👎.
      not_helpful: by a reply with a line "not helpful", in any case, with or without a full stop.
    """

    up: tuple[Reaction, ...] = ()
    down: tuple[Reaction, ...] = ()
    not_helpful: tuple[Reaction, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """A message, a comment or an emoji on a change.

    Attributes:
      id: id in the system; "" for an emoji.
      text: the text, or the name of the emoji.
      author: name of the account; "" if a reaction of this account does not count.
      maker: id of the account or App that made the note, by which we recognise our own; 0 if unknown.
      url: address of the note, for people; "" if unknown.
      created_us: when it was made, epoch microseconds; 0 if unknown.
    """

    id: str
    text: str
    author: str = ""
    maker: int = 0
    url: str = ""
    created_us: int = 0


class ReviewClient(ABC):
    """The client of a configured review system, over its REST API. Every call ends within `CALL_S`.

    A client finds our own message among the notes on a change, and reads the reactions to it. A subclass knows only the
    addresses and types of its system.

    Attributes:
      format: markup of its messages.
      can_edit: whether `edit` changes a message in place.
      can_react: whether reviewers can react to a message with an emoji.
      most_bytes: largest `Rendered.body`, bytes of UTF-8. GitHub accepts the default, and GitLab more.
      of_commit: whether a message is written on a commit, so that it needs the commit and the number of the change.
      unlocated: the error, for people, of a change without a number if no open change has its commit.

    Every method raises:
      Busy: the system asks to wait.
      Refused: it rejects the request, and would reject it again.
      EngineError: it was not reached, or its answer is unreadable. Nothing was changed.
    """

    format: Format
    can_edit: bool = True
    can_react: bool = True
    most_bytes: int = 65_535
    of_commit: ClassVar[bool] = False
    unlocated: ClassVar[str] = "no open change has the commit of the run"

    def __init__(self, rest: Rest) -> None:
        self.rest = rest

    @abstractmethod
    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change."""

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        """Return our own message on a change: the latest with the marker, written by our account. None without one."""
        with self.rest.call():
            located = self._locate(change)
            note = self.find_note(located, marker)
            return _posted(located, note) if note else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        """Create a message. May also raise `Unsettled`."""
        with self.rest.call():
            located = self._locate(change)
            return _posted(located, self.create_note(located, message))

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        """Replace a message, or post it again if the system cannot edit. May also raise `Unsettled`."""
        with self.rest.call():
            return _posted(posted.change, self.replace_note(posted.change, posted.id, message))

    def reactions(self, posted: Posted) -> Reactions:
        """Return the reactions to a message."""
        with self.rest.call():
            emojis = [note for note in self.emojis(posted) if not self._is_own(note)]
            replies = [note for note in self.replies(posted) if _says_not_helpful(note.text) and not self._is_own(note)]
            return Reactions(
                up=_last_reactions(note for note in emojis if note.text.startswith(_UP)),
                down=_last_reactions(note for note in emojis if note.text.startswith(_DOWN)),
                not_helpful=_last_reactions(replies),
            )

    def close(self) -> None:
        """Close connections."""
        self.rest.close()

    @abstractmethod
    def own_id(self) -> int:
        """Return the id of our own account or App."""

    @abstractmethod
    def notes(self, change: ChangeRef) -> Iterable[Note]:
        """Return the notes on a change, the latest first. Our message may be one of them."""

    @abstractmethod
    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        """Create a note on a change."""

    @abstractmethod
    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        """Replace our note with an id, or create another one if the system cannot edit notes."""

    @abstractmethod
    def replies(self, posted: Posted) -> Iterable[Note]:
        """Return the notes after one of our messages."""

    def emojis(self, posted: Posted) -> Iterable[Note]:
        """Return the emojis on one of our messages."""
        return ()

    def _locate(self, change: ChangeRef) -> ChangeRef:
        """Return a change with its number and, if messages are `of_commit`, its commit. Looks up what is unknown."""
        commit = change.commit
        if change.change and (commit or not self.of_commit):
            return replace(change, head=commit)
        head = self.head(change)
        if head.state == "missing":
            raise Refused("not_found", f"{change.project}: {self.unlocated}")
        return replace(change, change=head.change, head=commit or head.head)

    def find_note(self, change: ChangeRef, marker: str) -> Note | None:
        """Return our own latest note with a marker on a change; None if there is none."""
        return next((note for note in self.notes(change) if marker in note.text and self._is_own(note)), None)

    def _is_own(self, note: Note) -> bool:
        return note.maker != 0 and note.maker == self.own_id()


def _posted(change: ChangeRef, note: Note) -> Posted:
    return Posted(change, note.id, note.url, note.text)


def checked_number(text: str) -> str:
    """Return the number of a change or a message. Raises `Refused` for another text."""
    if not _NUMBER.fullmatch(text):
        raise Refused("invalid", f"{text!r:.80} is not the number of a change or a message")
    return str(int(text))


def _says_not_helpful(text: str) -> bool:
    """Return whether a whole line of a text is "not helpful", so that a quotation ("> not helpful") does not count."""
    return any(line.strip().rstrip(".").casefold() == "not helpful" for line in text.splitlines())


def _last_reactions(notes: Iterable[Note]) -> tuple[Reaction, ...]:
    """Return the last reaction of at most `MAX_REACTIONS` authors, in the order of their first one."""
    times: dict[str, int] = {}
    for note in notes:
        if note.author:
            times[note.author] = max(times.get(note.author, 0), note.created_us)
    return tuple(Reaction(*reaction) for reaction in islice(times.items(), MAX_REACTIONS))


def time_us(text: str) -> int:
    """Return a time of an answer, ISO 8601 in UTC, as epoch microseconds; 0 for another text."""
    try:
        moment = datetime.fromisoformat(text)
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1e6)
    except (ValueError, OverflowError):
        return 0

"""Review systems: their configuration, the interface of their clients, and the base class of clients by REST.

Each kind of review system has a subclass of `System`, the table ``[[system]]`` of a feedback configuration, and returns
a `ReviewClient`. A client is blocking and decides nothing: the outbox chooses when to call it and what to write.
"""

from __future__ import annotations

import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from ciml.errors import CimlError
from ciml.events.run_id import check_source_name
from ciml.globs import matches_any
from ciml.http.outgoing import tls_context
from ciml.integrations.http import Refused, Rest, Secret
from ciml.integrations.secrets import NamedSettings, Secrets
from ciml.settings import as_value_error, check_range

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
      change: the number of the change or pull request; "" if the event had none (GitHub, forks).
      patchset: the number of the patch set, or a commit; "" if unknown.
      head: the commit that was tested; "" if unknown.
      head_project, head_branch: the repository and branch of the commit; "" if unknown. Without a number, they tell
        the change from another person's change with the same commit.
    """

    project: str
    change: str
    patchset: str = ""
    head: str = ""
    head_project: str = ""
    head_branch: str = ""

    @property
    def number(self) -> str:
        """The number as part of an address. Raises `Refused` if it is none."""
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
      change: its number, found by the commit if the `ChangeRef` had none.
      patchset: number of the present patch set; "" if the system has no patch sets.
      head: its commit.
      title: of the change; hostile text.
      labels: of the change (hashtags and topic on Gerrit); hostile texts.
    """

    state: State
    change: str = ""
    patchset: str = ""
    head: str = ""
    title: str = ""
    labels: tuple[str, ...] = ()

    def is_at(self, change: ChangeRef) -> bool:
        """Return whether the patch set of a reference is the present one. An unknown patch set is not."""
        if change.head and self.head:
            return change.head == self.head
        return change.patchset != "" and change.patchset in (self.patchset, self.head)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message in the format of a client.

    Attributes:
      title: one line of plain, inert text: the title of a check run.
      body: the whole message with its marker; at most `ReviewClient.most_bytes` of UTF-8.
      marker: part of ``body``; the same for all messages on a change. `ReviewClient.find` looks for it.
      stamp: part of ``body``: the marker, patch set, verdict and a digest of the text. Equal stamps, equal messages.
    """

    title: str
    body: str
    marker: str
    stamp: str


@dataclass(frozen=True, slots=True)
class Posted:
    """One of our messages in the system.

    Attributes:
      change: of the message; its ``change`` is the number that was found.
      id: in the system; with ``change`` it is all that `ReviewClient.edit` and `ReviewClient.reactions` need.
      url: of the message, for people; "" if unknown.
      body: its present text as the system returns it.
    """

    change: ChangeRef
    id: str
    url: str = ""
    body: str = ""


@dataclass(frozen=True, slots=True)
class Reactions:
    """Accounts that reacted to a message, each once, without our own; at most `MAX_REACTIONS` in each field.

    Attributes:
      up, down: by 👍 or 👎.
      not_helpful: by a reply with a line "not helpful", in any case, with or without a full stop.
    """

    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    not_helpful: tuple[str, ...] = ()


class ReviewClient(Protocol):
    """A configured review system. Every call ends within `CALL_S`.

    Attributes:
      format: of its messages.
      can_edit: whether `edit` changes a message in place.
      can_react: whether reviewers can react to a message with an emoji.
      most_bytes: largest `Rendered.body`, bytes of UTF-8.

    Every method raises:
      Busy: if the system asks to wait.
      Refused: if it rejects the request, and would reject it again.
      EngineError: if it was not reached, or its answer is unreadable. Nothing was changed.
    """

    format: Format
    can_edit: bool
    can_react: bool
    most_bytes: int

    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change."""

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        """Return our own message on a change: the latest whose text has the marker and whose author we are."""

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        """Create a message. May also raise `Unsettled`."""

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        """Replace a message, or post it again if the system cannot edit. May also raise `Unsettled`."""

    def reactions(self, posted: Posted) -> Reactions:
        """Return the reactions to a message."""

    def close(self) -> None:
        """Close connections."""


class System(NamedSettings, frozen=True, kw_only=True):
    """A review system.

    Attributes:
      name: of the system: of its outbox, in metrics and messages.
      sources: names of the sources, as in run ids, whose runs test its changes.
      projects: globs of the projects whose changes are there; of several systems, the first that matches takes a run.
      gap_s: least time between two requests that change something, seconds.
      secret_file, secret_env: the file or the environment variable of its secret (token, password, or private key).
      ca_file: certificates that sign the server's; those of the operating system by default.
    """

    title: ClassVar[str] = "system"
    #: The value of the key ``kind``.
    kind: ClassVar[str]
    lists: ClassVar[tuple[str, ...]] = (*NamedSettings.lists, "sources", "projects")
    sources: tuple[str, ...]
    projects: tuple[str, ...] = ("*",)
    gap_s: float = 1.0
    ca_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("sources: name a source of runs, as in run ids")
        for source in self.sources:
            with as_value_error("sources: "):
                check_source_name(source)
        check_range("gap_s", self.gap_s, 0, 600)

    def takes(self, source: str, project: str) -> bool:
        """Return whether runs of a source and project test changes of this system."""
        return source in self.sources and matches_any(self.projects, project)

    def tls(self, folder: Path) -> ssl.SSLContext:
        """Return the settings for https; ``folder`` is that of the configuration. Raises `CimlError`."""
        return tls_context(str(folder / self.ca_file) if self.ca_file else "")

    def secret_reader(self, where: str, folder: Path, content: str, check: Callable[[bytes], bytes]) -> Secret:
        """Return a function that reads the present secret of the system; a changed file is read again.

        Args:
          where, folder: see `client`.
          content: the kind of the secret, for people, such as "a token".
          check: returns a valid secret; raises `ValueError`, whose message describes a valid one.

        Raises:
          CimlError: if there is no secret or more than one, or it is invalid.
        """
        if len(self.secret_file) + len(self.secret_env) != 1:
            raise CimlError(f"{where}: secret_file: name one file, or one variable in secret_env, with {content}")
        secrets = Secrets(where, self, folder, check)
        return lambda: secrets.keys()[0]

    @abstractmethod
    def client(self, where: str, folder: Path) -> ReviewClient:
        """Return a client. It sends nothing before its first call.

        Args:
          where: of the configuration, for messages: file and system.
          folder: of the configuration; relative paths of files are below it.

        Raises:
          CimlError: a secret or a file is missing or invalid.
        """


@dataclass(frozen=True, slots=True)
class Note:
    """A message, a comment or an emoji on a change.

    Attributes:
      id: in the system; "" for an emoji.
      text: the text; the name of an emoji.
      author: name of the account whose reaction it may be; "" for an account whose reactions do not count.
      maker: id of the account or App that made it, which shows whether it is our own; 0 if unknown.
      url: its address, for people; "" if unknown.
    """

    id: str
    text: str
    author: str = ""
    maker: int = 0
    url: str = ""


class RestClient(ABC):
    """A `ReviewClient` by REST. Errors of all methods: see `ReviewClient`.

    It finds our own message among the notes on a change, and reads the reactions to it. A subclass only knows the
    addresses and types of its system.

    Attributes:
      format, can_edit, can_react, most_bytes: see `ReviewClient`. GitHub accepts this size, and GitLab more.
      of_commit: whether a message is written on a commit, so that it needs the commit and the number of the change.
      unlocated: the error, for people, of a change without a number if no open change has its commit.
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

    @abstractmethod
    def own_id(self) -> int:
        """Return the id of our own account or App."""

    @abstractmethod
    def notes(self, change: ChangeRef) -> Iterable[Note]:
        """Return the notes on a change, among which our message may be, the latest first."""

    @abstractmethod
    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        """Create a note on a change."""

    @abstractmethod
    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        """Replace our note with an id, or create another one if the system cannot edit notes."""

    @abstractmethod
    def replies(self, posted: Posted) -> Iterable[Note]:
        """Return the notes that followed a message of ours."""

    def emojis(self, posted: Posted) -> Iterable[Note]:
        """Return the emojis on a message of ours."""
        return ()

    def close(self) -> None:
        """Close connections."""
        self.rest.close()

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        """Return our own latest message on a change."""
        with self.rest.call():
            where = self.located(change)
            note = self.find_note(where, marker)
            return _posted(where, note) if note else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        """Create a message."""
        with self.rest.call():
            where = self.located(change)
            return _posted(where, self.create_note(where, message))

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        """Replace a message."""
        with self.rest.call():
            return _posted(posted.change, self.replace_note(posted.change, posted.id, message))

    def reactions(self, posted: Posted) -> Reactions:
        """Return the reactions to a message."""
        with self.rest.call():
            emojis = [note for note in self.emojis(posted) if not self._is_own(note)]
            replies = [note for note in self.replies(posted) if _says_not_helpful(note.text) and not self._is_own(note)]
            return Reactions(
                up=_distinct_accounts(note.author for note in emojis if note.text.startswith(_UP)),
                down=_distinct_accounts(note.author for note in emojis if note.text.startswith(_DOWN)),
                not_helpful=_distinct_accounts(note.author for note in replies),
            )

    def located(self, change: ChangeRef) -> ChangeRef:
        """Return a change with its number and, `of_commit`, its commit; look up an unknown one."""
        commit = change.commit
        if change.change and (commit or not self.of_commit):
            return replace(change, head=commit)
        head = self.head(change)
        if head.state == "missing":
            raise Refused("not_found", f"{change.project}: {self.unlocated}")
        return replace(change, change=head.change, head=commit or head.head)

    def find_note(self, change: ChangeRef, marker: str) -> Note | None:
        """Return our own latest note with a marker on a change; None without one."""
        return next((note for note in self.notes(change) if marker in note.text and self._is_own(note)), None)

    def _is_own(self, note: Note) -> bool:
        return note.maker != 0 and note.maker == self.own_id()


def _posted(change: ChangeRef, note: Note) -> Posted:
    return Posted(change, note.id, note.url, note.text)


def checked_number(text: str) -> str:
    """Return the number of a change or a note. Raises `Refused` for another text."""
    if not _NUMBER.fullmatch(text):
        raise Refused("invalid", f"{text!r:.80} is not a number of a change")
    return str(int(text))


def _says_not_helpful(text: str) -> bool:
    """Return whether a whole line of a text is "not helpful", so that a quotation ("> not helpful") does not count."""
    return any(line.strip().rstrip(".").casefold() == "not helpful" for line in text.splitlines())


def _distinct_accounts(names: Iterable[str]) -> tuple[str, ...]:
    """Return at most `MAX_REACTIONS` of the names, in order and without repeats."""
    return tuple(dict.fromkeys(name for name in names if name))[:MAX_REACTIONS]

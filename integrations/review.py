"""The interface of review systems: their configuration and their clients.

Each kind of review system has a subclass of `System`, the table ``[[system]]`` of a feedback configuration, and returns
a `ReviewClient`. A client is blocking and decides nothing: the outbox chooses when to call it and what to write.
"""

from __future__ import annotations

import ssl
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from ciml.errors import CimlError, EngineError
from ciml.events.run_id import check_source_name
from ciml.globs import glob_pattern
from ciml.http.outgoing import tls_context
from ciml.settings import Settings, as_value_error, check_range

#: The markup that a message is rendered for.
Format = Literal["github", "gerrit", "gitlab"]

#: Longest duration of a call of a client, seconds, from connecting to the last byte of the answer. The outbox settles a
#: call of unknown outcome only after this time, so that no late request can follow its reading.
CALL_S = 30.0

#: Largest number of accounts in each field of `Reactions`.
MAX_REACTIONS = 100
#: The reason of a `Refused` that concerns our credentials, not this request: it is tried again, until an operator has
#: corrected them.
UNAUTHORIZED = "unauthorized"


class Busy(EngineError):
    """The system asks to wait: 429, 503 with Retry-After, a rate limit. Nothing was changed.

    Attributes:
      retry_after_s: for how long no request may be sent, seconds.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unsettled(EngineError):
    """A request that changes something was sent, and its outcome is unknown: a timeout, a reset, a 5xx."""


class Refused(CimlError):
    """The system rejects this request, and would reject it again: 400, 403, 404, 409, 422. Nothing was changed.

    Attributes:
      reason: a short word from a closed set: ``forbidden``, ``not_found``, ``conflict``, ``invalid``; `UNAUTHORIZED`
        (401) for credentials.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ChangeRef:
    """A patch set of a change, as the facts of a run name it. All fields are hostile text: encode them in addresses.

    Attributes:
      project: ``owner/name``, a Gerrit project, or the path of a GitLab project.
      change: the number of the change or pull request; "" where the event had none (GitHub, forks).
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


@dataclass(frozen=True, slots=True)
class Head:
    """The present state of a change, read from the system.

    Attributes:
      state: ``missing`` where the system has no such change, or no open one contains the commit.
      change: its number, found by the commit where the `ChangeRef` had none.
      patchset: number of the present patch set; "" where the system has none.
      head: its commit.
      title: of the change; hostile text.
      labels: of the change (hashtags and topic on Gerrit); hostile texts.
    """

    state: Literal["open", "merged", "abandoned", "missing"]
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
      body: the whole message, its marker included; at most `ReviewClient.most_bytes` of UTF-8.
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
      not_helpful: by a reply of which a line is "not helpful", in any case, with or without a full stop.
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
      Busy: the system asks to wait.
      Refused: it rejects the request for good.
      EngineError: it was not reached, or its answer is no answer of such a system. Nothing was changed.
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
        """Create a message. Raises `Unsettled` also, if the outcome is unknown."""

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        """Replace a message in place; where the system cannot, post it anew. Raises `Unsettled` also."""

    def reactions(self, posted: Posted) -> Reactions:
        """Return the reactions to a message."""

    def close(self) -> None:
        """Close connections."""


class System(Settings, frozen=True, kw_only=True):
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
    lists: ClassVar[tuple[str, ...]] = ("sources", "projects", "secret_file", "secret_env")
    name: str
    sources: tuple[str, ...]
    projects: tuple[str, ...] = ("*",)
    gap_s: float = 1.0
    secret_file: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    ca_file: str = ""

    def __post_init__(self) -> None:
        with as_value_error("name: "):
            check_source_name(self.name)
        if not self.sources:
            raise ValueError("sources: name a source of runs, as in run ids")
        for source in self.sources:
            with as_value_error("sources: "):
                check_source_name(source)
        check_range("gap_s", self.gap_s, 0, 600)

    def takes(self, source: str, project: str) -> bool:
        """Return whether runs of a source and project test changes of this system."""
        return source in self.sources and glob_pattern(self.projects).fullmatch(project) is not None

    def tls(self, folder: Path) -> ssl.SSLContext:
        """Return the settings for https; ``folder`` is that of the configuration. Raises `CimlError`."""
        return tls_context(str(folder / self.ca_file) if self.ca_file else "")

    @abstractmethod
    def client(self, where: str, folder: Path) -> ReviewClient:
        """Return a client. It sends nothing before its first call.

        Args:
          where: of the configuration, for messages: file and system.
          folder: of the configuration; relative paths of files are below it.

        Raises:
          CimlError: a secret or a file is missing or invalid.
        """

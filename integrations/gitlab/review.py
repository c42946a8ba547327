"""GitLab: one note on the merge request, which is edited in place.

By GitLab's documents of its REST API, version 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import msgspec

from ciml.integrations.http import Query, Refused, Rest, check_base, check_token, path_segment
from ciml.integrations.review import (
    ChangeRef,
    Head,
    Note,
    Posted,
    Rendered,
    ReviewClient,
    State,
    checked_number,
    time_us,
)
from ciml.integrations.systems import System
from ciml.limits import MAX_COMMENT_PAGES

_PAGE = 100
#: "locked" is a merge that is under way.
_STATES: Mapping[str, State] = {"opened": "open", "merged": "merged", "locked": "merged", "closed": "abandoned"}
_RIGHTS = "check the token: scope api, and a role that may comment"


class GitLabSystem(System, frozen=True, kw_only=True):
    """GitLab.

    Attributes:
      server: its address.
    """

    kind: ClassVar[str] = "gitlab"
    server: str = "https://gitlab.com"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_base("server", self.server, "https://gitlab.example.org")

    def client(self, where: str, folder: Path) -> ReviewClient:
        secret = self.secret_reader(where, folder, "a token", check_token)
        server = self.server.rstrip("/")
        tls = self.tls(folder)
        rest = Rest(f"{server}/api/v4", tls, secret, _RIGHTS, lambda token: {"PRIVATE-TOKEN": token.decode()})
        return GitLab(rest, server)


class _User(msgspec.Struct, frozen=True):
    id: int
    username: str = ""


class _MergeRequest(msgspec.Struct, frozen=True):
    iid: int
    state: str
    title: str
    sha: str | None = ""
    labels: list[str] = []
    source_project_id: int | None = None
    target_project_id: int | None = None

    @property
    def is_inside(self) -> bool:
        """Whether it is from a branch of the project itself."""
        return self.source_project_id is not None and self.source_project_id == self.target_project_id

    def to_head(self) -> Head:
        state = _STATES.get(self.state, "missing")
        return Head(state, str(self.iid), head=self.sha or "", title=self.title, labels=tuple(self.labels))


class _Note(msgspec.Struct, frozen=True):
    id: int
    body: str = ""
    author: _User | None = None
    system: bool = False
    created_at: str = ""


class _Award(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None
    created_at: str = ""


class GitLab(ReviewClient):
    """A GitLab.

    Args:
      rest: its API.
      server: its address, for the addresses of notes.
    """

    format = "gitlab"
    unlocated = "no open merge request has the commit of the run"

    def __init__(self, rest: Rest, server: str) -> None:
        super().__init__(rest)
        self._server = server

    def own_id(self) -> int:
        return self.rest.own_id("/user", _User)

    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change.

        Where the event named no merge request, it is the one within the project that is open and has the commit.
        """
        if change.change:
            request = self.rest.lookup(_path(change), _MergeRequest)
            return request.to_head() if request else Head("missing")
        sha = change.commit
        if not sha:
            return Head("missing")
        path = f"/projects/{_project(change)}/repository/commits/{sha}/merge_requests"
        requests = self.rest.lookup(path, list[_MergeRequest], {"state": "opened", "per_page": _PAGE}) or []
        # Anybody may open a merge request of the same commit from a fork; its pipelines are of another project.
        inside = [
            request for request in requests if request.state == "opened" and request.sha == sha and request.is_inside
        ]
        return inside[0].to_head() if len(inside) == 1 else Head("missing")

    def notes(self, change: ChangeRef) -> Iterator[Note]:
        """Yield the notes of people on a merge request. Raises `Refused` if they are too many."""
        query: Query = {"sort": "desc", "order_by": "created_at", "per_page": _PAGE}
        for page in self.rest.pages(f"{_path(change)}/notes", list[_Note], query, MAX_COMMENT_PAGES):
            yield from (self._note(change, note) for note in page if not note.system)

    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        path = f"{_path(change)}/notes"
        return self._note(change, self.rest.send("POST", path, _Note, {"body": message.body}))

    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        path = f"{_path(change)}/notes/{checked_number(note_id)}"
        return self._note(change, self.rest.send("PUT", path, _Note, {"body": message.body}))

    def replies(self, posted: Posted) -> Iterable[Note]:
        ours = int(checked_number(posted.id))
        return takewhile(lambda note: int(note.id) > ours, self.notes(posted.change))

    def emojis(self, posted: Posted) -> Iterable[Note]:
        path = f"{_path(posted.change)}/notes/{checked_number(posted.id)}/award_emoji"
        for emoji in self.rest.get(path, list[_Award], {"per_page": _PAGE}):
            if emoji.user:
                created_us = time_us(emoji.created_at)
                yield Note("", emoji.name, emoji.user.username, emoji.user.id, created_us=created_us)

    def _note(self, change: ChangeRef, note: _Note) -> Note:
        url = f"{self._server}/{quote(change.project)}/-/merge_requests/{change.change}#note_{note.id}"
        author = note.author or _User(0)
        return Note(str(note.id), note.body, author.username, author.id, url, time_us(note.created_at))


def _project(change: ChangeRef) -> str:
    """Return the project as one segment of a path: always a path, because a number would be another project's id."""
    if "/" not in change.project:
        raise Refused("invalid", f"{change.project!r:.80} is not the path of a project, GROUP/NAME")
    return path_segment(change.project)


def _path(change: ChangeRef) -> str:
    return f"/projects/{_project(change)}/merge_requests/{change.number}"

"""GitLab: one note on the merge request, which is edited in place.

By GitLab's documents of its REST API, version 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from ciml.integrations.http import (
    Rest,
    accounts,
    check_base,
    commit,
    number,
    quoted,
    says_not_helpful,
    secret_of,
    token,
)
from ciml.integrations.review import (
    ChangeRef,
    Format,
    Head,
    Posted,
    Reactions,
    Refused,
    Rendered,
    ReviewClient,
    System,
)
from ciml.limits import MAX_COMMENT_PAGES

#: Bytes of a note: GitLab accepts more, a reader does not.
MOST_BYTES = 65_535
_PAGE = 100
_RIGHTS = "check the token: scope api, and a role that may comment"


class GitLabSystem(System, frozen=True, kw_only=True):
    """GitLab.

    Attributes:
      server: its address.
      ca_file: certificates that sign the server's; those of the system by default.
    """

    kind: ClassVar[str] = "gitlab"
    server: str = "https://gitlab.com"
    ca_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_base("server", self.server, "https://gitlab.example.org")

    def client(self, where: str, folder: Path) -> ReviewClient:
        ca_file = str(folder / self.ca_file) if self.ca_file else ""
        secret = secret_of(self, where, folder, "a token", token)
        server = self.server.rstrip("/")
        return GitLab(Rest(f"{server}/api/v4", ca_file, secret, _RIGHTS), secret, server)


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
        # "locked" is a merge that is under way.
        states = {"opened": "open", "merged": "merged", "locked": "merged", "closed": "abandoned"}
        state: Any = states.get(self.state, "missing")
        return Head(state, str(self.iid), head=self.sha or "", title=self.title, labels=tuple(self.labels))


class _Note(msgspec.Struct, frozen=True):
    id: int
    body: str = ""
    author: _User | None = None
    system: bool = False


class _Award(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class GitLab:
    """A GitLab.

    Args:
      rest: its API.
      secret: returns the present token.
      server: its address, for the addresses of notes.
    """

    format: Format = "gitlab"
    can_edit = can_react = True
    most_bytes = MOST_BYTES

    def __init__(self, rest: Rest, secret: Callable[[], bytes], server: str) -> None:
        self._rest = rest
        self._secret = secret
        self._server = server
        self._own = (b"", 0)

    def close(self) -> None:
        """Close connections."""
        self._rest.close()

    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change. Errors: see `ReviewClient`.

        Where the event named no merge request, it is the one within the project that is open and has the commit.
        """
        if change.change:
            request = self._rest.lookup(_path(change), _MergeRequest, self._auth())
            return request.to_head() if request else Head("missing")
        sha = commit(change.head, change.patchset)
        if not sha:
            return Head("missing")
        path = f"/projects/{_project(change)}/repository/commits/{sha}/merge_requests"
        query: Mapping[str, str | int] = {"state": "opened", "per_page": _PAGE}
        requests = self._rest.lookup(path, list[_MergeRequest], self._auth(), query) or []
        # Anybody may open a merge request of the same commit from a fork; its pipelines are of another project.
        inside = [
            request for request in requests if request.state == "opened" and request.sha == sha and request.is_inside
        ]
        return inside[0].to_head() if len(inside) == 1 else Head("missing")

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        with self._rest.call():
            where = self._located(change)
            own_id = self._own_id()
            own_notes = (note for note in self._notes(where) if marker in note.body and _by(note) == own_id)
            latest = next(own_notes, None)
            return self._posted(where, latest) if latest else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        with self._rest.call():
            where = self._located(change)
            sent = {"body": message.body}
            return self._posted(where, self._rest.send("POST", f"{_path(where)}/notes", _Note, self._auth(), sent))

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        path = f"{_path(posted.change)}/notes/{number(posted.id)}"
        note = self._rest.send("PUT", path, _Note, self._auth(), {"body": message.body})
        return self._posted(posted.change, note)

    def reactions(self, posted: Posted) -> Reactions:
        with self._rest.call():
            ours = int(number(posted.id))
            own_id = self._own_id()
            path = f"{_path(posted.change)}/notes/{ours}/award_emoji"
            awards = self._rest.get(path, list[_Award], self._auth(), {"per_page": _PAGE})
            emojis = [(emoji.name, emoji.user.username) for emoji in awards if emoji.user and emoji.user.id != own_id]
            names = []
            for note in self._notes(posted.change):
                if note.id <= ours:
                    break  # the latest come first
                if note.author and note.author.id != own_id and says_not_helpful(note.body):
                    names.append(note.author.username)
            return Reactions(
                up=accounts([name for award, name in emojis if award.startswith("thumbsup")]),
                down=accounts([name for award, name in emojis if award.startswith("thumbsdown")]),
                not_helpful=accounts(names),
            )

    def _auth(self) -> Mapping[str, str]:
        return {"PRIVATE-TOKEN": self._secret().decode()}

    def _own_id(self) -> int:
        secret = self._secret()
        if self._own[0] != secret:  # a rotated token of a project is of another account
            self._own = (secret, self._rest.get("/user", _User, self._auth()).id)
        return self._own[1]

    def _located(self, change: ChangeRef) -> ChangeRef:
        if change.change:
            return change
        head = self.head(change)
        if head.state == "missing":
            raise Refused("not_found", f"{change.project}: no open merge request has the commit of the run")
        return ChangeRef(change.project, head.change, change.patchset, change.head)

    def _notes(self, change: ChangeRef) -> Iterator[_Note]:
        """Yield the notes of people on a merge request, the latest first. Raises `Refused` if they are too many."""
        query: Mapping[str, str | int] = {"sort": "desc", "order_by": "created_at", "per_page": _PAGE}
        for page in self._rest.pages(f"{_path(change)}/notes", list[_Note], self._auth(), query, MAX_COMMENT_PAGES):
            yield from (note for note in page if not note.system)

    def _posted(self, change: ChangeRef, note: _Note) -> Posted:
        url = f"{self._server}/{quote(change.project)}/-/merge_requests/{change.change}#note_{note.id}"
        return Posted(change, str(note.id), url, note.body)


def _by(note: _Note) -> int:
    return note.author.id if note.author else 0


def _project(change: ChangeRef) -> str:
    """Return the project as one segment of a path: always a path, because a number would be another project's id."""
    if "/" not in change.project:
        raise Refused("invalid", f"{change.project!r:.80} is no path of a project, GROUP/NAME")
    return quoted(change.project)


def _path(change: ChangeRef) -> str:
    return f"/projects/{_project(change)}/merge_requests/{number(change.change)}"

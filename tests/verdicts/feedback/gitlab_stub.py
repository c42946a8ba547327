"""A GitLab on loopback: merge requests, notes, emoji and quick actions, as GitLab's documents of its API describe them.

No real GitLab can be had here, and there is no description to check against in a package: what is proved with it is
the client against these documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tests.verdicts.feedback.stub import Answer, Asked, ReviewServer

OWN, OWN_ID, TOKEN = "project_5_bot_ciml", 500, "glpat-0123456789abcdefghij"
PROJECT = "group/sub/widget"
_QUICK_ACTION = re.compile(r"(?m)^/([a-z_]+)\b.*$")


@dataclass
class MergeRequest:
    """A merge request."""

    iid: int
    sha: str
    title: str = "A change"
    state: str = "opened"
    labels: list[str] = field(default_factory=list)
    locked: bool = False
    source: int = 5


class GitLabServer(ReviewServer):
    """The server. It has one project, `PROJECT`.

    Attributes:
      requests: its merge requests.
      notes: of all merge requests, as the API shows them.
      awards: by note: (emoji, account).
      commands: quick actions that notes have carried out; no text of ciml may have one.
      account: of the token: login and id.
      token: the present one; a new one of a project is a new account.
      scope: of the token.
      filters: whether it knows the key ``state`` of a commit's merge requests, as older versions do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: dict[int, MergeRequest] = {}
        self.notes: list[dict[str, Any]] = []
        self.awards: dict[int, list[tuple[str, str]]] = {}
        self.commands: list[str] = []
        self.token, self.account = TOKEN, (OWN, OWN_ID)
        self.scope, self.filters = "api", True

    def request(self, iid: int, sha: str, **more: Any) -> MergeRequest:
        """Add or replace a merge request."""
        self.requests[iid] = MergeRequest(iid, sha, **more)
        return self.requests[iid]

    def says(self, iid: int, body: str, login: str = "cleo", *, system: bool = False) -> dict[str, Any]:
        """Add somebody's note."""
        note = {"id": 300 + len(self.notes), "body": body, "author": self._user(login), "system": system}
        note |= {"noteable_iid": iid, "noteable_type": "MergeRequest", "attachment": None, "internal": False}
        note["created_at"] = f"2026-11-30T11:{len(self.notes) % 60:02}:00.000Z"
        self.notes.append(note)
        return note

    def messages(self, iid: int) -> list[str]:
        """Return the texts of ciml's notes on a merge request."""
        return [note["body"] for note in self.notes if note["noteable_iid"] == iid and note["author"]["id"] == OWN_ID]

    def answer(self, asked: Asked) -> Answer:
        if asked.headers.get("private-token") != self.token:
            return Answer(401, {"message": "401 Unauthorized"})
        if self.scope != "api" and asked.writes:
            return Answer(403, {"error": "insufficient_scope", "error_description": "higher privileges are needed"})
        match asked.method, *asked.parts[2:]:
            case "GET", "user":
                return Answer(200, self._user(self.account[0]))
            case "GET", "projects", project, "repository", "commits", sha, "merge_requests" if project == PROJECT:
                state = asked.query.get("state") if self.filters else None
                found = [one for one in self.requests.values() if one.sha == sha and state in (None, one.state)]
                return self.page(asked, [self._shown(one) for one in found], 20)
            case _, "projects", project, "merge_requests", iid, *rest if project == PROJECT and iid.isdigit():
                if request := self.requests.get(int(iid)):
                    return self._request_answer(asked, request, rest)
        return Answer(404, {"message": "404 Not Found"})

    def _request_answer(self, asked: Asked, request: MergeRequest, rest: list[str]) -> Answer:
        known = {"sort", "order_by", "per_page", "page"} if asked.method == "GET" else set()
        if rest == ["notes"] and (unknown := asked.query.keys() - known):
            self.violations.append(f"{asked.method} notes: GitLab knows no {sorted(unknown)}")
        notes = [note for note in self.notes if note["noteable_iid"] == request.iid]
        by_id = {str(note["id"]): note for note in notes}
        match asked.method, *rest:
            case ("GET",):
                return Answer(200, self._shown(request))
            case "GET", "notes":
                return self.page(asked, notes[:: 1 if asked.query.get("sort") == "asc" else -1], 20)
            case "POST", "notes":
                return self._write(asked, request, None)
            case "PUT", "notes", number if number in by_id:
                return self._write(asked, request, by_id[number])
            case "GET", "notes", number, "award_emoji" if number in by_id:
                awards = enumerate(self.awards.get(int(number), []), 1)
                emojis = [
                    {"id": n, "name": name, "user": self._user(login), "created_at": f"2026-11-30T10:00:{n:02}.000Z"}
                    for n, (name, login) in awards
                ]
                return self.page(asked, emojis, 20)
        return Answer(404, {"error": "404 Not Found"})

    def _write(self, asked: Asked, request: MergeRequest, note: dict[str, Any] | None) -> Answer:
        body = (asked.body or {}).get("body")
        if set(asked.body or ()) != {"body"} or not isinstance(body, str):
            self.violations.append(f"{asked.method} notes: {sorted(asked.body or ())}")
            return Answer(400, {"error": "body is missing"})
        if request.locked or (note is not None and note["author"]["id"] != self.account[1]):
            return Answer(403, {"message": "403 Forbidden"})
        if not body.strip() or len(body) > 1_000_000:
            return Answer(400, {"message": "400 Bad request - Note is too long or blank"})
        self.commands += _QUICK_ACTION.findall(body)
        self.effects.append(asked)
        if note is None:
            return Answer(201, self.says(request.iid, body, self.account[0]))
        if note["body"] == body:
            self.violations.append(f"an edit without a change: {asked.path}")
        note["body"] = body
        return Answer(200, note)

    def _shown(self, one: MergeRequest) -> dict[str, Any]:
        return {"id": 1000 + one.iid, "iid": one.iid, "project_id": 5, "title": one.title, "description": "",
                "state": one.state, "labels": one.labels, "sha": one.sha, "author": self._user("cleo"),
                "source_project_id": one.source, "target_project_id": 5}  # fmt: skip

    def _user(self, login: str) -> dict[str, Any]:
        user_id = {self.account[0]: self.account[1], OWN: OWN_ID}.get(login, 1 + sum(map(ord, login)))
        return {"id": user_id, "username": login, "name": login.title(), "state": "active", "avatar_url": None}

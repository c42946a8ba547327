"""A GitLab on loopback: merge requests, notes, emoji and quick actions, as GitLab's documents of its API describe them.

No real GitLab can be had here, and there is no description to check against in a package: what is proved with it is
the client against these documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tests.verdicts.feedback.stub import Answer, Asked, Fault, ReviewServer, says

OWN, OWN_ID, TOKEN = "project_5_bot_ciml", 500, "glpat-0123456789abcdefghij"
PROJECT = "group/sub/widget"
_NOTE_CHARACTERS = 1_000_000
_QUICK_ACTION = re.compile(r"(?m)^/([a-z_]+)\b.*$")
_KNOWN = {"GET notes": {"sort", "order_by", "per_page", "page"}, "POST notes": set(), "PUT notes": set()}


def limited(retry_after_s: int | None = 7) -> Fault:
    """GitLab's limit: a plain text, with Retry-After unless a proxy has removed it."""
    return says(429, "Retry later", {} if retry_after_s is None else {"Retry-After": str(retry_after_s)})


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
        self._last_id = 300

    def request(self, iid: int, sha: str, **more: Any) -> MergeRequest:
        """Add or replace a merge request."""
        made = self.requests[iid] = MergeRequest(iid, sha, **more)
        return made

    def says(self, iid: int, body: str, login: str = "cleo", *, system: bool = False) -> dict[str, Any]:
        """Add somebody's note."""
        self._last_id += 1
        user_id = self.account[1] if login == self.account[0] else 1 + sum(map(ord, login))
        at = f"2026-11-26T10:{self._last_id // 60 % 60:02}:{self._last_id % 60:02}.000Z"
        note = {
            "id": self._last_id, "body": body, "attachment": None, "author": _user(login, user_id), "created_at": at,
            "updated_at": at, "system": system, "noteable_id": 1000 + iid, "noteable_type": "MergeRequest",
            "project_id": 5, "noteable_iid": iid, "resolvable": False, "confidential": False, "internal": False,
        }  # fmt: skip
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
        parts = asked.parts
        if parts == ("api", "v4", "user"):
            return Answer(200, _user(*self.account))
        if parts[:3] != ("api", "v4", "projects") or len(parts) < 5:
            return Answer(404, {"error": "404 Not Found"})
        if parts[3] != PROJECT:
            return Answer(404, {"message": "404 Project Not Found"})
        if parts[4:6] == ("repository", "commits") and parts[7:] == ("merge_requests",):
            found = [one for one in self.requests.values() if one.sha == parts[6]]
            state = asked.query.get("state") if self.filters else None
            return self._page(asked, [self._shown(one) for one in found if state in (None, one.state)])
        if parts[4] != "merge_requests" or not parts[5].isdigit() or int(parts[5]) not in self.requests:
            return Answer(404, {"message": "404 Not found"})
        request = self.requests[int(parts[5])]
        return Answer(200, self._shown(request)) if len(parts) == 6 else self._notes(asked, request, parts[6:])

    def _notes(self, asked: Asked, request: MergeRequest, rest: tuple[str, ...]) -> Answer:
        if rest[0] != "notes":
            return Answer(404, {"error": "404 Not Found"})
        if len(rest) == 1 and (unknown := asked.query.keys() - _KNOWN[f"{asked.method} notes"]):
            self.violations.append(f"{asked.method} notes: GitLab knows no {sorted(unknown)}")
        if len(rest) == 1 and asked.method == "GET":
            found = [one for one in self.notes if one["noteable_iid"] == request.iid]
            return self._page(asked, found[:: 1 if asked.query.get("sort") == "asc" else -1])
        if len(rest) == 1 and asked.method == "POST":
            return self._write(asked, request, None)
        note = next(
            (one for one in self.notes if str(one["id"]) == rest[1] and one["noteable_iid"] == request.iid), None
        )
        if note is None:
            return Answer(404, {"message": "404 Note Not Found"})
        if rest[2:] == ("award_emoji",) and asked.method == "GET":
            awards = self.awards.get(note["id"], [])
            return self._page(asked, [
                {"id": n, "name": name, "user": _user(login, OWN_ID if login == OWN else 1 + sum(map(ord, login))),
                 "awardable_id": note["id"], "awardable_type": "Note"}
                for n, (name, login) in enumerate(awards, 1)
            ])  # fmt: skip
        return self._write(asked, request, note) if asked.method == "PUT" else Answer(405, {"error": "405 Not Allowed"})

    def _write(self, asked: Asked, request: MergeRequest, note: dict[str, Any] | None) -> Answer:
        body = (asked.body or {}).get("body")
        if set(asked.body or ()) != {"body"} or not isinstance(body, str):
            self.violations.append(f"{asked.method} notes: {sorted(asked.body or ())}")
            return Answer(400, {"error": "body is missing"})
        if request.locked or (note is not None and note["author"]["id"] != self.account[1]):
            return Answer(403, {"message": "403 Forbidden"})
        if not body.strip() or len(body) > _NOTE_CHARACTERS:
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
                "state": one.state, "labels": one.labels, "sha": one.sha, "author": _user("cleo", 2),
                "source_project_id": one.source, "target_project_id": 5,
                "web_url": f"{self.url}/{PROJECT}"}  # fmt: skip

    def _page(self, asked: Asked, items: list[Any]) -> Answer:
        size, page = min(int(asked.query.get("per_page", 20)), 100), int(asked.query.get("page", 1))
        more = len(items) > size * page
        link = f'<{self.url}/elsewhere?page=1>; rel="first"' + (f', <{self.url}/x?page=9>; rel="next"' if more else "")
        headers = {"X-Next-Page": str(page + 1) if more else "", "Link": link}
        return Answer(200, items[size * (page - 1) : size * page], headers)


def _user(login: str, user_id: int) -> dict[str, Any]:
    return {"id": user_id, "username": login, "name": login.title(), "state": "active", "avatar_url": None,
            "web_url": f"https://gitlab.example.org/{login}"}  # fmt: skip

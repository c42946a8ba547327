"""A GitHub on loopback: Apps, tokens, pull requests, comments, check runs and reactions, with GitHub's own rules.

Every request and every answer is checked against GitHub's own description. The shape of an answer is that of the
description's examples, with the stub's own facts. What the description does not say is from GitHub's documents: the
errors' texts, the lengths, what Apps and tokens may do, and that a fork's commits have no pull requests.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.verdicts.feedback.openapi import Contract, ContractError
from tests.verdicts.feedback.stub import Answer, Asked, Fault, ReviewServer, says

OWN, OWN_ID = "ciml-robot", 7001
TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
APP, INSTALLATION = 4711, 815
#: Characters of a comment; bytes of the summary of a check run.
_COMMENT, _SUMMARY = 65_536, 65_535
_BEGIN_US = 1_764_000_000_000_000


def limited(retry_after_s: int | None = None, *, status: int = 429) -> Fault:
    """The primary limit: nothing is left until the reset; with or without Retry-After."""
    after = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    reset = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 2)} if not after else {}
    return says(status, "API rate limit exceeded for user ID 7001.", after | reset)


def secondary(retry_after_s: int | None = None) -> Fault:
    """The secondary limit: 403, and not always with Retry-After."""
    after = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return says(403, "You have exceeded a secondary rate limit. Please wait a few minutes.", after)


@dataclass
class Pull:
    """A pull request; ``fork``: its commits are in a fork alone; ``base``: it is one of another repository."""

    number: int
    sha: str
    title: str = "A change"
    state: str = "open"
    merged: bool = False
    labels: list[str] = field(default_factory=list)
    fork: str = ""
    branch: str = "fix"
    locked: bool = False
    base: str = ""


@dataclass
class Comment:
    """A comment on a pull request."""

    id: int
    pull: int
    body: str
    login: str
    user_id: int
    at: str
    app: int = 0
    reactions: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Repository:
    """A repository."""

    pulls: dict[int, Pull] = field(default_factory=dict)
    comments: list[Comment] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)


class _Failed(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GitHubServer(ReviewServer):
    """The server.

    Args:
      contract: GitHub's description.

    Attributes:
      repositories: by ``owner/name``.
      key: of the App, PEM.
      rights: of the tokens of its installation.
      tokens: of installations: their end, epoch seconds, and rights.
      accounts: login and id, by their tokens.
      token_s: for which they last, seconds.
      installation: of the App, 0 where it is not installed.
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self._contract = contract
        self.repositories: dict[str, Repository] = {"octo/widget": Repository()}
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        ).decode()
        self._public = private.public_key()
        self.tokens: dict[str, tuple[float, Mapping[str, str]]] = {}
        self.rights: Mapping[str, str] = {"checks": "write", "pull_requests": "write", "metadata": "read"}
        self.accounts = {TOKEN: (OWN, OWN_ID)}
        self.token_s = 3600.0
        self.installation = INSTALLATION
        self._last_id = 1000
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
            (method, re.compile(pattern), handler)
            for method, pattern, handler in (
                ("GET", "user", self._user),
                ("GET", "repos/(?P<repo>[^/]+/[^/]+)/installation", self._installation),
                ("POST", r"app/installations/(?P<number>\d+)/access_tokens", self._access_token),
                ("GET", r"repos/(?P<repo>[^/]+/[^/]+)/pulls/(?P<number>\d+)", self._pull),
                ("GET", "repos/(?P<repo>[^/]+/[^/]+)/pulls", self._pulls),
                ("GET", "repos/(?P<repo>[^/]+/[^/]+)/commits/(?P<sha>[^/]+)/pulls", self._pulls_of),
                ("GET", "repos/(?P<repo>[^/]+/[^/]+)/commits/(?P<sha>[^/]+)/check-runs", self._check_runs),
                ("POST", "repos/(?P<repo>[^/]+/[^/]+)/check-runs", self._new_check),
                ("GET", r"repos/(?P<repo>[^/]+/[^/]+)/check-runs/(?P<number>\d+)", self._check_run),
                ("PATCH", r"repos/(?P<repo>[^/]+/[^/]+)/check-runs/(?P<number>\d+)", self._edit_check),
                ("GET", r"repos/(?P<repo>[^/]+/[^/]+)/issues/(?P<number>\d+)/comments", self._comments),
                ("POST", r"repos/(?P<repo>[^/]+/[^/]+)/issues/(?P<number>\d+)/comments", self._new_comment),
                ("GET", r"repos/(?P<repo>[^/]+/[^/]+)/issues/comments/(?P<number>\d+)", self._comment),
                ("PATCH", r"repos/(?P<repo>[^/]+/[^/]+)/issues/comments/(?P<number>\d+)", self._edit_comment),
                ("GET", r"repos/(?P<repo>[^/]+/[^/]+)/issues/comments/(?P<number>\d+)/reactions", self._reactions),
            )
        ]

    def pull(self, number: int, sha: str, repo: str = "octo/widget", **more: Any) -> Pull:
        """Add or replace a pull request."""
        made = self.repositories[repo].pulls[number] = Pull(number, sha, **more)
        return made

    def says(self, number: int, body: str, login: str = "cleo", repo: str = "octo/widget") -> Comment:
        """Add somebody's comment."""
        user_id = OWN_ID if login == OWN else 1 + sum(map(ord, login))
        made = Comment(self._next_id(), number, body, login, user_id, self._now())
        self.repositories[repo].comments.append(made)
        return made

    def messages(self, number: int, repo: str = "octo/widget") -> list[str]:
        """Return the texts of ciml's messages on a pull request: comments, and check runs of its present commit."""
        found = self.repositories[repo]
        sha = found.pulls[number].sha
        comments = [one.body for one in found.comments if one.pull == number and (one.user_id == OWN_ID or one.app)]
        return comments + [one["output"]["summary"] for one in found.checks if one["head_sha"] == sha]

    # -- requests

    def answer(self, asked: Asked) -> Answer:
        path = asked.path.strip("/")
        try:
            self._contract.check_request(asked.method, asked.path, asked.query, asked.body)
            self._check_headers(asked)
            answer = self._handle(asked, path)
        except ContractError as error:
            self.violations.append(str(error))
            return Answer(422, {"message": f"Validation Failed: {error}", "documentation_url": "https://docs"})
        except _Failed as failed:
            documented = {"message": str(failed), "documentation_url": "https://docs.github.com/rest"}
            answer = Answer(failed.status, documented)
        try:
            self._contract.check_answer(asked.method, asked.path, answer.status, answer.body)
        except ContractError as error:
            self.violations.append(f"the stub itself: {error}")
        return answer

    def _handle(self, asked: Asked, path: str) -> Answer:
        for method, pattern, handler in self._routes:
            found = pattern.fullmatch(path)
            if found and method == asked.method:
                values = found.groupdict()
                if "repo" in values:
                    repo = self.repositories.get(values.pop("repo").replace("%2F", "/"))
                    if repo is None:
                        raise _Failed(404, "Not Found")
                    return handler(asked, repo, **values)
                return handler(asked, **values)
        raise _Failed(404, "Not Found")

    def _check_headers(self, asked: Asked) -> None:
        for name, value in (("accept", "application/vnd.github+json"), ("x-github-api-version", "2022-11-28")):
            if asked.headers.get(name) != value:
                self.violations.append(f"{asked.method} {asked.path}: {name} is {asked.headers.get(name)!r}")
        if not asked.headers.get("user-agent"):
            raise _Failed(403, "Request forbidden by administrative rules: a User-Agent is needed.")

    def _credential(self, asked: Asked) -> tuple[str, Mapping[str, str]]:
        """Return who asks (``token``, ``app`` or ``installation``) and its rights."""
        scheme, _, secret = asked.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not secret:
            raise _Failed(401, "Requires authentication")
        if secret in self.accounts:
            return "token", {"pull_requests": "write"}
        if secret in self.tokens:
            until_s, rights = self.tokens[secret]
            if time.time() > until_s:
                raise _Failed(401, "Bad credentials")
            return "installation", rights
        try:
            claims = jwt.decode(
                secret, self._public, ["RS256"], issuer=str(APP), options={"require": ["exp", "iat", "iss"]}
            )
        except jwt.InvalidTokenError:
            raise _Failed(401, "A JSON web token could not be decoded") from None
        if claims["exp"] > time.time() + 600:
            raise _Failed(401, "'Expiration time' claim ('exp') is too far in the future")
        return "app", {}

    def _may(self, asked: Asked, right: str, level: str = "read") -> str:
        who, rights = self._credential(asked)
        if who == "app" or (rights.get(right, "") not in (level, "write")):
            name = "integration" if who != "token" else "personal access token"
            raise _Failed(403, f"Resource not accessible by {name}")
        return who

    # -- accounts

    def _user(self, asked: Asked) -> Answer:
        if self._credential(asked)[0] != "token":
            raise _Failed(403, "Resource not accessible by integration")
        example = self._contract.example("private-user-response-with-public-and-private-profile-information")
        login, user_id = self._account(asked)
        return Answer(200, {**example, "login": login, "id": user_id, "user_view_type": "private"})

    def _account(self, asked: Asked) -> tuple[str, int]:
        return self.accounts[asked.headers["authorization"].partition(" ")[2]]

    def _installation(self, asked: Asked, repo: Repository) -> Answer:
        self._must_be_app(asked)
        if not self.installation:
            raise _Failed(404, "Not Found")
        return Answer(200, {**self._contract.example("installation"), "id": self.installation, "app_id": APP})

    def _access_token(self, asked: Asked, number: str) -> Answer:
        self._must_be_app(asked)
        if int(number) != self.installation:
            raise _Failed(404, "Not Found")
        wanted = (asked.body or {}).get("permissions", self.rights)
        if any(self.rights.get(name) not in (level, "write") for name, level in wanted.items()):
            raise _Failed(422, "The permissions requested are not granted to this installation.")
        made = f"ghs_{len(self.tokens):036d}"
        until_s = time.time() + self.token_s
        self.tokens[made] = (until_s, {**wanted, "metadata": "read"})
        at = datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Answer(201, {"token": made, "expires_at": at, "permissions": wanted, "repository_selection": "all"})

    def _must_be_app(self, asked: Asked) -> None:
        if self._credential(asked)[0] != "app":
            raise _Failed(401, "A JSON web token could not be decoded")

    # -- pull requests

    def _pull(self, asked: Asked, repo: Repository, number: str) -> Answer:
        self._may(asked, "pull_requests")
        if int(number) not in repo.pulls:
            raise _Failed(404, "Not Found")
        return Answer(200, self._shown("pull-request", repo.pulls[int(number)], repo))

    def _pulls(self, asked: Asked, repo: Repository) -> Answer:
        self._may(asked, "pull_requests")
        state = asked.query.get("state", "open")
        found = [one for one in repo.pulls.values() if one.state == state and not one.base]
        found.sort(key=lambda one: one.number, reverse=asked.query.get("direction") == "desc")
        return self._page(asked, [self._simple(one, repo) for one in found])

    def _pulls_of(self, asked: Asked, repo: Repository, sha: str) -> Answer:
        self._may(asked, "pull_requests")
        found = [one for one in repo.pulls.values() if one.sha == sha]
        if not found:
            raise _Failed(422, f"No commit found for SHA: {sha}")
        return self._page(asked, [self._simple(one, repo) for one in found if not one.fork])

    def _simple(self, pull: Pull, repo: Repository) -> dict[str, Any]:
        return self._shown("pull-request-simple-items", pull, repo)

    def _shown(self, name: str, pull: Pull, repo: Repository) -> dict[str, Any]:
        example = self._contract.example(name)
        shown: dict[str, Any] = example[0] if isinstance(example, list) else example
        label = shown["labels"][0]
        full_name = next(key for key, value in self.repositories.items() if value is repo)
        for side in ("head", "base"):
            whole = {**shown[side]["repo"], "full_name": pull.base or full_name}
            shown[side] = {**shown[side], "repo": whole}
        shown["head"] |= {"sha": pull.sha, "ref": pull.branch}
        if pull.fork:
            shown["head"]["repo"] = {**shown["head"]["repo"], "full_name": pull.fork, "fork": True}
        return shown | {
            "number": pull.number,
            "title": pull.title,
            "state": pull.state,
            "merged_at": "2025-11-25T00:00:00Z" if pull.merged else None,
            "labels": [{**label, "name": one} for one in pull.labels],
            "requested_teams": [],
            "locked": pull.locked,
        } | ({"merged": pull.merged} if name == "pull-request" else {})  # fmt: skip

    # -- comments

    def _comments(self, asked: Asked, repo: Repository, number: str) -> Answer:
        self._may(asked, "pull_requests")
        since = asked.query.get("since", "")
        found = [one for one in repo.comments if one.pull == int(number) and one.at >= since]
        return self._page(asked, [self._comment_shown(one) for one in found])

    def _new_comment(self, asked: Asked, repo: Repository, number: str) -> Answer:
        who = self._may(asked, "pull_requests", "write")
        pull = repo.pulls.get(int(number))
        if pull is None:
            raise _Failed(404, "Not Found")
        if pull.locked:
            raise _Failed(403, "Unable to create comment because issue is locked.")
        self._check_comment(asked.body["body"])
        app = APP if who == "installation" else 0
        login, user_id = ("ciml[bot]", 9000) if app else self._account(asked)
        made = Comment(self._next_id(), pull.number, asked.body["body"], login, user_id, self._now(), app)
        repo.comments.append(made)
        self.effects.append(asked)
        return Answer(201, self._comment_shown(made))

    def _comment(self, asked: Asked, repo: Repository, number: str) -> Answer:
        self._may(asked, "pull_requests")
        return Answer(200, self._comment_shown(self._comment_of(repo, number)))

    def _edit_comment(self, asked: Asked, repo: Repository, number: str) -> Answer:
        who = self._may(asked, "pull_requests", "write")
        comment = self._comment_of(repo, number)
        if comment.app != (APP if who == "installation" else 0) or (
            who == "token" and comment.user_id != self._account(asked)[1]
        ):
            raise _Failed(403, "Resource not accessible: the comment is another account's.")
        self._check_comment(asked.body["body"])
        if asked.body["body"] == comment.body:
            self.violations.append(f"an edit without a change: {asked.path}")
        comment.body = asked.body["body"]
        self.effects.append(asked)
        return Answer(200, self._comment_shown(comment))

    def _reactions(self, asked: Asked, repo: Repository, number: str) -> Answer:
        self._may(asked, "pull_requests")
        comment, (example,) = self._comment_of(repo, number), self._contract.example("reaction-items")
        found = [
            {**example, "id": n, "content": content, "user": {**example["user"], "login": login, "id": n}}
            for n, (content, login) in enumerate(comment.reactions, 1)
        ]
        return self._page(asked, found)

    def _comment_of(self, repo: Repository, number: str) -> Comment:
        for one in repo.comments:
            if one.id == int(number):
                return one
        raise _Failed(404, "Not Found")

    def _check_comment(self, body: str) -> None:
        if not body.strip():
            raise _Failed(422, "Validation Failed: Body cannot be blank")
        if len(body) > _COMMENT:
            raise _Failed(422, f"Validation Failed: Body is too long (maximum is {_COMMENT} characters)")

    def _comment_shown(self, comment: Comment) -> dict[str, Any]:
        example = self._contract.example("issue-comment")
        user = {**example["user"], "login": comment.login, "id": comment.user_id}
        user["type"] = "Bot" if comment.app else "User"
        app = self._app() if comment.app else None
        url = f"{self.url}/octo/widget/pull/{comment.pull}#issuecomment-{comment.id}"
        return {**example, "id": comment.id, "body": comment.body, "user": user, "html_url": url,
                "created_at": comment.at, "updated_at": comment.at, "performed_via_github_app": app}  # fmt: skip

    # -- check runs

    def _check_runs(self, asked: Asked, repo: Repository, sha: str) -> Answer:
        self._may(asked, "checks")
        found = [
            one for one in repo.checks
            if one["head_sha"] == sha and asked.query.get("check_name", one["name"]) == one["name"]
        ]  # fmt: skip
        page = self._page(asked, found)
        return Answer(200, {"total_count": len(found), "check_runs": page.body}, page.headers)

    def _new_check(self, asked: Asked, repo: Repository) -> Answer:
        who, rights = self._credential(asked)
        if who != "installation":
            raise _Failed(403, "You must authenticate via a GitHub App.")
        if rights.get("checks") != "write":
            raise _Failed(403, "Resource not accessible by integration")
        sha = asked.body["head_sha"]
        if not any(one.sha == sha for one in repo.pulls.values()):
            raise _Failed(422, f"No commit found for SHA: {sha}")
        made = self._checked(asked.body, {"id": self._next_id(), "head_sha": sha, "name": asked.body["name"]})
        repo.checks.append(made)
        self.effects.append(asked)
        return Answer(201, made)

    def _check_run(self, asked: Asked, repo: Repository, number: str) -> Answer:
        self._may(asked, "checks")
        return Answer(200, self._check_of(repo, number))

    def _check_of(self, repo: Repository, number: str) -> dict[str, Any]:
        for one in repo.checks:
            if one["id"] == int(number):
                return one
        raise _Failed(404, "Not Found")

    def _edit_check(self, asked: Asked, repo: Repository, number: str) -> Answer:
        if self._credential(asked)[0] != "installation":
            raise _Failed(403, "You must authenticate via a GitHub App.")
        found = self._check_of(repo, number)
        if found["output"]["summary"] == asked.body.get("output", {}).get("summary"):
            self.violations.append(f"an edit without a change: {asked.path}")
        found.update(self._checked(asked.body, found))
        self.effects.append(asked)
        return Answer(200, found)

    def _checked(self, body: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        # The description lets this pass; GitHub does not.
        if body.get("status") == "completed" and "conclusion" not in body:
            raise _Failed(422, 'Invalid request. "conclusion" wasn\'t supplied.')
        output = body.get("output", {})
        if len(output.get("summary", "").encode()) > _SUMMARY:
            raise _Failed(422, f"Invalid request. Only {_SUMMARY} characters are allowed; the summary has more.")
        example = self._contract.example("check-run-example-of-completed-conclusion")
        shown = {**example["output"], "title": output.get("title"), "summary": output.get("summary"), "text": None}
        url = f"{self.url}/octo/widget/runs/{known['id']}"
        return {**example, **known, "html_url": url, "output": shown, "pull_requests": [], "app": self._app(),
                "external_id": body.get("external_id", ""), "conclusion": body.get("conclusion"),
                "completed_at": self._now()}  # fmt: skip

    # -- all

    def _app(self) -> dict[str, Any]:
        return {**self._contract.example("integration"), "id": APP, "slug": "ciml"}

    def _page(self, asked: Asked, items: list[Any]) -> Answer:
        size, page = min(int(asked.query.get("per_page", 30)), 100), int(asked.query.get("page", 1))
        more = len(items) > size * page
        link = {"Link": f'<{self.url}/elsewhere?page={page + 1}>; rel="next"'} if more else {}
        return Answer(200, items[size * (page - 1) : size * page], link)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _now(self) -> str:
        # A clock of its own, which goes on with each use: the order is that of the requests.
        return datetime.fromtimestamp((_BEGIN_US + self._last_id * 1_000_000) / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

"""A GitHub on loopback: Apps, tokens, pull requests, comments, check runs and reactions, with GitHub's own rules.

Every request and every answer is checked against GitHub's own description. The shape of an answer is that of the
description's examples, with the stub's own facts. What the description does not say is from GitHub's documents: the
errors' texts, the lengths, what Apps and tokens may do, and that a fork's commits have no pull requests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.verdicts.feedback.openapi import Contract, ContractError
from tests.verdicts.feedback.stub import Answer, Asked, ReviewServer

OWN, OWN_ID = "ciml-robot", 7001
TOKEN = "ghp_0123456789abcdefghijklmnopqrstuvwxyz"
APP, INSTALLATION = 4711, 815
REPOSITORY = "octo/widget"


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
    base: str = REPOSITORY


@dataclass
class Comment:
    """A comment on a pull request; ``reactions``: (emoji, account)."""

    id: int
    pull: int
    body: str
    login: str
    user_id: int
    at: str
    app: int = 0
    reactions: list[tuple[str, str]] = field(default_factory=list)


class _Failed(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GitHubServer(ReviewServer):
    """The server. It has one repository, `REPOSITORY`.

    Attributes:
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
        self.pulls: dict[int, Pull] = {}
        self.comments: list[Comment] = []
        self.checks: list[dict[str, Any]] = []
        self.key = (
            _key()
            .private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
            .decode()
        )
        self.tokens: dict[str, tuple[float, Mapping[str, str]]] = {}
        self.rights: Mapping[str, str] = {"checks": "write", "pull_requests": "write", "metadata": "read"}
        self.accounts = {TOKEN: (OWN, OWN_ID)}
        self.token_s = 3600.0
        self.installation = INSTALLATION
        self._last_id = 1000

    def pull(self, number: int, sha: str, **more: Any) -> Pull:
        """Add or replace a pull request."""
        self.pulls[number] = Pull(number, sha, **more)
        return self.pulls[number]

    def says(self, number: int, body: str, login: str = "cleo", user_id: int = 0, app: int = 0) -> Comment:
        """Add somebody's comment. Each is a second later than the one before."""
        user_id = user_id or (OWN_ID if login == OWN else 1 + sum(map(ord, login)))
        self.comments.append(Comment(self._next_id(), number, body, login, user_id, self._now(), app))
        return self.comments[-1]

    def messages(self, number: int) -> list[str]:
        """Return the texts of ciml's messages on a pull request: comments, and check runs of its present commit."""
        own = [one.body for one in self.comments if one.pull == number and (one.user_id == OWN_ID or one.app)]
        sha = self.pulls[number].sha
        return own + [one["output"]["summary"] for one in self.checks if one["head_sha"] == sha]

    def answer(self, asked: Asked) -> Answer:
        try:
            self._contract.check_request(asked.method, asked.path, asked.query, asked.body)
            for name, value in (("accept", "application/vnd.github+json"), ("x-github-api-version", "2022-11-28")):
                if asked.headers.get(name) != value:
                    self.violations.append(f"{asked.method} {asked.path}: {name} is {asked.headers.get(name)!r}")
            if not asked.headers.get("user-agent"):
                raise _Failed(403, "Request forbidden by administrative rules: a User-Agent is needed.")
            answer = self._account_answer(asked)
            if answer.status < 400 and asked.writes and asked.parts[0] == "repos":
                self.effects.append(asked)
        except ContractError as error:
            self.violations.append(str(error))
            return Answer(422, {"message": f"Validation Failed: {error}", "documentation_url": "https://docs"})
        except _Failed as failed:
            answer = Answer(failed.status, {"message": str(failed), "documentation_url": "https://docs.github.com"})
        try:
            self._contract.check_answer(asked.method, asked.path, answer.status, answer.body)
        except ContractError as error:
            self.violations.append(f"the stub itself: {error}")
        return answer

    def _account_answer(self, asked: Asked) -> Answer:
        """Answer requests about the account or the App, and let `_repository_answer` answer the others."""
        who, rights = self._credential(asked)
        match asked.method, *asked.parts:
            case "GET", "user":
                _demand(who == "token", 403, "Resource not accessible by integration")
                login, user_id = self._account(asked)
                example = self._contract.example("private-user-response-with-public-and-private-profile-information")
                return Answer(200, {**example, "login": login, "id": user_id, "user_view_type": "private"})
            case "GET", "repos", _, _, "installation":
                _demand(who == "app", 401, "A JSON web token could not be decoded")
                _demand(bool(self.installation), 404, "Not Found")
                example = self._contract.example("installation")
                return Answer(200, {**example, "id": self.installation, "app_id": APP})
            case "POST", "app", "installations", number, "access_tokens":
                _demand(who == "app", 401, "A JSON web token could not be decoded")
                _demand(int(number) == self.installation, 404, "Not Found")
                return self._access_token((asked.body or {}).get("permissions", self.rights))
            case _, "repos", owner, name, *rest:
                _demand(f"{owner}/{name}" == REPOSITORY, 404, "Not Found")
                needed = "checks" if "check-runs" in rest else "pull_requests"
                levels = ("write",) if asked.writes else ("read", "write")
                integration = "integration" if who != "token" else "personal access token"
                _demand(rights.get(needed) in levels, 403, f"Resource not accessible by {integration}")
                return self._repository_answer(asked, who, rest)
        raise _Failed(404, "Not Found")

    def _repository_answer(self, asked: Asked, who: str, rest: list[str]) -> Answer:
        match asked.method, *rest:
            case "GET", "pulls":
                found = [one for one in self.pulls.values() if one.state == asked.query.get("state", "open")]
                found.sort(key=lambda one: one.number, reverse=asked.query.get("direction") == "desc")
                shown = [self._shown("pull-request-simple-items", one) for one in found if one.base == REPOSITORY]
                return self.page(asked, shown, 30)
            case "GET", "pulls", number:
                return Answer(200, self._shown("pull-request", _one(self.pulls.get(int(number)))))
            case "GET", "commits", sha, "pulls":
                found = [one for one in self.pulls.values() if one.sha == sha]
                _demand(bool(found), 422, f"No commit found for SHA: {sha}")
                shown = [self._shown("pull-request-simple-items", one) for one in found if not one.fork]
                return self.page(asked, shown, 30)
            case "GET", "issues", number, "comments":
                since = asked.query.get("since", "")
                comments = [one for one in self.comments if one.pull == int(number) and one.at >= since]
                return self.page(asked, [self._comment_shown(one) for one in comments], 30)
            case "POST", "issues", number, "comments":
                pull = _one(self.pulls.get(int(number)))
                _demand(not pull.locked, 403, "Unable to create comment because issue is locked.")
                body = _checked_comment(asked.body["body"])
                by_app = who == "installation"
                login, user_id = ("ciml[bot]", 9000) if by_app else self._account(asked)
                return Answer(201, self._comment_shown(self.says(pull.number, body, login, user_id, APP * by_app)))
            case "GET", "issues", "comments", number:
                return Answer(200, self._comment_shown(self._comment(number)))
            case "PATCH", "issues", "comments", number:
                comment = self._comment(number)
                own = comment.app == APP if who == "installation" else comment.user_id == self._account(asked)[1]
                _demand(own, 403, "Resource not accessible: the comment is another account's.")
                self._must_differ(asked, comment.body, asked.body["body"])
                comment.body = _checked_comment(asked.body["body"])
                return Answer(200, self._comment_shown(comment))
            case "GET", "issues", "comments", number, "reactions":
                (example,) = self._contract.example("reaction-items")
                comment = self._comment(number)
                shown = {**example, "created_at": comment.at}
                reactions = [
                    {**shown, "id": n, "content": content, "user": {**example["user"], "login": login, "id": n}}
                    for n, (content, login) in enumerate(comment.reactions, 1)
                ]
                return self.page(asked, reactions, 30)
            case "GET", "commits", sha, "check-runs":
                name = asked.query.get("check_name")
                runs = [one for one in self.checks if one["head_sha"] == sha and name in (None, one["name"])]
                page = self.page(asked, runs, 30)
                return Answer(200, {"total_count": len(runs), "check_runs": page.body}, page.headers)
            case "POST", "check-runs":
                sha = asked.body["head_sha"]
                _demand(any(one.sha == sha for one in self.pulls.values()), 422, f"No commit found for SHA: {sha}")
                known = {"id": self._next_id(), "head_sha": sha, "name": asked.body["name"]}
                self.checks.append(self._checked_run(asked.body, known))
                return Answer(201, self.checks[-1])
            case (("GET" | "PATCH"), "check-runs", number):
                run: dict[str, Any] = _one(next((one for one in self.checks if one["id"] == int(number)), None))
                if asked.method == "GET":
                    return Answer(200, run)
                self._must_differ(asked, run["output"]["summary"], asked.body.get("output", {}).get("summary"))
                run.update(self._checked_run(asked.body, run))
                return Answer(200, run)
        raise _Failed(404, "Not Found")

    def _credential(self, asked: Asked) -> tuple[str, Mapping[str, str]]:
        """Return who asks (``token``, ``app`` or ``installation``) and its rights."""
        scheme, _, secret = asked.headers.get("authorization", "").partition(" ")
        _demand(scheme == "Bearer" and bool(secret), 401, "Requires authentication")
        if secret in self.accounts:
            return "token", {"pull_requests": "write"}
        if secret in self.tokens:
            until_s, rights = self.tokens[secret]
            _demand(time.time() <= until_s, 401, "Bad credentials")
            return "installation", rights
        required = {"require": ["exp", "iat", "iss"]}
        try:
            claims = jwt.decode(secret, _key().public_key(), ["RS256"], issuer=str(APP), options=required)  # type: ignore[arg-type]
        except jwt.InvalidTokenError:
            raise _Failed(401, "A JSON web token could not be decoded") from None
        _demand(claims["exp"] <= time.time() + 600, 401, "'Expiration time' claim ('exp') is too far in the future")
        return "app", {}

    def _account(self, asked: Asked) -> tuple[str, int]:
        return self.accounts[asked.headers["authorization"].partition(" ")[2]]

    def _access_token(self, asked_rights: Mapping[str, str]) -> Answer:
        granted = all(self.rights.get(name) in (level, "write") for name, level in asked_rights.items())
        _demand(granted, 422, "The permissions requested are not granted to this installation.")
        made, until_s = f"ghs_{len(self.tokens):036d}", time.time() + self.token_s
        self.tokens[made] = (until_s, {**asked_rights, "metadata": "read"})
        shown = {"token": made, "expires_at": _time(until_s), "permissions": asked_rights}
        return Answer(201, {**shown, "repository_selection": "all"})

    def _shown(self, name: str, pull: Pull) -> dict[str, Any]:
        example = self._contract.example(name)
        shown: dict[str, Any] = example[0] if isinstance(example, list) else example
        shown["base"]["repo"]["full_name"] = pull.base
        shown["head"]["repo"] |= {"full_name": pull.fork or pull.base, "fork": bool(pull.fork)}
        shown["head"] |= {"sha": pull.sha, "ref": pull.branch}
        shown["labels"] = [{**shown["labels"][0], "name": one} for one in pull.labels]
        merged_at = "2025-11-25T00:00:00Z" if pull.merged else None
        shown |= {"number": pull.number, "title": pull.title, "state": pull.state, "merged_at": merged_at}
        shown |= {"requested_teams": [], "locked": pull.locked}
        return shown | ({"merged": pull.merged} if name == "pull-request" else {})

    def _comment(self, number: str) -> Comment:
        return _one(next((one for one in self.comments if one.id == int(number)), None))

    def _comment_shown(self, comment: Comment) -> dict[str, Any]:
        example = self._contract.example("issue-comment")
        kind = "Bot" if comment.app else "User"
        example["user"] |= {"login": comment.login, "id": comment.user_id, "type": kind}
        url = f"{self.url}/{REPOSITORY}/pull/{comment.pull}#issuecomment-{comment.id}"
        shown = {"id": comment.id, "body": comment.body, "html_url": url, "created_at": comment.at}
        app = self._app() if comment.app else None
        return {**example, **shown, "updated_at": comment.at, "performed_via_github_app": app}

    def _checked_run(self, body: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """Return a check run as GitHub stores it; its description lets pass what is rejected here."""
        lacks = body.get("status") == "completed" and "conclusion" not in body
        _demand(not lacks, 422, 'Invalid request. "conclusion" wasn\'t supplied.')
        output = body.get("output", {})
        _demand(len(output.get("summary", "").encode()) <= 65_535, 422, "Only 65535 characters are allowed; too long.")
        example = self._contract.example("check-run-example-of-completed-conclusion")
        example["output"] |= {"title": output.get("title"), "summary": output.get("summary"), "text": None}
        url = f"{self.url}/{REPOSITORY}/runs/{known['id']}"
        more = {"external_id": body.get("external_id", ""), "conclusion": body.get("conclusion")}
        return {**example, **known, "output": example["output"], "html_url": url, "pull_requests": [],
                "app": self._app(), "completed_at": self._now(), **more}  # fmt: skip

    def _must_differ(self, asked: Asked, before: str, after: str | None) -> None:
        if before == after:
            self.violations.append(f"an edit without a change: {asked.path}")

    def _app(self) -> dict[str, Any]:
        return {**self._contract.example("integration"), "id": APP, "slug": "ciml"}

    def _now(self) -> str:
        return _time(1_764_000_000 + self._last_id)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _demand(holds: bool, status: int, message: str) -> None:
    if not holds:
        raise _Failed(status, message)


def _one(found: Any) -> Any:
    _demand(found is not None, 404, "Not Found")
    return found


def _checked_comment(body: str) -> str:
    _demand(bool(body.strip()), 422, "Validation Failed: Body cannot be blank")
    _demand(len(body) <= 65_536, 422, "Validation Failed: Body is too long (maximum is 65536 characters)")
    return body

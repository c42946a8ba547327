"""The review client of GitHub and GitHub Enterprise Server: a check run of an App, or a comment on the pull request.

It uses version 2022-11-28 of the REST API.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from ciml.integrations.http import Query, Refused, Rest, Secret, check_base, check_token, path_segment
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

API = "https://api.github.com"
_PAGE = 100
#: The pull requests whose heads are compared with a commit of a fork, the latest updated first: pages and pull requests
#: per page. GitHub's answer has up to 100 KB per pull request.
_RECENT_PAGES = 3
_RECENT = 50
#: A suite has at most 1,000 check runs of one name.
_CHECK_PAGES = 10
#: The lifetime of a token that signs for an App, seconds, and the time by which our clock may be ahead of GitHub's.
#: GitHub permits a lifetime of 600 s by its own clock.
_SIGNED_S = 540
_CLOCK_S = 60
#: The last seconds of the hour that an installation's token lasts; it is not used then.
_SPARE_S = 300.0
#: The largest number of repositories whose tokens are remembered.
_MOST_TOKENS = 1000


class GitHubSystem(System, frozen=True, kw_only=True):
    """GitHub.

    Attributes:
      api: address of the REST API; a GitHub Enterprise Server has ``https://HOST/api/v3``.
      app: id of the App whose private key is the secret; 0 if the secret is a token.
      report: ``check`` writes a check run, which only an App may; ``comment`` writes one comment on the pull request.
        By default an App writes check runs.
      check: name of the check run.
    """

    kind: ClassVar[str] = "github"
    api: str = API
    app: int = 0
    report: Literal["", "check", "comment"] = ""
    check: str = "ciml"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_base("api", self.api, API)
        if self.app < 0:
            raise ValueError(f"app: {self.app} is not the id of an App")
        if self.report == "check" and not self.app:
            raise ValueError('report: only an App may write check runs; set app, or report = "comment"')
        if not 0 < len(self.check) <= 100 or not self.check.isprintable():
            raise ValueError(f"check: {self.check!r:.120} is not a valid name of a check run")

    def client(self, where: str, folder: Path) -> ReviewClient:
        checks = bool(self.app) and self.report != "comment"
        content, check = ("the private key of the App", private_key) if self.app else ("a token", check_token)
        secret = self.secret_reader(where, folder, content, check)
        right = "Checks: write and Pull requests: read" if checks else "Pull requests: write"
        hint = f"check {'the App' if self.app else 'the token'} and its rights: {right}"
        if not self.app:
            return Comments(Rest(self.api, self.tls(folder), secret, hint, _bearer), 0)
        rights = {"checks": "write", "pull_requests": "read"} if checks else {"pull_requests": "write"}
        api = AppRest(self.api, self.tls(folder), secret, hint, self.app, rights)
        return CheckRuns(api, self.app, self.check) if checks else Comments(api, self.app)


class _User(msgspec.Struct, frozen=True):
    id: int = 0
    login: str = ""
    type: str = ""


class _Identified(msgspec.Struct, frozen=True):
    """An App or an installation."""

    id: int = 0


class _Token(msgspec.Struct, frozen=True):
    token: str
    expires_at: str


def _bearer(secret: bytes) -> Mapping[str, str]:
    return {
        "Accept": "application/vnd.github+json",
        "X-GitHub-Api-Version": "2022-11-28",
        "Authorization": f"Bearer {secret.decode()}",
    }


class AppRest(Rest):
    """The API for an App, whose key signs for a token of each installation.

    Args:
      base, tls, secret, hint: see `Rest`; the secret is the private key, PEM.
      app: id of the App.
      rights: the permissions of the requested tokens, by GitHub's names, even if the App has further ones.
    """

    def __init__(
        self, base: str, tls: ssl.SSLContext, secret: Secret, hint: str, app: int, rights: Mapping[str, str]
    ) -> None:
        super().__init__(base, tls, secret, hint, self._signed)
        self._app = app
        self._app_rights = rights
        self._tokens: dict[str, tuple[str, float]] = {}  # (token, epoch seconds of its end) by repository

    def auth(self, path: str) -> Mapping[str, str]:
        """Return the headers of a request about the App itself, or with a token of the repository in its path."""
        _, kind, *names = path.split("/")  # /app/… or /repos/OWNER/NAME/…
        is_about_app = kind == "app" or names[2:] == ["installation"]
        if is_about_app:
            return super().auth(path)
        repository = "/".join(names[:2])
        access_token, end_s = self._tokens.get(repository, ("", 0.0))
        if time.time() > end_s - _SPARE_S:
            access_token = self._new_token(repository)
        return _bearer(access_token.encode())

    def forget(self) -> None:
        self._tokens.clear()

    def _new_token(self, repository: str) -> str:
        """Request a token. The installation is queried each time, because the App may have been installed again."""
        installation = self.lookup(f"/repos/{repository}/installation", _Identified)
        if installation is None:
            hint = f"the App {self._app} is not installed on {repository}: install it there"
            raise Refused("forbidden", hint)
        path = f"/app/installations/{installation.id}/access_tokens"
        answer = self.send("POST", path, _Token, {"permissions": dict(self._app_rights)}, changes=False)
        access_token = check_token(answer.token.encode()).decode()
        if len(self._tokens) > _MOST_TOKENS:
            self.forget()
        self._tokens[repository] = (access_token, datetime.fromisoformat(answer.expires_at).timestamp())
        return access_token

    def _signed(self, key: bytes) -> Mapping[str, str]:
        import jwt

        now = int(time.time())
        claims = {"iat": now - _CLOCK_S, "exp": now - _CLOCK_S + _SIGNED_S, "iss": str(self._app)}
        return _bearer(jwt.encode(claims, key, "RS256").encode())


def private_key(secret: bytes) -> bytes:
    """Return a secret if it is a private key of an App. Raises `ValueError` if it is none."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(secret, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("is no RSA private key in PEM, as GitHub makes for an App")
    return secret


class _Named(msgspec.Struct, frozen=True):
    name: str | None = ""


class _Repository(msgspec.Struct, frozen=True):
    full_name: str = ""


class _Branch(msgspec.Struct, frozen=True):
    sha: str
    ref: str = ""
    repo: _Repository | None = None


class _Pull(msgspec.Struct, frozen=True):
    number: int
    state: str
    title: str
    head: _Branch
    base: _Branch
    merged_at: str | None = None
    labels: list[_Named] = []

    def is_from(self, change: ChangeRef, sha: str) -> bool:
        """Return whether it is open, and its head is a commit of the repository and branch of a reference."""
        ours = self.head.repo is not None and self.head.repo.full_name.lower() == change.head_project.lower()
        return self.state == "open" and self.head.sha == sha and ours and self.head.ref == change.head_branch

    def to_head(self) -> Head:
        state: State = "open" if self.state == "open" else "merged" if self.merged_at else "abandoned"
        labels = tuple(label.name for label in self.labels if label.name)
        return Head(state, str(self.number), head=self.head.sha, title=self.title, labels=labels)


class _Comment(msgspec.Struct, frozen=True):
    id: int
    created_at: str
    body: str = ""
    html_url: str = ""
    user: _User | None = None
    performed_via_github_app: _Identified | None = None


class _Output(msgspec.Struct, frozen=True):
    summary: str | None = None


class _CheckRun(msgspec.Struct, frozen=True):
    id: int
    output: _Output
    html_url: str | None = None
    completed_at: str | None = None
    app: _Identified | None = None


class _CheckRunPage(msgspec.Struct, frozen=True):
    check_runs: list[_CheckRun]


class _Reaction(msgspec.Struct, frozen=True):
    content: str
    user: _User | None = None
    created_at: str = ""


class GitHub(ReviewClient):
    """The part of the client that check runs and comments share: the state of a pull request, and its comments.

    Args:
      rest: the API.
      app: id of the App that calls it; 0 if the owner of a token does.
    """

    format = "github"
    unlocated = "no pull request has the number or commit of the run"

    def __init__(self, rest: Rest, app: int) -> None:
        super().__init__(rest)
        self.app = app

    def own_id(self) -> int:
        return self.app or self.rest.own_id("/user", _User)

    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change.

        Without a number, the change is the open pull request from the repository and branch of the commit.
        """
        with self.rest.call():
            if change.change:
                pull = self.rest.lookup(f"{_place(change)}/pulls/{change.number}", _Pull)
            else:
                pull = self._find_pull(change)
            return pull.to_head() if pull else Head("missing")

    def _find_pull(self, change: ChangeRef) -> _Pull | None:
        """Return the only open pull request with the commit, repository and branch of a run; None for several or none.

        The commit alone is not proof: anybody may open a pull request with the same head from a branch of their own.
        """
        sha = change.commit
        if not (sha and change.head_project and change.head_branch):
            return None
        pulls = {pull.number: pull for pull in self._pulls_with_commit(change, sha) if pull.is_from(change, sha)}
        return next(iter(pulls.values())) if len(pulls) == 1 else None

    def _pulls_with_commit(self, change: ChangeRef, sha: str) -> Iterator[_Pull]:
        """Yield pull requests of the repository that may have a commit as their head.

        GitHub lists the pull requests that contain a commit, unless the commit is only in a fork: then the latest
        updated pull requests are read too.
        """
        place = _place(change)
        absent = ("not_found", "invalid")  # 422: no such commit
        pulls = self.rest.lookup(f"{place}/commits/{sha}/pulls", list[_Pull], {"per_page": _RECENT}, absent) or []
        # GitHub also lists pull requests of other repositories of the network.
        own_pulls = [
            pull for pull in pulls if pull.base.repo and pull.base.repo.full_name.lower() == change.project.lower()
        ]
        yield from own_pulls
        if any(pull.is_from(change, sha) for pull in own_pulls):
            return
        query: Query = {"state": "open", "sort": "updated", "direction": "desc", "per_page": _RECENT}
        # `pages` rejects a list that is longer than its limit; here the rest of a longer list is left out.
        pages = self.rest.pages(f"{place}/pulls", list[_Pull], query, _RECENT_PAGES + 1)
        for pulls in islice(pages, _RECENT_PAGES):
            yield from pulls
            if any(pull.is_from(change, sha) for pull in pulls):
                return

    def comments(self, change: ChangeRef, since: str = "") -> Iterator[_Comment]:
        """Yield the comments on a pull request, all or those since a time; `Refused` if they are too many."""
        query: Query = {"per_page": _PAGE} | ({"since": since} if since else {})
        for page in self.rest.pages(_comments_path(change), list[_Comment], query, MAX_COMMENT_PAGES):
            yield from (comment for comment in page if comment.created_at >= since)

    def note(self, comment: _Comment) -> Note:
        """Return a comment as a note. Comments of bots are not reactions, so their notes have no author."""
        user = comment.user or _User()
        by_app = comment.performed_via_github_app or _Identified()
        maker = by_app.id if self.app else user.id
        author = user.login if user.type != "Bot" else ""
        url = self.rest.own_url(comment.html_url)
        return Note(str(comment.id), comment.body, author, maker, url, time_us(comment.created_at))


class Comments(GitHub):
    """One comment on the pull request, which is edited in place."""

    def notes(self, change: ChangeRef) -> Iterable[Note]:
        return map(self.note, sorted(self.comments(change), key=lambda comment: comment.id, reverse=True))

    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        return self.note(self.rest.send("POST", _comments_path(change), _Comment, {"body": message.body}))

    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        return self.note(self.rest.send("PATCH", _comment_path(change, note_id), _Comment, {"body": message.body}))

    def replies(self, posted: Posted) -> Iterable[Note]:
        ours = self.rest.get(_comment_path(posted.change, posted.id), _Comment)
        return (self.note(comment) for comment in self.comments(posted.change, ours.created_at) if comment.id > ours.id)

    def emojis(self, posted: Posted) -> Iterable[Note]:
        path = f"{_comment_path(posted.change, posted.id)}/reactions"
        for emoji in self.rest.get(path, list[_Reaction], {"per_page": _PAGE}):
            if emoji.user:
                maker = 0 if self.app else emoji.user.id
                yield Note("", emoji.content, emoji.user.login, maker, created_us=time_us(emoji.created_at))


class CheckRuns(GitHub):
    """A neutral check run on the commit, which never blocks a merge.

    It accepts no emojis; reviewers react to it by a comment "not helpful" on the pull request.
    """

    of_commit = True
    can_react = False

    def __init__(self, rest: Rest, app: int, name: str) -> None:
        super().__init__(rest, app)
        self._name = name

    def notes(self, change: ChangeRef) -> Iterable[Note]:
        query: Query = {"check_name": self._name, "app_id": self.app, "filter": "all", "per_page": _PAGE}
        path = f"{_place(change)}/commits/{change.head}/check-runs"
        pages = self.rest.pages(path, _CheckRunPage, query, _CHECK_PAGES)
        runs = [run for page in pages for run in page.check_runs]
        return map(self._run_note, sorted(runs, key=lambda run: run.id, reverse=True))

    def create_note(self, change: ChangeRef, message: Rendered) -> Note:
        body = {"name": self._name, "head_sha": change.head, **_finished_run(message)}
        return self._run_note(self.rest.send("POST", f"{_place(change)}/check-runs", _CheckRun, body))

    def replace_note(self, change: ChangeRef, note_id: str, message: Rendered) -> Note:
        return self._run_note(
            self.rest.send("PATCH", _check_run_path(change, note_id), _CheckRun, _finished_run(message))
        )

    def replies(self, posted: Posted) -> Iterable[Note]:
        run = self.rest.get(_check_run_path(posted.change, posted.id), _CheckRun)
        return map(self.note, self.comments(posted.change, run.completed_at or ""))

    def _run_note(self, run: _CheckRun) -> Note:
        maker = run.app.id if run.app else 0
        return Note(str(run.id), run.output.summary or "", "", maker, self.rest.own_url(run.html_url or ""))


def _finished_run(message: Rendered) -> Mapping[str, object]:
    # Neutral, because ciml does not decide whether a change may be merged.
    output = {"title": message.title, "summary": message.body}
    return {"status": "completed", "conclusion": "neutral", "output": output}


def _place(change: ChangeRef) -> str:
    """Return the path of the repository of a change. Raises `Refused` if its project is not ``owner/name``."""
    owner, _, name = change.project.partition("/")
    return f"/repos/{path_segment(owner)}/{path_segment(name)}"


def _comments_path(change: ChangeRef) -> str:
    return f"{_place(change)}/issues/{change.number}/comments"


def _comment_path(change: ChangeRef, note_id: str) -> str:
    return f"{_place(change)}/issues/comments/{checked_number(note_id)}"


def _check_run_path(change: ChangeRef, note_id: str) -> str:
    return f"{_place(change)}/check-runs/{checked_number(note_id)}"

"""GitHub: a check run of an App, or one comment on the pull request. GitHub Enterprise Server is the same.

By GitHub's description of its REST API, version 2022-11-28.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from ciml.integrations.github.auth import App, Author, GitHubApp, Identity, TokenOwner, private_key, repository
from ciml.integrations.http import Rest, accounts, check_base, commit, number, says_not_helpful, secret_of, token
from ciml.integrations.review import (
    UNAUTHORIZED,
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

API = "https://api.github.com"
#: Bytes of a comment and of the summary of a check run.
MOST_BYTES = 65_535
_PAGE = 100
#: Pull requests whose heads are compared with a commit of a fork, the latest updated first: pages and their size. A
#: page of GitHub has up to 100 KB a pull request.
_RECENT_PAGES = 3
_RECENT = 50
#: A suite has at most 1,000 check runs of one name.
_CHECK_PAGES = 10

T = TypeVar("T")


class GitHubSystem(System, frozen=True, kw_only=True):
    """GitHub.

    Attributes:
      api: address of the REST API; a GitHub Enterprise Server has ``https://HOST/api/v3``.
      app: id of the App whose private key is the secret; 0 where the secret is a token.
      report: ``check`` writes a check run, which only an App may; ``comment`` writes one comment on the pull request.
        By default an App writes check runs.
      check: name of the check run.
      ca_file: certificates that sign the server's; those of the system by default.
    """

    kind: ClassVar[str] = "github"
    api: str = API
    app: int = 0
    report: Literal["", "check", "comment"] = ""
    check: str = "ciml"
    ca_file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_base("api", self.api, API)
        if self.app < 0:
            raise ValueError(f"app: {self.app} is no id of an App")
        if self.report == "check" and not self.app:
            raise ValueError('report: only an App may write check runs; set app, or report = "comment"')
        if not 0 < len(self.check) <= 100 or not self.check.isprintable():
            raise ValueError(f"check: {self.check!r:.120} is no name of a check run")

    def client(self, where: str, folder: Path) -> ReviewClient:
        checks = bool(self.app) and self.report != "comment"
        ca_file = str(folder / self.ca_file) if self.ca_file else ""
        content, check = ("the private key of the App", private_key) if self.app else ("a token", token)
        secret = secret_of(self, where, folder, content, check)
        right = "Checks: write and Pull requests: read" if checks else "Pull requests: write"
        api = Rest(self.api, ca_file, secret, f"check {'the App' if self.app else 'the token'} and its rights: {right}")
        rights = {"checks": "write", "pull_requests": "read"} if checks else {"pull_requests": "write"}
        identity = GitHubApp(api, self.app, secret, rights) if self.app else TokenOwner(api, secret)
        return CheckRuns(api, identity, self.check, self.app) if checks else Comments(api, identity)


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
        state: Any = "open" if self.state == "open" else "merged" if self.merged_at else "abandoned"
        labels = tuple(label.name for label in self.labels if label.name)
        return Head(state, str(self.number), head=self.head.sha, title=self.title, labels=labels)


class _Comment(msgspec.Struct, frozen=True):
    id: int
    created_at: str
    body: str = ""
    html_url: str = ""
    user: Author | None = None
    performed_via_github_app: App | None = None


class _Output(msgspec.Struct, frozen=True):
    summary: str | None = None


class _CheckRun(msgspec.Struct, frozen=True):
    id: int
    head_sha: str
    output: _Output
    html_url: str | None = None
    completed_at: str | None = None
    app: App | None = None


class _CheckRunPage(msgspec.Struct, frozen=True):
    check_runs: list[_CheckRun]


class _Reaction(msgspec.Struct, frozen=True):
    content: str
    user: Author | None = None


class GitHub:
    """What check runs and comments share: requests, and the state of a pull request."""

    format: Format = "github"
    can_edit = True
    can_react: ClassVar[bool]
    most_bytes = MOST_BYTES
    #: Whether a message needs the commit beside the number of the pull request.
    of_commit: ClassVar[bool]

    def __init__(self, rest: Rest, identity: Identity) -> None:
        self.rest = rest
        self.identity = identity

    def close(self) -> None:
        """Close connections."""
        self.rest.close()

    def head(self, change: ChangeRef) -> Head:
        """Return the present state of a change. Errors: see `ReviewClient`.

        Where the event named no pull request, it is the open one from the repository and branch of the commit.
        """
        with self.rest.call():
            if not change.change:
                return self._of_commit(change)
            try:
                return self.get(change, f"/pulls/{number(change.change)}", _Pull).to_head()
            except Refused as refused:
                if refused.reason == "not_found":
                    return Head("missing")
                raise

    def _of_commit(self, change: ChangeRef) -> Head:
        """Return the one open pull request of the commit, repository and branch of a run.

        Anybody may open another pull request whose head is the same commit, from a branch of their own.
        """
        sha = commit(change.head, change.patchset)
        if not (sha and change.head_project and change.head_branch):
            return Head("missing")
        pulls = {pull.number: pull for pull in self._with_commit(change, sha) if pull.is_from(change, sha)}
        return next(iter(pulls.values())).to_head() if len(pulls) == 1 else Head("missing")

    def _with_commit(self, change: ChangeRef, sha: str) -> Iterator[_Pull]:
        """Yield pull requests of the repository that may have a commit as their head."""
        try:
            pulls = self.get(change, f"/commits/{sha}/pulls", list[_Pull], {"per_page": _RECENT})
        except Refused as refused:
            if refused.reason not in ("not_found", "invalid"):  # 422: no such commit
                raise
            pulls = []
        # GitHub lists pull requests of other repositories of the network too, and none whose commit is in a fork alone.
        own_pulls = [
            pull for pull in pulls if pull.base.repo and pull.base.repo.full_name.lower() == change.project.lower()
        ]
        yield from own_pulls
        if any(pull.is_from(change, sha) for pull in own_pulls):
            return
        query: Mapping[str, str | int] = {"state": "open", "sort": "updated", "direction": "desc", "per_page": _RECENT}
        for pulls in islice(self.pages(change, "/pulls", list[_Pull], query, _RECENT_PAGES + 1), _RECENT_PAGES):
            yield from pulls
            if any(pull.is_from(change, sha) for pull in pulls):
                return

    @abstractmethod
    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        """See `ReviewClient`."""

    def located(self, change: ChangeRef) -> ChangeRef:
        """Return a change with its number and commit, which are looked up where they are unknown.

        Raises:
          Refused: there is none.
        """
        sha = commit(change.head, change.patchset)
        if change.change and (sha or not self.of_commit):
            return ChangeRef(change.project, change.change, change.patchset, sha)
        head = self.head(change)
        if head.state == "missing":
            raise Refused("not_found", f"{change.project}: no pull request has the number or commit of the run")
        return ChangeRef(change.project, head.change, change.patchset, sha or head.head)

    def get(self, change: ChangeRef, path: str, kind: type[T], query: Mapping[str, str | int] | None = None) -> T:
        """Return an answer about the repository of a change."""
        with self._asking(change) as (place, headers):
            return self.rest.get(f"{place}{path}", kind, headers, query)

    def pages(
        self, change: ChangeRef, path: str, kind: type[T], query: Mapping[str, str | int], most: int
    ) -> Iterator[T]:
        """Yield the pages of a list of the repository of a change; ``most`` of them, then `Refused`."""
        with self._asking(change) as (place, headers):
            yield from self.rest.pages(f"{place}{path}", kind, headers, query, most)

    def send(self, change: ChangeRef, method: str, path: str, kind: type[T], body: object) -> T:
        """Change something in the repository of a change."""
        with self._asking(change) as (place, headers):
            return self.rest.send(method, f"{place}{path}", kind, headers, body)

    def comments(self, change: ChangeRef, since: str = "") -> Iterator[_Comment]:
        """Yield the comments on a pull request, all or those since a time; `Refused` if they are too many."""
        query: dict[str, str | int] = {"per_page": _PAGE} | ({"since": since} if since else {})
        path = f"/issues/{number(change.change)}/comments"
        for page in self.pages(change, path, list[_Comment], query, MAX_COMMENT_PAGES):
            yield from page

    def not_helpful(self, change: ChangeRef, since: str, after: int = 0) -> tuple[str, ...]:
        """Return the people whose comments since a time, and with a later id, say "not helpful"."""
        later = (
            comment for comment in self.comments(change, since) if comment.created_at >= since and comment.id > after
        )
        names = [
            comment.user.login
            for comment in later
            if comment.user
            and comment.user.type != "Bot"
            and says_not_helpful(comment.body)
            and not self._is_own(comment)
        ]
        return accounts(names)

    def _is_own(self, comment: _Comment) -> bool:
        return self.identity.is_own(comment.user, comment.performed_via_github_app)

    @contextmanager
    def _asking(self, change: ChangeRef) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Give the path of the repository of a change, and the headers for it."""
        place = repository(change.project)
        try:
            yield f"/repos/{place}", self.identity.headers(place)
        except Refused as refused:
            if refused.reason == UNAUTHORIZED:  # a token of an installation that was revoked
                self.identity.forget()
            raise


class Comments(GitHub):
    """One comment on the pull request, which is edited in place."""

    of_commit = False
    can_react = True

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        with self.rest.call():
            where = self.located(change)
            own_comments = [
                comment for comment in self.comments(where) if marker in comment.body and self._is_own(comment)
            ]
            return self._posted(where, max(own_comments, key=lambda comment: comment.id)) if own_comments else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        with self.rest.call():
            where = self.located(change)
            path = f"/issues/{number(where.change)}/comments"
            return self._posted(where, self.send(where, "POST", path, _Comment, {"body": message.body}))

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        path = f"/issues/comments/{number(posted.id)}"
        return self._posted(posted.change, self.send(posted.change, "PATCH", path, _Comment, {"body": message.body}))

    def reactions(self, posted: Posted) -> Reactions:
        with self.rest.call():
            path = f"/issues/comments/{number(posted.id)}"
            change = posted.change
            emojis = self.get(change, f"{path}/reactions", list[_Reaction], {"per_page": _PAGE})
            ours = self.get(change, path, _Comment)
            users = [
                (emoji.content, emoji.user)
                for emoji in emojis
                if emoji.user and not self.identity.is_own(emoji.user, None)
            ]
            return Reactions(
                up=accounts([user.login for content, user in users if content == "+1"]),
                down=accounts([user.login for content, user in users if content == "-1"]),
                not_helpful=self.not_helpful(change, ours.created_at, ours.id),
            )

    def _posted(self, change: ChangeRef, comment: _Comment) -> Posted:
        return Posted(change, str(comment.id), self.rest.own_url(comment.html_url), comment.body)


class CheckRuns(GitHub):
    """A check run on the commit, neutral: it never blocks a merge.

    Nobody can react to it; a comment on the pull request can say "not helpful".
    """

    # nobody can react to a check run
    of_commit = True
    can_react = False

    def __init__(self, rest: Rest, identity: Identity, name: str, app: int) -> None:
        super().__init__(rest, identity)
        self._name = name
        self._app = app

    def find(self, change: ChangeRef, marker: str) -> Posted | None:
        with self.rest.call():
            where = self.located(change)
            own_runs = [
                run
                for run in self._runs(where)
                if marker in (run.output.summary or "") and self.identity.is_own(None, run.app)
            ]
            return self._posted(where, max(own_runs, key=lambda run: run.id)) if own_runs else None

    def post(self, change: ChangeRef, message: Rendered) -> Posted:
        with self.rest.call():
            where = self.located(change)
            body = {"name": self._name, "head_sha": where.head, **_finished(message)}
            return self._posted(where, self.send(where, "POST", "/check-runs", _CheckRun, body))

    def edit(self, posted: Posted, message: Rendered) -> Posted:
        path = f"/check-runs/{number(posted.id)}"
        return self._posted(posted.change, self.send(posted.change, "PATCH", path, _CheckRun, _finished(message)))

    def reactions(self, posted: Posted) -> Reactions:
        with self.rest.call():
            run = self.get(posted.change, f"/check-runs/{number(posted.id)}", _CheckRun)
            return Reactions(not_helpful=self.not_helpful(posted.change, run.completed_at or ""))

    def _runs(self, change: ChangeRef) -> Iterator[_CheckRun]:
        query: Mapping[str, str | int] = {
            "check_name": self._name,
            "app_id": self._app,
            "filter": "all",
            "per_page": _PAGE,
        }
        path = f"/commits/{change.head}/check-runs"
        for page in self.pages(change, path, _CheckRunPage, query, _CHECK_PAGES):
            yield from page.check_runs

    def _posted(self, change: ChangeRef, run: _CheckRun) -> Posted:
        return Posted(change, str(run.id), self.rest.own_url(run.html_url or ""), run.output.summary or "")


def _finished(message: Rendered) -> dict[str, object]:
    """Return what says that a check run has ended. Neutral: whether the change may be merged is not ciml's to say."""
    return {"status": "completed", "conclusion": "neutral", "output": {"title": message.title, "summary": message.body}}

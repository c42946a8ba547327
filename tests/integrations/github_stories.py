"""Stories of GitHub, event by event, for the scenarios of what was executed and who reviewed it.

The commit ``fix`` is the head of pull request 42 by Ada, from the branch ``fix`` into ``main``. Grace is a member too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ciml.integrations.adapter import Delivery
from tests.integrations.executed import Scenario, Sent
from tests.integrations.github_samples import FORK, REPOSITORY, SHA, delivery, job, workflow_run

OTHER_SHA = SHA[::-1]
SAMPLE = "integrations/trust_github.toml"
#: The sample, for repositories where all members and collaborators may write.
APPROVALS = (
    (Path(__file__).parents[2] / SAMPLE).read_text().replace('review = ["merged"]', 'review = ["approved", "merged"]')
)
RESTORED = {**FORK, "full_name": "octo/widget-fork"}
Given = Sequence[Delivery | Sent]


def at(minute: int) -> str:
    return f"2026-11-24T12:{minute:02}:00Z"


def pr(
    action: str = "opened",
    number: int = 42,
    base: str = "main",
    sha: str = SHA,
    minute: int = 1,
    *,
    by: str = "ada",
    author: str = "ada",
    head: dict[str, Any] | None = REPOSITORY,
    before: str = "",
    merged: bool = False,
    default: str = "main",
    **more: Any,
) -> Delivery:
    """Return an event of a pull request."""
    fields = {
        "number": number,
        "user": {"login": author},
        "head": {"ref": "fix", "sha": sha, "repo": head},
        "base": {"ref": base, "sha": OTHER_SHA, "repo": REPOSITORY},
        "merged": merged,
        "updated_at": at(minute),
    }
    body = {
        "action": action,
        "number": number,
        "pull_request": fields | more,
        "sender": {"login": by},
        "repository": {**REPOSITORY, "default_branch": default},
    } | ({"changes": {"base": {"ref": {"from": before}}}} if before else {})
    return delivery("pull_request", body, f"pr-{action}-{number}-{minute}")


def merged(number: int = 42, base: str = "main", minute: int = 40, **more: Any) -> Delivery:
    return pr("closed", number, base, minute=minute, merged=True, **more)


def run(
    *pulls: tuple[int, str],
    action: str = "completed",
    event: str = "pull_request",
    minute: int = 20,
    sha: str = SHA,
    head_branch: str = "fix",
    actor: str = "ada",
    head: dict[str, Any] | None = REPOSITORY,
    listed: str = "",
    **more: Any,
) -> Delivery:
    """Return an event of the workflow run, with the pull requests that it lists."""
    listing = [
        {
            "number": number,
            "base": {"ref": base, "sha": OTHER_SHA, "repo": {"id": 7, "name": "widget"}},
            "head": {"ref": head_branch, "sha": listed or sha, "repo": {"id": 7, "name": "widget"}},
        }
        for number, base in pulls
    ]
    return workflow_run(
        action,
        head,
        event=event,
        head_branch=head_branch,
        head_sha=sha,
        pull_requests=listing,
        updated_at=at(minute),
        actor={"login": actor},
        **more,
    )


def reviewed(
    state: str = "approved",
    number: int = 42,
    base: str = "main",
    minute: int = 30,
    *,
    by: str = "grace",
    author: str = "ada",
    sha: str = SHA,
    head: dict[str, Any] | None = REPOSITORY,
    association: str = "MEMBER",
    kind: str = "User",
) -> Delivery:
    """Return a review, or its dismissal."""
    action = "dismissed" if state == "dismissed" else "submitted"
    body = {
        "action": action,
        "review": {
            "state": state,
            "commit_id": sha,
            "author_association": association,
            "submitted_at": at(minute),
            "user": {"login": by, "type": kind} if by else None,
        },
        "pull_request": {
            "number": number,
            "user": {"login": author} if author else None,
            "updated_at": at(minute),
            "head": {"sha": sha, "repo": head},
            "base": {"ref": base, "repo": REPOSITORY},
        },
        "repository": REPOSITORY,
    }
    return delivery("pull_request_review", body, f"review-{state}-{number}-{minute}")


def push(ref: str = "refs/heads/main", sha: str = SHA, by: str = "grace", **more: Any) -> Delivery:
    body = {"ref": ref, "after": sha, "sender": {"login": by}, "repository": REPOSITORY} | more
    return delivery("push", body, f"push-{by}")


def queue(base: str = "main", sha: str = SHA, reason: str = "merged", ref: str = "") -> Delivery:
    group = {"head_sha": sha, "head_ref": f"refs/heads/gh-readonly-queue/{base}/pr-42-{sha}"}
    body = {
        "action": "destroyed",
        "reason": reason,
        "repository": REPOSITORY,
        "merge_group": group | {"base_ref": ref or f"refs/heads/{base}"},
    }
    return delivery("merge_group", body)


JOB = job(head_branch="fix")
#: Of pull request 42 into main: the run, and what GitHub sends before it.
PULL = [JOB, run((42, "main"), action="requested", minute=2), run((42, "main")), pr()]
#: The same without the events of the pull request: their delivery failed.
UNSEEN = PULL[:3]
#: Of pull request 66 into a branch of its author, where any workflow may be. Its head is that of 42.
MINE = [JOB, run((66, "mine"), action="requested", minute=2), run((66, "mine")), pr(number=66, base="mine", by="eve")]


def _scenario(
    name: str, sent: Given, executed: str, reviewed: str, trusted: bool, policy: str = SAMPLE, run: str = "4001"
) -> Scenario:
    return Scenario(name, sent, executed, reviewed, trusted, policy, "github", "hmac-sha256", "github", run)


def good(name: str, sent: Given, executed: str, by: str, policy: str = SAMPLE) -> Scenario:
    return _scenario(name, sent, executed, by, True, policy)


def bad(name: str, sent: Given, executed: str, by: str, policy: str = APPROVALS, run: str = "4001") -> Scenario:
    return _scenario(name, sent, executed, by, False, policy, run)


FIX, MAIN, EVIL = "fix, merged into main", "main", "fix, merged into mine"
NOBODY, GRACE = "nobody", "Grace approved 42 into main"

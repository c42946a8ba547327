"""Webhooks of GitHub, written by hand after its documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ciml.integrations.adapter import Delivery

SHA = "5a1f0c9d2b3e4f60718293a4b5c6d7e8f9012345"
OTHER_SHA = SHA[::-1]
REPOSITORY = {
    "id": 7, "full_name": "octo/widget", "url": "https://api.github.com/repos/octo/widget", "fork": False,
    "default_branch": "main",
}  # fmt: skip
FORK = {"id": 9, "full_name": "mallory/widget", "url": "https://api.github.com/repos/mallory/widget", "fork": True}
SENDER = {"login": "ada", "id": 3, "type": "User"}


def delivery(event: str, body: Mapping[str, Any], name: str = "d1") -> Delivery:
    """Return a delivery of GitHub."""
    return Delivery(json.dumps(body).encode(), {"x-github-event": event}, name)


def job(action: str = "completed", repository: Mapping[str, Any] = REPOSITORY, **changes: Any) -> Delivery:
    """Return a ``workflow_job``, finished and failed unless changed. A field that becomes ``...`` is left out."""
    fields = {
        "id": 4001,
        "run_id": 81,
        "run_attempt": 1,
        "run_url": "https://api.github.com/repos/octo/widget/actions/runs/81",
        "workflow_name": "tests",
        "name": "unit (3.11)",
        "head_sha": SHA,
        "head_branch": "main",
        "status": "completed",
        "conclusion": "failure",
        "created_at": "2026-11-24T11:59:00Z",
        "started_at": "2026-11-24T12:00:00Z",
        "completed_at": "2026-11-24T12:20:00Z",
        "html_url": "https://github.com/octo/widget/actions/runs/81/job/4001",
        "labels": ["ubuntu-24.04"],
        "runner_name": "GitHub Actions 12",
        "runner_group_name": "GitHub Actions",
        "steps": [{"name": "Set up job", "status": "completed", "conclusion": "success", "number": 1}],
    }
    changed = {name: found for name, found in (fields | changes).items() if found is not ...}
    body = {"action": action, "workflow_job": changed, "repository": repository, "sender": SENDER}
    return delivery("workflow_job", body)


def unended_job(action: str, status: str) -> Delivery:
    return job(action, status=status, conclusion=None, completed_at=None)


def workflow_run(action: str = "completed", head: Mapping[str, Any] | None = REPOSITORY, **changes: Any) -> Delivery:
    """Return a ``workflow_run`` of a push to main unless changed."""
    fields = {
        "id": 81,
        "name": "tests",
        "path": ".github/workflows/tests.yml",
        "run_attempt": 1,
        "event": "push",
        "head_branch": "main",
        "head_sha": SHA,
        "status": "completed",
        "conclusion": "failure",
        "pull_requests": [],
        "created_at": "2026-11-24T11:58:00Z",
        "run_started_at": "2026-11-24T11:58:00Z",
        "updated_at": "2026-11-24T12:20:01Z",
        "html_url": "https://github.com/octo/widget/actions/runs/81",
        "actor": SENDER,
        "repository": REPOSITORY,
        "head_repository": head,
    }
    body = {"action": action, "workflow_run": fields | changes, "repository": REPOSITORY, "sender": SENDER}
    return delivery("workflow_run", body)


def pull(number: int = 12, base: int = 7, head: int = 7) -> dict[str, Any]:
    """Return an entry of ``pull_requests``, by the ids of its repositories."""
    return {
        "number": number,
        "base": {"ref": "release-2", "sha": SHA, "repo": {"id": base, "name": "widget"}},
        "head": {"ref": "fix", "sha": SHA, "repo": {"id": head, "name": "widget"}},
    }


def check_run(action: str = "completed", app: Mapping[str, Any] | None = None, **changes: Any) -> Delivery:
    """Return a ``check_run`` of another app than GitHub Actions unless changed."""
    fields = {
        "id": 5001,
        "name": "integration",
        "head_sha": SHA,
        "status": "completed",
        "conclusion": "success",
        "started_at": "2026-11-24T12:00:00Z",
        "completed_at": "2026-11-24T12:20:00Z",
        "html_url": "https://github.com/octo/widget/runs/5001",
        "details_url": "https://ci.example.org/builds/5001/",
        "check_suite": {"id": 61, "head_branch": "fix"},
        "pull_requests": [pull()],
        "app": {"id": 2, "slug": "example-ci", "name": "Example CI"} if app is None else app,
    }
    body = {"action": action, "check_run": fields | changes, "repository": REPOSITORY, "sender": SENDER}
    return delivery("check_run", body)


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
    """Return a review, or its dismissal, which keeps the time of the review. The pull request has a newer head."""
    action = "dismissed" if state == "dismissed" else "submitted"
    body = {
        "action": action,
        "review": {
            "state": state,
            "commit_id": sha,
            "author_association": association,
            "submitted_at": at(0 if state == "dismissed" else minute),
            "user": {"login": by, "type": kind} if by else None,
        },
        "pull_request": {
            "number": number,
            "user": {"login": author} if author else None,
            "updated_at": at(minute),
            "head": {"sha": "f" * 40, "repo": head},
            "base": {"ref": base, "repo": REPOSITORY},
        },
        "repository": REPOSITORY,
    }
    return delivery("pull_request_review", body, f"review-{state}-{number}-{minute}")


def push(ref: str = "refs/heads/main", sha: str = SHA, by: str = "grace", **more: Any) -> Delivery:
    body = {"ref": ref, "after": sha, "sender": {"login": by}, "repository": REPOSITORY} | more
    return delivery("push", body, f"push-{by}")


def queue(base: str = "main", reason: str = "merged", action: str = "destroyed") -> Delivery:
    """Return an event of a merge group."""
    group = {"head_sha": SHA, "head_ref": f"refs/heads/gh-readonly-queue/{base}/pr-42-{SHA}"}
    body = {
        "action": action,
        "reason": reason,
        "repository": REPOSITORY,
        "merge_group": group | {"base_ref": f"refs/heads/{base}"},
    }
    return delivery("merge_group", body)


SAMPLES = {
    "github": [
        job(),
        unended_job("queued", "queued"),
        workflow_run(),
        workflow_run(head=FORK, event="pull_request"),
        workflow_run(event="pull_request", head_branch="fix", pull_requests=[pull()]),
        workflow_run(conclusion="startup_failure"),
        check_run(),
        merged(head=FORK),
        reviewed(),
        queue(),
        merged(),
        push(),
    ]
}

"""Webhooks of GitHub, written by hand after its documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ciml.integrations.adapter import Delivery

SHA = "5a1f0c9d2b3e4f60718293a4b5c6d7e8f9012345"
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


def pull_request(action: str = "closed", **changes: Any) -> Delivery:
    """Return a ``pull_request`` of a fork that was merged, unless changed."""
    fields = {
        "number": 12,
        "state": "closed",
        "merged": True,
        "user": {"login": "mallory"},
        "head": {"ref": "main", "sha": SHA, "repo": FORK},
        "base": {"ref": "main", "sha": SHA[::-1], "repo": REPOSITORY},
        "updated_at": "2026-11-24T13:00:00Z",
    }
    body = {"action": action, "number": 12, "pull_request": fields | changes, "repository": REPOSITORY}
    return delivery("pull_request", body)


def review(action: str = "submitted", head: Mapping[str, Any] = REPOSITORY, **changes: Any) -> Delivery:
    """Return a ``pull_request_review`` by a member who approves, of a pull request within the repository."""
    fields = {
        "state": "approved",
        "commit_id": SHA,
        "author_association": "MEMBER",
        "submitted_at": "2026-11-24T12:30:00Z",
        "user": {"login": "grace"},
    }
    newer = {
        "number": 12,
        "user": SENDER,
        "head": {"sha": "f" * 40, "repo": head},
        "base": {"ref": "main", "repo": REPOSITORY},
    }
    body = {"action": action, "review": fields | changes, "pull_request": newer, "repository": REPOSITORY}
    return delivery("pull_request_review", body)


def merge_group(action: str = "destroyed", reason: str = "merged") -> Delivery:
    """Return a ``merge_group``, merged unless changed."""
    group = {
        "head_sha": SHA,
        "head_ref": f"refs/heads/gh-readonly-queue/main/pr-12-{SHA}",
        "base_ref": "refs/heads/main",
    }
    return delivery("merge_group", {"action": action, "reason": reason, "merge_group": group, "repository": REPOSITORY})


def push(ref: str = "refs/heads/main", repository: Mapping[str, Any] = REPOSITORY) -> Delivery:
    """Return a ``push``, to main unless changed."""
    return delivery("push", {"ref": ref, "after": SHA, "repository": repository, "sender": SENDER}, "d2")


SAMPLES = {
    "github": [
        job(),
        job("queued", status="queued", conclusion=None, completed_at=None, runner_name=None),
        workflow_run(),
        workflow_run(head=FORK, event="pull_request"),
        workflow_run(event="pull_request", head_branch="fix", pull_requests=[pull()]),
        workflow_run(conclusion="startup_failure"),
        check_run(),
        pull_request(),
        review(),
        merge_group(),
        pull_request(head={"ref": "fix", "sha": SHA, "repo": REPOSITORY}),
        push(),
    ]
}

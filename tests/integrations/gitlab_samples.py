"""Webhooks of GitLab, written by hand after its documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ciml.integrations.adapter import Delivery

SHA = "5a1f0c9d2b3e4f60718293a4b5c6d7e8f9012345"
PROJECT = {
    "id": 44,
    "name": "Widget",
    "web_url": "https://gitlab.example/tools/widget",
    "path_with_namespace": "tools/widget",
    "default_branch": "main",
}
USER = {"id": 3, "name": "Ada", "username": "ada"}


def delivery(body: Mapping[str, Any]) -> Delivery:
    """Return a delivery of GitLab."""
    return Delivery(json.dumps(body).encode(), {}, "d1")


def job(**changes: Any) -> Delivery:
    """Return a job hook: a job of a branch that succeeded, unless changed. A field that becomes ``...`` is left out."""
    fields = {
        "object_kind": "build",
        "ref": "main",
        "tag": False,
        "sha": SHA,
        "build_id": 9001,
        "build_name": "unit 3.11",
        "build_stage": "test",
        "build_status": "success",
        "build_created_at": "2026-11-24 11:59:00 UTC",
        "build_started_at": "2026-11-24 12:00:00 UTC",
        "build_finished_at": "2026-11-24 12:20:00 UTC",
        "build_allow_failure": False,
        "build_failure_reason": "unknown_failure",
        "retries_count": 1,
        "pipeline_id": 501,
        "project_id": 44,
        "project_name": "Tools / Widget",
        "project": PROJECT,
        "user": USER,
        "commit": {"id": 501, "sha": SHA, "status": "running"},
        "repository": {"name": "widget", "homepage": "https://gitlab.example/tools/widget"},
        "runner": {"description": "runner-4", "runner_type": "instance_type", "tags": ["linux", "docker"]},
    }
    return delivery({name: found for name, found in (fields | changes).items() if found is not ...})


def unended_job(status: str, start: str | None = None) -> Delivery:
    return job(build_status=status, build_started_at=start, build_finished_at=None)


def pipeline(merge_request: Mapping[str, Any] | None = None, **changes: Any) -> Delivery:
    """Return a pipeline hook: of a push to main, unless changed."""
    attributes = {
        "id": 501,
        "ref": "main",
        "tag": False,
        "sha": SHA,
        "source": "push",
        "status": "success",
        "created_at": "2026-11-24 11:59:00 UTC",
        "finished_at": "2026-11-24 12:21:00 UTC",
    }
    builds = [{"id": 9001, "name": "unit 3.11", "status": "success", "finished_at": "2026-11-24 12:20:00 UTC"}]
    body = {
        "object_kind": "pipeline",
        "object_attributes": attributes | changes,
        "merge_request": merge_request,
        "project": PROJECT,
        "user": USER,
        "builds": builds,
    }
    return delivery(body)


def merge_request(source: int = 44, **changes: Any) -> Delivery:
    """Return a merge request hook: merged, unless changed."""
    attributes = {
        "id": 800,
        "iid": 6,
        "author_id": 5,
        "action": "merge",
        "state": "merged",
        "source_project_id": source,
        "target_project_id": 44,
        "source_branch": "main",
        "target_branch": "release-2",
        "updated_at": "2026-11-24 13:00:00 UTC",
        "last_commit": {"id": SHA},
    }
    return delivery(
        {"object_kind": "merge_request", "object_attributes": attributes | changes, "project": PROJECT, "user": USER}
    )


#: The ``merge_request`` of a pipeline hook: from another project.
FROM_FORK = {
    "iid": 6,
    "source_project_id": 99,
    "target_project_id": 44,
    "source_branch": "main",
    "target_branch": "next",
}

SAMPLES = {
    "gitlab": [
        job(),
        job(build_status="failed", build_failure_reason="runner_system_failure"),
        job(ref="refs/merge-requests/6/head"),
        job(project=..., pipeline_id=...),
        pipeline(),
        pipeline(FROM_FORK, source="merge_request_event"),
        merge_request(),
        merge_request(99, action="approved", state="opened"),
        delivery({"object_kind": "push", "ref": "refs/heads/main", "project": PROJECT}),
    ]
}

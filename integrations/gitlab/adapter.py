"""GitLab's webhooks: a job is a run; a pipeline or a merge request says something of such runs.

A pipeline's event lists its jobs again. It reports no run, so that none counts twice: the events of the jobs do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ciml.events.records import OutcomeWord, Phase
from ciml.events.reviews import OWN
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate, Said, reading
from ciml.integrations.fields import (
    address_at,
    body_id,
    branch_name,
    commit_subject,
    differ,
    event_kind,
    join_id,
    known_subjects,
    non_empty,
    object_at,
    phase_of,
    phases_by_status,
    required_number,
    required_text,
    text_at,
    text_fields,
    texts_at,
    time_at,
    value_at,
)

#: The phase of a job by its status.
PHASES = phases_by_status(
    queued="created waiting_for_resource waiting_for_callback preparing pending manual scheduled",
    started="running canceling",
    finished="success failed canceled skipped",
)
#: What a failed job's ``build_failure_reason`` means, where it is not the failure of a script.
OUTCOMES: Mapping[str, OutcomeWord] = {
    "job_execution_timeout": "timeout",
    **dict.fromkeys(
        (
            "api_failure stuck_or_timeout_failure runner_system_failure missing_dependency_failure "
            "runner_unsupported stale_schedule archived_failure unmet_prerequisites scheduler_failure "
            "data_integrity_failure forward_deployment_failure user_blocked project_deleted ci_quota_exceeded "
            "pipeline_loop_detected no_matching_runner builds_disabled environment_creation_failure "
            "deployment_rejected protected_environment_failure failed_outdated_deployment_job "
            "insufficient_bridge_permissions downstream_bridge_project_not_found invalid_bridge_trigger "
            "bridge_pipeline_is_child_pipeline downstream_pipeline_creation_failed secrets_provider_not_found "
            "reached_max_descendant_pipelines_depth ip_restriction_failure"
        ).split(),
        "error",
    ),
}
#: Sources of pipelines of a branch or tag of the project itself, which only its members can push.
_OWN = frozenset("push web schedule api trigger chat pipeline".split())
_HOMEPAGE = re.compile(r"(https?://[^/?#]+)/([^?#]+)")
_REVIEWS = {"merge": "merged", "approved": "approved", "unapproved": "dismissed"}

OTHER = "an event of another kind reports no run"
#: Why an event of these kinds is ignored; every other kind by `OTHER`.
RULES: Mapping[str, str] = {
    "push": "a push reports no run",
    "tag_push": "a push reports no run",
    "deployment": "a deployment's job reports itself",
}


#: What an event reports: the state of its object, its own time, and what it says of runs.
_Report = tuple[str, str | float | None, Said]


def read(delivery: Delivery) -> Reading | Ignored:
    """Return what a webhook of GitLab says. Raises `RejectedInput`.

    The event's id is a digest: X-Gitlab-Event-UUID is the same for all events that one webhook's receiver caused.
    """
    body = delivery.json()
    kind = event_kind(text_at(body, "object_kind") or text_at(body, "event_name"), "object_kind")
    reader = _READERS.get(kind)
    if reader is None:
        return Ignored(body_id(delivery), kind, RULES.get(kind, OTHER))
    state, when, runs = reader(body)
    return reading(body_id(delivery), f"{kind}.{state}" if state else kind, when, runs)


def _job(body: Mapping[str, Any]) -> _Report:
    status = required_text(body, "build_status")
    phase = phase_of(PHASES, status, "build_status")
    number = required_number(body, "build_id")
    name = required_text(body, "build_name")
    reason = text_at(body, "build_failure_reason") if status == "failed" else ""  # GitLab sets it on success too
    pipeline = text_at(body, "pipeline_id") or text_at(body, "commit", "id")
    project_id = str(required_number(body, "project_id"))
    sha = text_at(body, "sha")
    server, project, page = _project(body)
    fields = non_empty(
        id=number,
        job=name,
        result=status,
        outcome=OUTCOMES.get(reason),
        **_times(body, phase),
        project=project,
        patchset=sha,
        owner=text_at(body, "user", "username"),
        head=sha,
        url=f"{page}/-/jobs/{number}" if page else "",
        log_url=f"{server}/api/v4/projects/{project_id}/jobs/{number}/artifacts" if server else "",
        attempt_of=join_id(pipeline, name),
        # Not of a merge request: the event has none, and anybody may call a tag or a branch refs/merge-requests/6/head.
        subjects=known_subjects(f"pipeline:{pipeline}" if pipeline else "", commit_subject(project_id, sha)),
        labels=_labels(body, reason),
    )
    return status, None, (Run(phase, fields),)


def _times(body: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
    start, end, created = (
        time_at(body, f"build_{name}_at_iso") or time_at(body, f"build_{name}_at")
        for name in ("started", "finished", "created")
    )
    if phase == "finished" and start is None and end is None:
        end = created  # a skipped job
    return non_empty(start_time=start, end_time=end)


def _labels(body: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return non_empty(
        **text_fields(
            body, runner="runner.description", runner_type="runner.runner_type", stage="build_stage", ref="ref"
        ),
        runner_tags=",".join(texts_at(body, "runner", "tags")),
        failure_reason=reason,
        allow_failure=value_at(body, "build_allow_failure"),
        retries=value_at(body, "retries_count"),
    )


def _project(body: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the server's address, the project's path and its page; "" for what is unknown."""
    path = text_at(body, "project", "path_with_namespace")
    page = address_at(body, "project", "web_url")
    if path and page.endswith(f"/{path}"):
        return page.removesuffix(f"/{path}"), path, page
    page = page or address_at(body, "repository", "homepage")
    match = _HOMEPAGE.fullmatch(page)
    return (match[1], path or match[2], page) if match else ("", path, "")


def _pipeline(body: Mapping[str, Any]) -> _Report:
    subject = f"pipeline:{required_number(body, 'object_attributes', 'id')}"
    facts = text_fields(body, "object_attributes", event="source", pipeline="source", patchset="sha")
    if object_at(body, "merge_request"):
        fork = _fork(body, "merge_request")
        branch = branch_name(body, "merge_request", "target_branch")
        change = text_at(body, "merge_request", "iid")
    else:
        fork = "no" if facts["event"] in _OWN else ""
        is_branch = value_at(body, "object_attributes", "tag") is False
        branch = text_at(body, "object_attributes", "ref") if fork and is_branch else ""
        change = facts["patchset"] if fork else ""
    facts |= text_fields(body, project="project.path_with_namespace", owner="user.username")
    facts = non_empty(**facts, branch=branch, change=change, fork=fork)
    when = time_at(body, "object_attributes", "finished_at") or time_at(body, "object_attributes", "created_at")
    updates: tuple[RunUpdate, ...] = (RunUpdate(subject, facts),) if facts else ()
    # A merge request may get another target while its pipeline runs: two targets contradict each other.
    if object_at(body, "merge_request") and change and branch:
        updates += (RunUpdate(subject, only={"change": change, "branch": branch}),)
    return text_at(body, "object_attributes", "status"), when, updates


def _merge_request(body: Mapping[str, Any]) -> _Report:
    project_id = str(required_number(body, "object_attributes", "target_project_id"))
    number = required_number(body, "object_attributes", "iid")
    action = text_at(body, "object_attributes", "action")
    branch = branch_name(body, "object_attributes", "target_branch")
    facts = non_empty(fork=_fork(body, "object_attributes"), branch=branch, change=str(number))
    updates = [RunUpdate(f"merge_request:{project_id}/{number}", facts)]
    # Of the commit alone: earlier ones of the merge request may never have been read.
    commit = commit_subject(project_id, text_at(body, "object_attributes", "last_commit", "id"))
    if commit and branch and facts.get("fork") == "no":
        updates += _of_commit(body, commit, action, {"change": str(number), "branch": branch})
    return action, time_at(body, "object_attributes", "updated_at"), tuple(updates)


def _of_commit(body: Mapping[str, Any], commit: str, action: str, only: Mapping[str, str]) -> list[RunUpdate]:
    """Return the updates of a merge request within the project about its last commit.

    A review counts for runs of the same merge request and target branch alone.
    """
    user = text_at(body, "user", "username")
    before = branch_name(body, "changes", "target_branch", "previous")
    updates = [RunUpdate(commit, only=only)]
    if before:
        updates.append(RunUpdate(commit, only={**only, "branch": before}))
    if user and (action == "open" or text_at(body, "object_attributes", "oldrev")):  # who pushed
        updates.append(RunUpdate(commit, {"review": OWN}, only, user))
    if review := _review(body, action, only["branch"]):
        updates.append(RunUpdate(commit, {"review": review}, only, user if review == "approved" else ""))
    return updates


def _review(body: Mapping[str, Any], action: str, branch: str) -> str:
    """Return what an action makes of the review; "" for nothing.

    An approval by the author is none. Nor is a merge into another branch than the default one: a developer may merge
    anything into a branch of their own.
    """
    if action == "merge" and differ(branch, text_at(body, "project", "default_branch")) != "no":
        return ""
    author = text_at(body, "object_attributes", "author_id")
    by = text_at(body, "user", "id")
    if action == "approved" and (differ(author, by) != "yes" or not text_at(body, "user", "username")):
        return ""
    return _REVIEWS.get(action, "")


def _fork(body: Mapping[str, Any], name: str) -> str:
    return differ(text_at(body, name, "target_project_id"), text_at(body, name, "source_project_id"))


_READERS: Mapping[str, Callable[[Mapping[str, Any]], _Report]] = {
    "build": _job,
    "pipeline": _pipeline,
    "merge_request": _merge_request,
}
ADAPTER = Adapter("gitlab", (), read, signature="gitlab-token")

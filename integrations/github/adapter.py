"""GitHub's webhooks: a workflow job is a run; a workflow run, a merge or a review says something of such runs.

The event of a job does not say whose branch it ran; that of its workflow run does, where two repositories are compared.
Until then ``fork`` and ``branch`` of the run are unknown, because a fork may call its branch ``main``.

A run of a pull request executes its head merged into its base, and no event names the pull request that started it:
GitHub lists the open ones of the same head. So a review counts for runs of its own pull request and base alone, and
only while the commit was never the head of another one within the repository, or of another base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.records import Phase
from ciml.events.reviews import OWN
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate, Said, reading
from ciml.integrations.fields import (
    address_at,
    branch_name,
    commit_subject,
    differ,
    event_id,
    event_kind,
    join_id,
    known_subjects,
    non_empty,
    object_at,
    objects_at,
    phase_of,
    phases_by_status,
    required_number,
    required_object,
    required_text,
    text_at,
    text_fields,
    texts_at,
    time_at,
    value_at,
)
from ciml.limits import MAX_EVENT_RUNS

EVENT = "x-github-event"

#: The phase of a job or check run by its ``status``.
PHASES = phases_by_status(queued="requested queued waiting pending", started="in_progress", finished="completed")
#: Conclusions of a workflow run that ended before any job; no event of a job will report it.
WITHOUT_JOBS = frozenset({"startup_failure", "action_required"})
#: A job that never began may have a start after its end.
_NEVER_BEGAN = frozenset({"skipped", "cancelled"})
#: Events of a workflow run whose ``head_branch`` is the branch of a pull request, perhaps in a fork.
_OF_PULL_REQUESTS = frozenset(
    "pull_request pull_request_target pull_request_review pull_request_review_comment".split()
)
_QUEUE_BRANCH = re.compile(r"gh-readonly-queue/(.+)/pr-(\d{1,12})-[0-9a-f]{7,64}")
#: Whose reviews count: anybody may approve a pull request of a public repository.
_REVIEWERS = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})
_REVIEWS = frozenset({"approved", "changes_requested", "dismissed"})
#: Actions of a pull request after which it may have another head or base.
_MOVES = frozenset({"opened", "reopened", "synchronize", "closed"})
#: Actions whose sender made the commits.
_PUSHES = frozenset({"opened", "synchronize"})
_HEADS = "refs/heads/"
_TAGS = "refs/tags/"
_NO_COMMIT = re.compile("0+")

OTHER = "an event of another kind reports no run"
ACTIONS_CHECK = "GitHub Actions reports its check runs as workflow jobs"
CHECK_REQUEST = "a request to run a check reports no run"
INSTANT_CHECK = "a check run that took no time ran no job"
PUSH = "a push of a tag, or one that deletes a branch, says nothing of runs"
SAME_PULL_REQUEST = "a pull request with the same head and base says nothing new of runs"
OF_FORK = "a pull request of a fork says nothing of runs: no event names the base that they executed"
COMMENT = "a review that only comments says nothing of runs"
OUTSIDER = "a review by somebody who is no member or collaborator does not count"
BOT = "a review by a bot or by an unknown account does not count"
OPEN_GROUP = "a merge group that was not merged says nothing of its runs"
#: Why an event of these kinds is ignored; every other kind by `OTHER`.
RULES: Mapping[str, str] = {
    "ping": "a ping only tests the webhook",
    "check_suite": "a check suite only sums up its check runs",
    "status": "a commit status has no times",
}


def read(delivery: Delivery) -> Reading | Ignored:
    """Return what a webhook of GitHub says. Raises `RejectedInput`."""
    event = event_kind(delivery.headers.get(EVENT, ""), f"header {EVENT}")
    if delivery.body.startswith(b"payload="):
        raise RejectedInput("broken_json", "a form; set the content type of the webhook to application/json")
    reader = _READERS.get(event)
    if reader is None:
        return Ignored(event_id(delivery), event, RULES.get(event, OTHER))
    body = delivery.json()
    action = text_at(body, "action")
    statements = reader(body, action)
    times = (time_at(body, *path) for path in _TIMES.get(event, ()))
    when = next((time for time in times if time), None)
    return reading(event_id(delivery), f"{event}.{action}" if action else event, when, statements)


def _workflow_job(body: Mapping[str, Any], action: str) -> Said:
    job = required_object(body, "workflow_job")
    phase = phase_of(PHASES, required_text(body, "workflow_job", "status"), "workflow_job.status")
    run = required_number(body, "workflow_job", "run_id")
    name = required_text(body, "workflow_job", "name")
    project = text_at(body, "repository", "full_name")
    runner = text_fields(body, "workflow_job", runner="runner_name", runner_group="runner_group_name")
    head_branch = text_at(body, "workflow_job", "head_branch")
    head = text_at(body, "workflow_job", "head_sha")
    labels = texts_at(body, "workflow_job", "labels")
    api = address_at(body, "repository", "url")
    subjects = (f"workflow_run:{run}", _branch_subject(project, head_branch, head), commit_subject(project, head))
    fields = non_empty(
        id=value_at(job, "id"),
        attempt=value_at(job, "run_attempt"),
        job=name,
        **text_fields(body, "workflow_job", result="conclusion", pipeline="workflow_name"),
        **_times(body, "workflow_job", phase),
        project=project,
        patchset=head,
        provider=_provider(labels, runner["runner_group"]),
        head=head,
        url=address_at(body, "workflow_job", "html_url"),
        log_url=f"{api}/actions/runs/{run}/artifacts" if api else "",
        attempt_of=join_id(str(run), name),
        subjects=known_subjects(*subjects),
        labels=non_empty(**runner, runner_labels=",".join(labels), head_branch=head_branch),
    )
    return (Run(phase, fields),)


def _workflow_run(body: Mapping[str, Any], action: str) -> Said:
    run = required_number(body, "workflow_run", "id")
    subject = f"workflow_run:{run}"
    facts = _facts(body)
    updates: tuple[Run | RunUpdate, ...] = (RunUpdate(subject, facts),) if facts else ()
    if facts.get("event") in _OF_PULL_REQUESTS:
        repository = object_at(body, "workflow_run", "repository") or object_at(body, "repository")
        pulls = _pulls(body, "workflow_run", repository)
        updates += tuple(RunUpdate(subject, only=only) for pull in pulls if (only := _only(pull)))
    conclusion = text_at(body, "workflow_run", "conclusion")
    if text_at(body, "workflow_run", "status") != "completed" or conclusion not in WITHOUT_JOBS:
        return updates
    fields = non_empty(
        id=f"workflow_run/{run}",
        attempt=value_at(body, "workflow_run", "run_attempt"),
        job=facts.get("pipeline") or required_text(body, "workflow_run", "path"),
        result=conclusion,
        start_time=time_at(body, "workflow_run", "run_started_at") or time_at(body, "workflow_run", "created_at"),
        head=facts.get("patchset"),
        url=address_at(body, "workflow_run", "html_url"),
        subjects=(subject,),
    )
    return (Run("finished", {**facts, **fields}), *updates)


def _facts(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a workflow run, which its jobs share."""
    repository = object_at(body, "workflow_run", "repository") or object_at(body, "repository")
    facts = text_fields(body, "workflow_run", event="event", pipeline="name", patchset="head_sha", owner="actor.login")
    facts |= {"project": text_at(repository, "full_name")}
    facts |= text_fields(body, "workflow_run", head_project="head_repository.full_name")
    fork = differ(facts["project"], facts["head_project"])
    head_branch = text_at(body, "workflow_run", "head_branch")
    if facts["event"] in _OF_PULL_REQUESTS:
        branch, change = _target(body, "workflow_run", repository)
    elif facts["event"] == "merge_group" and (queued := _QUEUE_BRANCH.fullmatch(head_branch)):
        branch, change = queued.groups()
    else:
        branch = head_branch if fork == "no" else ""
        change = facts["patchset"]
    return non_empty(**facts, branch=branch, change=change, fork=fork)


def _pulls(body: Mapping[str, Any], kind: str, repository: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the listed pull requests within this repository.

    GitHub lists pull requests of other repositories of the network too, and none that comes from a fork.
    """
    ours = value_at(repository, "id")
    return [
        pull
        for pull in objects_at(body, kind, "pull_requests", most=MAX_EVENT_RUNS)
        if ours is not None and value_at(pull, "base", "repo", "id") == value_at(pull, "head", "repo", "id") == ours
    ]


def _target(body: Mapping[str, Any], kind: str, repository: Mapping[str, Any]) -> tuple[str, str]:
    """Return target branch and number of the one listed pull request, where its head was tested; else "" for both."""
    pulls = _pulls(body, kind, repository)
    if len(pulls) != 1 or differ(text_at(body, kind, "head_sha"), text_at(pulls[0], "head", "sha")) != "no":
        return "", ""
    return branch_name(pulls[0], "base", "ref"), text_at(pulls[0], "number")


def _only(pull: Mapping[str, Any]) -> dict[str, str]:
    """Return the condition that a run executed a pull request: its number and base; empty if one is unknown."""
    number = text_at(pull, "number")
    base = branch_name(pull, "base", "ref")
    return {"change": number, "branch": base} if number and base else {}


def _check_run(body: Mapping[str, Any], action: str) -> Said:
    if action not in ("created", "completed"):
        return CHECK_REQUEST
    check = required_object(body, "check_run")
    app = text_at(body, "check_run", "app", "slug") or text_at(body, "check_run", "app", "name")
    page = address_at(body, "check_run", "details_url")
    if app == "github-actions" or (not app and "/actions/runs/" in page):
        return ACTIONS_CHECK
    phase = phase_of(PHASES, required_text(body, "check_run", "status"), "check_run.status")
    times = _times(body, "check_run", phase)
    if phase == "finished" and times.get("start_time") == times.get("end_time"):
        return INSTANT_CHECK
    name = required_text(body, "check_run", "name")
    suite = text_at(body, "check_run", "check_suite", "id")
    project = text_at(body, "repository", "full_name")
    head = text_at(body, "check_run", "head_sha")
    branch, change = _target(body, "check_run", object_at(body, "repository"))
    fields = non_empty(
        id=value_at(check, "id"),
        job=name,
        result=text_at(body, "check_run", "conclusion"),
        **times,
        pipeline=app,
        project=project,
        branch=branch,
        change=change,
        patchset=head,
        fork="no" if change else "",
        head=head,
        url=address_at(body, "check_run", "html_url"),
        log_url=value_at(check, "details_url"),
        attempt_of=join_id(suite, name),
        subjects=known_subjects(commit_subject(project, head)),
    )
    return (Run(phase, fields),)


def _pull_request(body: Mapping[str, Any], action: str) -> Said:
    before = branch_name(body, "changes", "base", "ref", "from")
    if action not in _MOVES and not (action == "edited" and before):
        return SAME_PULL_REQUEST
    pull = required_object(body, "pull_request")
    if not _is_inside(body):
        return OF_FORK
    commit = _subject(body, required_text(body, "pull_request", "head", "sha"))
    only = _needed_only(pull)
    updates = [RunUpdate(commit, only=only)]
    if before:
        updates.append(RunUpdate(commit, only={**only, "branch": before}))
    accounts = {text_at(pull, "user", "login"), text_at(body, "sender", "login") if action in _PUSHES else ""}
    updates += [RunUpdate(commit, {"review": OWN}, only, by) for by in sorted(accounts) if by]
    # Who may push can merge anything into a branch of their own: that it was merged there proves no review.
    is_default = differ(only["branch"], text_at(body, "repository", "default_branch")) == "no"
    if action == "closed" and value_at(pull, "merged") is True and is_default:
        updates.append(RunUpdate(commit, {"review": "merged"}, only))
    return tuple(updates)


def _review(body: Mapping[str, Any], action: str) -> Said:
    state = text_at(body, "review", "state").lower()
    if state not in _REVIEWS:
        return COMMENT
    if action != "dismissed" and text_at(body, "review", "author_association") not in _REVIEWERS:
        return OUTSIDER
    reviewer = text_at(body, "review", "user", "login")
    author = text_at(body, "pull_request", "user", "login")
    if not reviewer or not author or text_at(body, "review", "user", "type") == "Bot":
        return BOT
    if not _is_inside(body):
        return OF_FORK
    # Of the commit that was reviewed: the pull request may have another by now.
    commit = _subject(body, required_text(body, "review", "commit_id"))
    only = _needed_only(required_object(body, "pull_request"))
    return (RunUpdate(commit, {"review": OWN}, only, author), RunUpdate(commit, {"review": state}, only, reviewer))


def _is_inside(body: Mapping[str, Any]) -> bool:
    """Return whether a pull request is within the repository. Another repository's runs cannot name their base."""
    ours = text_at(body, "repository", "full_name")
    sides = (text_at(body, "pull_request", side, "repo", "full_name") for side in ("base", "head"))
    return all(differ(ours, name) == "no" for name in sides)


def _needed_only(pull: Mapping[str, Any]) -> dict[str, str]:
    only = _only(pull)
    if not only:
        raise RejectedInput("missing_field", "pull_request.number, pull_request.base.ref")
    return only


def _merge_group(body: Mapping[str, Any], action: str) -> Said:
    if action != "destroyed" or text_at(body, "reason") != "merged":
        return OPEN_GROUP
    branch = required_text(body, "merge_group", "base_ref").removeprefix(_HEADS)
    only = {"event": "merge_group", "branch": branch}
    return (RunUpdate(_subject(body, required_text(body, "merge_group", "head_sha")), {"review": "merged"}, only),)


def _push(body: Mapping[str, Any], action: str) -> Said:
    ref = branch_name(body, "ref")
    commit = text_at(body, "after")
    by = text_at(body, "sender", "login")
    if ref.startswith(_TAGS) or not commit or _NO_COMMIT.fullmatch(commit):
        return PUSH
    updates = [RunUpdate(_subject(body, commit), {"review": OWN}, by=by)] if by else []
    # GitHub reports a pushed tag like a branch of the same name: the push alone says which one it is.
    branch = ref.removeprefix(_HEADS) if ref.startswith(_HEADS) else ""
    if subject := _branch_subject(text_at(body, "repository", "full_name"), branch, commit):
        updates.append(RunUpdate(subject, {"review": "pushed"}))
    return tuple(updates)


def _branch_subject(repository: str, branch: str, commit: str) -> str:
    """Return the subject of the runs of a commit that was pushed to a branch; "" if a part is unknown."""
    return join_id(f"branch:{repository}" if repository else "", branch, commit)


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Said]] = {
    "workflow_job": _workflow_job,
    "workflow_run": _workflow_run,
    "check_run": _check_run,
    "pull_request": _pull_request,
    "pull_request_review": _review,
    "merge_group": _merge_group,
    "push": _push,
}
#: Where an event that updates runs has its own time: the first that is there. A review that is dismissed keeps its
#: ``submitted_at``.
_TIMES = {
    "workflow_run": (("workflow_run", "updated_at"),),
    "pull_request": (("pull_request", "updated_at"),),
    "pull_request_review": (("pull_request", "updated_at"), ("review", "submitted_at")),
}


def _times(body: Mapping[str, Any], kind: str, phase: Phase) -> dict[str, Any]:
    """Return start and end as far as they are facts: GitHub gives a queued job a start too."""
    start = time_at(body, kind, "started_at")
    end = time_at(body, kind, "completed_at")
    if phase == "queued" or (end is not None and text_at(body, kind, "conclusion") in _NEVER_BEGAN):
        start = None
    return non_empty(start_time=start, end_time=end)


def _provider(labels: tuple[str, ...], group: str) -> str:
    """Return the value of RUNNER_ENVIRONMENT, which `ciml record` reports as the provider; "" if it is unknown."""
    if "self-hosted" in labels:
        return "self-hosted"
    return "github-hosted" if group == "GitHub Actions" else ""


def _subject(body: Mapping[str, Any], sha: str) -> str:
    return commit_subject(required_text(body, "repository", "full_name"), sha)


ADAPTER = Adapter("github", (EVENT,), read, signature="github")

"""GitHub's webhooks: what becomes a run, what updates runs, and what is ignored or rejected for which reason."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.events.records import RunFacts
from ciml.integrations.adapter import Delivery
from tests.integrations.deliveries import event_of
from tests.integrations.github_samples import (
    FORK,
    REPOSITORY,
    SHA,
    check_run,
    job,
    pr,
    pull,
    queue,
    workflow_run,
)
from tests.integrations.reading import facts_of, settled_of

COMMIT = f"sha:octo/widget/{SHA}"


def run_of(given: Delivery) -> RunFacts:
    event = event_of("github", given)
    assert event.rejections == ()
    (facts,) = event.run_facts
    return facts


def test_a_completed_job_is_a_run() -> None:
    assert run_of(job()) == RunFacts(
        run_id="ci~4001~1",
        build_uuid="4001",
        build_name="unit (3.11)",
        phase="finished",
        outcome="failure",
        result="failure",
        source="ci",
        pipeline="tests",
        project="octo/widget",
        patchset=SHA,
        provider="github-hosted",
        log_url="https://api.github.com/repos/octo/widget/actions/runs/81/artifacts",
        start_us=1795521600000000,
        end_us=1795522800000000,
        labels={
            "runner": "GitHub Actions 12",
            "runner_group": "GitHub Actions",
            "runner_labels": "ubuntu-24.04",
            "head_branch": "main",
        },
        adapter="github",
        auth="token",
        head=SHA,
        url="https://github.com/octo/widget/actions/runs/81/job/4001",
        attempt_of="81/unit (3.11)",
        subjects=("workflow_run:81", f"branch:octo/widget/main/{SHA}", COMMIT),
    )


JOBS: dict[str, tuple[Delivery, dict[str, object]]] = {
    "a first attempt": (job(run_attempt=...), {"run_id": "ci~4001~1", "attempt_of": "81/unit (3.11)"}),
    "a second attempt": (job(id=4099, run_attempt=2), {"run_id": "ci~4099~2", "attempt_of": "81/unit (3.11)"}),
    "a skipped job may have a start after its end": (
        job(conclusion="skipped", started_at="2026-11-24T12:20:01Z"),
        {"start_us": None, "end_us": 1795522800000000},
    ),
    "an own runner": (job(labels=["self-hosted", "gpu"]), {"provider": "self-hosted"}),
    "an unknown runner": (job(runner_group_name="Large runners"), {"provider": ""}),
    "the log is on the server of the repository": (
        job(repository={**REPOSITORY, "url": "https://github.example/api/v3/repos/octo/widget"}),
        {"log_url": "https://github.example/api/v3/repos/octo/widget/actions/runs/81/artifacts"},
    ),
    "a repository without an address": (
        job(repository={**REPOSITORY, "url": None}),
        {"log_url": "", "project": "octo/widget"},
    ),
    "a workflow run without a name": (
        workflow_run(conclusion="startup_failure", name=""),
        {"build_name": ".github/workflows/tests.yml", "pipeline": "", "head": SHA},
    ),
    "a check run of an unknown app": (check_run(app={}), {"pipeline": "", "outcome": "success"}),
    "a check run of another app": (
        check_run(),
        {
            "run_id": "ci~5001~1",
            "build_name": "integration",
            "pipeline": "example-ci",
            "outcome": "success",
            "log_url": "https://ci.example.org/builds/5001/",
            "subjects": (COMMIT,),
            "branch": "release-2",
            "change": "12",
            "fork": "no",
            "attempt_of": "61/integration",
        },
    ),
    "a check run without a pull request here may be of a fork": (
        check_run(pull_requests=[pull(head=99)]),
        {"fork": "", "branch": "", "change": ""},
    ),
}


@pytest.mark.parametrize(("given", "facts"), JOBS.values(), ids=JOBS)
def test_the_facts_of_a_run(given: Delivery, facts: dict[str, object]) -> None:
    assert facts_of("github", given, facts) == facts


def of_pull_request(*pulls: dict[str, Any]) -> Delivery:
    return workflow_run(event="pull_request", head_branch="fix", pull_requests=list(pulls))


WORKFLOW_RUNS: dict[str, tuple[Delivery, dict[str, str | None]]] = {
    "a push": (
        workflow_run(),
        {
            "event": "push",
            "pipeline": "tests",
            "project": "octo/widget",
            "branch": "main",
            "change": SHA,
            "patchset": SHA,
            "fork": "no",
            "owner": "ada",
            "head_project": "octo/widget",
        },
    ),
    **{
        f"a {event} in main of a fork": (workflow_run(head=FORK, event=event), {"fork": "yes", "branch": None})
        for event in ("pull_request", "pull_request_target", "push")
    },
    "the flag fork makes no fork": (
        workflow_run(head={**REPOSITORY, "fork": True}, event="schedule"),
        {"fork": "no", "branch": "main"},
    ),
    "a deleted fork": (workflow_run(head=None), {"fork": None, "branch": None}),
    "a pull request": (of_pull_request(pull()), {"branch": "release-2", "change": "12", "patchset": SHA, "fork": "no"}),
    "no pull request": (of_pull_request(), {"branch": None, "change": None}),
    "a pull request, with the repository named once": (
        workflow_run(event="pull_request", pull_requests=[pull()], repository=None),
        {"project": "octo/widget", "branch": "release-2", "change": "12"},
    ),
    "a pull request elsewhere": (of_pull_request(pull(base=99)), {"branch": None, "change": None}),
    "a pull request of a fork": (of_pull_request(pull(head=99)), {"branch": None, "change": None}),
    "two pull requests": (of_pull_request(pull(12), pull(13)), {"branch": None, "change": None}),
    "the merge queue": (
        workflow_run(event="merge_group", head_branch=f"gh-readonly-queue/release/2/pr-12-{SHA}"),
        {"event": "merge_group", "branch": "release/2", "change": "12"},
    ),
}


@pytest.mark.parametrize(("given", "facts"), WORKFLOW_RUNS.values(), ids=WORKFLOW_RUNS)
def test_what_a_workflow_run_says_of_its_jobs(given: Delivery, facts: dict[str, str | None]) -> None:
    event = event_of("github", given)
    assert (event.run_facts, event.rejections) == ((), ())
    update = event.updates[0]
    assert update.subject == "workflow_run:81"
    assert {name: update.facts.get(name) for name in facts} == facts


def test_a_workflow_run_says_nothing_else_of_its_jobs() -> None:
    (update,) = event_of("github", workflow_run()).updates
    assert update.facts.keys() == WORKFLOW_RUNS["a push"][1].keys()
    assert update.time_us == 1795522801000000  # of two updates, the later one counts


@pytest.mark.parametrize(
    ("conclusion", "ignored"), [("startup_failure", "never_started"), ("action_required", "skipped")]
)
def test_a_workflow_run_without_jobs_is_accounted_for(conclusion: str, ignored: str) -> None:
    given = workflow_run("requested", head=FORK, event="pull_request", conclusion=conclusion)
    event = event_of("github", given)
    (facts,) = event.run_facts
    assert (facts.run_id, facts.build_name, facts.fork, facts.owner) == (
        "ci~workflow_run%2F81~1",
        "tests",
        "yes",
        "ada",
    )
    assert event.updates[0].facts["fork"] == "yes"
    assert [(kind, reason) for kind, reason, _ in settled_of("github", given)] == [("update", ""), ("ignored", ignored)]


def test_an_approved_run_of_a_fork_is_another_attempt() -> None:
    waiting = run_of(workflow_run(head=FORK, conclusion="action_required"))
    assert run_of(job(run_attempt=2)).subjects[0] == waiting.subjects[0] == "workflow_run:81"


def test_a_merge_group_says_so_of_runs_of_the_queue_alone() -> None:
    (update,) = event_of("github", queue()).updates
    said = (update.subject, update.facts, update.only)
    assert said == (COMMIT, {"review": "merged"}, {"event": "merge_group", "branch": "main"})


def test_an_event_has_the_id_of_its_delivery() -> None:
    assert event_of("github", job()).key == "ci+token d1"
    unnamed = job()._replace(id="")
    assert event_of("github", unnamed).key == event_of("github", unnamed).key != event_of("github", job(id=1)).key


def test_no_secret_becomes_a_fact() -> None:
    token = "ghp_" + "a1B2" * 9
    given = check_run(details_url=f"https://bot:hunter2@ci.example.org/5001?token={token}", name=f"deploy {token}")
    event = event_of("github", given)
    assert token not in repr(event)
    assert "hunter2" not in repr(event)
    assert token in event.addresses["ci~5001~1"]  # the first fetch needs it


def test_an_opened_pull_request_says_whose_it_is_and_which_runs_may_be_of_it() -> None:
    said = [
        (one.subject, one.facts, one.only, one.by) for one in event_of("github", pr(by="eve", author="mal")).updates
    ]
    of_42 = {"change": "42", "branch": "main"}
    assert said == [
        (COMMIT, {}, of_42, ""),
        (COMMIT, {"review": "own"}, of_42, "eve"),
        (COMMIT, {"review": "own"}, of_42, "mal"),
    ]

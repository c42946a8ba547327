"""GitHub's webhooks: what becomes a run, what updates runs, and what is ignored or rejected for which reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.events.records import RunFacts
from ciml.integrations.adapter import NOTHING, Delivery
from ciml.integrations.github import adapter
from tests.integrations.deliveries import event_of
from tests.integrations.github_samples import (
    FORK,
    REPOSITORY,
    SHA,
    check_run,
    delivery,
    job,
    merge_group,
    pull,
    pull_request,
    review,
    workflow_run,
)
from tests.integrations.reading import settled_of

COMMIT = f"sha:octo/widget/{SHA}"
INSIDE = {"ref": "fix", "sha": SHA, "repo": REPOSITORY}


def run_of(given: Delivery) -> RunFacts:
    event = event_of("github", given)
    assert event.rejections == ()
    (facts,) = event.run_facts
    return facts


def update_of(given: Delivery) -> tuple[str, dict[str, str]]:
    event = event_of("github", given)
    assert (event.run_facts, event.rejections) == ((), ())
    update = event.updates[0]
    return update.subject, dict(update.facts)


Said = tuple[str, dict[str, str], dict[str, str], str]


def said_of(given: Delivery) -> list[Said]:
    """Return what a delivery says of runs: subject, facts, condition and reviewer."""
    return [(one.subject, dict(one.facts), dict(one.only), one.by) for one in event_of("github", given).updates]


def settled(given: Delivery) -> list[tuple[str, str, str]]:
    return settled_of("github", given)


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


def test_a_job_does_not_know_whose_branch_it_ran() -> None:
    facts = run_of(job(head_branch="main"))
    assert (facts.branch, facts.fork, facts.event, facts.review) == ("", "", "", "")


@pytest.mark.parametrize(
    ("action", "status", "phase"),
    [("queued", "queued", "queued"), ("waiting", "waiting", "queued"), ("in_progress", "in_progress", "started")],
)
def test_a_job_that_has_not_ended_is_not_finished(action: str, status: str, phase: str) -> None:
    given = job(action, status=status, conclusion=None, completed_at=None)
    assert run_of(given).phase == phase
    assert settled(given) == [("ignored", "not_finished", "")]


def test_attempts_of_a_job_are_linked() -> None:
    first, second = run_of(job(run_attempt=...)), run_of(job(id=4099, run_attempt=2))
    assert (first.run_id, second.run_id) == ("ci~4001~1", "ci~4099~2")
    assert first.attempt_of == second.attempt_of == "81/unit (3.11)"


@pytest.mark.parametrize(
    ("conclusion", "outcome"),
    [
        ("success", "success"), ("failure", "failure"), ("timed_out", "timeout"), ("cancelled", "cancellation"),
        ("skipped", "skip"), ("neutral", "skip"), ("stale", "cancellation"), ("action_required", "skip"),
    ],
)  # fmt: skip
def test_each_conclusion_has_an_outcome(conclusion: str, outcome: str) -> None:
    assert (run_of(job(conclusion=conclusion)).outcome, run_of(job(conclusion=conclusion)).result) == (
        outcome,
        conclusion,
    )


def test_a_skipped_job_may_have_a_start_after_its_end() -> None:
    facts = run_of(job(conclusion="skipped", started_at="2026-11-24T12:20:01Z"))
    assert (facts.start_us, facts.end_us) == (None, 1795522800000000)


@pytest.mark.parametrize(
    ("changes", "provider"),
    [
        ({"labels": ["self-hosted", "gpu"]}, "self-hosted"),
        ({"runner_group_name": "GitHub Actions"}, "github-hosted"),
        ({"runner_group_name": "Large runners"}, ""),
    ],
)
def test_the_provider_is_what_the_recorder_reports(changes: dict[str, Any], provider: str) -> None:
    assert run_of(job(**changes)).provider == provider


def test_the_log_is_on_the_server_of_the_repository() -> None:
    enterprise = {**REPOSITORY, "url": "https://github.example/api/v3/repos/octo/widget"}
    expected = "https://github.example/api/v3/repos/octo/widget/actions/runs/81/artifacts"
    assert run_of(job(repository=enterprise)).log_url == expected


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({"conclusion": "finished"}, "bad_field", "result: 'FINISHED' is an unknown word; set outcome too"),
        ({"conclusion": None}, "missing_field", "result"),
        ({"started_at": "1015-01-11T19:01:11Z"}, "bad_time", "workflow_job.started_at"),
        ({"completed_at": "2026-11-24T11:00:00Z"}, "bad_time", "end_time: before start_time"),
        ({"status": "done"}, "bad_field", "workflow_job.status: unknown 'done'"),
        ({"run_id": "81/../.."}, "bad_field", "workflow_job.run_id: want a whole number from 1, not a text"),
        ({"run_id": None}, "missing_field", "workflow_job.run_id"),
        ({"labels": [{}]}, "bad_field", "workflow_job.labels[0]: want a text, not an object"),
        ({"id": {}}, "bad_run_id", "id: want a text, not an object"),
        ({"run_attempt": 0}, "bad_run_id", "attempt: want a whole number from 1"),
    ],
)
def test_a_job_that_cannot_be_understood_is_a_dead_letter(changes: dict[str, Any], reason: str, detail: str) -> None:
    ((kind, found, text),) = settled(job(**changes))
    assert (kind, found) == ("dead_letter", reason)
    assert detail in text


def test_a_workflow_run_of_a_push_says_so_of_its_jobs() -> None:
    assert update_of(workflow_run()) == (
        "workflow_run:81",
        {
            "event": "push", "pipeline": "tests", "project": "octo/widget", "branch": "main", "change": SHA,
            "patchset": SHA, "fork": "no", "owner": "ada", "head_project": "octo/widget",
        },
    )  # fmt: skip


def test_the_main_branch_of_a_fork_is_no_branch_of_the_repository() -> None:
    for event in ("pull_request", "pull_request_target", "push"):
        _, facts = update_of(workflow_run(head=FORK, event=event, head_branch="main"))
        assert (facts["fork"], facts.get("branch")) == ("yes", None)


def test_the_flag_fork_makes_no_fork() -> None:
    schedule = {**REPOSITORY, "fork": True}
    _, facts = update_of(workflow_run(head=schedule, event="schedule"))
    assert (facts["fork"], facts["branch"]) == ("no", "main")


def test_a_deleted_fork_is_unknown() -> None:
    _, facts = update_of(workflow_run(head=None))
    assert "fork" not in facts
    assert "branch" not in facts


def test_a_pull_request_gives_its_target_and_number() -> None:
    _, facts = update_of(workflow_run(event="pull_request", head_branch="fix", pull_requests=[pull()]))
    assert (facts["branch"], facts["change"], facts["patchset"], facts["fork"]) == ("release-2", "12", SHA, "no")


@pytest.mark.parametrize(
    "pulls", [[], [pull(base=99)], [pull(head=99)], [pull(12), pull(13)]], ids=["none", "elsewhere", "fork", "two"]
)
def test_a_pull_request_of_another_repository_is_not_this_one(pulls: list[dict[str, Any]]) -> None:
    _, facts = update_of(workflow_run(event="pull_request", pull_requests=pulls))
    assert not facts.keys() & {"branch", "change"}


def test_the_merge_queue_gives_target_and_number() -> None:
    queued = f"gh-readonly-queue/release/2/pr-12-{SHA}"
    _, facts = update_of(workflow_run(event="merge_group", head_branch=queued))
    assert (facts["event"], facts["branch"], facts["change"]) == ("merge_group", "release/2", "12")


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
    assert [(kind, reason) for kind, reason, _ in settled(given)] == [("update", ""), ("ignored", ignored)]


def test_an_approved_run_of_a_fork_is_another_attempt() -> None:
    waiting = run_of(workflow_run(head=FORK, conclusion="action_required"))
    assert run_of(job(run_attempt=2)).subjects[0] == waiting.subjects[0] == "workflow_run:81"


def test_a_check_run_of_github_actions_is_a_workflow_job_already() -> None:
    given = check_run(app={"slug": "github-actions", "name": "GitHub Actions"})
    assert settled(given) == [("ignored", "no_run", adapter.ACTIONS_CHECK)]


def test_a_check_run_of_an_unknown_app_is_told_by_its_page() -> None:
    page = "https://github.com/octo/widget/actions/runs/81/job/5001"
    assert settled(check_run(app={}, details_url=page)) == [("ignored", "no_run", adapter.ACTIONS_CHECK)]
    facts = run_of(check_run(app={}))
    assert (facts.pipeline, facts.outcome) == ("", "success")


def test_a_check_run_of_another_app_is_a_run() -> None:
    facts = run_of(check_run())
    assert (facts.run_id, facts.build_name, facts.pipeline, facts.outcome) == (
        "ci~5001~1",
        "integration",
        "example-ci",
        "success",
    )
    assert (facts.log_url, facts.subjects) == ("https://ci.example.org/builds/5001/", (COMMIT,))
    assert (facts.branch, facts.change, facts.fork, facts.attempt_of) == ("release-2", "12", "no", "61/integration")


def test_a_check_run_without_a_pull_request_here_may_be_of_a_fork() -> None:
    facts = run_of(check_run(pull_requests=[pull(head=99)]))
    assert (facts.fork, facts.branch, facts.change) == ("", "", "")


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (check_run(completed_at="2026-11-24T12:00:00Z"), adapter.INSTANT_CHECK),
        (check_run("rerequested"), adapter.CHECK_REQUEST),
        (pull_request("labeled"), adapter.SAME_PULL_REQUEST),
        (pull_request("edited"), adapter.SAME_PULL_REQUEST),
        (pull_request(), adapter.OF_FORK),
        (pull_request(head={"ref": "fix", "sha": SHA, "repo": None}), adapter.OF_FORK),
        (delivery("pull_request", json.loads(pull_request(head=INSIDE).body) | {"repository": FORK}), adapter.OF_FORK),
        (review(head=FORK), adapter.OF_FORK),
        (review(user={"login": "approver[bot]", "type": "Bot"}), adapter.BOT),
        (review(user=None), adapter.BOT),
        (review(state="commented"), adapter.COMMENT),
        (review(author_association="NONE"), adapter.OUTSIDER),
        (review(author_association="CONTRIBUTOR"), adapter.OUTSIDER),
        (merge_group(reason="dequeued"), adapter.OPEN_GROUP),
        (merge_group("checks_requested"), adapter.OPEN_GROUP),
        (delivery("push", {}), adapter.PUSH),
        (delivery("push", {"ref": "refs/heads/main", "after": "0" * 40}), adapter.PUSH),
        (delivery("push", {"ref": "refs/tags/main", "after": SHA}), adapter.PUSH),
        (delivery("ping", {"zen": "Keep it simple."}), "a ping only tests the webhook"),
        (delivery("check_suite", {}), "a check suite only sums up its check runs"),
        (delivery("status", {}), "a commit status has no times"),
        (delivery("star", {}), adapter.OTHER),
        (delivery("workflow_run", {"workflow_run": {"id": 1}}), NOTHING),
    ],
)
def test_what_says_nothing_of_runs_is_ignored_by_its_rule(given: Delivery, rule: str) -> None:
    assert settled(given) == [("ignored", "no_run", rule)]


OF_12 = {"change": "12", "branch": "main"}


def test_a_merge_says_so_of_its_commit_pull_request_and_base() -> None:
    assert said_of(pull_request(head=INSIDE)) == [
        (COMMIT, {}, OF_12, ""),
        (COMMIT, {"review": "own"}, OF_12, "mallory"),
        (COMMIT, {"review": "merged"}, OF_12, ""),
    ]
    assert said_of(merge_group()) == [(COMMIT, {"review": "merged"}, {"event": "merge_group", "branch": "main"}, "")]


def test_a_merge_into_another_branch_is_no_review() -> None:
    base = {"ref": "mine", "sha": SHA, "repo": REPOSITORY}
    unnamed = json.loads(pull_request(head=INSIDE).body)
    del unnamed["repository"]["default_branch"]
    for given in (pull_request(head=INSIDE, base=base), delivery("pull_request", unnamed)):
        assert {"review": "merged"} not in [facts for _, facts, _, _ in said_of(given)]


def test_an_opened_pull_request_says_whose_it_is_and_which_runs_may_be_of_it() -> None:
    opened = json.loads(pull_request("opened", head=INSIDE, merged=False).body) | {"sender": {"login": "eve"}}
    assert said_of(delivery("pull_request", opened)) == [
        (COMMIT, {}, OF_12, ""),
        (COMMIT, {"review": "own"}, OF_12, "eve"),
        (COMMIT, {"review": "own"}, OF_12, "mallory"),
    ]
    moved = opened | {"action": "edited", "changes": {"base": {"ref": {"from": "mine"}}}}
    assert said_of(delivery("pull_request", moved)) == [
        (COMMIT, {}, OF_12, ""),
        (COMMIT, {}, {"change": "12", "branch": "mine"}, ""),
        (COMMIT, {"review": "own"}, OF_12, "mallory"),
    ]


def test_a_push_says_who_pushed_and_to_which_branch() -> None:
    body = {"ref": "refs/heads/release/2", "after": SHA, "repository": REPOSITORY, "sender": {"login": "ada"}}
    branch = f"branch:octo/widget/release/2/{SHA}"
    assert said_of(delivery("push", body)) == [
        (COMMIT, {"review": "own"}, {}, "ada"),
        (branch, {"review": "pushed"}, {}, ""),
    ]
    assert branch in run_of(job(head_branch="release/2")).subjects


def test_a_dismissal_is_later_than_the_review_that_it_dismisses() -> None:
    approved = review(), "2026-11-24T12:30:00Z"
    dismissed = review("dismissed", state="dismissed"), "2026-11-24T14:00:00Z"
    times = []
    for given, now in (approved, dismissed):
        body = json.loads(given.body)  # GitHub leaves submitted_at as it was
        body["pull_request"]["updated_at"] = now
        times.append(event_of("github", delivery("pull_request_review", body)).time_us)
    assert times[1] - times[0] == 5_400_000_000


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (review(), "approved"),
        (review(state="APPROVED"), "approved"),
        (review(state="changes_requested", author_association="OWNER"), "changes_requested"),
        (review("dismissed", state="dismissed", author_association="NONE"), "dismissed"),
    ],
)
def test_a_review_is_of_the_commit_that_was_read(given: Delivery, word: str) -> None:
    assert said_of(given) == [(COMMIT, {"review": "own"}, OF_12, "ada"), (COMMIT, {"review": word}, OF_12, "grace")]


def test_an_event_has_the_id_of_its_delivery() -> None:
    assert event_of("github", job()).key == "ci+token d1"
    unnamed = job()._replace(id="")
    assert event_of("github", unnamed).key == event_of("github", unnamed).key != event_of("github", job(id=1)).key


@pytest.mark.parametrize(
    ("given", "reason", "detail"),
    [
        (Delivery(b"{}", {}, "d1"), "missing_field", "header x-github-event"),
        (Delivery(b"{}", {"x-github-event": "Workflow Job"}, "d1"), "unknown_type", "header x-github-event"),
        (delivery("workflow_job", {}), "missing_field", "workflow_job"),
        (Delivery(b"payload=%7B%7D", {"x-github-event": "workflow_job"}, "d1"), "broken_json", "application/json"),
    ],
)
def test_what_is_no_webhook_of_github_is_rejected(given: Delivery, reason: str, detail: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        event_of("github", given)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_no_secret_becomes_a_fact() -> None:
    token = "ghp_" + "a1B2" * 9
    given = check_run(details_url=f"https://bot:hunter2@ci.example.org/5001?token={token}", name=f"deploy {token}")
    event = event_of("github", given)
    assert token not in repr(event)
    assert "hunter2" not in repr(event)
    assert token in event.addresses["ci~5001~1"]  # the first fetch needs it

"""GitLab's webhooks: what becomes a run, what updates runs, and what is ignored or rejected for which reason."""

from __future__ import annotations

import pytest

from ciml.events.records import RunFacts
from ciml.integrations.adapter import Delivery
from tests.integrations.deliveries import event_of
from tests.integrations.gitlab_samples import FROM_FORK, PROJECT, SHA, job, merge_request, pipeline
from tests.integrations.reading import facts_of, settled_of

COMMIT = f"sha:44/{SHA}"


def run_of(given: Delivery) -> RunFacts:
    event = event_of("gitlab", given)
    assert event.rejections == ()
    (facts,) = event.run_facts
    return facts


def updates_of(given: Delivery) -> dict[str, dict[str, str]]:
    event = event_of("gitlab", given)
    assert (event.run_facts, event.rejections) == ((), ())
    return {update.subject: dict(update.facts) for update in event.updates if not update.only}


def test_a_finished_job_is_a_run() -> None:
    assert run_of(job()) == RunFacts(
        run_id="ci~9001~1",
        build_uuid="9001",
        build_name="unit 3.11",
        phase="finished",
        outcome="success",
        result="success",
        source="ci",
        project="tools/widget",
        patchset=SHA,
        log_url="https://gitlab.example/api/v4/projects/44/jobs/9001/artifacts",
        start_us=1795521600000000,
        end_us=1795522800000000,
        labels={
            "runner": "runner-4",
            "runner_type": "instance_type",
            "runner_tags": "linux,docker",
            "allow_failure": "false",
            "stage": "test",
            "retries": "1",
            "ref": "main",
        },
        auth="token",
        adapter="gitlab",
        owner="ada",
        head=SHA,
        url="https://gitlab.example/tools/widget/-/jobs/9001",
        attempt_of="501/unit 3.11",
        subjects=("pipeline:501", COMMIT),
    )


@pytest.mark.parametrize("tag", [True, False])
@pytest.mark.parametrize("name", ["head", "merge", "train"])
def test_a_job_knows_no_merge_request_by_the_name_of_its_ref(name: str, tag: bool) -> None:
    """Anybody who may push can call a tag or a branch so."""
    facts = run_of(job(ref=f"refs/merge-requests/6/{name}", tag=tag))
    assert (facts.change, facts.branch, facts.subjects) == ("", "", ("pipeline:501", COMMIT))


BELOW = {**PROJECT, "web_url": "https://example.org/gitlab/tools/widget"}
JOBS: dict[str, tuple[Delivery, dict[str, object]]] = {
    "a retried job is another run of the same attempts": (
        job(build_id=9100),
        {"run_id": "ci~9100~1", "attempt_of": "501/unit 3.11"},
    ),
    "an older server": (
        job(project=..., pipeline_id=...),
        {
            "project": "tools/widget",
            "subjects": ("pipeline:501", COMMIT),
            "log_url": "https://gitlab.example/api/v4/projects/44/jobs/9001/artifacts",
        },
    ),
    "a server below a path": (
        job(project=BELOW),
        {
            "log_url": "https://example.org/gitlab/api/v4/projects/44/jobs/9001/artifacts",
            "url": "https://example.org/gitlab/tools/widget/-/jobs/9001",
        },
    ),
    "times of either form": (
        job(build_started_at_iso="2026-11-24T12:00:30.500Z", build_finished_at="2026-11-24 12:20:00 +0000"),
        {"start_us": 1795521630500000, "end_us": 1795522800000000},
    ),
}


@pytest.mark.parametrize(("given", "facts"), JOBS.values(), ids=JOBS)
def test_the_facts_of_a_run(given: Delivery, facts: dict[str, object]) -> None:
    assert facts_of("gitlab", given, facts) == facts


def test_the_reason_of_a_failure_is_a_label() -> None:
    failed = job(build_status="failed", build_failure_reason="script_failure")
    assert run_of(failed).labels["failure_reason"] == "script_failure"


def test_a_skipped_job_has_the_time_of_its_creation() -> None:
    given = job(build_status="skipped", build_started_at=None, build_finished_at=None)
    assert (run_of(given).start_us, run_of(given).end_us) == (None, 1795521540000000)
    assert settled_of("gitlab", given) == [("ignored", "skipped", "")]


def test_a_pipeline_updates_its_jobs_and_reports_none_of_them() -> None:
    assert updates_of(pipeline()) == {
        "pipeline:501": {
            "event": "push", "pipeline": "push", "project": "tools/widget", "branch": "main", "change": SHA,
            "patchset": SHA, "fork": "no", "owner": "ada",
        }
    }  # fmt: skip


def of_merge_request(source: int, target: str) -> Delivery:
    inside = FROM_FORK | {"source_project_id": source, "target_branch": target}
    return pipeline(inside, source="merge_request_event", ref="main")


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (of_merge_request(99, "next"), {"fork": "yes", "branch": "next", "change": "6"}),
        (of_merge_request(44, "release-2"), {"fork": "no", "branch": "release-2", "change": "6"}),
        (pipeline(source="merge_request_event"), {"fork": None, "branch": None, "change": None}),
        (pipeline(tag=True), {"fork": "no", "branch": None}),
    ],
    ids=["of a fork", "into a branch", "of an unknown merge request", "of a tag"],
)
def test_the_branch_of_a_pipeline_is_its_target(given: Delivery, facts: dict[str, str | None]) -> None:
    known = updates_of(given)["pipeline:501"]
    assert {name: known.get(name) for name in facts} == facts


@pytest.mark.parametrize(("source", "fork"), [(44, "no"), (99, "yes")])
def test_a_merge_request_knows_its_target_and_whether_it_is_of_a_fork(source: int, fork: str) -> None:
    given = merge_request(source, target_branch="main")
    assert updates_of(given) == {"merge_request:44/6": {"fork": fork, "branch": "main", "change": "6"}}


def test_an_event_is_known_by_its_body() -> None:
    """The events that one receiver of webhooks causes share one X-Gitlab-Event-UUID."""
    assert event_of("gitlab", job()).key != event_of("gitlab", job(build_id=9100)).key
    assert event_of("gitlab", job()).key == event_of("gitlab", job()._replace(id="other")).key

"""Jenkins: builds of its CloudEvents plugin, with the id that `ciml record` has in the job."""

from __future__ import annotations

from typing import Any

import pytest

from adapters import jenkins
from ciml.errors import RejectedInput
from recorder.ci_environment import known_run
from tests.adapters.deliveries import event_of
from tests.adapters.reading import runs_of
from tests.adapters.samples import SHA, cloudevent
from tests.adapters.samples import jenkins as sample

PAGE = "https://jenkins.example/job/team/job/app/13/"


def one(kind: str = "finalized", **build: Any) -> Any:
    (run,) = runs_of("jenkins", sample(kind, **build)).values()
    return run


def test_every_fact_of_a_finished_build() -> None:
    event = event_of("jenkins", sample(), "jenkins")
    assert (event.key, event.type) == ("jenkins+token e1", "org.jenkinsci.job.finalized")
    assert event.time_us == 1795521660000000
    (run,) = event.run_facts
    assert run.to_json() == {
        "run_id": "jenkins~jenkins-team-app-13~1", "build_uuid": "jenkins-team-app-13", "build_name": "app",
        "phase": "finished", "outcome": "success", "result": "SUCCESS", "source": "jenkins", "project": "team/app",
        "branch": "main", "change": SHA, "patchset": SHA, "head": SHA, "log_url": f"{PAGE}artifact/", "url": PAGE,
        "start_us": 1795521600250000, "end_us": 1795521660500000, "auth": "token", "subjects": (f"sha:acme/app/{SHA}",),
    }  # fmt: skip


def test_a_recorder_in_the_job_has_the_same_run() -> None:
    recorded = known_run({"JENKINS_URL": "https://jenkins.example", "BUILD_TAG": "jenkins-team-app-13",
                          "JOB_NAME": "team/app", "JOB_BASE_NAME": "app", "GIT_COMMIT": SHA})  # fmt: skip
    run = one()
    assert (run.build_uuid, run.build_name, run.project, run.change) == (
        recorded.native_id, recorded.job, recorded.facts["project"], recorded.facts["change"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("SUCCESS", "success"),
        ("FAILURE", "failure"),
        ("UNSTABLE", "failure"),
        ("ABORTED", "cancellation"),
        ("NOT_BUILT", "skip"),
    ],
)
@pytest.mark.parametrize("kind", ["completed", "finalized", "finalzed", "failed"])
def test_every_result_of_jenkins(kind: str, status: str, outcome: str) -> None:
    run = one(kind, status=status)
    assert (run.outcome, run.result, run.phase) == (outcome, status, "finished")


@pytest.mark.parametrize(
    ("url", "subjects"),
    [
        ("https://github.com/acme/app.git", (f"sha:acme/app/{SHA}",)),
        ("git@github.com:acme/app.git", (f"sha:acme/app/{SHA}",)),
        ("https://git.example/scm/acme/app/", (f"sha:acme/app/{SHA}",)),
        ("app", ()),
        (None, ()),
    ],
)
def test_a_commit_is_named_as_github_does(url: Any, subjects: tuple[str, ...]) -> None:
    assert one(scmState={"url": url, "commit": SHA}).subjects == subjects


def test_a_started_build() -> None:
    run = one("started", duration=0, timestamp=1795521600250)
    assert (run.phase, run.start_us, run.end_us, run.result) == ("started", 1795521600250000, None, "")


def test_the_names_of_folders_may_be_encoded() -> None:
    data = {
        "url": "job/my%20team/job/app%2Bx/",
        "build": {"number": 4, "status": "SUCCESS", "timestamp": 1795521660500},
    }
    (run,) = runs_of("jenkins", cloudevent("org.jenkinsci.job.completed", data)).values()
    assert (run.build_uuid, run.build_name, run.project) == ("jenkins-my team-app+x-4", "app+x", "my team/app+x")
    assert (run.log_url, run.url, run.subjects, run.start_us) == ("", "", (), None)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("org.jenkinsci.job.updated", jenkins.NO_BUILD),
        ("org.jenkinsci.job.created", jenkins.NO_BUILD),
        ("org.jenkinsci.queue.entered_waiting", jenkins.QUEUE),
        ("org.jenkinsci.queue.left", jenkins.QUEUE),
        ("org.jenkinsci.node.offline", jenkins.NODE),
    ],
)
def test_events_of_no_build_are_ignored(kind: str, rule: str) -> None:
    event = event_of("jenkins", cloudevent(kind, {"name": "app", "url": "job/app/"}))
    assert (event.id, event.ignored) == ("e1", rule)


@pytest.mark.parametrize(
    "kind", ["org.jenkinsci.job.paused", "org.jenkinsci.pipeline.started", "dev.cdevents.job.started"]
)
def test_an_unknown_type_is_rejected(kind: str) -> None:
    with pytest.raises(RejectedInput, match="unknown_type"):
        event_of("jenkins", cloudevent(kind, {"url": "job/app/", "build": {"number": 1}}))


@pytest.mark.parametrize(
    "url", ["", "job", "app/", "job/app/13", "job//", "job//job/app/", "view/all/job/app/", ["job/a/"]]
)
def test_a_job_of_another_form_is_rejected(url: Any) -> None:
    data = {"url": url, "build": {"number": 1, "status": "SUCCESS"}}
    with pytest.raises(RejectedInput, match="url"):
        event_of("jenkins", cloudevent("org.jenkinsci.job.completed", data))


@pytest.mark.parametrize(
    ("build", "where"),
    [
        ({"timestamp": 1.5}, "build.timestamp"),
        ({"duration": -1}, "build.duration"),
        ({"timestamp": 1 << 60}, "build.timestamp"),
        ({"number": None}, "build.number"),
        ({"scmState": []}, "build.scmState"),
        ({"fullUrl": 1.5}, "build.fullUrl"),
    ],
)
def test_a_damaged_build_is_rejected(build: dict[str, Any], where: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        event_of("jenkins", sample(**build))
    assert caught.value.detail.partition(":")[0] == where

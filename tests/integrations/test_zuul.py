"""Zuul: one message, many builds, changes and retried builds. The messages in zuul/ are of a real Zuul 14.3."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.integrations import zuul
from tests.integrations import samples
from tests.integrations.deliveries import event_of
from tests.integrations.reading import runs_of
from tests.integrations.samples import SHA, delivery, zuul_build, zuul_message

LOGS = "http://127.0.0.1:19001"
CHECK = "d6c06aa0ff2f4cba93f0723595d1ef96"


def read(message: dict[str, Any]) -> dict[str, Any]:
    """Return the runs by their native id."""
    return {run.build_uuid: run for run in runs_of("zuul", delivery(message)).values()}


def one(message: dict[str, Any]) -> Any:
    (run,) = read(message).values()
    return run


def test_a_real_check_reports_each_build_and_its_retried_one() -> None:
    event = event_of("zuul", delivery(samples.zuul("check-failure")), "zuul")
    assert (event.id, event.type, event.time_us) == (f"{CHECK}/failure", "failure", 1795661002322742)
    found = {run.build_uuid: (run.build_name, run.result, run.outcome, run.phase) for run in event.run_facts}
    assert found == {
        "76e469e0b7074950ae72bdbbb5765ae8": ("retried", "RETRY_LIMIT", "error", "finished"),
        "a54d7d12116c422880763cda0f5c89a2": ("retried", "RETRY", "error", "finished"),
        "e9eb020a19d0446d98a02f71d8326e41": ("after-fails", "SKIPPED", "skip", "finished"),
        "572ecac8588a4f6b9da9b656ce0c24db": ("too-long", "TIMED_OUT", "timeout", "finished"),
        "fb445721e1d340ccbe61214ed3f2bddc": ("measured", "SUCCESS", "success", "finished"),
        "ce19e8b4630942ac8bfabad78e647bd1": ("fails", "FAILURE", "failure", "finished"),
    }
    assert {run.run_id for run in event.run_facts} == {f"zuul~{uuid}~1" for uuid in found}
    assert event.rejections == ()


def test_every_fact_of_a_real_build() -> None:
    run = read(samples.zuul("check-failure"))["fb445721e1d340ccbe61214ed3f2bddc"]
    uuid = "fb445721e1d340ccbe61214ed3f2bddc"
    assert run.to_json() == {
        "run_id": f"ci~{uuid}~1",
        "build_uuid": uuid,
        "build_name": "measured",
        "phase": "finished",
        "outcome": "success",
        "result": "SUCCESS",
        "source": "ci",
        "pipeline": "check",
        "project": "demo",
        "branch": "master",
        "change": "1",
        "patchset": "1",
        "log_url": f"{LOGS}/{uuid}/dstat-csv.log",
        "output_url": f"{LOGS}/{uuid}/job-output.txt",
        "start_us": 1795660975770052,
        "end_us": 1795660995273999,
        "owner": "admin",
        "auth": "token",
        "adapter": "zuul",
        "head": "c6ff6194bc54c406fe6a2a838b487839335647c4",
        "labels": {"tenant": "ciml-test", "voting": "true"},
        "url": f"http://127.0.0.1:19000/t/ciml-test/build/{uuid}",
        "attempt_of": f"{CHECK}/measured",
        "subjects": ("change:demo/1/1", "change:demo/1"),
    }


def test_retried_builds_are_attempts_of_one_job_and_change() -> None:
    runs = read(samples.zuul("check-failure"))
    first, last = runs["a54d7d12116c422880763cda0f5c89a2"], runs["76e469e0b7074950ae72bdbbb5765ae8"]
    assert first.attempt_of == last.attempt_of == f"{CHECK}/retried"
    assert (first.change, first.patchset, first.project, first.subjects) == ("1", "1", "demo", last.subjects)
    assert first.log_url == f"{LOGS}/a54d7d12116c422880763cda0f5c89a2/"  # it names no artifacts


def test_a_build_that_never_started_has_the_time_at_which_zuul_decided_so() -> None:
    skipped = read(samples.zuul("check-failure"))["e9eb020a19d0446d98a02f71d8326e41"]
    assert (skipped.start_us, skipped.end_us, skipped.log_url) == (None, 1795660991544006, "")
    build = zuul_build(result="NODE_FAILURE", start_time=None, end_time=None, execute_time=None, log_url=None)
    assert one(zuul_message(build, timestamp=1795521700.5)).end_us == 1795521700500000
    assert one(zuul_message(build)).end_us == 1795521581500000  # the text enqueue_time


@pytest.mark.parametrize("name", ["check-start", "gate-start"])
def test_a_start_names_no_build(name: str) -> None:
    event = event_of("zuul", delivery(samples.zuul(name)))
    assert (event.run_facts, event.type, event.ignored) == ((), "start", zuul.NOT_STARTED)


@pytest.mark.parametrize("action", ["enqueue", "merge-conflict", "config-error", "no-jobs", "dequeue"])
def test_a_report_without_builds_is_ignored(action: str) -> None:
    event = event_of("zuul", delivery(zuul_message(action=action, buildset={"result": None})))
    assert (event.id, event.ignored) == (f"s1/{action}", zuul.NO_BUILD)


def test_a_merger_of_old_has_no_buildset_yet() -> None:
    message = zuul_message(action="merge-failure", zuul_event_id="e9", buildset={"uuid": None})
    assert event_of("zuul", delivery(message)).id == "e9/merge-failure"


def test_a_gate_and_a_post_job() -> None:
    gate, post = one(samples.zuul("gate-success")), one(samples.zuul("post-success"))
    assert (gate.pipeline, gate.change, gate.labels["queue"], gate.review) == ("gate", "1", "demo", "")
    assert (post.pipeline, post.change, post.patchset, post.head, post.subjects) == ("post", "", "", "", ())
    assert (post.project, post.branch) == ("demo", "master")


def test_an_old_message_has_the_change_in_its_top_level_alone() -> None:
    run = one(zuul_message(zuul_build()))
    assert (run.project, run.change, run.patchset, run.owner, run.head) == ("openstack/nova", "903450", "3", "ada", SHA)
    assert run.subjects == ("change:openstack%2Fnova/903450/3", "change:openstack%2Fnova/903450")
    assert run.log_url == "https://logs.example/b1/"


def change(number: str) -> dict[str, str]:
    return {"project": "demo", "branch": "main", "change": number, "patchset": "1", "owner": f"owner-{number}"}


def test_each_build_of_an_item_of_several_changes_has_its_own() -> None:
    builds = [zuul_build(uuid=f"b{number}", job_uuid=f"j{number}", change=change(number)) for number in "12"]
    retried = {"job_name": "unit", "job_uuid": "j2", "uuid": "b0", "result": "RETRY", "start_time": 1795521500.5}
    message = zuul_message(
        *builds,
        changes=[change("1"), change("2")],
        buildset={"retry_builds": [retried, {**retried, "uuid": "b3", "job_uuid": "j3"}]},
    )
    assert {uuid: (run.change, run.owner, run.attempt_of) for uuid, run in read(message).items()} == {
        "b1": ("1", "owner-1", "s1/unit/j1"),
        "b2": ("2", "owner-2", "s1/unit/j2"),
        "b0": ("2", "owner-2", "s1/unit/j2"),
        "b3": ("", "", "s1/unit/j3"),
    }


@pytest.mark.parametrize(
    ("build", "buildset", "outcome"),
    [
        ({"result": "it works"}, "SUCCESS", "success"),
        ({"result": "it works", "voting": False}, "SUCCESS", None),
        ({"result": "it works"}, "FAILURE", None),
        ({"result": "not needed", "start_time": None, "end_time": None}, "SUCCESS", None),
        ({"result": "TIMED_OUT"}, "SUCCESS", "timeout"),
    ],
)
def test_a_jobs_own_message_is_a_success_only_where_that_is_certain(
    build: dict[str, Any], buildset: str, outcome: str | None
) -> None:
    event = event_of("zuul", delivery(zuul_message(zuul_build(**build), buildset={"result": buildset})))
    if outcome:
        assert [(run.outcome, run.result) for run in event.run_facts] == [(outcome, build["result"])]
    else:
        ((facts, fault),) = event.rejections
        assert (facts.build_uuid, fault.reason) == ("b1", "bad_field")
        assert "result" in fault.detail
        assert "unknown word" in fault.detail


def test_a_retried_build_is_an_error_whatever_its_jobs_own_message() -> None:
    retried = zuul_build(uuid="b0", result="does not work")
    runs = read(zuul_message(zuul_build(), buildset={"retry_builds": [retried]}))
    assert {uuid: run.outcome for uuid, run in runs.items()} == {"b1": "success", "b0": "error"}


def test_times_may_be_texts() -> None:
    run = one(zuul_message(zuul_build(start_time="1795521600.25", end_time="1795521660")))
    assert (run.start_us, run.end_us) == (1795521600250000, 1795521660000000)


@pytest.mark.parametrize(
    ("artifacts", "address"),
    [
        ([{"name": "dstat", "url": "https://l/d.csv", "metadata": {"type": "dstat"}}], "https://l/d.csv"),
        (
            [
                {"url": "https://l/x", "metadata": {"type": "html"}},
                {"url": "https://l/e.csv", "metadata": {"type": "dool_csv"}},
            ],
            "https://l/e.csv",
        ),
        (
            [{"url": "d.csv", "metadata": {"type": "dstat"}}, {"url": 7, "metadata": {"type": "dstat"}}],
            "https://logs.example/b1/",
        ),
        ([{"url": "https://l/x"}, {"url": "https://l/x", "metadata": ["type"]}, "x", None], "https://logs.example/b1/"),
        ("dstat", "https://logs.example/b1/"),
        (None, "https://logs.example/b1/"),
    ],
)
def test_an_artifact_names_the_telemetry_else_the_folder_of_logs(artifacts: Any, address: str) -> None:
    run = one(zuul_message(zuul_build(artifacts=artifacts)))
    assert (run.log_url, run.output_url) == (address, "https://logs.example/b1/job-output.txt")


@pytest.mark.parametrize("named", [{"name": "Job Output"}, {"name": "console", "metadata": {"type": "job_output"}}])
def test_an_artifact_may_name_the_output(named: dict[str, Any]) -> None:
    artifact = {"url": "https://l/console.txt", **named}
    run = one(zuul_message(zuul_build(artifacts=[{**artifact, "url": "console.txt"}, artifact])))
    assert (run.log_url, run.output_url) == ("https://logs.example/b1/", "https://l/console.txt")


def test_a_malformed_address_of_the_output_is_no_fault_of_the_build() -> None:
    artifact = {"name": "job output", "url": f"https://l/{'x' * 5000}"}
    assert one(zuul_message(zuul_build(artifacts=[artifact]))).output_url == ""
    assert one(zuul_message(zuul_build(log_url=None))).output_url == ""


@pytest.mark.parametrize(
    ("changed", "reason", "where"),
    [
        ({"start_time": "soon"}, "bad_time", "start_time"),
        ({"change": ["demo"]}, "bad_field", "project"),
        ({"change": {"project": {}}}, "bad_field", "project"),
        ({"job_name": None}, "missing_field", "job"),
        ({"result": ["SUCCESS"]}, "bad_field", "result"),
        ({"log_url": 1.5}, "bad_field", "log_url"),
        ({"voting": []}, "bad_field", "labels.voting"),
    ],
)
def test_a_fault_of_a_build_costs_that_build_alone(changed: dict[str, Any], reason: str, where: str) -> None:
    event = event_of("zuul", delivery(zuul_message(zuul_build(**changed), zuul_build(uuid="b2", job_name="lint"))))
    assert [run.build_uuid for run in event.run_facts] == ["b2"]
    ((facts, fault),) = event.rejections
    assert (facts.build_uuid, fault.reason) == ("b1", reason)
    assert where in fault.detail

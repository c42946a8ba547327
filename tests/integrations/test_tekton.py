"""Tekton: TaskRuns and their attempts, in both modes of CloudEvents."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.integrations import tekton
from tests.integrations.deliveries import event_of
from tests.integrations.reading import runs_of
from tests.integrations.samples import attempt, cloudevent, task_run

KIND = "dev.tekton.event.taskrun.{}.v1"


def read(word: str, data: Any, mode: str = "binary") -> dict[str, Any]:
    return runs_of("tekton", cloudevent(KIND.format(word), data, mode))


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_every_fact_of_a_task_run(mode: str) -> None:
    event = event_of("tekton", cloudevent(KIND.format("successful"), task_run(), mode))
    assert (event.key, event.type, event.time_us) == ("ci+token e1", KIND.format("successful"), 1795521660000000)
    (run,) = event.run_facts
    assert run.to_json() == {
        "run_id": "ci~0c2e~1",
        "build_uuid": "0c2e",
        "build_name": "build",
        "phase": "finished",
        "outcome": "success",
        "result": "Succeeded",
        "source": "ci",
        "project": "ci",
        "log_url": "s3://logs/ci/nightly-x7-build/0c2e-1.csv",
        "start_us": 1795521600000000,
        "end_us": 1795521660000000,
        "auth": "token",
        "adapter": "tekton",
        "attempt_of": "ci/nightly-x7/build",
        "labels": {
            "tekton.dev/pipeline": "nightly",
            "tekton.dev/pipelineRun": "nightly-x7",
            "tekton.dev/pipelineTask": "build",
        },
    }


def test_earlier_attempts_are_runs_where_their_logs_differ() -> None:
    status = {"retriesStatus": [attempt("Failed", 10), attempt("TaskRunTimeout", 20)]}
    runs = read("successful", task_run(status=status))
    assert {name: (run.outcome, run.log_url.rpartition("/")[2]) for name, run in runs.items()} == {
        "0c2e 3": ("success", "0c2e-3.csv"),
        "0c2e 1": ("failure", "0c2e-1.csv"),
        "0c2e 2": ("timeout", "0c2e-2.csv"),
    }
    assert runs["0c2e 2"].start_us == 1795521020000000
    assert {run.attempt_of for run in runs.values()} == {"ci/nightly-x7/build"}


@pytest.mark.parametrize(
    ("output", "outputs"),
    [
        ("https://l/{uid}/{attempt}.txt", {"0c2e 1": "https://l/0c2e/1.txt", "0c2e 2": "https://l/0c2e/2.txt"}),
        ("https://l/{uid}.txt", {"0c2e 1": "", "0c2e 2": "https://l/0c2e.txt"}),
        ("{name}" * 600, {"0c2e 1": "", "0c2e 2": ""}),
        (7, {"0c2e 1": "", "0c2e 2": ""}),
    ],
)
def test_an_annotation_may_name_the_output(output: Any, outputs: dict[str, str]) -> None:
    """An output belongs to one attempt, as a log does; a malformed address is none."""
    metadata = {"annotations": {tekton.LOG: "s3://logs/{attempt}.csv", tekton.OUTPUT: output}}
    runs = read("successful", task_run(metadata=metadata, status={"retriesStatus": [attempt("Failed", 10)]}))
    assert {name: run.output_url for name, run in runs.items()} == outputs


def test_one_address_for_all_attempts_is_that_of_the_last() -> None:
    metadata = {"annotations": {tekton.LOG: "https://logs.example/{name}/"}}
    runs = read(
        "failed", task_run("Failed", "False", metadata=metadata, status={"retriesStatus": [attempt("Failed", 10)]})
    )
    assert {name: run.log_url for name, run in runs.items()} == {"0c2e 2": "https://logs.example/nightly-x7-build/"}


def test_names_that_hold_placeholders_are_replaced_once() -> None:
    metadata = {"annotations": {tekton.LOG: "s3://logs/{name}/{uid}"}, "name": "{uid}-{name}"}
    (run,) = read("successful", task_run(metadata=metadata)).values()
    assert run.log_url == "s3://logs/{uid}-{name}/0c2e"


def test_an_address_does_not_grow_by_its_placeholders() -> None:
    long = {"annotations": {tekton.LOG: "{name}" * 600}, "name": "{uid}" * 200, "uid": "{attempt}" * 100}
    with pytest.raises(RejectedInput, match=f"bad_field: {tekton.LOG}: 600000 characters"):
        read("successful", task_run(metadata=long))


@pytest.mark.parametrize("annotations", [None, {}, {"other": "x"}])
def test_a_task_run_without_the_annotation_has_no_log(annotations: Any) -> None:
    (run,) = read("successful", task_run(metadata={"annotations": annotations})).values()
    assert run.log_url == ""


@pytest.mark.parametrize(
    ("labels", "spec", "job", "attempt_of"),
    [
        ({}, {"taskRef": {"name": "golang-build"}}, "golang-build", "ci/nightly-x7-build/golang-build"),
        ({}, {}, "nightly-x7-build", "ci/nightly-x7-build/nightly-x7-build"),
        (None, None, "nightly-x7-build", "ci/nightly-x7-build/nightly-x7-build"),
    ],
)
def test_a_task_run_of_no_pipeline(labels: Any, spec: Any, job: str, attempt_of: str) -> None:
    data = task_run(metadata={"labels": labels})
    data["taskRun"]["spec"] = spec
    (run,) = read("successful", data).values()
    assert (run.build_name, run.attempt_of, run.pipeline) == (job, attempt_of, "")


def test_labels_are_labels_and_no_facts_for_a_policy() -> None:
    many = {f"l{n:03}": "x" for n in range(100)} | {"n" * 200: "too long", "pipeline": "gate", "review": "approved"}
    (run,) = read("successful", task_run(metadata={"labels": many})).values()
    assert len(run.labels) == 64
    assert (run.pipeline, run.review, run.event) == ("", "", "")


def test_a_task_run_that_never_started_has_its_creation() -> None:
    data = task_run("CouldntGetTask", "False", status={"startTime": None, "completionTime": None})
    (run,) = read("failed", data).values()
    assert (run.start_us, run.end_us) == (None, 1795521598000000)

"""CDEvents of every version: runs, and changes that are joined to runs by their chain."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.integrations.adapter import Delivery
from tests.integrations.deliveries import event_of
from tests.integrations.reading import runs_of, updates_of
from tests.integrations.samples import cdevent, cloudevent, delivery

OUTPUT = "https://logs.example/7.txt"
LOG = {
    "ciml": {"log_url": "https://logs.example/7.csv", "output_url": OUTPUT, "labels": {"node": "n1"}, "branch": "main"}
}


def finished(kind: str = "taskrun", version: str = "0.5.1", **parts: Any) -> dict[str, Any]:
    content = {"taskName": "build", "outcome": "failure", "uri" if version >= "0.5" else "url": "https://ci.example/7"}
    content |= parts.pop("content", {})
    return cdevent(f"dev.cdevents.{kind}.finished.0.3.0", content, version, **parts)


def one(event: Any) -> Any:
    (run,) = runs_of("cdevents", event if isinstance(event, Delivery) else delivery(event)).values()
    return run


@pytest.mark.parametrize("version", ["0.3.0", "0.4.1", "0.5.1", "0.6.0-draft"])
@pytest.mark.parametrize("mode", ["binary", "structured", "bare"])
def test_every_fact_of_a_task_run(version: str, mode: str) -> None:
    event = finished(version=version, context={"chainId": "c1"}, customData=LOG)
    sent = delivery(event) if mode == "bare" else cloudevent(event["context"]["type"], event, mode)
    found = event_of("cdevents", sent)
    expected = ("ci+token d1", "dev.cdevents.taskrun.finished.0.3.0", 1795521660000000)
    assert (found.key, found.type, found.time_us) == expected
    (run,) = found.run_facts
    assert run.to_json() == {
        "run_id": "ci~ci%2Ftekton%2Fbuild-7~1", "build_uuid": "ci/tekton/build-7", "build_name": "build",
        "phase": "finished", "outcome": "failure", "result": "failure", "source": "ci", "branch": "main",
        "log_url": "https://logs.example/7.csv", "end_us": 1795521660000000, "labels": {"node": "n1"}, "auth": "token",
        "adapter": "cdevents",
        "url": "https://ci.example/7", "subjects": ("chain:c1",), "output_url": OUTPUT,
    }  # fmt: skip


def test_the_name_of_a_pipeline_and_of_a_test_suite() -> None:
    pipeline = one(finished("pipelinerun", content={"pipelineName": "nightly"}))
    assert (pipeline.build_name, pipeline.pipeline) == ("nightly", "nightly")
    assert one(finished("testsuiterun", content={"testSuite": {"id": "9", "name": "unit"}})).build_name == "unit"
    assert one(finished("testsuiterun", content={"testSuite": {"id": "9"}})).build_name == "9"


@pytest.mark.parametrize(
    ("parts", "native"),
    [
        ({}, "ci/tekton/build-7"),
        ({"subject": {"source": "https://jenkins.example/job/app/", "id": "13"}}, "https://jenkins.example/job/app/13"),
        ({"subject": {"source": "https://jenkins.example/job/lib/", "id": "13"}}, "https://jenkins.example/job/lib/13"),
        ({"context": {"source": ""}}, "build-7"),
    ],
)
def test_an_id_is_unique_within_its_source_alone(parts: dict[str, Any], native: str) -> None:
    assert one(finished(customData=LOG, **parts)).build_uuid == native


def test_a_long_id_becomes_a_digest() -> None:
    first, second = (one(finished(subject={"id": "x" * 300 + end})).build_uuid for end in "ab")
    assert len(first) == len(second) == 64
    assert first != second


@pytest.mark.parametrize("custom", [None, "YWJj", ["x"], {"other": 1}, {"ciml": {}}])
def test_other_custom_data_is_not_ciml_s(custom: Any) -> None:
    assert one(finished(customData=custom)).log_url == ""


def test_custom_data_cannot_say_how_the_sender_was_proved_or_which_run_it_is() -> None:
    run = one(finished(customData={"ciml": {"auth": "mtls", "id": "other", "outcome": "success", "result": "success"}}))
    assert (run.auth, run.build_uuid, run.outcome) == ("token", "ci/tekton/build-7", "failure")


def change(predicate: str, **parts: Any) -> Any:
    kind = f"dev.cdevents.change.{predicate}.0.3.0"
    return cdevent(
        kind, {"repository": {"id": "demo/app", "source": "https://git.example"}}, subject={"id": "42"}, **parts
    )


@pytest.mark.parametrize(
    ("predicate", "review"),
    [("created", {}), ("updated", {}), ("reviewed", {"review": "reviewed"}), ("merged", {"review": "partly_approved"})],
)
def test_a_change_is_joined_to_the_runs_of_its_chain(predicate: str, review: dict[str, str]) -> None:
    found = updates_of("cdevents", delivery(change(predicate, context={"chainId": "c1"})))
    assert found == {"chain:c1": {"change": "42", "project": "demo/app", **review}}

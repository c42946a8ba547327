"""TaskRuns of Tekton's own library, sent by its own client to a real receiver, become runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.integrations.registry import read_event
from tests.go_programs import go_program
from tests.integrations.webhooks.hooking import receiving

pytestmark = [pytest.mark.engines, pytest.mark.interop, pytest.mark.timeout(1500)]
HERE = Path(__file__).parent
SOURCE = """
[[source]]
receiver = "webhooks"
name = "tekton"
adapter = "tekton"
auth = "none"
"""


@pytest.fixture(scope="module")
def producer() -> Path:
    """The program, which Go builds into the user's cache."""
    return go_program(HERE, "tekton-events")


def task_run(uid: str, status: str, reason: str, **fields: Any) -> dict[str, Any]:
    """A TaskRun of version v1 as the controller has it."""
    return {
        "apiVersion": "tekton.dev/v1", "kind": "TaskRun",
        "metadata": {
            "name": f"run-{uid}", "namespace": "ci", "uid": uid, "creationTimestamp": "2026-11-24T11:59:00Z",
            "labels": {"tekton.dev/pipelineTask": "unit", "tekton.dev/pipelineRun": "run"},
            "annotations": {"ciml.dev/log-url": "s3://logs/{namespace}/{name}-{attempt}.csv"},
        },
        "spec": {"taskRef": {"name": "task"}},
        "status": {
            "conditions": [{"type": "Succeeded", "status": status, "reason": reason}],
            "startTime": "2026-11-24T12:00:00Z",
            **({} if status == "Unknown" else {"completionTime": "2026-11-24T12:20:00Z"}), **fields,
        },
    }  # fmt: skip


RETRIED = {
    "retriesStatus": [
        {
            "conditions": [{"type": "Succeeded", "status": "False", "reason": "Failed"}],
            "startTime": "2026-11-24T11:00:00Z", "completionTime": "2026-11-24T11:20:00Z",
        }
    ]
}  # fmt: skip
RUNS = [
    (task_run("u1", "Unknown", "Started"), "dev.tekton.event.taskrun.started.v1"),
    (task_run("u1", "Unknown", "Running"), "dev.tekton.event.taskrun.running.v1"),
    (task_run("u1", "Unknown", "Pending"), "dev.tekton.event.taskrun.unknown.v1"),
    (task_run("u1", "True", "Succeeded"), "dev.tekton.event.taskrun.successful.v1"),
    (task_run("u2", "False", "Failed", **RETRIED), "dev.tekton.event.taskrun.failed.v1"),
    (task_run("u3", "False", "TaskRunTimeout"), "dev.tekton.event.taskrun.failed.v1"),
    (task_run("u4", "False", "TaskRunCancelled"), "dev.tekton.event.taskrun.failed.v1"),
    ({**task_run("p1", "True", "Completed"), "kind": "PipelineRun"}, "dev.tekton.event.pipelinerun.successful.v1"),
]


def test_tektons_events_become_runs(kafka: str, topic: Callable[..., str], tmp_path: Path, producer: Path) -> None:
    name = topic()
    sent = "".join(f"{json.dumps(run)}\n" for run, _ in RUNS)
    with receiving(tmp_path, kafka, name, SOURCE) as (hooks, _):
        url = f"http://127.0.0.1:{hooks.port}/hooks/tekton"
        done = subprocess.run([producer, url], input=sent, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found = [read_event(message) for message in hooks.stored()]
    assert done.stdout.splitlines() == [kind for _, kind in RUNS] == [each.type for each in found]
    assert len({each.id for each in found}) == len(RUNS)
    assert found[-1].ignored == "a PipelineRun is the sum of its TaskRuns"
    runs = [
        [(facts.run_id, facts.phase, facts.outcome, facts.log_url) for facts in each.run_facts] for each in found[:-1]
    ]
    log = "s3://logs/ci/run-{}-{}.csv"
    assert runs == [
        *[[("tekton~u1~1", "started", None, log.format("u1", 1))]] * 3,
        [("tekton~u1~1", "finished", "success", log.format("u1", 1))],
        [
            ("tekton~u2~2", "finished", "failure", log.format("u2", 2)),
            ("tekton~u2~1", "finished", "failure", log.format("u2", 1)),
        ],
        [("tekton~u3~1", "finished", "timeout", log.format("u3", 1))],
        [("tekton~u4~1", "finished", "cancellation", log.format("u4", 1))],
    ]
    assert {(facts.build_name, facts.project, facts.attempt_of) for each in found for facts in each.run_facts} == {
        ("unit", "ci", "ci/run/unit")
    }
    assert {event.rejections for event in found} == {()}

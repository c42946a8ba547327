"""An ingest under a supervisor on Flink: parts killed, stopped with a savepoint, resumed wider, state lost: exact."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from ciml.pipelines.flink import jobs as flink_rest
from tests.pipelines.ingest.scenario import send
from tests.services.supervising import both, ingest


@pytest.mark.engines
@pytest.mark.timeout(400)
def test_on_a_cluster_parts_die_it_is_stopped_resumed_and_its_state_deleted(
    kafka: str, topic: Callable[..., str], tmp_path: Path, cluster: Any
) -> None:
    name, state = topic(2, "events"), cluster.states["cluster"]
    scenario = send(kafka, name, 2, tmp_path / "logs", runs=30)
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as one:
        done = one.start(
            "--engine", f"flink:{state.address}", "--flink-rest", state.urls["rest"], "--workers", state.urls["workers"]
        )
        assert done.exception is None, done.exception
        # the JobManager dies, and with it the job: the keeper brings the one back, the supervisor the other
        parts = json.loads((cluster.home / "cluster" / "parts.json").read_text())
        first = one.status()["job"]["id"]
        os.kill(parts["jobmanager"]["pid"], signal.SIGKILL)
        one.kill("supervisor")
        one.wait(lambda: _answers(one.ask("resume")), "it is not resumed")
        assert one.status()["job"]["id"] != first
        # stopped with a savepoint, which a wider job begins with: the impulses do not fire again
        scenario.log_arrives()
        done = one.ask("stop", "--savepoint")
        assert done.exception is None, done.exception
        kept = one.status()["savepoint"]
        assert kept["path"].startswith("s3://")
        assert one.code() == 1
        one.scenario = both(scenario, send(kafka, name, 2, tmp_path / "logs" / "more", runs=8, first=30))
        one.scenario.log_arrives()
        done = one.ask("resume", "--parallelism", "2")
        assert done.exception is None, done.exception
        seen = one.status()
        assert (seen["parallelism"], seen["savepoint"]["use"], seen["resubmitted"]) == (2, "resumed", 0)
        one.wait(lambda: one.settled() == one.scenario.counts().total(), "not all is settled")
        # the job and all state are gone: on from the manifest
        _empty(kept["path"])
        flink_rest.cancel(
            next(job for job in flink_rest.list_rest_jobs(state.urls["rest"]) if job.id == seen["job"]["id"])
        )
        one.scenario = both(one.scenario, send(kafka, name, 2, tmp_path / "logs" / "most", runs=8, first=38))
        one.scenario.log_arrives()
        one.finish()
        assert one.status()["resubmissions"][-1]["why"] == "the Flink job ended: CANCELED"


def _answers(done: Any) -> bool:
    return done.exception is None


def _empty(path: str) -> None:
    """Deletes all objects of the bucket of an ``s3://`` path."""
    bucket = boto3.resource("s3").Bucket(path.removeprefix("s3://").partition("/")[0])
    assert list(bucket.objects.all())
    bucket.objects.all().delete()


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_on_an_embedded_flink_the_submitter_dies(
    kafka: str, topic: Callable[..., str], tmp_path: Path, flink_jobs: str
) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=30)
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as one:
        done = one.start("--engine", f"flink:{flink_jobs}")
        assert done.exception is None, done.exception
        job = one.status()["job"]["name"]
        one.kill("worker")  # whose threads are the job's workers
        one.wait(lambda: one.status()["job"].get("name") not in (job, None, ""), "no new job")
        scenario.log_arrives()
        one.finish()
        assert one.status()["resubmitted"] == 1

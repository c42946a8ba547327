"""An ingest under a supervisor on a Flink cluster: its job lost, stopped with a savepoint and resumed wider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.pipelines.flink import jobs as flink_rest
from tests.pipelines.ingest.scenario import send
from tests.services.supervising import ingest


@pytest.mark.engines
@pytest.mark.timeout(300)
def test_a_cancelled_job_is_submitted_again_and_a_wider_one_begins_with_the_savepoint(
    kafka: str, topic: Callable[..., str], tmp_path: Path, cluster: Any
) -> None:
    state = cluster.states["cluster"]
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=30)
    with ingest(tmp_path / "home", str(tmp_path / "data"), scenario, topic(1, "runs")) as one:
        rest = state.urls["rest"]
        done = one.start("--engine", f"flink:{state.address}", "--flink-rest", rest, "--workers", state.urls["workers"])
        assert done.exception is None, done.exception
        first = one.status()["job"]["id"]
        one.kill("supervisor")
        flink_rest.cancel(next(job for job in flink_rest.list_rest_jobs(rest) if job.id == first))
        one.run("resume")
        one.wait(lambda: one.status()["job"].get("id") not in (first, None, ""), "no new job")
        one.wait(lambda: one.status()["health"] == "running", "the new job does not run")
        one.run("stop", "--savepoint")
        assert one.status()["savepoint"]["path"].startswith("s3://")
        assert one.code() == 1
        scenario.log_arrives()
        one.run("resume", "--parallelism", "2")
        one.wait(lambda: one.status()["savepoint"]["use"] == "resumed", "the savepoint is not used")
        assert one.status()["parallelism"] == 2
        one.finish()

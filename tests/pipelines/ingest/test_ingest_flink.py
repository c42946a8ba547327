"""Ingest on a real Flink gives what micro-batches give."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import LogsArrive, MakeTopic, check, config
from tests.pipelines.ingest.scenario import send


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_flink_gives_the_same_as_micro_batches(kafka: str, topic: MakeTopic, tmp_path: Path, flink_jobs: str) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs")
    on_flink = config(scenario, tmp_path / "flink", topic(1, "runs"), commit_s=0.5)
    drive(IngestService(on_flink), flink_jobs, until=1.0, report=LogsArrive(scenario))
    rows = check(scenario, on_flink.raw, on_flink.runs_topic)
    here = config(scenario, tmp_path / "here", topic(1, "runs"))
    drive(IngestService(here), until=0.3)
    assert check(scenario, here.raw, here.runs_topic) == rows

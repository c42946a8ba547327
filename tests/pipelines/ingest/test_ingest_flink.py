"""Ingest on a real Flink: what micro-batches give, and what comes later."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from ciml.errors import IntegrityError
from ciml.kafka.connect import admin
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.plan import plan
from ciml.runs.state import RawState
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.messages import published
from tests.pipelines.ingest.ingesting import LogsArrive, MakeTopic, account, check, config, wait_for
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


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_flink_reads_what_comes_later(kafka: str, topic: MakeTopic, tmp_path: Path, flink_jobs: str) -> None:
    """One job: a first wave, a pause, a second one."""
    name = topic(2, "events")
    first = send(kafka, name, 2, tmp_path / "logs", runs=5)
    ours = config(first, tmp_path / "data", topic(1, "runs"), commit_s=0.5)
    stop = threading.Event()
    job = threading.Thread(target=drive, args=(IngestService(ours), flink_jobs), kwargs={"stop": stop})
    job.start()
    try:
        wait_for(lambda: sum(account(ours.raw)[0].counts.values()) == len(first.sent))
        time.sleep(3)  # the source rests longer and longer
        second = send(kafka, name, 2, tmp_path / "logs", runs=13)
        both = first.counts() + second.counts()
        wait_for(lambda: sum(account(ours.raw)[0].counts.values()) == both.total())
    finally:
        stop.set()
        job.join(60)
    state, _ = account(ours.raw)
    assert state.index.run_count() == len(second.runs)
    assert sorted(json.loads(m.value or b"")["run_id"] for m in published(kafka, ours.runs_topic, "runs")) == sorted(
        second.runs
    )


@pytest.mark.engines
def test_an_offset_lost_under_a_flink_job_is_raised_here(
    kafka: str, topic: MakeTopic, tmp_path: Path, flink_jobs: str
) -> None:
    from confluent_kafka import TopicPartition

    scenario = send(kafka, topic(1, "events"), 1, tmp_path / "logs", runs=5)
    ours = config(scenario, tmp_path / "data", topic(1, "runs"))
    reads = plan(RawState(), list_topic(ours.kafka, scenario.topic), bounded=False)
    for future in admin(ours.kafka).delete_records([TopicPartition(scenario.topic, 0, 2)]).values():
        future.result()
    job = FlinkJob(lambda p: build_ingest(p, ours, reads), flink_options(flink_jobs, "lost"))
    try:
        with pytest.raises(IntegrityError, match=r"\[0\] 0: the topic does not hold this offset"):
            wait_for(lambda: job.check() is not None)
    finally:
        job.cancel()
    assert account(ours.raw)[0].version == 0

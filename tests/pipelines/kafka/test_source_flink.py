"""The unbounded source on a real Flink: later partitions, the backlog, a drain, and a topic that is recreated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import admin
from ciml.pipelines.flink.jobs import RestJob, last_failure, list_flink_jobs, stop_with_savepoint
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.plan import plan
from ciml.pipelines.kafka.reader import close_readers
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real, wait_for
from tests.pipelines.kafka.kafka_topics import add_partitions, covered, delete, send_starts, settled

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]


@contextmanager
def ingesting(config: IngestConfig, endpoint: str, name: str) -> Iterator[FlinkJob]:
    """A job that ingests for ever, from what is committed."""
    reads = plan(account(config.raw)[0], list_topic(config.kafka, config.topic), bounded=False)
    job = FlinkJob(lambda p: build_ingest(p, config, reads), flink_options(endpoint, name))
    try:
        yield job
    finally:
        job.cancel()
        close_readers()


@pytest.fixture
def config(kafka: str, topic: MakeTopic, tmp_path: Path) -> IngestConfig:
    need_real(kafka)
    read = ReadOptions(find_s=1.0, idle_s=2.0)
    raw = DataRoot.open(str(tmp_path)).raw
    return IngestConfig(raw, topic(2, "events"), "", kafka=KafkaOptions(kafka), read=read, commit_s=0.5)


def backlogs(job: RestJob, topic: str) -> dict[str, int]:
    """The gauges of a job, by their own name."""

    def ask(path: str) -> Any:
        with urlopen(f"{job.base}/jobs/{job.id}{path}", timeout=10) as answer:
            return json.load(answer)

    found = {}
    for vertex in ask("")["vertices"]:
        path = f"/vertices/{vertex['id']}/metrics"
        for metric in ask(path):
            if f"backlog_{topic}" in metric["id"]:
                [value] = ask(f"{path}?get={metric['id']}")
                found[metric["id"].partition("ciml_kafka_")[2]] = int(value["value"])
    return found


def test_later_partitions_are_read_and_a_drained_job_ends_with_everything_settled(
    kafka: str, config: IngestConfig, flink_jobs: str, tmp_path: Path
) -> None:
    ours = replace(config, commit_s=600.0)  # nothing is committed before the end, but by the drain
    for partition in (0, 1):
        send_starts(kafka, ours.topic, partition, 700)
    with ingesting(ours, flink_jobs, "drained") as job:
        running: list[RestJob] = []

        def is_read(partitions: int) -> bool:
            """Whether all is read, and waits for its commit."""
            running[:] = [each for each in list_flink_jobs(flink_jobs) if each.name == job.name and each.all_run]
            gauges = {f"backlog_{ours.topic}_{partition}": 0 for partition in range(partitions)}
            return bool(running) and backlogs(running[0], ours.topic) == gauges

        wait_for(lambda: is_read(2))
        add_partitions(ours.kafka, ours.topic, 4)
        for partition in range(4):
            send_starts(kafka, ours.topic, partition, 5, first=700)
        wait_for(lambda: is_read(4))
        assert settled(ours.raw) == 0
        assert stop_with_savepoint(running[0], (tmp_path / "s").as_uri(), drain=True)
        wait_for(lambda: job.over)
        assert job.state == "DONE"
    ends = {0: 705, 1: 705, 2: 5, 3: 5}
    assert covered(ours.raw, ours.topic) == {partition: [(0, end)] for partition, end in ends.items()}
    assert settled(ours.raw) == sum(ends.values())
    # What the manifest says of the new ones is where the next job starts.
    state, listing = account(ours.raw)[0], list_topic(ours.kafka, ours.topic)
    assert [(read.partition, read.start) for read in plan(state, listing, bounded=False)] == list(ends.items())


def test_a_topic_recreated_under_a_job_stops_it(kafka: str, config: IngestConfig, flink_jobs: str) -> None:
    """The new topic is longer than the old one was: nobody but the id could tell."""
    send_starts(kafka, config.topic, 0, 10)
    with ingesting(config, flink_jobs, "anew") as job:
        wait_for(lambda: settled(config.raw) == 10)
        delete(config.kafka, config.topic)
        wait_for(lambda: config.topic not in admin(config.kafka).list_topics(timeout=10).topics)
        make_topic(config.kafka, config.topic)
        send_starts(kafka, config.topic, 0, 30)
        with pytest.raises(IntegrityError, match=r"created again|recreated"):
            wait_for(lambda: job.check() is not None)
        (inside,) = [each for each in list_flink_jobs(flink_jobs) if each.name == job.name]
        assert "again" in last_failure(inside)[1] or "recreated" in last_failure(inside)[1]
    assert covered(config.raw, config.topic) == {0: [(0, 10)]}

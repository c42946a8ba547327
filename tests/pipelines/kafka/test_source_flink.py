"""The unbounded source on a real Flink: partitions that come later, a drain, the backlog, topics that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import admin
from ciml.pipelines.flink import jobs as flink_jobs
from ciml.pipelines.flink import jobs as flink_rest
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.plan import plan
from ciml.pipelines.kafka.reader import close_readers
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real, wait_for
from tests.pipelines.kafka.kafka_topics import add_partitions, covered, delete, delete_records, send_starts, settled

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]
READ = ReadOptions(find_s=1.0, idle_s=2.0)


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


def in_flink(endpoint: str, name: str) -> flink_rest.RestJob:
    """The job as Flink's REST API has it, once it runs."""
    found: list[flink_rest.RestJob] = []

    def look() -> bool:
        for job in flink_jobs.list_flink_jobs(endpoint):
            if job.name.startswith(name) and not job.over and job.all_run:
                found.append(job)
        return bool(found)

    wait_for(look)
    return found[0]


@pytest.fixture
def config(kafka: str, topic: MakeTopic, tmp_path: Path) -> Callable[[int], IngestConfig]:
    """Makes a topic, and the configuration of an ingest of it."""

    def make(partitions: int) -> IngestConfig:
        need_real(kafka)
        name = topic(partitions, "events")
        return IngestConfig(
            DataRoot.open(str(tmp_path)).raw, name, "", kafka=KafkaOptions(kafka), read=READ, commit_s=0.5
        )

    return make


def test_partitions_that_come_while_it_runs_are_read(
    kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str
) -> None:
    ours = config(2)
    for partition in (0, 1):
        send_starts(kafka, ours.topic, partition, 10)
    with ingesting(ours, flink_jobs, "partitions"):
        wait_for(lambda: settled(ours.raw) == 20)
        add_partitions(ours.kafka, ours.topic, 4)
        for partition in range(4):
            send_starts(kafka, ours.topic, partition, 5, first=10)
        wait_for(lambda: settled(ours.raw) == 40)
        add_partitions(ours.kafka, ours.topic, 5)
        send_starts(kafka, ours.topic, 4, 3)
        wait_for(lambda: settled(ours.raw) == 43)
    ends = {0: 15, 1: 15, 2: 5, 3: 5, 4: 3}
    assert covered(ours.raw, ours.topic) == {partition: [(0, end)] for partition, end in ends.items()}
    # what the manifest says of the new ones is where the next job starts
    state, listing = account(ours.raw)[0], list_topic(ours.kafka, ours.topic)
    assert [(read.partition, read.start) for read in plan(state, listing, bounded=False)] == list(ends.items())


def test_a_drained_job_ends_with_everything_settled(
    kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str, tmp_path: Path
) -> None:
    ours = replace(config(2), commit_s=600.0)  # nothing is committed before the end, but by the drain
    for partition in (0, 1):
        send_starts(kafka, ours.topic, partition, 700)
    with ingesting(ours, flink_jobs, "drained") as job:
        inside = in_flink(flink_jobs, "drained")
        # all of it is read, and waits for its commit
        wait_for(
            lambda: backlogs(inside, ours.topic) == {f"backlog_{ours.topic}_{partition}": 0 for partition in (0, 1)}
        )
        assert settled(ours.raw) == 0
        savepoint = flink_rest.stop_with_savepoint(inside, (tmp_path / "s").as_uri(), drain=True)
        wait_for(lambda: job.over)
        assert job.state == "DONE"
    assert savepoint
    assert covered(ours.raw, ours.topic) == {0: [(0, 700)], 1: [(0, 700)]}
    assert settled(ours.raw) == 1400


def test_flink_shows_what_is_left_to_read(kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str) -> None:
    ours = config(1)
    send_starts(kafka, ours.topic, 0, 10)
    with ingesting(ours, flink_jobs, "backlog"):
        wait_for(lambda: settled(ours.raw) == 10)
        inside = in_flink(flink_jobs, "backlog")
        wait_for(lambda: backlogs(inside, ours.topic) == {f"backlog_{ours.topic}_0": 0})


def backlogs(job: flink_rest.RestJob, topic: str) -> dict[str, int]:
    """The gauges of a job, by their own name."""
    import json
    from typing import Any
    from urllib.request import urlopen

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


# --- topics that change under a job


def test_a_topic_recreated_under_a_job_stops_it(
    kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str
) -> None:
    """The new topic is longer than the old one was: nobody but the id could tell."""
    ours = config(1)
    send_starts(kafka, ours.topic, 0, 10)
    with ingesting(ours, flink_jobs, "anew") as job:
        wait_for(lambda: settled(ours.raw) == 10)
        delete(ours.kafka, ours.topic)
        wait_for(lambda: ours.topic not in admin(ours.kafka).list_topics(timeout=10).topics)
        make_topic(ours.kafka, ours.topic)
        send_starts(kafka, ours.topic, 0, 30)
        with pytest.raises(IntegrityError, match=r"created again|recreated"):
            wait_for(lambda: job.check() is not None)
    assert covered(ours.raw, ours.topic) == {0: [(0, 10)]}
    with pytest.raises(IntegrityError, match="created again"):
        plan(account(ours.raw)[0], list_topic(ours.kafka, ours.topic), bounded=False)


def test_a_topic_deleted_under_a_job_stops_it(
    kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str
) -> None:
    ours = config(1)
    send_starts(kafka, ours.topic, 0, 10)
    with ingesting(ours, flink_jobs, "deleted") as job:
        wait_for(lambda: settled(ours.raw) == 10)
        delete(ours.kafka, ours.topic)
        with pytest.raises(IntegrityError, match="was deleted while it was read"):
            wait_for(lambda: job.check() is not None)
    assert covered(ours.raw, ours.topic) == {0: [(0, 10)]}


def test_offsets_that_retention_passes_under_a_job_stop_it(
    kafka: str, config: Callable[[int], IngestConfig], flink_jobs: str
) -> None:
    ours = config(1)
    send_starts(kafka, ours.topic, 0, 10)
    ours = replace(ours, read=replace(READ, rest_s=8.0, idle_s=8.0))
    with ingesting(ours, flink_jobs, "retention") as job:
        wait_for(lambda: settled(ours.raw) == 10)
        close_readers()  # it rests; what is fetched in advance would be safe from the broker's deletion
        send_starts(kafka, ours.topic, 0, 20, first=10)
        delete_records(ours.kafka, ours.topic, 0, 25)
        with pytest.raises(IntegrityError, match=r"\[0\] 10: the topic does not hold this offset"):
            wait_for(lambda: job.check() is not None)
    assert covered(ours.raw, ours.topic) == {0: [(0, 10)]}
    with pytest.raises(IntegrityError, match=r"offsets 10 to 25 expired before they were read.*accept-loss"):
        plan(account(ours.raw)[0], list_topic(ours.kafka, ours.topic), bounded=False)

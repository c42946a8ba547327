"""The ingest on a standalone Flink cluster whose parts are killed, one after the other, while events come."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from ciml.engines import Engines, cluster_parts
from ciml.errors import EngineError
from ciml.pipelines.flink import jobs as flink_rest
from ciml.pipelines.flink.jobs import RestJob
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor, committer
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.pipelines.kafka.broker import list_topic
from ciml.pipelines.kafka.plan import plan
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.storage import open_store
from tests.pipelines.flink.flink_state import checkpoint_counts, failures, taskmanagers
from tests.pipelines.ingest.ingesting import MakeTopic, account, check, config, wait_for
from tests.pipelines.ingest.scenario import Scenario, send

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]
PATIENCE_S = 150.0  # where the machine is busy tenfold, a worker's imports alone take half a minute


class Play:
    """An ingest on a cluster, and what was sent to it."""

    def __init__(self, cluster: Engines, scenario: Scenario, ours: IngestConfig) -> None:
        self.cluster, self.scenario, self.ours, self.sent = cluster, scenario, ours, 0
        self.rest = cluster.cluster["rest"]

    def submit(self, parallelism: int = 1) -> RestJob:
        """Submits a job that goes on from the manifest, and lets go of it."""
        listing = list_topic(self.ours.kafka, self.ours.topic)
        with committer(self.ours.raw).state() as state:
            reads = plan(state, listing, bounded=False)
        changes = {"parallelism": parallelism, "checkpointing_interval": 1000}
        jobs, workers = (self.cluster.cluster[name] for name in ("jobs", "workers"))
        options = flink_options(jobs, "ingest", workers=workers, changes=changes)
        name = FlinkJob(partial(build_ingest, config=self.ours, reads=reads), options).name
        wait_for(lambda: flink_rest.find_rest_job(self.rest, name) is not None, PATIENCE_S)
        return self.job(name)

    def job(self, name: str) -> RestJob:
        found = flink_rest.find_rest_job(self.rest, name)
        assert found is not None
        return found

    def wave(self) -> None:
        """Sends more, and waits until all of it is settled."""
        self.send_more()
        wanted = self.scenario.counts().total()
        wait_for(lambda: sum(account(self.ours.raw)[0].counts.values()) == wanted, PATIENCE_S)

    def send_more(self) -> None:
        scenario = self.scenario
        send(scenario.broker, scenario.topic, 2, scenario.logs, 5, self.sent, to=scenario)
        self.sent += 5

    def pid(self, part: str) -> int:
        return cluster_parts(self.cluster.home)[part].pid or 0

    def kill(self, part: str) -> None:
        os.kill(self.pid(part), signal.SIGKILL)

    def restarts(self) -> dict[str, int]:
        return {name: one.restarts for name, one in cluster_parts(self.cluster.home).items()}

    def knows_its_taskmanager(self) -> bool:
        try:
            return taskmanagers(self.rest).keys() == {"taskmanager-1"}
        except EngineError:
            return False


@pytest.fixture
def play(cluster: Engines, kafka: str, topic: MakeTopic, tmp_path: Path) -> Play:
    scenario = Scenario(kafka, topic(2, "events"), tmp_path / "logs")
    return Play(cluster, scenario, config(scenario, tmp_path / "data", topic(1, "runs"), commit_s=0.5))


def test_nothing_is_lost_or_twice_when_a_part_dies(play: Play, tmp_path: Path) -> None:
    assert taskmanagers(play.rest) == {"taskmanager-1": (2, 2)}
    job = play.submit()
    play.wave()

    # A TaskManager: the keeper starts another, and Flink the job on it, from the last checkpoint.
    wait_for(lambda: flink_rest.last_checkpoint(job) is not None, PATIENCE_S)
    point = flink_rest.last_checkpoint(job)
    assert point is not None
    assert point.path.startswith(f"{play.cluster.cluster['state']}/checkpoints/{job.id}/chk-")
    before = play.restarts()
    play.kill("taskmanager-1")
    play.wave()
    assert play.restarts() == {**before, "taskmanager-1": before["taskmanager-1"] + 1}
    assert checkpoint_counts(play.job(job.name))["restored"] >= 1  # by each attempt until there is a TaskManager

    # The one Python worker that has work, and then the pool with all its workers.
    pool = psutil.Process(play.pid("workers-1"))
    busy = [one for one in pool.children() if any(c.status == "ESTABLISHED" for c in one.net_connections("tcp"))]
    assert len(busy) == 1
    busy[0].kill()
    play.wave()
    workers = pool.children()
    play.kill("workers-1")
    play.wave()
    assert not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert len(failures(play.job(job.name))) >= 3

    # The JobManager, and with it the job: TaskManagers find the new one; a new job goes on from the manifest.
    play.kill("jobmanager")
    play.kill("jobserver")
    wait_for(
        lambda: play.restarts()["jobmanager"] == before["jobmanager"] + 1 and play.knows_its_taskmanager(), PATIENCE_S
    )
    wait_for(lambda: cluster_parts(play.cluster.home)["jobserver"].answered, PATIENCE_S)
    assert flink_rest.list_rest_jobs(play.rest) == []
    last = play.submit(2)
    play.wave()
    flink_rest.cancel(last)
    wait_for(lambda: play.job(last.name).over, PATIENCE_S)
    announcer = IngestProcessor(play.ours).publisher()
    announcer.announce()  # it may have been cancelled between a commit and its announcement
    announcer.close()

    rows = check(play.scenario, play.ours.raw, play.ours.runs_topic)
    here = replace(play.ours, raw=open_store(str(tmp_path / "here" / "raw")), runs_topic="")
    drive(IngestService(here), until="end")
    again, _ = account(here.raw)
    assert again.index.run_count() == len(rows) == len(play.scenario.runs)

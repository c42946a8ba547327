"""Ingest on real engines: the accounting is that of the producer's own list, whatever runs it and whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import Batch, Message, OffsetRange, Origin, PendingRun
from ciml.pipelines.ingest.committer import Committer, committer, seal, unseal
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.storage import open_store
from tests.pipelines.ingest.ingesting import (
    LogsArrive,
    MakeTopic,
    account,
    check,
    config,
    need_real,
    one_batch,
    settled,
)
from tests.pipelines.ingest.scenario import Scenario, corpus_facts, send


@pytest.fixture
def scenario(kafka: str, topic: MakeTopic, tmp_path: Path) -> Scenario:
    return send(kafka, topic(2, "events"), 2, tmp_path / "logs")


@pytest.mark.engines
def test_micro_batches_settle_each_event_exactly_once(scenario: Scenario, topic: MakeTopic, tmp_path: Path) -> None:
    ours = config(scenario, tmp_path / "data", topic(1, "runs"), cycle_messages=15)
    report = LogsArrive(scenario)
    drive(IngestService(ours), until=0.3, report=report)
    assert report.seen_deferred
    assert max(report.lags) == len(scenario.sent)
    assert report.lags[-1] == 0
    check(scenario, ours.raw, ours.runs_topic)
    # once more from the start: nothing is left to do, and nothing is announced again
    drive(IngestService(ours), until="end")
    check(scenario, ours.raw, ours.runs_topic)


@pytest.mark.engines
def test_micro_batches_on_s3(scenario: Scenario, topic: MakeTopic, s3: Any) -> None:
    ours = config(scenario, f"{s3.bucket()}/data", topic(1, "runs"))
    drive(IngestService(ours), until=0.3, report=LogsArrive(scenario))
    check(scenario, ours.raw, ours.runs_topic)


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_killed_at_any_moment_the_sums_are_exact(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    need_real(kafka)  # without transactions a kill may announce twice
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=240)
    data, runs_topic = tmp_path / "data", topic(1, "runs")
    where = json.dumps([scenario.broker, scenario.topic, runs_topic, str(scenario.logs), str(data)])
    command = [sys.executable, "-c", _SLOW_INGEST, where]
    kills = 0
    for share in (0.05, 0.3, 0.6):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while sum(account(DataRoot.open(data).raw)[0].counts.values()) < share * scenario.counts().total():
                assert process.poll() is None, "it ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.05 * kills)  # somewhere between two commits
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.wait(30)
        scenario.log_arrives()
    assert kills == 3
    assert sum(account(DataRoot.open(data).raw)[0].counts.values()) < scenario.counts().total()
    ours = config(scenario, data, runs_topic)
    drive(IngestService(ours), until=0.3)
    check(scenario, ours.raw, runs_topic)


#: Ingests few messages at a time, and tells of its commits before they are announced, so that a kill meets each step.
_SLOW_INGEST = """
import json, sys
from ciml.data_root import DataRoot
from ciml.pipelines.flink.submit import FlinkJob, flink_options
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.ingest.pipeline import build_ingest
from ciml.kafka import KafkaOptions
from ciml.pipelines.kafka.plan import plan
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.fetch.policy import FetchPolicy
broker, topic, runs, logs, data = json.loads(sys.argv[1])
fetch = FetchPolicy(file_roots=(logs,), delays_s=(2.0,) * 20)
config = IngestConfig(DataRoot.open(data).raw, topic, runs, kafka=KafkaOptions(broker), fetch=fetch, cycle_messages=4)
drive(IngestService(config))
"""


# --- the committer


def test_a_sealed_batch_comes_out_as_it_went_in() -> None:
    for batch in (one_batch(3), Batch(None, settled=[settled(1)]), Batch(OffsetRange("t", "", 0, 0, 9))):
        assert unseal(seal(batch)) == batch


def test_only_what_is_settled_is_sealed() -> None:
    facts, _ = corpus_facts(1)[0]
    for batch in (
        Batch(OffsetRange("t", "", 0, 0, 1), messages=[Message(0, b"")]),
        Batch(None, pending_runs=[PendingRun(Origin("t", 0, 0), "e", facts)]),
    ):
        with pytest.raises(IntegrityError):
            seal(batch)


def test_a_batch_that_is_delivered_again_is_committed_once(tmp_path: Path) -> None:
    raw = open_store(tmp_path)
    one, two = Committer(raw, clock=lambda: 1.5), Committer(raw)
    assert one.commit([one_batch(0)]) == 1
    assert two.commit([one_batch(0)]) is None
    assert two.commit([one_batch(1, 1), one_batch(0)]) == 2
    assert one.commit([one_batch(1, 1)]) is None
    with one.state() as state:
        assert (state.version, state.index.run_count(), list(state.covered("t", 0))) == (2, 2, [(0, 2)])
    assert one.log.read(1)["time_us"] == 1_500_000
    assert committer(raw) is committer(open_store(tmp_path))

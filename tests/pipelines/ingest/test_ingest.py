"""Ingest on a real broker: the accounting is that of the producer's own list, whatever runs it and whatever dies."""

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
from ciml.events.cloudevents import finished_event
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import LogsArrive, MakeTopic, account, check, config, need_real, produce
from tests.pipelines.ingest.scenario import corpus_facts, send

pytestmark = pytest.mark.engines


def test_micro_batches_settle_each_event_exactly_once(kafka: str, topic: MakeTopic, s3: Any, tmp_path: Path) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs")
    ours = config(scenario, f"{s3.bucket()}/data", topic(1, "runs"), cycle_messages=15)
    report = LogsArrive(scenario)
    drive(IngestService(ours), until=0.3, report=report)
    assert report.seen_deferred
    assert max(report.lags) == len(scenario.sent)
    assert report.lags[-1] == 0
    check(scenario, ours.raw, ours.runs_topic)
    # Once more from the start: nothing is left to do, and nothing is announced again.
    drive(IngestService(ours), until="end")
    check(scenario, ours.raw, ours.runs_topic)
    # An event that comes again needs no log: one that fetched it would wait for it.
    log = tmp_path / "logs" / "0.csv.gz"
    log.unlink()
    facts = corpus_facts(1)[0][0].replace(log_url=log.as_uri())
    produce(kafka, scenario.topic, [finished_event(facts, event_id=f"e-{facts.run_id}")] * 3)
    drive(IngestService(ours), until="end")
    state, _ = account(ours.raw)
    assert state.counts["repeat", "event"] == scenario.counts()["repeat", "event"] + 3
    assert not state.deferred


@pytest.mark.timeout(240)
def test_killed_at_any_moment_the_sums_are_exact(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    need_real(kafka)  # without transactions a kill may announce twice
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=100)
    data, runs_topic = tmp_path / "data", topic(1, "runs")
    total = scenario.counts().total()

    def settled() -> int:
        return sum(account(DataRoot.open(data).raw)[0].counts.values())

    for share in (0.1, 0.5):
        most = int((share + 0.3) * total) - settled()
        arguments = [scenario.broker, scenario.topic, runs_topic, str(scenario.logs), str(data), most]
        command = [sys.executable, "-c", _SLOW_INGEST, json.dumps(arguments)]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                deadline = time.monotonic() + 60
                while settled() < share * total:
                    assert process.poll() is None, "it ended before it was killed"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                time.sleep(0.1 * share)  # somewhere between two commits
            finally:
                os.kill(process.pid, signal.SIGKILL)
        scenario.log_arrives()
    ours = config(scenario, data, runs_topic)
    assert settled() < total
    drive(IngestService(ours), until=0.3)
    check(scenario, ours.raw, runs_topic)


#: Ingests few messages at a time, so that a kill meets each step; waits for a late kill after so many outcomes.
_SLOW_INGEST = """
import json, sys, time
from ciml.data_root import DataRoot
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import Committer, IngestConfig
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.fetch.policy import FetchPolicy
broker, topic, runs, logs, data, most = json.loads(sys.argv[1])
commit, settled = Committer.commit, []
def commit_or_wait(self, batches, judge=None):
    batches = list(batches)
    settled.extend(outcome for batch in batches for outcome in batch.settled)
    if len(settled) > most:
        time.sleep(60)
    return commit(self, batches, judge)
Committer.commit = commit_or_wait
fetch = FetchPolicy(file_roots=(logs,), delays_s=(2.0,) * 20)
config = IngestConfig(DataRoot.open(data).raw, topic, runs, kafka=KafkaOptions(broker), fetch=fetch, cycle_messages=4)
drive(IngestService(config))
"""


# --- on Flink


@pytest.mark.timeout(180)
def test_flink_gives_the_same_as_micro_batches(kafka: str, topic: MakeTopic, tmp_path: Path, flink_jobs: str) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs")
    on_flink = config(scenario, tmp_path / "flink", topic(1, "runs"), commit_s=0.5)
    drive(IngestService(on_flink), flink_jobs, until=1.0, report=LogsArrive(scenario))
    rows = check(scenario, on_flink.raw, on_flink.runs_topic)
    here = config(scenario, tmp_path / "here", topic(1, "runs"))
    drive(IngestService(here), until=0.3)
    assert check(scenario, here.raw, here.runs_topic) == rows

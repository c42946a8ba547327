"""Ingest on real engines: the accounting is that of the producer's own list, whatever runs it and whatever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.accounting import RawState
from ciml.errors import EngineError, IntegrityError
from ciml.manifests import Delta, ManifestLog, catch_up
from ciml.records import Batch, Candidate, Message, OffsetRange, Origin, Outcome, RawFile
from ciml.storage import Store, open_store
from pipelines.committer import Committer, committer, seal, unseal
from pipelines.engines import FlinkJob, flink_options
from pipelines.ingest import IngestConfig, build_ingest
from pipelines.kafka import plan
from pipelines.kafka_client import KafkaOptions, Reader, admin, list_topic
from pipelines.publish import LOG, VERSION, Projection, render_runs
from pipelines.run_ingest import ingest_micro_batches, ingest_on_flink
from tests.pipelines.scenario import Scenario, mentions, send
from transforms.fetch_policy import FetchPolicy
from transforms.store import verify_run

MakeTopic = Callable[..., str]


def account(data: Store) -> tuple[RawState, list[Delta]]:
    log, state = ManifestLog(data.child("raw")), RawState()
    catch_up(log, state)
    return state, [delta for _, delta in log.since(0)]


def raw_rows(deltas: list[Delta]) -> dict[str, RawFile]:
    return {run["mention"]["run_id"]: RawFile.from_json(run["file"]) for delta in deltas for run in delta["runs"]}


def announced(broker: str, topic: str) -> list[Message]:
    """All committed messages of a topic with one partition."""
    [(first, end)] = list_topic(KafkaOptions(broker), topic).bounds.values()
    reader = Reader(KafkaOptions(broker), topic, 0)
    reader.seek(first)
    found: list[Message] = []
    while reader.position < end:
        found += reader.read(1000, 5)
    reader.close()
    return found


def check(scenario: Scenario, data: Store, runs_topic: str) -> dict[str, RawFile]:
    """Compares everything with the producer's list; returns the raw rows."""
    state, deltas = account(data)
    assert state.counts == scenario.counts()
    assert state.deferred == {}
    ends: Counter[int] = Counter()
    for message in scenario.sent:
        assert message.offset in state.covered(scenario.topic, message.partition)
        ends[message.partition] = max(ends[message.partition], message.offset + 1)
    assert {p: list(ranges) for _, p, ranges in state.partitions()} == {p: [(0, end)] for p, end in ends.items()}
    # each (message, run) is settled exactly once, but for the deferred ones, which a later record closes
    positions = Counter(
        (*record["origin"][1:], record.get("mention", {}).get("run_id", ""))
        for delta in deltas
        for name in ("runs", "repeats", "corrections", "ignored", "dead_letters")
        for record in delta[name]
    )
    wanted = {
        (m.partition, m.offset, run if m.expected[1] != "broken_json" else "") for m in scenario.sent for run in m.runs
    }
    assert positions == Counter(wanted)
    rows = raw_rows(deltas)
    assert rows.keys() == scenario.runs
    assert {
        run["mention"]["run_id"] for d in deltas for run in d["runs"] if not run["trust"]["trusted"]
    } == scenario.untrusted
    raw = data.child("raw")
    assert [fault for run_id, file in rows.items() if (fault := verify_run(raw, run_id, file))] == []
    messages = announced(scenario.broker, runs_topic)
    told = [json.loads(message.value or b"") for message in messages]
    assert Counter(each["run_id"] for each in told) == Counter(rows.keys())
    assert {each["run_id"]: (each["path"], each["digest"]) for each in told} == {
        run_id: (file.path, file.digest) for run_id, file in rows.items()
    }
    versions = [int(dict(message.headers)[VERSION] or 0) for message in messages]
    assert versions == sorted(versions) == [each["raw_version"] for each in told]
    assert [message.key for message in messages] == [each["run_id"].encode() for each in told]
    return rows


def config(scenario: Scenario, data: Path | str, runs_topic: str, **changes: Any) -> IngestConfig:
    fetch = FetchPolicy(file_roots=(str(scenario.logs),), delays_s=(0.5, 0.5, 4.0))
    kafka = KafkaOptions(scenario.broker)
    return IngestConfig(open_store(str(data)), kafka, scenario.topic, runs_topic, fetch=fetch, **changes)


class LogsArrive:
    """A reporter that lets the late logs come once something waits for them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.seen_deferred, self.lags = scenario, False, [0]

    def __call__(self, state: RawState, lag: int) -> None:
        self.lags.append(lag)
        if state.deferred and not self.seen_deferred:
            self.seen_deferred = True
            self.scenario.log_arrives()


@pytest.fixture
def scenario(kafka: str, topic: MakeTopic, tmp_path: Path) -> Scenario:
    return send(kafka, topic(2, "events"), 2, tmp_path / "logs")


@pytest.mark.engines
def test_micro_batches_settle_each_event_exactly_once(scenario: Scenario, topic: MakeTopic, tmp_path: Path) -> None:
    ours = config(scenario, tmp_path / "data", topic(1, "runs"), cycle_messages=15)
    report = LogsArrive(scenario)
    ingest_micro_batches(ours, until=0.3, report=report)
    assert report.seen_deferred
    assert max(report.lags) == len(scenario.sent)
    assert report.lags[-1] == 0
    check(scenario, ours.data, ours.runs_topic)
    # once more from the start: nothing is left to do, and nothing is announced again
    ingest_micro_batches(ours, until="end")
    check(scenario, ours.data, ours.runs_topic)


@pytest.mark.engines
def test_micro_batches_on_s3(scenario: Scenario, topic: MakeTopic, s3: Any) -> None:
    ours = config(scenario, f"{s3.bucket()}/data", topic(1, "runs"))
    ingest_micro_batches(ours, until=0.3, report=LogsArrive(scenario))
    check(scenario, ours.data, ours.runs_topic)


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_flink_gives_the_same_as_micro_batches(
    scenario: Scenario, topic: MakeTopic, tmp_path: Path, flink_jobs: str
) -> None:
    on_flink = config(scenario, tmp_path / "flink", topic(1, "runs"), commit_s=0.5)
    ingest_on_flink(on_flink, flink_jobs, until=1.0, report=LogsArrive(scenario))
    rows = check(scenario, on_flink.data, on_flink.runs_topic)
    here = config(scenario, tmp_path / "here", topic(1, "runs"))
    ingest_micro_batches(here, until=0.3)
    assert check(scenario, here.data, here.runs_topic) == rows


@pytest.mark.engines
@pytest.mark.timeout(180)
def test_flink_reads_what_comes_later(kafka: str, topic: MakeTopic, tmp_path: Path, flink_jobs: str) -> None:
    """One job: a first wave, a pause, a second one."""
    name = topic(2, "events")
    first = send(kafka, name, 2, tmp_path / "logs", runs=5)
    ours = config(first, tmp_path / "data", topic(1, "runs"), commit_s=0.5)
    stop = threading.Event()
    job = threading.Thread(target=ingest_on_flink, args=(ours, flink_jobs), kwargs={"stop": stop})
    job.start()
    try:
        wait_for(lambda: sum(account(ours.data)[0].counts.values()) == len(first.sent))
        time.sleep(3)  # the source rests longer and longer
        second = send(kafka, name, 2, tmp_path / "logs", runs=13)
        both = first.counts() + second.counts()
        wait_for(lambda: sum(account(ours.data)[0].counts.values()) == both.total())
    finally:
        stop.set()
        job.join(60)
    state, _ = account(ours.data)
    assert state.index.run_count() == len(second.runs)
    assert sorted(json.loads(m.value or b"")["run_id"] for m in announced(kafka, ours.runs_topic)) == sorted(
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
    assert account(ours.data)[0].version == 0


def wait_for(done: Callable[[], bool], most_s: float = 60.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@pytest.mark.engines
@pytest.mark.timeout(240)
def test_killed_at_any_moment_the_sums_are_exact(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    scenario = send(kafka, topic(2, "events"), 2, tmp_path / "logs", runs=240)
    data, runs_topic = tmp_path / "data", topic(1, "runs")
    where = json.dumps([scenario.broker, scenario.topic, runs_topic, str(scenario.logs), str(data)])
    command = [sys.executable, "-c", _SLOW_INGEST, where]
    kills = 0
    for share in (0.05, 0.3, 0.6):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while sum(account(open_store(data))[0].counts.values()) < share * scenario.counts().total():
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
    assert sum(account(open_store(data))[0].counts.values()) < scenario.counts().total()
    ours = config(scenario, data, runs_topic)
    ingest_micro_batches(ours, until=0.3)
    check(scenario, ours.data, runs_topic)


#: Ingests few messages at a time, and tells of its commits before they are announced, so that a kill meets each step.
_SLOW_INGEST = """
import json, sys
from ciml.storage import open_store
from pipelines.engines import FlinkJob, flink_options
from pipelines.ingest import IngestConfig, build_ingest
from pipelines.kafka import plan
from pipelines.kafka_client import KafkaOptions
from pipelines.run_ingest import ingest_micro_batches
from transforms.fetch_policy import FetchPolicy
broker, topic, runs, logs, data = json.loads(sys.argv[1])
fetch = FetchPolicy(file_roots=(logs,), delays_s=(2.0,) * 20)
config = IngestConfig(open_store(data), KafkaOptions(broker), topic, runs, fetch=fetch, cycle_messages=4)
ingest_micro_batches(config)
"""


# --- the committer


def settled(offset: int, run: int = 0) -> Outcome:
    mention, _ = mentions(run + 1)[run]
    file = RawFile(f"runs/{run}", f"digest-{run}", 1, 1)
    return Outcome("run", Origin("t", 0, offset), f"e{offset}", mention, file=file, detail="é \0")


def one_batch(offset: int, run: int = 0) -> Batch:
    return Batch(OffsetRange("t", "T", 0, offset, offset + 1), settled=[settled(offset, run)])


def test_a_sealed_batch_comes_out_as_it_went_in() -> None:
    for batch in (one_batch(3), Batch(None, settled=[settled(1)]), Batch(OffsetRange("t", "", 0, 0, 9))):
        assert unseal(seal(batch)) == batch


def test_only_what_is_settled_is_sealed() -> None:
    mention, _ = mentions(1)[0]
    for batch in (
        Batch(OffsetRange("t", "", 0, 0, 1), messages=[Message(0, b"")]),
        Batch(None, candidates=[Candidate(Origin("t", 0, 0), "e", mention)]),
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


# --- announcements


@pytest.fixture
def committed(tmp_path: Path) -> Committer:
    """A manifest with two runs in two deltas, and one delta without any."""
    ours = Committer(open_store(tmp_path / "raw"))
    ours.commit([one_batch(0)])
    ours.commit([one_batch(1, 1)])
    ours.commit([Batch(OffsetRange("t", "T", 0, 2, 9))])
    return ours


def runs_told(broker: str, topic: str) -> list[tuple[str, str]]:
    return [
        (json.loads(message.value or b"")["run_id"], (dict(message.headers)[VERSION] or b"").decode())
        for message in announced(broker, topic)
    ]


@pytest.mark.engines
def test_what_a_dead_process_did_not_announce_the_next_does(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    first = Projection(committed.log, name, render_runs, kafka_options)
    assert first.announce() == 3
    expected = [(mention.run_id, str(at)) for at, (mention, _) in enumerate(mentions(3)[:2], 1)]
    assert runs_told(kafka, name) == expected
    assert first.announce() == 3
    committed.commit([one_batch(9, 2)])  # and the process dies before it announces
    second = Projection(committed.log, name, render_runs, kafka_options)
    assert second.announce() == 4
    assert runs_told(kafka, name) == [*expected, (mentions(3)[2][0].run_id, "4")]
    assert second.exactly_once


@pytest.mark.engines
def test_one_that_wakes_up_late_announces_nothing_twice(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    old = Projection(committed.log, name, render_runs, kafka_options)
    old.announce()
    committed.commit([one_batch(9, 2)])
    new = Projection(committed.log, name, render_runs, kafka_options)
    new.announce()
    committed.commit([one_batch(10, 3)])
    assert old.announce() == 5  # fenced, it starts again from what the topic says
    assert new.announce() == 5
    assert [version for _, version in runs_told(kafka, name)] == ["1", "2", "4", "5"]


@pytest.mark.engines
def test_what_was_aborted_half_way_is_announced_once(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    from confluent_kafka import Producer

    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    dying = Producer({"bootstrap.servers": kafka, "transactional.id": f"ciml.{name}"})
    dying.init_transactions(30)
    dying.begin_transaction()
    dying.produce(name, b"{}", headers=[(VERSION, b"3"), (LOG, b"x")])
    dying.flush(30)  # on the broker, and never committed
    Projection(committed.log, name, render_runs, kafka_options).announce()
    assert [version for _, version in runs_told(kafka, name)] == ["1", "2"]


@pytest.mark.engines
def test_a_topic_tells_of_one_manifest(kafka: str, topic: MakeTopic, committed: Committer, tmp_path: Path) -> None:
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    Projection(committed.log, name, render_runs, kafka_options).announce()
    other = Committer(open_store(tmp_path / "other"))
    assert Projection(other.log, name, render_runs, kafka_options).announce() == 0  # nothing to tell yet
    other.commit([one_batch(0, 2)])
    with pytest.raises(IntegrityError, match="tells of another manifest"):
        Projection(other.log, name, render_runs, kafka_options).announce()


def test_a_broker_that_is_not_there_is_an_engine_error(committed: Committer) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        Projection(committed.log, "runs", render_runs, KafkaOptions("127.0.0.1:1")).announce()

"""Announcements: each committed run once, whoever dies between a commit and its announcement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions
from ciml.pipelines.ingest.committer import Committer, render_runs
from ciml.pipelines.kafka.publish import LOG, VERSION, Projection
from ciml.storage import open_store
from tests.messages import published
from tests.pipelines.ingest.ingesting import MakeTopic, need_real, one_batch, wait_for
from tests.pipelines.ingest.scenario import corpus_facts
from tests.pipelines.kafka.kafka_topics import delete, recreated


@pytest.fixture
def committed(tmp_path: Path) -> Committer:
    """A manifest with two runs in two deltas, and one delta without any."""
    ours = Committer(open_store(tmp_path / "raw"))
    ours.commit([one_batch(0)])
    ours.commit([one_batch(1, 1)])
    ours.commit([Batch(OffsetRange("t", "T", 0, 2, 9))])
    return ours


def runs_announced(broker: str, topic: str) -> list[tuple[str, str]]:
    return [
        (json.loads(message.value or b"")["run_id"], (dict(message.headers)[VERSION] or b"").decode())
        for message in published(broker, topic, "runs")
    ]


@pytest.mark.engines
def test_what_a_dead_process_did_not_announce_the_next_does(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    need_real(kafka)
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    first = Projection(committed.log, name, render_runs, kafka_options)
    assert first.announce() == 3
    expected = [(facts.run_id, str(at)) for at, (facts, _) in enumerate(corpus_facts(3)[:2], 1)]
    assert runs_announced(kafka, name) == expected
    assert first.announce() == 3
    committed.commit([one_batch(9, 2)])  # and the process dies before it announces
    second = Projection(committed.log, name, render_runs, kafka_options)
    assert second.announce() == 4
    assert runs_announced(kafka, name) == [*expected, (corpus_facts(3)[2][0].run_id, "4")]
    assert second.exactly_once


@pytest.mark.engines
def test_one_that_wakes_up_late_announces_nothing_twice(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    need_real(kafka)
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    old = Projection(committed.log, name, render_runs, kafka_options)
    old.announce()
    committed.commit([one_batch(9, 2)])
    new = Projection(committed.log, name, render_runs, kafka_options)
    new.announce()
    committed.commit([one_batch(10, 3)])
    assert old.announce() == 5  # fenced, it starts again from what the topic says
    assert new.announce() == 5
    assert [version for _, version in runs_announced(kafka, name)] == ["1", "2", "4", "5"]


@pytest.mark.engines
def test_what_was_aborted_half_way_is_announced_once(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    need_real(kafka)
    from confluent_kafka import Producer

    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    dying = Producer({"bootstrap.servers": kafka, "transactional.id": f"ciml.{name}"})
    dying.init_transactions(30)
    dying.begin_transaction()
    dying.produce(name, b"{}", headers=[(VERSION, b"3"), (LOG, b"x")])
    dying.flush(30)  # on the broker, and never committed
    Projection(committed.log, name, render_runs, kafka_options).announce()
    assert [version for _, version in runs_announced(kafka, name)] == ["1", "2"]


@pytest.mark.engines
def test_a_topic_publishes_one_manifest(kafka: str, topic: MakeTopic, committed: Committer, tmp_path: Path) -> None:
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    Projection(committed.log, name, render_runs, kafka_options).announce()
    other = Committer(open_store(tmp_path / "other"))
    assert Projection(other.log, name, render_runs, kafka_options).announce() == 0  # nothing to tell yet
    other.commit([one_batch(0, 2)])
    with pytest.raises(IntegrityError, match="holds another manifest"):
        Projection(other.log, name, render_runs, kafka_options).announce()


def test_a_broker_that_is_not_there_is_an_engine_error(committed: Committer) -> None:
    with pytest.raises(EngineError, match="does not answer"):
        Projection(committed.log, "runs", render_runs, KafkaOptions("127.0.0.1:1", timeout_s=0.5)).announce()


@pytest.mark.engines
def test_a_recreated_topic_gets_everything_again(kafka: str, topic: MakeTopic, committed: Committer) -> None:
    need_real(kafka)
    name, kafka_options = topic(1, "runs"), KafkaOptions(kafka)
    ours = Projection(committed.log, name, render_runs, kafka_options)
    ours.announce()
    delete(kafka_options, name)
    wait_for(lambda: recreated(kafka_options, name))
    committed.commit([one_batch(9, 2)])
    assert ours.announce() == 4
    assert [version for _, version in runs_announced(kafka, name)] == ["1", "2", "4"]
    assert ours.exactly_once

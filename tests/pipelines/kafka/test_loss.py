"""What a broker takes away, on a real one: each loss stops what reads with one line, and nothing is skipped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import Batch, OffsetRange, Origin, Outcome
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import NoTopicError, admin
from ciml.pipelines.flink.submit import run_here
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor, accept_losses, committer, seal
from ciml.pipelines.kafka import broker
from ciml.pipelines.kafka.broker import check_topic, list_again, list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, plan
from ciml.pipelines.kafka.reader import close_readers
from ciml.pipelines.kafka.source import OffsetTracker, ReadBounded, ReadFromKafka, ReadUnbounded
from ciml.pipelines.processor_beam import Commit
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real, wait_for
from tests.pipelines.kafka.kafka_topics import (
    Slice,
    add_partitions,
    covered,
    delete,
    delete_records,
    send_starts,
    settled,
)

pytestmark = pytest.mark.engines


@pytest.fixture(autouse=True)
def _closed_readers() -> Iterator[None]:
    yield
    close_readers()


@pytest.fixture
def config(kafka: str, topic: MakeTopic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IngestConfig:
    need_real(kafka)
    monkeypatch.setattr(broker, "_DELETED_S", 1.0)
    return IngestConfig(DataRoot.open(str(tmp_path)).raw, topic(2, "events"), "", kafka=KafkaOptions(kafka))


@contextmanager
def ingesting(config: IngestConfig, raised: list[BaseException]) -> Iterator[threading.Thread]:
    """Ingest by micro-batches until the block or they end."""

    def work() -> None:
        try:
            drive(IngestService(config), stop=stop)
        except IntegrityError as error:
            raised.append(error)

    stop = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)


def test_micro_batches_read_later_partitions_and_stop_when_their_topic_is_deleted(config: IngestConfig) -> None:
    raised: list[BaseException] = []
    for partition in (0, 1):
        send_starts(config.kafka.bootstrap, config.topic, partition, 10)
    with ingesting(config, raised) as thread:
        wait_for(lambda: settled(config.raw) == 20)
        add_partitions(config.kafka, config.topic, 4)
        for partition in range(4):
            send_starts(config.kafka.bootstrap, config.topic, partition, 5, first=10)
        wait_for(lambda: settled(config.raw) == 40)
        delete(config.kafka, config.topic)
        thread.join(60)
    [error] = raised
    assert "was deleted while it was read" in str(error)
    assert "--data-path" in str(error)
    assert covered(config.raw, config.topic) == {0: [(0, 15)], 1: [(0, 15)], 2: [(0, 5)], 3: [(0, 5)]}


def read_bounded(options: KafkaOptions, read: PartitionRead) -> Iterator[Batch]:
    """A bounded read without a runner: the test acts between its batches."""
    reader = ReadBounded(options, ReadOptions(batch_messages=10))
    safe = ThreadsafeRestrictionTracker(OffsetTracker(reader.initial_restriction(read)))
    return reader.process(read, RestrictionTrackerView(safe))


def read_unbounded(options: KafkaOptions, read: PartitionRead) -> Iterator[Batch]:
    reader: Any = ReadUnbounded(options, ReadOptions(batch_messages=10, slice_s=60.0))
    position = read.start
    while True:
        for each in reader.process(read, Slice(position), ManualWatermarkEstimator(None)):
            position = each.value.covers.end
            yield each.value


@pytest.mark.parametrize(
    ("reading", "lose", "message"),
    [
        (read_bounded, delete, "was deleted while it was read"),
        (read_bounded, delete_records, "Nothing was skipped"),
        (read_unbounded, delete_records, "Nothing was skipped"),  # that it was deleted, the search for partitions tells
    ],
)
def test_a_topic_that_is_lost_within_a_read_stops_it(
    config: IngestConfig, reading: Any, lose: Any, message: str
) -> None:
    """With a queue of a KiB little is fetched in advance, and what is may be given: it was there."""
    options = KafkaOptions(config.kafka.bootstrap, {"fetch.message.max.bytes": 2000}, queue_kib=1)
    send_starts(options.bootstrap, config.topic, 0, 200, together=5)
    [read] = plan(account(config.raw)[0], list_topic(options, config.topic), bounded=True)
    batches = reading(options, read)
    got = [next(batches)]
    lose(options, config.topic, *((0, 190) if lose is delete_records else ()))
    with pytest.raises(IntegrityError, match=message):
        got.extend(batches)
    offsets = [each.offset for batch in got for each in batch.messages]
    assert offsets == list(range(len(offsets)))
    assert len(offsets) < 200


def test_a_loss_within_a_pipeline_is_raised_as_it_is(config: IngestConfig) -> None:
    send_starts(config.kafka.bootstrap, config.topic, 0, 10)
    reads = plan(account(config.raw)[0], list_topic(config.kafka, config.topic), bounded=True)
    delete_records(config.kafka, config.topic, 0, 5)
    with pytest.raises(IntegrityError, match=rf"{config.topic}\[0\] 0: the topic does not hold this offset"):
        run_here(lambda p: p | ReadFromKafka(config.kafka, reads))


def test_messages_of_a_topic_that_was_recreated_since_are_not_committed(config: IngestConfig) -> None:
    """A consumer goes on in the new topic at its old offset, and nothing but the id tells. One that is gone passes."""
    before = list_topic(config.kafka, config.topic)
    ignored = Outcome("ignored", Origin(config.topic, 0, 1), "e", None, "not_finished")
    first, second = (
        seal(Batch(OffsetRange(config.topic, before.topic_id, 0, start, start + 3), settled=settled))
        for start, settled in ((0, []), (3, [ignored]))
    )
    delete(config.kafka, config.topic)
    wait_for(lambda: config.topic not in admin(config.kafka).list_topics(timeout=10).topics)
    with pytest.raises(NoTopicError, match="has no topic"):
        list_topic(config.kafka, config.topic)
    assert list(Commit(IngestProcessor(config)).process(("raw", [first]))) == [1]
    for _ in range(2):  # once more does nothing
        make_topic(config.kafka, config.topic)
    with pytest.raises(IntegrityError, match="created again"):
        list(Commit(IngestProcessor(config)).process(("raw", [second])))
    assert account(config.raw)[0].version == 1
    with pytest.raises(IntegrityError, match="created again"):
        list_again(config.kafka, before)
    with pytest.raises(IntegrityError, match="created again"):
        check_topic(config.kafka, config.topic, before.topic_id)


def test_a_loss_is_accepted_by_a_person_alone(config: IngestConfig) -> None:
    raw, options = config.raw, config.kafka
    send_starts(options.bootstrap, config.topic, 0, 20)
    topic_id = list_topic(options, config.topic).topic_id
    committer(raw).commit([Batch(OffsetRange(config.topic, topic_id, 0, *part)) for part in ((0, 5), (7, 9))])
    assert accept_losses(raw, options, config.topic) == []
    delete_records(options, config.topic, 0, 12)
    with pytest.raises(IntegrityError, match=r"offsets 5 to 7, 9 to 12 expired before they were read.*accept-loss"):
        drive(IngestService(config), until="end")
    lost = [OffsetRange(config.topic, topic_id, 0, 5, 7), OffsetRange(config.topic, topic_id, 0, 9, 12)]
    assert accept_losses(raw, options, config.topic, dry_run=True) == lost
    assert covered(config.raw, config.topic) == {0: [(0, 5), (7, 9)]}
    assert accept_losses(raw, options, config.topic) == lost
    drive(IngestService(config), until="end")
    assert covered(config.raw, config.topic) == {0: [(0, 20)]}
    assert settled(config.raw) == 8

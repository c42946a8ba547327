"""A real broker: each loss of what it takes away is loud, and hostile messages cost only themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apache_beam.coders import TimestampCoder
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.cloudevents import decode_message, finished_event
from ciml.events.payloads import UNREADABLE_HEADERS, message_of
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import NoTopicError, admin
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor, seal
from ciml.pipelines.kafka import broker
from ciml.pipelines.kafka.broker import check_topic, list_again, list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, plan
from ciml.pipelines.kafka.reader import borrow, close_readers
from ciml.pipelines.kafka.source import OffsetTracker, ReadBounded, ReadUnbounded
from ciml.pipelines.processor_beam import Commit
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import MakeTopic, Place, account, need_real, wait_for
from tests.pipelines.ingest.scenario import corpus_facts
from tests.pipelines.kafka.kafka_topics import (
    Slice,
    add_partitions,
    covered,
    delete,
    delete_records,
    send_starts,
    settled,
)
from tests.raw_producer import RawProducer

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


# --- messages that any client can send: header names, headers without number, times


def read(broker: str, topic: str, count: int) -> list[Message]:
    found: list[Message] = []
    with borrow(KafkaOptions(broker), topic, 0) as reader:
        reader.seek(0)
        while len(found) < count:
            found += reader.read(100, 10)
    return found


def test_a_header_name_that_is_not_utf_8_costs_its_message_alone(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    name = topic()
    place = Place(tmp_path)
    events = [finished_event(place.facts(number)) for number in range(3)]
    with RawProducer(kafka) as producer:
        for number, (value, headers) in enumerate(events):
            bad = [(b"\xff\xfe", b"x")] if number == 1 else []
            producer.send(name, value, [*headers, *bad], partition=0)
        producer.send(name, events[1][0], [(b"caf\xe9", None)], partition=0)
    place.take(*((message.value, message.headers) for message in read(kafka, name, 4)))
    assert place.counts == {("run", ""): 2, ("dead_letter", "not_an_event"): 2}
    for dead_letter, offset in zip(place.dead_letters, (1, 3), strict=True):
        assert (dead_letter.origin.offset, dead_letter.detail) == (offset, "a header name is not UTF-8")
        assert message_of(dead_letter.payload or {}, offset).value == events[1][0]


def test_a_reader_that_has_read_many_messages_still_takes_such_names(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    sound, broken = [("ce_id", b"1"), ("b", None)], [("ce_id", b"1"), (b"\xff", b"x"), ("b", None)]
    with RawProducer(kafka) as producer:
        for number in range(400):
            producer.send(name, b"%d" % number, broken if number % 3 == 2 else sound, partition=0)
    wanted = [UNREADABLE_HEADERS if number % 3 == 2 else tuple(sound) for number in range(400)]
    found = read(kafka, name, 400)
    assert [(message.value, message.headers) for message in found] == [
        (b"%d" % number, headers) for number, headers in enumerate(wanted)
    ]


def test_headers_without_number_take_no_memory(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    value, headers = finished_event(corpus_facts(1)[0][0])
    with RawProducer(kafka) as producer:
        producer.send(name, value, [*headers, *[("", None)] * 50_000], partition=0)
        producer.send(name, value, [*headers, *[("n", b"")] * 255], partition=0)
        producer.send(name, None, partition=0)
    many, most, tombstone = read(kafka, name, 3)
    assert (len(many.headers), len(most.headers), tombstone.headers) == (257, 256, ())
    assert (tombstone.value, tombstone.key) == (None, None)
    assert len(decode_message(most).run_facts) == 1


TIMES = {
    1234: 1234, 10**16: 0, 2**62: 0, -(10**16): 0, -2: 0, 4_102_444_799_999: 4_102_444_799_999, 4_102_444_800_000: 0
}  # fmt: skip


def test_times_beyond_the_engine_s_are_read_as_unknown(kafka: str, topic: MakeTopic) -> None:
    name = f"{topic()}-times"
    wide = {"message.timestamp.after.max.ms": str(2**63 - 1), "message.timestamp.before.max.ms": str(2**63 - 1)}
    make_topic(KafkaOptions(kafka), name, 1, wide)
    with RawProducer(kafka) as producer:
        for time_ms in TIMES:
            producer.send(name, b"{}", (), time_ms, partition=0)
            producer.flush()
    assert [message.timestamp_ms for message in read(kafka, name, len(TIMES))] == list(TIMES.values())
    close_readers()
    partition = PartitionRead(name, list_topic(KafkaOptions(kafka), name).topic_id, 0, 0, None)
    reader = ReadUnbounded(KafkaOptions(kafka), ReadOptions(batch_messages=1, rest_s=1.0))
    found: list[Any] = []
    while len(found) < len(TIMES):  # a reader that is new may find nothing at first
        found += reader.process(partition, Slice(len(found)), ManualWatermarkEstimator(None))
    for each in found:  # as it goes to the next stage
        assert len(TimestampCoder().encode(each.timestamp)) == 8
    assert [message.offset for each in found for message in each.value.messages] == list(range(len(TIMES)))
    assert [each.timestamp.micros for each in found if each.value.messages[0].timestamp_ms] == [
        1000 * time_ms for time_ms in TIMES.values() if time_ms
    ]

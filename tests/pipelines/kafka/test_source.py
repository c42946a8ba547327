"""The Kafka source: every offset is covered once, in order, whatever lies between the messages; losses are loud."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.utils.timestamp import Duration

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.kafka import broker, reader
from ciml.pipelines.kafka.broker import Listing, end_of, list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, expired_offsets, is_older, plan
from ciml.pipelines.kafka.reader import Reader, borrow, close_readers
from ciml.pipelines.kafka.source import FOREVER, OffsetTracker, ReadFromKafka, ReadUnbounded, Restriction
from ciml.runs.state import RawState
from ciml.storage import open_store
from tests.pipelines.ingest.ingesting import need_real, wait_for

MakeTopic = Callable[..., str]


# --- where reading starts


def covered(*ranges: tuple[int, int], partition: int = 0, topic_id: str = "T") -> RawState:
    state = RawState()
    names = ("runs", "repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
    delta: dict[str, Any] = {name: [] for name in names}
    parts = {str(partition): [list(part) for part in ranges]}
    state.apply(1, {**delta, "time_us": 0, "offsets": {"t": {"id": topic_id, "partitions": parts}}})
    return state


def listing(*bounds: tuple[int, int], topic_id: str = "T") -> Listing:
    return Listing("t", topic_id, dict(enumerate(bounds)))


def test_each_partition_starts_at_its_first_uncovered_offset() -> None:
    state = covered((0, 5), (7, 9))
    assert plan(state, listing((0, 20), (0, 3)), bounded=True) == [
        PartitionRead("t", "T", 0, 5, 20, ((7, 9),)),
        PartitionRead("t", "T", 1, 0, 3, ()),
    ]
    assert plan(state, listing((0, 20), (0, 3)), bounded=False) == [
        PartitionRead("t", "T", 0, 5, None, ((7, 9),)),
        PartitionRead("t", "T", 1, 0, None, ()),
    ]
    assert [(read.start, read.end) for read in plan(state, listing((0, 20)), bounded=True, most=4)] == [(5, 9)]


def test_nothing_is_read_beyond_an_earlier_end() -> None:
    until, now = listing((0, 8)), listing((0, 20), (0, 3))
    reads = plan(covered((0, 5)), now, bounded=True, until=until)
    assert [(read.partition, read.start, read.end) for read in reads] == [(0, 5, 8)]
    assert plan(covered((0, 9)), now, bounded=True, until=until) == []  # another went on meanwhile


def test_what_is_covered_to_its_end_is_not_read() -> None:
    assert plan(covered((0, 5)), listing((0, 5)), bounded=True) == []
    assert plan(covered((0, 5)), listing((0, 5)), bounded=False) == [PartitionRead("t", "T", 0, 5, None)]


def test_a_listing_is_older_than_a_state_that_covers_what_it_does_not_show() -> None:
    assert is_older(listing((0, 5), (0, 3)), covered((0, 6)))
    assert not is_older(listing((0, 6), (0, 3)), covered((0, 6)))


@pytest.mark.parametrize(
    ("state", "found", "says"),
    [
        (covered((0, 5)), listing((6, 9)), r"t\[0\]: offsets 5 to 6 expired before"),
        (covered((0, 5)), listing((0, 4)), r"t\[0\] ends at 4, but was read up to 5"),
        (covered((0, 5)), listing((0, 9), topic_id="U"), "created again"),
        (covered((3, 5)), listing((1, 9)), r"offsets 0 to 1 expired before"),
    ],
)
@pytest.mark.parametrize("bounded", [True, False])
def test_a_loss_is_loud(state: RawState, found: Listing, says: str, bounded: bool) -> None:
    with pytest.raises(IntegrityError, match=says):
        plan(state, found, bounded=bounded)


def test_an_empty_list_of_partitions_is_an_error() -> None:
    with pytest.raises(EngineError, match="no partitions"):
        plan(RawState(), listing(), bounded=True)
    with pytest.raises(EngineError, match="no partition"):
        ReadFromKafka(KafkaOptions("x:1"), [])


def test_what_was_gone_before_the_first_read_is_covered_once_and_for_all() -> None:
    found = listing((7, 9), (0, 2))
    assert expired_offsets(RawState(), found) == [OffsetRange("t", "T", 0, 0, 7)]
    assert expired_offsets(covered((0, 8)), found) == []
    assert plan(RawState(), found, bounded=True)[0].start == 7


def test_ciml_keeps_some_properties_to_itself() -> None:
    with pytest.raises(CimlError, match=r"auto\.offset\.reset"):
        KafkaOptions("x:1", {"auto.offset.reset": "latest"})
    options = KafkaOptions("x:1", {"sasl.password": "secret-1", "security.protocol": "SASL_SSL"})
    assert options.consumer()["security.protocol"] == "SASL_SSL"
    assert "secret-1" not in repr(options)


def test_expired_offsets_of_all_partitions_are_covered_before_the_first_read_alone(tmp_path: Path) -> None:
    processor = IngestProcessor(IngestConfig(open_store(tmp_path), "t", kafka=KafkaOptions("x:1")))
    for found, second in ((listing((7, 9), (0, 2), (4, 4)), []), (listing((8, 9), (2, 2), (4, 4)), [(0, 2)])):
        processor.cover_expired(found)
        with processor.replica().state() as state:
            assert [list(state.covered("t", part)) for part in range(3)] == [[(0, 7)], second, [(0, 4)]]


# --- what a process keeps of brokers


HERE, THERE = KafkaOptions("127.0.0.1:1"), KafkaOptions("127.0.0.1:2")


def test_unused_readers_are_kept_by_broker_topic_and_partition_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*key: Any) -> Reader:
        with borrow(*key) as found:
            return found

    closed: list[Reader] = []
    monkeypatch.setattr(Reader, "close", lambda self: closed.append(self))
    keys = [(HERE, "t", 0), (HERE, "t", 1), (HERE, "u", 0), (THERE, "t", 0)]
    readers = [used(*key) for key in keys]
    assert len(set(readers)) == len(keys)
    assert [used(*key) for key in keys] == readers
    assert closed == []
    monkeypatch.setattr(reader, "_POOLED_S", -1.0)
    used(HERE, "new", 0)
    assert closed == readers


def test_ends_are_those_of_a_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "offsets_of", lambda options, *_, **__: {0: 5 if options == HERE else 9})
    assert [ends and ends.end for ends in (end_of(options, "t", 0, 60.0) for options in (HERE, THERE))] == [5, 9]


# --- against a broker


@pytest.fixture(autouse=True)
def _closed_readers() -> Iterator[None]:
    yield
    close_readers()


def produce(broker: str, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker})
    for value in values:
        producer.produce(
            topic, value, key=b"k", headers=[("a", b"1"), ("b", None)], partition=partition, timestamp=1234
        )
        producer.poll(0)
    assert producer.flush(30) == 0


def produce_transaction(broker: str, topic: str, values: Sequence[bytes], *, commit: bool) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "transactional.id": f"t-{topic}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)
    (producer.commit_transaction if commit else producer.abort_transaction)(30)
    # The broker answers before it writes the marker, which ends the transaction for readers.
    wait_for(lambda: end_offset(broker, topic, committed=True) == end_offset(broker, topic, committed=False))


def end_offset(broker: str, topic: str, *, committed: bool) -> int:
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import AdminClient, OffsetSpec

    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    asked = {TopicPartition(topic, 0): OffsetSpec.latest()}
    admin = AdminClient({"bootstrap.servers": broker})  # its answers come as long as it is held
    (found,) = admin.list_offsets(asked, isolation_level=level).values()
    offset: int = found.result(30).offset
    return offset


def _as_json(batch: Batch) -> bytes:
    covers = batch.covers
    assert covers is not None
    offsets = [message.offset for message in batch.messages]
    values = [(message.value or b"").decode() for message in batch.messages]
    return json.dumps([covers.partition, covers.start, covers.end, offsets, values]).encode()


Found = list[tuple[int, int, int, list[int], list[str]]]


def read_bounded(broker: str, topic: str, state: RawState, folder: Any, **options: Any) -> Found:
    """Runs the source in a pipeline, whose batches come back through files."""
    import apache_beam as beam

    from ciml.pipelines.flink.submit import run_here

    kafka = KafkaOptions(broker)
    reads = plan(state, list_topic(kafka, topic), bounded=True)

    class Write(beam.DoFn):
        def process(self, batch: Batch) -> None:
            covers = batch.covers
            assert covers is not None
            (folder / f"{covers.partition}-{covers.start:08d}").write_bytes(_as_json(batch))

    run_here(lambda p: p | ReadFromKafka(kafka, reads, ReadOptions(**options)) | beam.ParDo(Write()))
    found: Found = [json.loads(path.read_bytes()) for path in sorted(folder.iterdir())]
    for path in folder.iterdir():
        path.unlink()
    return found


@pytest.mark.engines
def test_a_bounded_read_gives_every_message_once(kafka: str, topic: MakeTopic, tmp_path: Any) -> None:
    name = topic(2)
    sent = [[f"{partition}:{number}" for number in range(count)] for partition, count in ((0, 1201), (1, 7))]
    for partition, values in enumerate(sent):
        produce(kafka, name, [value.encode() for value in values], partition)
    found = read_bounded(kafka, name, RawState(), tmp_path, batch_messages=500)
    for partition, values in enumerate(sent):
        mine = [each for each in found if each[0] == partition]
        assert [value for *_, got in mine for value in got] == values
        assert [offset for _, _, _, offsets, _ in mine for offset in offsets] == list(range(len(values)))
        assert mine[0][1] == 0
        assert mine[-1][2] == len(values)
        assert all(before[2] == after[1] for before, after in pairwise(mine))
        assert all(len(got) <= 500 for *_, got in mine)


@pytest.mark.engines
def test_messages_come_whole(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    produce(kafka, name, [b"v"])
    with borrow(KafkaOptions(kafka), name, 0) as reader:
        reader.seek(0)
        [message] = reader.read(10, 10)
    assert (message.offset, message.value, message.key, message.timestamp_ms) == (0, b"v", b"k", 1234)
    assert message.headers == (("a", b"1"), ("b", None))


@pytest.mark.engines
def test_markers_and_aborted_messages_are_covered_and_not_given(kafka: str, topic: MakeTopic, tmp_path: Any) -> None:
    need_real(kafka)
    name = topic()
    produce_transaction(kafka, name, [b"gone"] * 3, commit=False)  # 0-2, marker 3
    produce_transaction(kafka, name, [b"kept"] * 2, commit=True)  # 4-5, marker 6
    produce_transaction(kafka, name, [b"gone"], commit=False)  # 7, marker 8: the end is no message
    found = read_bounded(kafka, name, RawState(), tmp_path)
    assert [value for *_, values in found for value in values] == ["kept", "kept"]
    assert [offset for _, _, _, offsets, _ in found for offset in offsets] == [4, 5]
    assert found[0][1] == 0
    assert found[-1][2] == 9
    assert all(before[2] == after[1] for before, after in pairwise(found))


@pytest.mark.engines
def test_an_open_transaction_is_not_read(kafka: str, topic: MakeTopic, tmp_path: Any) -> None:
    need_real(kafka)
    from confluent_kafka import Producer

    name = topic()
    produce(kafka, name, [b"before"])
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": f"open-{name}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"open", partition=0)
    producer.flush(30)
    found = read_bounded(kafka, name, RawState(), tmp_path)
    assert [(start, end, values) for _, start, end, _, values in found] == [(0, 1, ["before"])]
    producer.abort_transaction(30)


@pytest.mark.engines
def test_what_is_covered_is_not_read_again(kafka: str, topic: MakeTopic, tmp_path: Any) -> None:
    name = topic()
    produce(kafka, name, [str(number).encode() for number in range(10)])
    topic_id = list_topic(KafkaOptions(kafka), name).topic_id
    state = covered((0, 3), (5, 7), topic_id=topic_id)
    state._covered[name, 0] = state._covered.pop(("t", 0))
    found = read_bounded(kafka, name, state, tmp_path)
    assert [value for *_, values in found for value in values] == ["3", "4", "7", "8", "9"]
    assert (found[0][1], found[-1][2]) == (3, 10)


@pytest.mark.engines
def test_a_reader_is_used_again_with_what_it_has(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    produce(kafka, name, [str(number).encode() for number in range(10)])
    options = KafkaOptions(kafka)
    with borrow(options, name, 0) as first:
        first.seek(0)
        assert len(first.read(4, 10)) == 4
    with borrow(options, name, 0) as second:
        assert second is first
        with borrow(options, name, 0) as another:  # one is in use
            assert another is not first
        second.seek(2)  # elsewhere than where it stood
        assert [message.offset for message in second.read(3, 10)] == [2, 3, 4]


@pytest.mark.engines
def test_an_offset_that_retention_passed_stops_loudly(kafka: str, topic: MakeTopic, tmp_path: Any) -> None:
    need_real(kafka)
    from confluent_kafka import TopicPartition

    from ciml.kafka.connect import admin
    from ciml.pipelines.flink.submit import run_here

    name = topic()
    produce(kafka, name, [b"x"] * 10)
    options = KafkaOptions(kafka)
    reads = plan(RawState(), list_topic(options, name), bounded=True)
    for future in admin(options).delete_records([TopicPartition(name, 0, 5)]).values():
        future.result()
    with pytest.raises(IntegrityError, match=rf"{name}\[0\] 0: the topic does not hold this offset"):
        run_here(lambda p: p | ReadFromKafka(options, reads))
    assert plan(RawState(), list_topic(options, name), bounded=True)[0].start == 5


@pytest.mark.engines
def test_a_recreated_or_deleted_topic_is_an_error(kafka: str, topic: MakeTopic) -> None:
    need_real(kafka)
    import time

    from ciml.kafka.connect import admin

    name = topic()
    options = KafkaOptions(kafka)
    before = list_topic(options, name)
    assert before.topic_id
    state = covered((0, 0), topic_id=before.topic_id)
    state.topic_ids[name] = state.topic_ids.pop("t")
    assert plan(state, before, bounded=False)
    admin(options).delete_topics([name])[name].result()
    deadline = time.monotonic() + 20
    while True:
        try:
            list_topic(options, name)
        except EngineError as error:
            assert "has no topic" in str(error)  # noqa: PT017
            break
        assert time.monotonic() < deadline
    make_topic(options, name)
    make_topic(options, name)  # once more does nothing
    with pytest.raises(IntegrityError, match="created again"):
        plan(state, list_topic(options, name), bounded=False)


def test_a_broker_that_is_not_there_is_one_line() -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1 does not answer"):
        list_topic(KafkaOptions("127.0.0.1:1", timeout_s=0.5), "t")


# --- how a slice ends


class Slice:
    """A restriction as Beam shows it to a DoFn. ``rests_s`` is what was asked for when it was put off."""

    def __init__(self) -> None:
        self._tracker = OffsetTracker(Restriction(0, FOREVER))
        self.current_restriction, self.try_claim = self._tracker.current_restriction, self._tracker.try_claim
        self.rests_s: float | None = None

    def defer_remainder(self, pause: Duration = Duration(0)) -> None:  # noqa: B008
        self.rests_s = float(pause)
        self._tracker.try_split(0)


@pytest.mark.engines
def test_a_slice_that_pauses_at_the_end_reads_up_to_there_and_rests(kafka: str, topic: MakeTopic) -> None:
    need_real(kafka)
    name = topic()
    produce(kafka, name, [b"v"] * 12)
    options = ReadOptions(batch_messages=5, slice_s=60.0, rest_s=3.0, idle_s=60.0, pause_at_end=True)
    read = PartitionRead(name, list_topic(KafkaOptions(kafka), name).topic_id, 0, 0, None)
    found: list[Batch] = []
    while not found:  # a reader that is new may find nothing at first
        tracker = Slice()
        reading = ReadUnbounded(KafkaOptions(kafka), options).process(read, tracker, ManualWatermarkEstimator(None))
        found = [each.value for each in reading]
    assert [message.offset for batch in found for message in batch.messages] == list(range(12))
    assert len(found) >= 3
    assert tracker.rests_s == pytest.approx(3.0, abs=0.5)

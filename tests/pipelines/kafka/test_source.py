"""The Kafka source: every offset is covered once, in order, whatever lies between the messages; losses are loud."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from confluent_kafka.admin import OffsetSpec

from ciml.engines.processes import free_ports
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.manifest.coverage import OtherTopicError
from ciml.pipelines.ingest import committer as ingest
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor
from ciml.pipelines.kafka import broker, reader, source
from ciml.pipelines.kafka.broker import Ends, Listing, TopicEnds, end_of, list_topic, offsets_of
from ciml.pipelines.kafka.plan import PartitionRead, is_older, plan
from ciml.pipelines.kafka.reader import Reader, borrow, close_readers, read_range
from ciml.pipelines.kafka.source import FindPartitions, KnownTopic, ReadFromKafka, ReadUnbounded
from ciml.runs.state import RawState
from ciml.storage import open_store
from ciml.transforms.beam import run_here
from tests.pipelines.ingest.ingesting import need_real, wait_for
from tests.pipelines.kafka.kafka_topics import Slice

MakeTopic = Callable[..., str]
HERE = KafkaOptions("127.0.0.1:1")
THERE = KafkaOptions("127.0.0.1:2")


# --- where reading starts


def covered(*ranges: tuple[int, int], topic: str = "t", topic_id: str = "T") -> RawState:
    state = RawState()
    names = ("runs", "repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
    delta: dict[str, Any] = {name: [] for name in names}
    parts = {"0": [list(part) for part in ranges]}
    state.apply(1, {**delta, "time_us": 0, "offsets": {topic: {"id": topic_id, "partitions": parts}}})
    return state


def listing(*bounds: tuple[int, int], topic_id: str = "T") -> Listing:
    return Listing("t", topic_id, dict(enumerate(bounds)))


def test_each_partition_starts_at_its_first_uncovered_offset() -> None:
    state = covered((0, 5), (7, 9))
    for bounded, ends in ((True, (20, 3)), (False, (None, None))):
        assert plan(state, listing((0, 20), (0, 3)), bounded=bounded) == [
            PartitionRead("t", "T", 0, 5, ends[0], ((7, 9),)),
            PartitionRead("t", "T", 1, 0, ends[1], ()),
        ]
    assert plan(RawState(), listing((7, 9)), bounded=True) == [PartitionRead("t", "T", 0, 7, 9)]
    # What is covered up to its end is not read.
    assert plan(covered((0, 5)), listing((0, 5)), bounded=True) == []
    assert plan(covered((0, 5)), listing((0, 5)), bounded=False) == [PartitionRead("t", "T", 0, 5, None)]


def test_a_bounded_read_is_limited_by_a_number_and_by_an_earlier_end() -> None:
    reads = plan(covered((0, 5), (7, 9)), listing((0, 20)), bounded=True, most=4)
    assert [(read.start, read.end) for read in reads] == [(5, 9)]
    until, now = listing((0, 8)), listing((0, 20), (0, 3))
    reads = plan(covered((0, 5)), now, bounded=True, until=until)
    assert [(read.partition, read.start, read.end) for read in reads] == [(0, 5, 8)]
    assert plan(covered((0, 9)), now, bounded=True, until=until) == []  # another went on meanwhile


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


def test_expired_offsets_of_all_partitions_are_covered_before_the_first_read_alone(tmp_path: Path) -> None:
    processor = IngestProcessor(IngestConfig(open_store(tmp_path), "t", kafka=KafkaOptions("x:1")))
    for found, second in ((listing((7, 9), (0, 2), (4, 4)), []), (listing((8, 9), (2, 2), (4, 4)), [(0, 2)])):
        processor.cover_expired(found)
        with processor.replica().state() as state:
            assert [list(state.covered("t", part)) for part in range(3)] == [[(0, 7)], second, [(0, 4)]]


def test_a_loss_is_accepted_by_a_person_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open_store(tmp_path)
    monkeypatch.setattr(ingest, "list_topic", lambda *_: listed)
    parts = [Batch(OffsetRange("t", "T", 0, *part)) for part in ((0, 5), (7, 9))]
    ingest.committer(raw).commit(parts)
    listed = listing((0, 20))
    assert ingest.accept_losses(raw, HERE, "t") == []
    listed = listing((12, 20))
    lost = [OffsetRange("t", "T", 0, 5, 7), OffsetRange("t", "T", 0, 9, 12)]
    for dry_run, covered in ((True, [(0, 5), (7, 9)]), (False, [(0, 12)])):
        with ingest.committer(raw).state() as state, pytest.raises(IntegrityError, match="5 to 7, 9 to 12 expired"):
            plan(state, listed, bounded=True)
        assert ingest.accept_losses(raw, HERE, "t", dry_run=dry_run) == lost
        with ingest.committer(raw).state() as state:
            assert list(state.covered("t", 0)) == covered
    assert plan(state, listed, bounded=True)[0].start == 12


# --- what a process keeps of brokers


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


@pytest.fixture
def broker_ends() -> tuple[Mock, TopicEnds]:
    """What a broker says of ends, with a clock; and those of a topic."""
    stub = Mock(now_s=100.0, side_effect=lambda partitions: {each: 10 * each + 5 for each in partitions})
    return stub, TopicEnds(stub, lambda: stub.now_s)


def test_ends_are_asked_for_seldom_and_together(broker_ends: tuple[Mock, TopicEnds]) -> None:
    stub, ends = broker_ends
    assert [ends.of(0, 5), ends.of(1, 5)] == [Ends(100, 5), Ends(100, 15)]
    stub.side_effect = lambda partitions: dict.fromkeys(partitions, 50)
    stub.now_s = 104
    assert ends.of(0, 5) == Ends(100, 5)
    stub.now_s = 106
    assert [ends.of(0, 5), ends.of(1, 5)] == [Ends(106, 50), Ends(106, 50)]
    assert [sorted(call.args[0]) for call in stub.call_args_list] == [[0], [0, 1], [0, 1]]
    stub.now_s = 50  # a clock that is set back makes nothing old young
    assert ends.of(0, 5) == Ends(50, 50)


def test_a_broker_without_an_answer_says_nothing_and_is_not_pressed(broker_ends: tuple[Mock, TopicEnds]) -> None:
    stub, ends = broker_ends
    assert ends.of(0, 5) == Ends(100, 5)
    stub.now_s = 106
    stub.side_effect = EngineError("away")
    assert ends.of(0, 5) is None  # what is known is too old to be true
    stub.now_s = 108
    assert ends.of(0, 5) is None
    assert stub.call_count == 2
    stub.now_s = 112
    stub.side_effect = lambda partitions: dict.fromkeys(partitions, 5)
    assert ends.of(0, 5) == Ends(112, 5)


def find_partitions(listed: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[PartitionRead], Slice]:
    """What one search finds where two partitions are known."""
    monkeypatch.setattr(source, "check_topic", Mock(side_effect=[listed]))
    tracker = Slice(2)
    find = FindPartitions(HERE, ReadOptions(find_s=9.0))
    found = list(find.process(KnownTopic("t", "T", 2), tracker, ManualWatermarkEstimator(None)))
    return [each.value for each in found], tracker


def test_new_partitions_are_found_and_a_recreated_topic_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    added = [PartitionRead("t", "T", number, 0, None) for number in (2, 3)]
    for listed, new in (([0, 1], []), ([0, 1, 2, 3], added), (EngineError("away"), [])):
        found, tracker = find_partitions(listed, monkeypatch)
        assert (found, tracker.rests_s) == (new, pytest.approx(9.0, abs=0.5))
    with pytest.raises(IntegrityError, match="again"):
        find_partitions(OtherTopicError("created again"), monkeypatch)


@pytest.mark.parametrize(("ends", "backlogs"), [(Ends(1.0, 9), [4]), (Ends(1.0, 5), [0]), (None, [])])
def test_an_idle_partition_reports_its_backlog(
    ends: Ends | None, backlogs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = Mock()
    idle = Mock(position=5, idle=0)
    idle.read.return_value = []
    monkeypatch.setattr(source, "Metrics", Mock(gauge=gauge))
    monkeypatch.setattr(source, "borrow", lambda *_: nullcontext(idle))
    monkeypatch.setattr(source, "end_of", lambda *_: ends)
    read = PartitionRead("t", "T", 0, 5, None)
    assert list(ReadUnbounded(HERE, ReadOptions()).process(read, Slice(5), ManualWatermarkEstimator(None))) == []
    assert [call.args[1] for call in gauge.call_args_list] == ["backlog.t.0"] * len(backlogs)
    assert [call.args[0] for call in gauge().set.call_args_list] == backlogs


def test_a_broker_that_does_not_answer_is_an_error_that_says_where() -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1 does not answer"):
        list_topic(KafkaOptions("127.0.0.1:1", timeout_s=0.5), "t")
    read = PartitionRead("t", "", 0, 3, 9)
    options = KafkaOptions(f"127.0.0.1:{free_ports(1)[0]}", timeout_s=0.5)
    with pytest.raises(EngineError) as caught:
        list(read_range(options, read, 3, lambda: 9, ReadOptions(stall_s=0.4)))
    assert str(caught.value) == "t[0] 3: no message within 0 s, although it ends at 9"
    assert list(read_range(options, read, 9, lambda: 9, ReadOptions(stall_s=1.0))) == []


# --- against a broker


@pytest.fixture(autouse=True)
def _closed_readers() -> Iterator[None]:
    yield
    close_readers()


def produce(broker: str, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker})
    for value in values:
        headers = [("a", b"1"), ("b", None)]
        producer.produce(topic, value, key=b"k", headers=headers, partition=partition, timestamp=1234)
        producer.poll(0)
    assert producer.flush(30) == 0


def produce_transaction(broker: str, topic: str, values: Sequence[bytes], end: str) -> Any:
    """Produce in a transaction that is committed or aborted, or stays open; return its producer."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker, "transactional.id": f"{end}-{topic}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, partition=0)
    producer.flush(30)
    if end != "open":
        (producer.commit_transaction if end == "committed" else producer.abort_transaction)(30)
        # The broker answers before it writes the marker, which ends the transaction for readers.
        wait_for(lambda: len({end_offset(broker, topic, committed=committed) for committed in (True, False)}) == 1)
    return producer


def end_offset(broker: str, topic: str, *, committed: bool) -> int:
    return offsets_of(KafkaOptions(broker), topic, [0], OffsetSpec.latest(), committed=committed)[0]


def read_bounded(broker: str, topic: str, state: RawState, folder: Path, **options: Any) -> list[list[Any]]:
    """Return partition, start, end, offsets and values of each batch that a pipeline reads."""
    kafka = KafkaOptions(broker)
    reads = plan(state, list_topic(kafka, topic), bounded=True)

    def write(batch: Batch) -> None:
        covers = batch.covers
        assert covers is not None
        offsets = [message.offset for message in batch.messages]
        values = [(message.value or b"").decode() for message in batch.messages]
        found = [covers.partition, covers.start, covers.end, offsets, values]
        (folder / f"{covers.partition}-{covers.start:08d}").write_text(json.dumps(found))

    run_here(lambda p: p | ReadFromKafka(kafka, reads, ReadOptions(**options)) | beam.Map(write))
    return [json.loads(path.read_bytes()) for path in sorted(folder.iterdir())]


@pytest.mark.engines
def test_a_bounded_read_gives_every_uncovered_message_once(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    name = topic(2)
    sent = [[f"{partition}:{number}" for number in range(count)] for partition, count in ((0, 1201), (1, 7))]
    for partition, values in enumerate(sent):
        produce(kafka, name, [value.encode() for value in values], partition)
    topic_id = list_topic(KafkaOptions(kafka), name).topic_id
    state = covered((0, 3), (5, 7), topic=name, topic_id=topic_id)
    found = read_bounded(kafka, name, state, tmp_path, batch_messages=500)
    for partition, offsets in enumerate(([3, 4, *range(7, 1201)], list(range(7)))):
        mine = [each for each in found if each[0] == partition]
        assert [offset for each in mine for offset in each[3]] == offsets
        assert [value for each in mine for value in each[4]] == [sent[partition][offset] for offset in offsets]
        assert (mine[0][1], mine[-1][2]) == (offsets[0], offsets[-1] + 1)
        assert all(before[2] == after[1] for before, after in pairwise(mine))
        assert all(len(each[3]) <= 500 for each in mine)


@pytest.mark.engines
def test_markers_and_aborted_messages_are_covered_and_open_transactions_are_not(
    kafka: str, topic: MakeTopic, tmp_path: Path
) -> None:
    need_real(kafka)
    name = topic()
    produce_transaction(kafka, name, [b"gone"] * 3, "aborted")  # 0-2, marker 3
    produce_transaction(kafka, name, [b"kept"] * 2, "committed")  # 4-5, marker 6
    produce_transaction(kafka, name, [b"gone"], "aborted")  # 7, marker 8: the end is no message
    still_open = produce_transaction(kafka, name, [b"open"], "open")
    found = read_bounded(kafka, name, RawState(), tmp_path)
    still_open.abort_transaction(30)
    assert [value for each in found for value in each[4]] == ["kept", "kept"]
    assert [offset for each in found for offset in each[3]] == [4, 5]
    assert (found[0][1], found[-1][2]) == (0, 9)
    assert all(before[2] == after[1] for before, after in pairwise(found))


@pytest.mark.engines
def test_a_reader_is_used_again_with_what_it_has_and_gives_whole_messages(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    produce(kafka, name, [str(number).encode() for number in range(10)])
    options = KafkaOptions(kafka)
    with borrow(options, name, 0) as first:
        first.seek(0)
        found = first.read(4, 10)
    assert [message.value for message in found] == [b"0", b"1", b"2", b"3"]
    assert found[0][2:] == ((("a", b"1"), ("b", None)), b"k", 1234)
    with borrow(options, name, 0) as second:
        assert second is first
        with borrow(options, name, 0) as another:  # one is in use
            assert another is not first
        second.seek(2)  # elsewhere than where it stood
        assert [message.offset for message in second.read(3, 10)] == [2, 3, 4]


@pytest.mark.engines
def test_the_parts_of_a_range_follow_each_other_up_to_an_end_that_moves(kafka: str, topic: MakeTopic) -> None:
    name, ends = topic(), [20]
    produce(kafka, name, [b"v"] * 20)
    found = []
    read = PartitionRead(name, "", 0, 2, 20)
    for part in read_range(KafkaOptions(kafka), read, 2, lambda: ends[0], ReadOptions(batch_messages=5)):
        found.append(part)
        if part.end > 9:
            ends[0] = 12
    assert found[0].start == 2
    assert all(before.end == after.start for before, after in pairwise(found))
    assert found[-1].end >= 12 > found[-1].start
    offsets = [message.offset for part in found for message in part.messages]
    assert offsets == list(range(2, offsets[-1] + 1))
    assert offsets[-1] < 20


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

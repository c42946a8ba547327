"""What a broker takes away, on a real one: each loss stops what reads with one line, and nothing is skipped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import Batch, OffsetRange, Origin, Outcome
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.kafka.connect import NoTopicError, admin
from ciml.pipelines.ingest.committer import IngestConfig, IngestProcessor, accept_losses, committer, seal
from ciml.pipelines.kafka.broker import Ends, TopicEnds, check_topic, list_again, list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead, plan
from ciml.pipelines.kafka.reader import close_readers
from ciml.pipelines.kafka.source import OffsetTracker, ReadBounded
from ciml.pipelines.processor_beam import Commit
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from tests.pipelines.ingest.ingesting import MakeTopic, account, need_real, wait_for
from tests.pipelines.kafka.kafka_topics import add_partitions, covered, delete, delete_records, send_starts, settled


@pytest.fixture(autouse=True)
def _closed_readers() -> Iterator[None]:
    yield
    close_readers()


@pytest.fixture
def config(kafka: str, topic: MakeTopic, tmp_path: Path) -> IngestConfig:
    need_real(kafka)
    return IngestConfig(DataRoot.open(str(tmp_path)).raw, topic(2, "events"), "", kafka=KafkaOptions(kafka))


def read(options: KafkaOptions, part: PartitionRead, **changes: float) -> Iterator[Batch]:
    """A bounded read, without a runner: the test acts between its batches."""
    reader = ReadBounded(options, ReadOptions(batch_messages=10, **changes))  # type: ignore[arg-type]
    safe = ThreadsafeRestrictionTracker(OffsetTracker(reader.initial_restriction(part)))
    return reader.process(part, RestrictionTrackerView(safe))


@pytest.mark.engines
def test_micro_batches_read_partitions_that_come_later(config: IngestConfig) -> None:
    broker = config.kafka.bootstrap
    for partition in (0, 1):
        send_starts(broker, config.topic, partition, 10)
    stop = threading.Event()
    work = threading.Thread(target=drive, args=(IngestService(config),), kwargs={"stop": stop})
    work.start()
    try:
        wait_for(lambda: settled(config.raw) == 20)
        add_partitions(config.kafka, config.topic, 4)
        for partition in range(4):
            send_starts(broker, config.topic, partition, 5, first=10)
        wait_for(lambda: settled(config.raw) == 40)
    finally:
        stop.set()
        work.join(60)
    assert covered(config.raw, config.topic) == {0: [(0, 15)], 1: [(0, 15)], 2: [(0, 5)], 3: [(0, 5)]}


@pytest.mark.engines
def test_a_topic_deleted_under_micro_batches_stops_them(config: IngestConfig) -> None:
    send_starts(config.kafka.bootstrap, config.topic, 0, 10)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            drive(IngestService(config), stop=stop)
        except IntegrityError as error:
            raised.append(error)

    stop = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: settled(config.raw) == 10)
        delete(config.kafka, config.topic)
        thread.join(60)
    finally:
        stop.set()
        thread.join(60)
    [error] = raised
    assert "was deleted while it was read" in str(error)
    assert "--data-path" in str(error)
    assert covered(config.raw, config.topic) == {0: [(0, 10)]}


@pytest.mark.engines
def test_a_topic_deleted_within_a_bounded_read_stops_it(config: IngestConfig) -> None:
    """With a queue of a KiB little is fetched in advance, and what is may be given: it was there."""
    options = KafkaOptions(config.kafka.bootstrap, {"fetch.message.max.bytes": 2000}, queue_kib=1)
    send_starts(options.bootstrap, config.topic, 0, 200, together=5)
    [part] = plan(account(config.raw)[0], list_topic(options, config.topic), bounded=True)
    batches = read(options, part)
    got = [next(batches)]
    delete(options, config.topic)
    with pytest.raises(IntegrityError, match="was deleted while it was read"):
        got.extend(batches)
    offsets = [message.offset for batch in got for message in batch.messages]
    assert offsets == list(range(len(offsets)))
    assert len(offsets) < 200


@pytest.mark.engines
def test_retention_that_passes_a_bounded_read_stops_it(config: IngestConfig) -> None:
    options = KafkaOptions(config.kafka.bootstrap, {"fetch.message.max.bytes": 2000}, queue_kib=1)
    send_starts(options.bootstrap, config.topic, 0, 200, together=5)
    [part] = plan(account(config.raw)[0], list_topic(options, config.topic), bounded=True)
    batches = read(options, part)
    got = [next(batches)]
    delete_records(options, config.topic, 0, 190)
    with pytest.raises(IntegrityError, match="Nothing was skipped"):
        got.extend(batches)
    offsets = [message.offset for batch in got for message in batch.messages]
    assert offsets == list(range(len(offsets)))


@pytest.mark.engines
def test_messages_of_a_topic_that_was_recreated_since_are_not_committed(config: IngestConfig) -> None:
    """A consumer goes on in the new topic at its old offset, and nothing but the id tells."""
    before = list_topic(config.kafka, config.topic)
    covers = OffsetRange(config.topic, before.topic_id, 0, 0, 3)
    data = seal(Batch(covers, settled=[Outcome("ignored", Origin(config.topic, 0, 1), "e", None, "not_finished")]))
    delete(config.kafka, config.topic)
    wait_for(lambda: config.topic not in admin(config.kafka).list_topics(timeout=10).topics)
    make_topic(config.kafka, config.topic)
    with pytest.raises(IntegrityError, match="created again"):
        list(Commit(IngestProcessor(config)).process(("raw", [data])))
    assert account(config.raw)[0].version == 0
    with pytest.raises(IntegrityError, match="created again"):
        list_again(config.kafka, before)
    with pytest.raises(IntegrityError, match="created again"):
        check_topic(config.kafka, config.topic, before.topic_id)


@pytest.mark.engines
def test_what_was_read_of_a_topic_before_it_was_deleted_is_committed(config: IngestConfig) -> None:
    covers = OffsetRange(config.topic, list_topic(config.kafka, config.topic).topic_id, 0, 0, 3)
    delete(config.kafka, config.topic)
    assert list(Commit(IngestProcessor(config)).process(("raw", [seal(Batch(covers))]))) == [1]
    with pytest.raises(NoTopicError, match="has no topic"):
        list_topic(config.kafka, config.topic)


@pytest.mark.engines
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


# --- where partitions end


class Broker:
    """Answers for ends, or does not; counts how often it was asked."""

    def __init__(self) -> None:
        self.now_s, self.asked, self.ends, self.away = 100.0, [], {0: 5, 1: 7}, False

    def __call__(self, partitions: list[int]) -> dict[int, int]:
        self.asked.append(sorted(partitions))
        if self.away:
            raise EngineError("away")
        return {each: self.ends[each] for each in partitions}


def test_ends_are_asked_for_seldom_and_together() -> None:
    broker = Broker()
    ends = TopicEnds(broker, lambda: broker.now_s)
    assert ends.of(0, 5) == Ends(100, 5)
    assert ends.of(1, 5) == Ends(100, 7)
    broker.now_s, broker.ends = 104, {0: 50, 1: 70}
    assert ends.of(0, 5) == Ends(100, 5)
    broker.now_s = 106
    assert ends.of(0, 5) == Ends(106, 50)
    assert ends.of(1, 5) == Ends(106, 70)
    assert broker.asked == [[0], [0, 1], [0, 1]]


def test_a_broker_without_an_answer_says_nothing_and_is_not_pressed() -> None:
    broker = Broker()
    ends = TopicEnds(broker, lambda: broker.now_s)
    assert ends.of(0, 5) == Ends(100, 5)
    broker.now_s, broker.away = 106, True
    assert ends.of(0, 5) is None  # what is known is too old to be true
    broker.now_s = 108
    assert ends.of(0, 5) is None
    assert len(broker.asked) == 2
    broker.now_s, broker.away = 112, False
    assert ends.of(0, 5) == Ends(112, 5)


def test_a_clock_that_is_set_back_makes_nothing_old_young() -> None:
    broker = Broker()
    ends = TopicEnds(broker, lambda: broker.now_s)
    ends.of(0, 5)
    broker.now_s = 50
    assert ends.of(0, 5) == Ends(50, 5)

"""Messages that any client can send: header names, headers without number, times. Each costs itself alone."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.coders import TimestampCoder
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator

from ciml.data_root import DataRoot
from ciml.events.cloudevents import decode_message, finished_event
from ciml.events.payloads import UNREADABLE_HEADERS
from ciml.events.records import Message
from ciml.kafka import KafkaOptions, ReadOptions
from ciml.manifest.log import Delta
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow, close_readers
from ciml.pipelines.kafka.source import FOREVER, OffsetTracker, ReadUnbounded, Restriction
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.fetch.policy import FetchPolicy
from tests.pipelines.ingest.ingesting import account
from tests.pipelines.ingest.scenario import corpus_facts
from tests.raw_producer import RawProducer

MakeTopic = Callable[..., str]
pytestmark = pytest.mark.engines

_numbers = itertools.count()


def read(broker: str, topic: str, count: int) -> list[Message]:
    found: list[Message] = []
    with borrow(KafkaOptions(broker), topic, 0) as reader:
        reader.seek(0)
        while len(found) < count:
            found += reader.read(100, 10)
    return found


def ingest(broker: str, topic: str, runs_topic: str, data: Path) -> list[Delta]:
    logs = str(corpus_facts(1)[0][1].parents[2])
    fetch = FetchPolicy(file_roots=(logs,), delays_s=())
    ours = IngestConfig(DataRoot.open(data).raw, topic, runs_topic, kafka=KafkaOptions(broker), fetch=fetch)
    drive(IngestService(ours), until="end")
    return account(DataRoot.open(data).raw)[1]


def good(number: int) -> tuple[bytes, list[tuple[str | bytes, bytes | None]]]:
    facts, log = corpus_facts(number + 1)[number]
    value, headers = finished_event(facts.replace(log_url=log.as_uri()))
    return value, list(headers)


def test_a_header_name_that_is_not_utf_8_costs_its_message_alone(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    name = topic()
    value, _ = good(1)
    with RawProducer(kafka) as producer:
        for number in (0, 1, 2):
            bad = [(b"\xff\xfe", b"x")] if number == 1 else []
            producer.send(name, good(number)[0], [*good(number)[1], *bad], key=b"k", partition=0)
        producer.send(name, value, [(b"caf\xe9", None)], partition=0)
    deltas = ingest(kafka, name, topic(1, "runs"), tmp_path / "data")
    assert [run["origin"][2] for delta in deltas for run in delta["runs"]] == [0, 2]
    dead_letters = [dead_letter for delta in deltas for dead_letter in delta["dead_letters"]]
    assert [(each["origin"][2], each["reason"], each["detail"]) for each in dead_letters] == [
        (offset, "not_an_event", "a header name is not UTF-8") for offset in (1, 3)
    ]
    assert base64.b64decode(dead_letters[0]["payload"]["value"]) == value
    assert base64.b64decode(dead_letters[0]["payload"]["key"]) == b"k"
    state = account(DataRoot.open(tmp_path / "data").raw)[0]
    assert list(state.covered(name, 0)) == [(0, 4)]


def test_a_reader_that_has_read_many_messages_still_takes_such_names(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    sound, broken = [("ce_id", b"1"), ("b", None)], [("ce_id", b"1"), (b"\xff", b"x"), ("b", None)]
    with RawProducer(kafka) as producer:
        for number in range(400):
            producer.send(name, b"%d" % number, broken if number % 3 == 2 else sound, partition=0)
    found = read(kafka, name, 400)
    assert [message.value for message in found] == [b"%d" % number for number in range(400)]
    wanted = [UNREADABLE_HEADERS if number % 3 == 2 else tuple(sound) for number in range(400)]
    assert [message.headers for message in found] == wanted


def test_headers_without_number_take_no_memory(kafka: str, topic: MakeTopic) -> None:
    name = topic()
    value, headers = good(0)
    with RawProducer(kafka) as producer:
        producer.send(name, value, [*headers, *[("", None)] * 50_000], partition=0)
        producer.send(name, value, [*headers, *[("n", b"")] * 255], partition=0)
        producer.send(name, None, partition=0)
    many, most, tombstone = read(kafka, name, 3)
    assert (len(many.headers), len(most.headers), tombstone.headers) == (257, 256, ())
    assert (tombstone.value, tombstone.key) == (None, None)
    assert len(decode_message(most).run_facts) == 1


class Slice:
    """A restriction as Beam shows it to a DoFn, without what is put off."""

    def __init__(self, start: int) -> None:
        self._tracker = OffsetTracker(Restriction(start, FOREVER))
        self.current_restriction, self.try_claim = self._tracker.current_restriction, self._tracker.try_claim

    def defer_remainder(self, pause: object = None) -> None:
        self._tracker.try_split(0)


TIMES = [1234, 10**16, 2**62, -(10**16), -2, 4_102_444_799_999, 4_102_444_800_000]


@pytest.fixture
def times(kafka: str) -> str:
    """A topic with a message of each CreateTime, and one good one between each two."""
    name = f"times-{next(_numbers)}"
    wide = {"message.timestamp.after.max.ms": str(2**63 - 1), "message.timestamp.before.max.ms": str(2**63 - 1)}
    make_topic(KafkaOptions(kafka), name, 1, wide)
    with RawProducer(kafka) as producer:
        for time_ms in TIMES:
            producer.send(name, good(0)[0], (), time_ms, partition=0)
            producer.flush()
    return name


def test_times_that_are_none_are_read_as_unknown(kafka: str, times: str) -> None:
    found = read(kafka, times, len(TIMES))
    assert [message.timestamp_ms for message in found] == [1234, 0, 0, 0, 0, 4_102_444_799_999, 0]


def test_times_beyond_the_engine_s_are_read_for_ever(kafka: str, times: str) -> None:
    close_readers()
    listing = list_topic(KafkaOptions(kafka), times)
    partition = PartitionRead(times, listing.topic_id, 0, 0, None)
    reader = ReadUnbounded(KafkaOptions(kafka), ReadOptions(batch_messages=1, rest_s=1.0))

    found: list[Any] = []
    while len(found) < len(TIMES):  # a reader that is new may find nothing at first
        tracker = Slice(len(found))
        found += reader.process(partition, tracker, ManualWatermarkEstimator(None))
    for each in found:  # as it goes to the next stage
        assert len(TimestampCoder().encode(each.timestamp)) == 8
    assert [message.offset for each in found for message in each.value.messages] == list(range(len(TIMES)))
    assert [each.timestamp.micros for each in found if each.value.messages[0].timestamp_ms] == [
        1234_000, 4_102_444_799_999_000
    ]  # fmt: skip

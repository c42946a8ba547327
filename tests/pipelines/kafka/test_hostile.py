"""Messages that any client can send: header names, headers without number, times. Each costs itself alone."""

from __future__ import annotations

import base64
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
from ciml.pipelines.ingest.committer import IngestConfig
from ciml.pipelines.kafka.broker import list_topic, make_topic
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.reader import borrow, close_readers
from ciml.pipelines.kafka.source import ReadUnbounded
from ciml.services.driver import drive
from ciml.services.ingest import IngestService
from ciml.transforms.fetch.policy import FetchPolicy
from tests.pipelines.ingest.ingesting import account
from tests.pipelines.ingest.scenario import corpus_facts
from tests.pipelines.kafka.kafka_topics import Slice
from tests.raw_producer import RawProducer

MakeTopic = Callable[..., str]
pytestmark = pytest.mark.engines


def read(broker: str, topic: str, count: int) -> list[Message]:
    found: list[Message] = []
    with borrow(KafkaOptions(broker), topic, 0) as reader:
        reader.seek(0)
        while len(found) < count:
            found += reader.read(100, 10)
    return found


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
    fetch = FetchPolicy(file_roots=(str(corpus_facts(1)[0][1].parents[2]),), delays_s=())
    config = IngestConfig(DataRoot.open(tmp_path).raw, name, topic(1, "runs"), kafka=KafkaOptions(kafka), fetch=fetch)
    drive(IngestService(config), until="end")
    state, deltas = account(config.raw)
    assert [run["origin"][2] for delta in deltas for run in delta["runs"]] == [0, 2]
    dead_letters = [dead_letter for delta in deltas for dead_letter in delta["dead_letters"]]
    assert [(each["origin"][2], each["reason"], each["detail"]) for each in dead_letters] == [
        (offset, "not_an_event", "a header name is not UTF-8") for offset in (1, 3)
    ]
    assert base64.b64decode(dead_letters[0]["payload"]["value"]) == value
    assert base64.b64decode(dead_letters[0]["payload"]["key"]) == b"k"
    assert list(state.covered(name, 0)) == [(0, 4)]


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
    value, headers = good(0)
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

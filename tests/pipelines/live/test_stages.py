"""The stages beside a run's state: what is decoded, rendered once, and sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from confluent_kafka import KafkaError

from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.events.samples import Samples, encode
from ciml.kafka import KafkaOptions
from ciml.pipelines import live
from ciml.pipelines.live import MAX_MESSAGE_BYTES, DecodeSamples, LiveConfig, RenderRun, Send
from ciml.transforms.live.samples import LivePolicy, pack, part_of, unpack
from ciml.transforms.live.windows import LiveDataset, columns_of
from tests.transforms.live.live_scenes import recorded, some
from tests.transforms.samples import LOAD, USR, make_facts, resolved, table

RUN = make_facts(1).run_id
DATASETS = (LiveDataset("one", resolved((USR, LOAD), sample_interval="10s")),)


def config(topic: str = "samples", **changes: Any) -> LiveConfig:
    return LiveConfig(KafkaOptions("host:1"), DATASETS, topic, **changes)


def message_of(*values: float) -> Samples:
    times = [1_772_000_000_000_000 + second * 1_000_000 for second in range(len(values))]
    (message,) = recorded(RUN, table(times, usr=list(values), load=[1.0] * len(values)))
    return message


def test_a_message_that_cannot_be_decoded_is_published_without_its_secrets() -> None:
    batch = Batch(
        OffsetRange("samples", "T", 1, 5, 9),
        [
            Message(5, encode(message_of(1.0))),
            Message(6, b'{"password": "hunter2"', key=b'{"password": "hunter2"}'),
            Message(8, encode(message_of(1.0, 2.0))),
        ],
    )
    out = list(DecodeSamples(config()).process(batch))
    (rejected,) = [each.value for each in out if isinstance(each, TaggedOutput)]
    ((run_id, packed),) = [each for each in out if not isinstance(each, TaggedOutput)]
    topic, key, value = rejected
    assert (topic, json.loads(value)["origin"]) == ("live-dead-letters", ["samples", 1, 6])
    assert b"hunter2" not in key + value
    part = unpack(packed)
    assert (run_id, part.partition, part.first, part.last, part.size) == (RUN, 1, 5, 8, 3)


def test_a_job_s_offsets_are_forgotten_with_it_and_those_of_others_stay() -> None:
    for topic, partition, end in (("a", 0, 5), ("a", 1, 7), ("b", 0, 9)):
        list(DecodeSamples(config(topic)).process(Batch(OffsetRange(topic, "T", partition, 0, end))))
    assert (live.reached_offsets("a"), live.reached_offsets("b")) == ({0: 5, 1: 7}, {0: 9})
    live.forget_ended_job("a")
    assert (live.reached_offsets("a"), live.reached_offsets("b")) == ({}, {0: 9})
    live.forget_ended_job("b")


def test_of_two_samples_with_one_number_the_first_in_the_topic_counts_in_whatever_order_parts_come() -> None:
    columns = columns_of(DATASETS)
    values = (message_of(1.0, 2.0), message_of(10.0, 20.0, 30.0), some(message_of(0.0, 0.0, 0.0, 5.0), np.array([3])))
    parts = [pack(part_of([(offset, each)], columns, 0)) for offset, each in zip((3, 4, 10), values, strict=True)]
    rendered = [list(RenderRun(config()).process((RUN, order))) for order in permutations(parts)]
    assert all(each == rendered[0] for each in rendered)
    (window,) = [json.loads(value) for topic, _, value in rendered[0] if topic == "windows"]
    assert (window["samples"], window["values"][0]) == (4, (1.0 + 2.0 + 30.0 + 5.0) / 4)


def test_samples_beyond_the_limit_are_a_dead_letter_and_the_others_are_rendered() -> None:
    columns = columns_of(DATASETS)
    parts = [pack(part_of([(n, message_of(*range(1, n + 1)))], columns, 0)) for n in (2, 3)]
    sent = list(RenderRun(config(policy=LivePolicy(most_samples=2))).process((RUN, parts)))
    assert [topic for topic, _, _ in sent] == ["live-dead-letters", "windows", "live-examples"]
    assert json.loads(sent[0][2])["reason"] == "run_too_long"


class Broker:
    """A producer: `flush` delivers what was produced, or fails as ``fault`` does, or leaves ``unsent`` messages."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.waiting: list[tuple[str, bytes, Callable[..., None]]] = []
        self.delivered: list[bytes] = []
        self.fault: KafkaError | None = None
        self.unsent = 0

    def produce(self, topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Callable[..., None]) -> None:
        self.waiting.append((topic, value, on_delivery))

    def poll(self, wait_s: float) -> None:
        pass

    def flush(self, wait_s: float) -> int:
        left = self.waiting[len(self.waiting) - self.unsent :]
        for topic, value, on_delivery in self.waiting[: len(self.waiting) - self.unsent]:
            message = type("Delivered", (), {"topic": lambda self, topic=topic: topic})()
            on_delivery(self.fault, message)
            self.delivered += [] if self.fault else [value]
        self.waiting = left
        return len(left)


def bundle(send: Send, values: Sequence[bytes]) -> None:
    for value in values:
        list(send.process(("windows", b"key", value)))
    send.finish_bundle()


@pytest.mark.parametrize(
    ("fault", "unsent", "kind", "text"),
    [
        (None, 1, EngineError, "accepted no message within 60 s"),
        (KafkaError(KafkaError._MSG_TIMED_OUT), 0, EngineError, "host:1"),
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), 0, EngineError, "topic windows"),
        (KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), 0, CimlError, f"max.message.bytes={MAX_MESSAGE_BYTES}"),
    ],
)
def test_a_bundle_ends_when_the_broker_has_all_of_it_and_one_that_failed_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, fault: KafkaError | None, unsent: int, kind: type[CimlError], text: str
) -> None:
    brokers: list[Broker] = []

    def connect(_: object, options: KafkaOptions, settings: dict[str, Any]) -> Broker:
        brokers.append(Broker(settings))
        return brokers[-1]

    monkeypatch.setattr(live, "make_client", connect)
    send = Send(KafkaOptions("host:1"))
    send.finish_bundle()  # of an empty bundle
    bundle(send, [b"1", b"2"])
    (broker,) = brokers
    assert broker.settings["enable.idempotence"] is True
    broker.fault, broker.unsent = fault, unsent
    with pytest.raises(kind, match=text):
        bundle(send, [b"3", b"4"])
    broker.fault, broker.unsent = None, 0
    bundle(send, [b"3", b"4"])
    assert broker.delivered[:2] == [b"1", b"2"]
    assert broker.delivered[-2:] == [b"3", b"4"]

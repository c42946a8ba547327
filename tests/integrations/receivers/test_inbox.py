"""The inbox of a source: deliveries are settled in the order of puts, and none before Kafka has it."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from ciml.errors import CimlError, EngineError
from ciml.integrations import producer, sessions
from ciml.integrations.producer import DeliveryProducer, Headers, ReceiverMetrics
from ciml.integrations.sessions import Inbox
from ciml.kafka import KafkaOptions
from tests.durable import Messages


class Producer(Messages):
    """A producer of deliveries to a broker in memory; deliveries ``large…`` are rejected for their size."""

    def send(self, value: bytes, headers: Headers) -> Future[None]:
        acknowledged: Future[None] = Future()

        def settle(failure: str) -> None:
            if failure:
                acknowledged.set_exception(EngineError(failure))
            elif value.startswith(b"large"):
                acknowledged.set_exception(CimlError("too large"))
            else:
                acknowledged.set_result(None)

        self.produce(value.decode(), value, settle)
        return acknowledged


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now_s=1000.0)
    for module in (sessions, producer):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def outcomes(metrics: ReceiverMetrics) -> Counter[str]:
    samples = metrics.collectors[0].collect()[0].samples
    return Counter({one.labels["outcome"]: int(one.value) for one in samples if one.name.endswith("_total")})


def inbox_of(broker: Any, capacity: int = 4) -> Inbox:
    return Inbox("zuul", broker, ReceiverMetrics("test"), capacity)


@pytest.mark.parametrize("seed", range(10))
def test_deliveries_are_settled_in_their_order_and_after_kafka_has_them(clock: SimpleNamespace, seed: int) -> None:
    draw = random.Random(seed)
    broker = Producer(draw, loses=0.3, keeps=0.4)
    inbox = inbox_of(broker)
    settled: list[str] = []
    kinds = draw.choices(["stored", "large", "rejected"], [6, 1, 2], k=40)
    pending = [f"{kind}{number}" for number, kind in enumerate(kinds)]
    expected = list(pending)

    def settle(name: str) -> None:
        assert name.startswith("rejected") or name.encode() in [content for _, content in broker.stored]
        settled.append(name)

    for _ in range(2000):
        if pending and not inbox.is_full:
            name = pending.pop(0)
            if name.startswith("rejected"):
                inbox.reject("rejected", "it is empty", lambda name=name: settle(name))
            else:
                inbox.put(name.encode(), (), lambda name=name: settle(name))
        assert len(inbox) <= 4
        if draw.random() < 0.5:
            broker.acknowledge()
        inbox.settle()
        clock.now_s += draw.choice([0.0, 0.4, 1.1])
    assert settled == expected
    repeats = sum("acknowledge" not in step for step in broker.steps) - len(broker.stored)
    counts = Counter(name.rstrip("0123456789") for name in expected)
    assert outcomes(inbox.metrics) == Counter(
        accepted=counts["stored"], too_large=counts["large"], rejected=counts["rejected"], unavailable=repeats
    )


def test_a_delivery_is_produced_again_a_second_after_kafka_did_not_answer(clock: SimpleNamespace) -> None:
    broker = Producer()
    inbox = inbox_of(broker)
    inbox.put(b"a", (), lambda: None)
    _, _, done = broker.waiting.pop()
    done("Kafka does not answer")
    for elapsed_s, count in ((0.0, 1), (0.9, 1), (0.1, 2), (5.0, 2)):
        clock.now_s += elapsed_s
        inbox.settle()
        assert broker.steps == ["a"] * count


def test_a_failure_that_comes_while_others_are_produced_again_is_not_settled(clock: SimpleNamespace) -> None:
    broker = Producer()
    inbox = inbox_of(broker)
    settled: list[str] = []
    for name in ("a", "b"):
        inbox.put(name.encode(), (), lambda name=name: settled.append(name))
    _, _, fail_first = broker.waiting.pop(0)
    broker.waiting.pop(0)[2]("Kafka does not answer")
    inbox.settle()
    broker.before, broker.event = len(broker.steps), lambda: fail_first("Kafka does not answer")
    for _ in range(3):
        clock.now_s += 1.0
        inbox.settle()
        assert settled == []
    broker.acknowledge()
    inbox.settle()
    assert settled == ["a", "b"]


def test_a_warning_is_logged_once_a_minute_for_each_source_and_outcome(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ReceiverMetrics("test")
    for _ in range(120):
        for source in ("zuul", "hub"):
            for outcome in ("rejected", "too_large"):
                metrics.count_rejected(source, outcome, f"{source} {outcome}")
        clock.now_s += 1.0
    lines = Counter(record.message.split(": ")[2].partition(" (")[0] for record in caplog.records)
    assert lines == {f"{source} {outcome}": 2 for source in ("zuul", "hub") for outcome in ("rejected", "too_large")}


def test_every_in_sync_replica_acknowledges_a_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property of the operator does not weaken the acknowledgement."""
    made: list[dict[str, Any]] = []

    def make_client(kind: type, kafka: KafkaOptions, settings: dict[str, Any]) -> Any:
        made.append(settings)
        return SimpleNamespace(poll=lambda wait_s: None, flush=lambda wait_s: None)

    monkeypatch.setattr(producer, "make_client", make_client)
    weak = KafkaOptions("k:9", {"acks": "1", "enable.idempotence": "false", "message.timeout.ms": "0"})
    DeliveryProducer(weak, "events", 8.0).close()
    (settings,) = made
    assert {name: settings[name] for name in ("acks", "enable.idempotence", "message.timeout.ms")} == {
        "acks": "all", "enable.idempotence": True, "message.timeout.ms": 8000
    }  # fmt: skip

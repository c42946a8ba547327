"""The producer of deliveries: acknowledged is stored, and everything else is an error in time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing

import pytest
from confluent_kafka import KafkaError

from ciml.engines.processes import free_ports
from ciml.errors import CimlError, EngineError
from ciml.integrations.producer import DeliveryProducer
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_MESSAGE_BYTES
from tests.messages import published

pytestmark = pytest.mark.engines


def test_what_is_acknowledged_is_stored(kafka: str, topic: Callable[..., str]) -> None:
    name = topic(2)
    with closing(DeliveryProducer(KafkaOptions(kafka), name, 20.0)) as producer:
        waiting = [producer.send(b"%d" % number, [("a", b"b")]) for number in range(500)]
        assert [each.result(30) for each in waiting] == [None] * 500

        async def deliver() -> None:
            await asyncio.gather(*(producer.deliver(b"%d" % number, ()) for number in range(500, 600)))

        asyncio.run(deliver())
    messages = published(kafka, name, None)
    assert Counter(each.value for each in messages) == Counter(b"%d" % number for number in range(600))
    assert messages[0].headers in ((("a", b"b"),), ())


def test_a_message_that_is_sent_before_the_end_is_stored(kafka: str, topic: Callable[..., str]) -> None:
    name = topic()
    producer = DeliveryProducer(KafkaOptions(kafka), name, 20.0)
    waiting = producer.send(b"last", ())
    producer.close()
    assert waiting.done()
    assert [each.value for each in published(kafka, name, None)] == [b"last"]


def test_a_message_over_the_limit_is_rejected_and_others_are_not(kafka: str, topic: Callable[..., str]) -> None:
    with closing(DeliveryProducer(KafkaOptions(kafka), topic(), 20.0)) as producer:
        with pytest.raises(CimlError, match=r"rejects a message as too large; raise its max\.message\.bytes") as caught:
            producer.send(b"x" * (MAX_MESSAGE_BYTES + 10_000), ()).result(30)
        assert not isinstance(caught.value, EngineError)
        assert producer.send(b"x", ()).result(30) is None


def test_an_absent_broker_is_an_error_in_time(caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    with closing(DeliveryProducer(KafkaOptions(f"127.0.0.1:{port}"), "t", 1.0)) as producer:
        began = time.monotonic()
        waiting: list[Future[None]] = [producer.send(b"x", ()) for _ in range(20)]
        errors = [each.exception(10) for each in waiting]
        assert {type(each) for each in errors} == {EngineError}
        assert f"Kafka at 127.0.0.1:{port} did not acknowledge a message for t within 1 s" in {str(e) for e in errors}
        assert time.monotonic() - began < 8.0
    assert len([each for each in caplog.messages if "senders are asked to try again" in each]) == 1


def test_it_goes_on_after_an_error_that_its_client_does_not_survive(kafka: str, topic: Callable[..., str]) -> None:
    name = topic()
    with closing(DeliveryProducer(KafkaOptions(kafka), name, 20.0)) as producer:
        before = producer._producer
        failed: Future[None] = Future()
        producer._settle(failed, KafkaError(KafkaError._FATAL, "out of order", fatal=True), None)
        assert isinstance(failed.exception(), EngineError)
        deadline = time.monotonic() + 10
        while producer._producer is before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert producer._producer is not before
        assert producer.send(b"after", ()).result(30) is None
    assert [each.value for each in published(kafka, name, None)] == [b"after"]

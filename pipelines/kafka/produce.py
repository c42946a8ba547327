"""Sends to Kafka at the end of a pipeline: at least once, ordered by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from confluent_kafka import KafkaError, KafkaException, Producer

from ciml.errors import CimlError, EngineError
from ciml.kafka.connect import as_engine_error, make_client
from ciml.kafka.options import KafkaOptions
from ciml.transforms.ingest.run_stages import keep_error

#: (topic, key, value)
ToSend = tuple[str, bytes, bytes]

MAX_MESSAGE_BYTES = 8 << 20
_FLUSH_S = 60.0


class Send(beam.DoFn):
    """`ToSend` -> nothing. A bundle ends when the broker has all of its messages; a failed bundle is sent again."""

    def __init__(self, kafka: KafkaOptions) -> None:
        self._kafka = kafka
        self._producer: Producer | None = None
        self._failure: tuple[str, KafkaError] | None = None

    def process(self, element: ToSend) -> Iterator[Any]:
        with keep_error():
            topic, key, value = element
            producer = self._connected()
            while True:
                try:
                    producer.produce(topic, value, key, on_delivery=self._delivered)
                    break
                except BufferError:  # the broker is slower than this sender
                    producer.poll(0.1)
                except KafkaException as error:
                    self._fail(topic, error.args[0])
            producer.poll(0)
        yield from ()

    def finish_bundle(self) -> None:
        with keep_error():
            if self._producer is None:
                return
            unsent = self._producer.flush(_FLUSH_S)
            failure = self._failure
            self._failure = None
            if failure is not None:
                self._fail(*failure)
            if unsent:
                raise EngineError(f"Kafka at {self._kafka.bootstrap} accepted no message within {_FLUSH_S:.0f} s")

    def teardown(self) -> None:
        self._producer = None

    def _connected(self) -> Producer:
        if self._producer is None:
            settings = {
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.max.bytes": MAX_MESSAGE_BYTES,
                **self._kafka.common(),
                "enable.idempotence": True,
            }
            self._producer = make_client(Producer, self._kafka, settings)
        return self._producer

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        if error is not None and self._failure is None:
            self._failure = (message.topic(), error)

    def _fail(self, topic: str, error: KafkaError) -> None:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            raise CimlError(
                f"topic {topic} rejects a message as too large; set its max.message.bytes={MAX_MESSAGE_BYTES}"
            )
        raise as_engine_error(self._kafka, topic, KafkaException(error))

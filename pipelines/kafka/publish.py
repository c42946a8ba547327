"""Publishes a manifest's deltas to a topic, exactly once: a *projection* of the manifest onto the topic.

The topic itself is the cursor: every message names its delta, and the last published delta is read back from the
topic's end. So the next process publishes what a dead one did not. Nothing is published twice, since each step is one
transaction. The transactional id is that of the topic, or of the *share* of a manifest that several processes publish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer

from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import Message
from ciml.kafka import KafkaOptions
from ciml.kafka.connect import NoTopicError, as_engine_error
from ciml.manifest.log import Delta, ManifestLog
from ciml.pipelines.kafka.broker import is_mock, list_topic, make_topic, topic_of
from ciml.pipelines.kafka.reader import Reader
from ciml.pipelines.processes import Shared

#: The header that names the delta, and the one that names the manifest (the digest of its first delta).
VERSION = "manifest"
LOG = "log"

Headers = Sequence[tuple[str, bytes]]
#: Key, value and headers of a message.
Announcement = tuple[bytes, bytes, Headers]
Render = Callable[[Delta], Iterable[Announcement]]

_TRANSACTION_MESSAGES = 2000
_FIRST_READ_BACK = 32  # messages
_WAIT_S = 30.0
_ATTEMPTS = 3
_UNSUPPORTED = (
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
)


class Share(NamedTuple):
    """The part of a manifest that a projection publishes, where others publish the rest to the same topic.

    Attributes:
      name: part of its transactional id.
      header: name and value of the header that all its messages have, and no others.
    """

    name: str
    header: tuple[str, bytes]


#: The projections of this process.
_projections = Shared["Projection"]()


def projection(
    log: ManifestLog, topic: str, render: Render, kafka: KafkaOptions, share: Share | None = None
) -> Projection:
    """Return the process's projection of a manifest, or of its share, onto a topic, cached with producer and cursor."""
    key = (log.store.url(log.folder), topic, kafka, share)
    return _projections.get(key, lambda: Projection(log, topic, render, kafka, share))


class Projections:
    """Several projections, published in order. A failure of one does not stop the others.

    Args:
      projections: in order.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = projections

    def announce(self) -> int:
        """Publish each projection; return the lowest version. The first error is raised at the end."""
        versions: list[int] = []
        failure: CimlError | None = None
        for projection in self._projections:
            try:
                versions.append(projection.announce())
            except CimlError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return min(versions, default=0)

    def close(self) -> None:
        """Close the producers."""
        for projection in self._projections:
            projection.close()


class Projection:
    """Publishes one manifest to one topic, delta by delta.

    Args:
      log: the manifest.
      topic: created with one partition and unlimited retention if missing: on a topic with retention everything would
        be published again.
      render: returns (key, value, headers) of a delta; the headers `VERSION` and `LOG` are added.
      kafka: connection to the broker.
      share: the part of the manifest that ``render`` returns; None for all of it.

    Attributes:
      exactly_once: False if the broker lacks transactions: a dying process may then publish twice.
    """

    def __init__(
        self, log: ManifestLog, topic: str, render: Render, kafka: KafkaOptions, share: Share | None = None
    ) -> None:
        self.exactly_once = True
        self._log = log
        self._topic = topic
        self._render = render
        self._kafka = kafka
        self._share = share
        self._producer: Producer | None = None
        self._published_version = 0
        self._log_digest = ""
        self._topic_id = ""
        self._failure: KafkaError | None = None
        self._lock = threading.Lock()

    def announce(self) -> int:
        """Publish all deltas that were not published yet. Return the last version.

        Raises:
          EngineError: if the broker does not answer.
          IntegrityError: if the topic holds another manifest.
        """
        with self._lock:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return self._announce()
                except _OtherTopicError:
                    self._forget()  # all is published again: the new topic does not hold what the old one did
                except KafkaException as error:
                    # Another process took over, or an answer was lost; the topic shows which.
                    self._forget()
                    if attempt == _ATTEMPTS:
                        raise as_engine_error(self._kafka, self._topic, error) from None
                except BaseException:
                    self._forget()
                    raise
            raise EngineError(f"topic {self._topic} is recreated again and again; publishing later")

    def close(self) -> None:
        """Close the producer."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._producer is not None:
            self._producer.purge()
        self._producer = None

    def _announce(self) -> int:
        if not self._log_digest:
            try:
                self._log_digest = self._log.identity()[:16]
            except FileNotFoundError:
                return 0
        if self._producer is None:
            self._start()
        pending: list[tuple[int, Announcement]] = []
        version = self._published_version
        for version, delta in self._log.since(self._published_version):
            pending += [(version, announcement) for announcement in self._render(delta)]
            if len(pending) >= _TRANSACTION_MESSAGES:
                self._send(pending)
                pending = []
                self._published_version = version
        self._send(pending)
        self._published_version = version
        return version

    def _is_other_topic(self) -> bool:
        """Return whether the topic was deleted or created again since `_start`."""
        try:
            topic_id, _ = topic_of(self._kafka, self._topic)
        except NoTopicError:
            return True
        return bool(self._topic_id) and topic_id != self._topic_id

    def _start(self) -> None:
        make_topic(self._kafka, self._topic, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        self.exactly_once = not is_mock(self._kafka)
        producer = self._new_producer()
        if self.exactly_once:
            try:
                producer.init_transactions(_WAIT_S)  # fences the id's former owner and aborts its transaction
            except KafkaException as error:
                if error.args[0].code() not in _UNSUPPORTED:
                    raise
                self.exactly_once = False
                producer = self._new_producer()
        self._topic_id, _ = topic_of(self._kafka, self._topic)
        listing = list_topic(self._kafka, self._topic)
        versions = (self._last_in(partition, first, end) for partition, (first, end) in listing.bounds.items())
        self._published_version = max(versions, default=0)
        self._producer = producer

    def _new_producer(self) -> Producer:
        options: dict[str, Any] = {
            **self._kafka.common(),
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "zstd",
            "transaction.timeout.ms": 60_000,
        }
        if self.exactly_once:
            options["transactional.id"] = f"ciml.{self._topic}" + (f".{self._share.name}" if self._share else "")
        return Producer(options)

    def _last_in(self, partition: int, first: int, end: int) -> int:
        """Return the last delta of which a partition holds messages; 0 for none.

        It is read from the end, in growing steps. Foreign messages and those of other shares may be many: a projection
        that is new to such a topic reads all of it, once.
        """
        step = _FIRST_READ_BACK
        # A reader of its own: one in the pool may hold messages of a topic that was deleted.
        with closing(Reader(self._kafka, self._topic, partition)) as reader:
            while end > first:
                start = max(first, end - step)
                versions = map(self._version_of, self._between(reader, partition, start, end))
                last = max((version for version in versions if version is not None), default=None)
                if last is not None:
                    return last
                # So far there are only transaction markers, foreign messages, or those of other shares.
                step = 16 * step
                end = start
        return 0

    def _version_of(self, message: Message) -> int | None:
        """Return the delta of a message of this projection; None for a foreign one, or one of another share.

        Raises:
          IntegrityError: it is of another manifest.
        """
        headers = dict(message.headers)
        version = headers.get(VERSION)
        log = headers.get(LOG)
        if not version or not version.isdigit():
            return None
        if log != self._log_digest.encode():
            raise IntegrityError(
                f"topic {self._topic} holds another manifest than {self._log.store.url()}; publish to another "
                "topic, or delete this one"
            )
        if self._share and headers.get(self._share.header[0]) != self._share.header[1]:
            return None
        return int(version)

    def _between(self, reader: Reader, partition: int, start: int, end: int) -> Iterator[Message]:
        reader.seek(start)
        idle = 0
        while reader.position < end:
            before = reader.position
            yield from reader.read(min(1000, end - before), 1.0)
            idle = 0 if reader.position > before else idle + 1
            if idle > _WAIT_S:
                raise EngineError(f"{self._topic}[{partition}] {reader.position}: no answer to reads")

    def _send(self, pending: list[tuple[int, Announcement]]) -> None:
        producer = self._producer
        if not pending or producer is None:
            return
        if self._is_other_topic():
            raise _OtherTopicError
        self._failure = None
        if self.exactly_once:
            producer.begin_transaction()
        for version, (key, value, headers) in pending:
            extra = [(VERSION, str(version).encode()), (LOG, self._log_digest.encode())]
            enqueue(producer, self._topic, value, key, headers=[*headers, *extra], on_delivery=self._delivered)
        if self.exactly_once:
            producer.commit_transaction(_WAIT_S)
        elif producer.flush(_WAIT_S):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if self._failure is not None:
            raise KafkaException(self._failure)

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._failure = error


class _OtherTopicError(Exception):
    """The topic was deleted or created again since its last delta was read from it."""


def enqueue(
    producer: Producer,
    topic: str,
    value: bytes | None,
    key: bytes,
    *,
    on_delivery: Callable[[KafkaError | None, Any], None],
    headers: Headers = (),
) -> None:
    """Hand a message to a producer; wait while the broker is slower than this sender."""
    while True:
        try:
            producer.produce(topic, value, key, headers=list(headers), on_delivery=on_delivery)
            return
        except BufferError:
            producer.poll(0.1)

"""Publishes a manifest's deltas to a topic, exactly once.

The topic itself is the cursor: every message names its delta, and the last published delta is read back from the
topic's end. So the next process publishes what a dead one had not; with a transaction for each step and one
transactional id for each topic, or for each share of a manifest that has several, nothing is published twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from confluent_kafka import KafkaError, KafkaException, Producer

from ciml.digest import canonical_json, sha256_json
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.events.records import Message, facts_of_row, rows_of
from ciml.kafka.connect import NoTopicError, as_engine_error
from ciml.kafka.options import KafkaOptions
from ciml.manifest.log import Delta, ManifestLog
from ciml.messages import ClosedDeadLetter, OpenDeadLetter, RunAnnouncement
from ciml.pipelines.kafka.broker import is_mock, list_topic, make_topic, topic_of
from ciml.pipelines.kafka.reader import Reader
from ciml.pipelines.processes import Shared
from ciml.runs.dead_letters import described

#: The header that names the delta, and the one that names the manifest (the digest of its first delta).
VERSION = "manifest"
LOG = "log"

Headers = Sequence[tuple[str, bytes]]
Announcement = tuple[bytes, bytes, Headers]
Render = Callable[[Delta], Iterable[Announcement]]

_MOST = 2000  # messages in a transaction
_WAIT_S = 30.0
_ATTEMPTS = 3
_UNSUPPORTED = (
    *(KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION),
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


class _OtherTopicError(Exception):
    """The topic was deleted or created again since its last delta was read from it."""


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
        self._announced = 0
        self._identity = self._topic_id = ""
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
            raise EngineError(f"topic {self._topic} is created again and again; publishing later")

    def close(self) -> None:
        """Close the producer."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._producer is not None:
            self._producer.purge()
        self._producer = None

    def _announce(self) -> int:
        if not self._identity:
            try:
                self._identity = sha256_json(self._log.read(1))[:16]
            except FileNotFoundError:
                return 0
        if self._producer is None:
            self._start()
        waiting: list[tuple[int, Announcement]] = []
        version = self._announced
        for version, delta in self._log.since(self._announced):
            waiting += [(version, announcement) for announcement in self._render(delta)]
            if len(waiting) >= _MOST:
                self._send(waiting)
                waiting = []
                self._announced = version
        self._send(waiting)
        self._announced = version
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
        producer = self._make()
        if self.exactly_once:
            try:
                producer.init_transactions(_WAIT_S)  # fences the id's former owner and aborts its transaction
            except KafkaException as error:
                if error.args[0].code() not in _UNSUPPORTED:
                    raise
                self.exactly_once = False
                producer = self._make()
        self._topic_id, _ = topic_of(self._kafka, self._topic)
        listing = list_topic(self._kafka, self._topic)
        last = (self._last_of(partition, *bounds) for partition, bounds in listing.bounds.items())
        self._announced = max(last, default=0)
        self._producer = producer

    def _make(self) -> Producer:
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

    def _last_of(self, partition: int, first: int, end: int) -> int:
        """Return the last delta that a partition holds messages of; 0 for none.

        It is read from the end, in growing steps. The messages of other shares may be many: a share that is new to a
        topic reads all of it, once.
        """
        back = 32
        last = 0
        reader = Reader(self._kafka, self._topic, partition)
        try:
            while end > first:
                start = max(first, end - back)
                own_messages = 0
                for message in self._between(reader, partition, start, end):
                    version = self._version_of(message)
                    own_messages += version is not None
                    last = max(last, version or 0)
                if own_messages:
                    break
                # only transaction markers, or messages of others, so far
                back = 16 * back
                end = start
        finally:
            reader.close()
        return last

    def _version_of(self, message: Message) -> int | None:
        """Return the delta of a message of this projection, 0 for a foreign one; None for one of another share.

        Raises:
          IntegrityError: it is of another manifest.
        """
        headers = dict(message.headers)
        version = headers.get(VERSION)
        log = headers.get(LOG)
        if not version or not version.isdigit():
            return None if self._share else 0
        if log != self._identity.encode():
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

    def _send(self, waiting: list[tuple[int, Announcement]]) -> None:
        producer = self._producer
        if not waiting or producer is None:
            return
        if self._is_other_topic():
            raise _OtherTopicError
        self._failure = None
        if self.exactly_once:
            producer.begin_transaction()
        for version, (key, value, headers) in waiting:
            extra = [(VERSION, str(version).encode()), (LOG, self._identity.encode())]
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


def enqueue(
    producer: Producer,
    topic: str,
    value: bytes,
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


def render_runs(delta: Delta) -> Iterable[Announcement]:
    """Yield the announcements of a raw delta: a reference to each new row, reclaims included, and its run's facts."""
    for record in rows_of(delta):
        facts = facts_of_row(record)
        file = record["file"]
        value: RunAnnouncement = {
            "run_id": facts.run_id,
            "build_name": facts.build_name,
            "path": file["path"],
            "digest": file["digest"],
            "raw_version": delta["version"],
            "facts": facts.to_json(),
        }
        if record["kind"] == "reclaim":
            value["reclaim"] = True
        yield facts.run_id.encode(), canonical_json(value), ()


def render_dead_letters(delta: Delta) -> Iterable[Announcement]:
    """Yield the dead letters that a raw delta closes, then those that it opens, without their payloads."""
    for origin, run_id in delta.get("closed_letters", ()):
        closed: ClosedDeadLetter = {
            "state": "closed",
            "origin": origin,
            "run_id": run_id,
            "raw_version": delta["version"],
        }
        yield _dead_letter_key(origin, run_id), canonical_json(closed), ()
    for record in delta["dead_letters"]:
        opened = cast(
            OpenDeadLetter,
            {"state": "open", **described(record), "time_us": delta["time_us"], "raw_version": delta["version"]},
        )
        yield _dead_letter_key(record["origin"], opened["run_id"]), canonical_json(opened), ()


def _dead_letter_key(origin: Sequence[Any], run_id: str) -> bytes:
    """Return the key of a dead letter's messages."""
    return canonical_json([*origin, run_id])


class Projections:
    """Several projections, published in order. A failure of one does not stop the others.

    Args:
      each: the projections.
    """

    def __init__(self, each: Sequence[Projection]) -> None:
        self._each = each

    def announce(self) -> int:
        """Publish each projection; return the lowest version. The first error is raised at the end."""
        versions: list[int] = []
        failure: CimlError | None = None
        for projection in self._each:
            try:
                versions.append(projection.announce())
            except CimlError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return min(versions, default=0)

    def close(self) -> None:
        """Close the producers."""
        for projection in self._each:
            projection.close()


_projections = Shared[Projection]()


def projection(
    log: ManifestLog, topic: str, render: Render, kafka: KafkaOptions, share: Share | None = None
) -> Projection:
    """Return the process's projection of a manifest, or of its share, onto a topic, cached with producer and cursor."""
    key = (log.store.url(log.folder), topic, kafka, share)
    return _projections.get(key, lambda: Projection(log, topic, render, kafka, share))

"""Delivery of a recording: events and samples to Kafka, the log to its folder. The queue is on disk, not in memory.

With a broker, the messages are a start event, the samples, an end for each start of the recorder, and a finished event.
`Sender` sends them without blocking. Without a broker, only the log is stored, with a line of a listing for
``ciml backfill``. The output of the command is stored next to the log, if it was recorded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import log_address
from ciml.events.run_id import path_safe
from ciml.kafka import KafkaOptions
from ciml.limits import MAX_LABELS
from ciml.recorder import report
from ciml.recorder.spool.recording import LOG, OUTPUT, End, Recording
from ciml.recorder.tail import Mark, Piece, Tail

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

Headers = Sequence[tuple[str, bytes]]

_QUEUE_KIB = 4096  # of the sender: unsent messages are on disk, not in memory
_MAX_IN_FLIGHT = 32  # messages of samples; the others are read from the log later
_RETRY_S = 5.0
_READ_BYTES = 1 << 20
_FAST = 1  # the level of gzip for outputs: the command's end waits for it


class Sender:
    """Sends messages to one broker, without blocking; librdkafka reconnects to a broker that is unavailable.

    Args:
      options: connection options.

    Attributes:
      connection_error: why the broker is unavailable or rejects the connection; "" after a delivery.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.connection_error = f"Kafka at {options.bootstrap} does not answer"
        self._options = options
        self._producer: Producer | None = None

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Headers,
        done: Callable[[str], None],
    ) -> bool:
        """Queue a message; `poll` calls ``done`` with "" after delivery, else with the error.

        Returns:
          False if the message was not queued: the queue is full, or the producer failed. Try again later.

        Raises:
          CimlError: a Kafka property is invalid.
        """

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.connection_error = ""
            done(self._describe(error, topic) if error is not None else "")

        if self._producer is None:
            self._producer = self._make_producer()
        from confluent_kafka import KafkaException  # already imported by `_make_producer`

        try:
            self._producer.produce(topic, value, key=key, headers=list(headers), on_delivery=delivered)
        except BufferError:
            return False
        except KafkaException:  # a fatal error of this producer: the next call makes another one
            self._producer.purge()
            self._producer.poll(0)
            self._producer = None
            return False
        return True

    def poll(self, wait_s: float = 0.0) -> None:
        """Call ``done`` of delivered and failed messages; wait for one at most ``wait_s`` seconds."""
        if self._producer is not None:
            self._producer.poll(wait_s)

    def _describe(self, error: KafkaError, topic: str) -> str:
        return f"Kafka at {self._options.bootstrap}, topic {topic}: {self._options.hide(error.str())}"

    def _make_producer(self) -> Producer:
        from confluent_kafka import Producer

        from ciml.kafka.connect import make_client

        def on_error(error: KafkaError) -> None:
            self.connection_error = f"Kafka at {self._options.bootstrap}: {self._options.hide(error.str())}"

        properties: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "zstd",
            "queue.buffering.max.kbytes": _QUEUE_KIB,
            "message.timeout.ms": 0,  # no limit: the log keeps unsent samples
            "enable.idempotence": True,
            **self._options.common(),
        }
        return make_client(Producer, self._options, properties, on_error)


class _Content(NamedTuple):
    """The content of a message."""

    topic: str
    value: bytes
    headers: Headers = ()


@dataclass
class _Message:
    """A message of the delivery; "unsent" again after a failure. Its samples, if any, begin in the log at ``mark``."""

    state: Literal["unsent", "in flight", "arrived"]
    mark: Mark = field(default_factory=Mark)


class Delivery:
    """The delivery of a recording.

    Args:
      recording: the recording.
      sender: sender of its broker; None for a recording without a broker.
      end: the end of the command, if known; else `finish` sets it later.
      announce: whether to send the start event; False if it could differ from one that has arrived already.

    Attributes:
      recording: the recording.
      failure: why delivery makes no progress, in one line; "" while it does.
    """

    def __init__(
        self, recording: Recording, sender: Sender | None, end: End | None = None, *, announce: bool = True
    ) -> None:
        self.recording = recording
        self.failure = ""
        self._sender = sender
        self._end = end
        self._plan = recording.plan
        self._key = self._plan.mention.run_id.encode()
        self._tail = Tail(recording.read_log, recording.starts())
        self._samples: deque[_Message] = deque()  # without those at the beginning that have arrived
        self._events: dict[str, _Message] = {} if announce else {"started": _Message("arrived")}
        self._log_path = ""  # until the log is stored
        self._output_path = ""
        self._not_before_s = 0.0

    @property
    def progress(self) -> int:
        """A number that grows while delivery makes progress."""
        return self._tail.mark.offset - len(self._samples)

    def finish(self, end: End) -> None:
        """Set the command's end; the log does not grow any more."""
        self._end = end

    def step(self) -> bool:
        """Send as much as possible without blocking. Return whether everything has arrived.

        Raises:
          CimlError: the recording can never be sent.
        """
        if time.monotonic() < self._not_before_s:
            return False
        try:
            if self._sender is not None:
                return self._send_all(self._sender)
            return self._end is not None and self._store_without_broker(self._end)
        except RejectedInput as rejected:
            raise CimlError(f"{self.recording.folder.path}: {rejected}") from None
        except CimlError as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(f"{error.filename or self.recording.log}: {error.strerror or error}")
        return False

    def _fail(self, failure: str) -> None:
        self.failure = failure
        self._not_before_s = time.monotonic() + _RETRY_S

    def _store_without_broker(self, end: End) -> bool:
        """Store the log, with a line of a listing if it is the run's first. Return whether there is a folder for it."""
        if not self._plan.log_dir:
            return False
        from ciml.storage import open_store

        self._store_log()
        folder = _folder(self._plan.mention)
        line = _listing_line(self._finished_facts(end), self._log_path, self._output_path)
        store = open_store(self._plan.log_dir)
        path = f"{folder}/run.json"
        if not store.create(path, line) and store.read(path) != line:
            report(f"{self._plan.mention.run_id} was recorded before: the listing keeps the first recording")
        return True

    def _send_all(self, sender: Sender) -> bool:
        """Send the messages that are due. Return whether everything has arrived."""
        if not self._send_once(sender, "started", self._started) or not self._send_samples(sender):
            return False
        if self._end is None or self._samples:
            return False
        starts = self._tail.counts if self._plan.samples_topic else ()
        ends = [self._send_once(sender, f"end {start}", partial(self._samples_end, start)) for start in starts]
        if not all(ends):
            return False
        self._store_log()  # before the finished event, which has its address
        self._send_once(sender, "finished", partial(self._finished, self._end))
        return all(message.state == "arrived" for message in self._events.values())

    def _send_once(self, sender: Sender, name: str, content: Callable[[], _Content]) -> bool:
        """Send an event once. Return whether it is in flight or has arrived."""
        message = self._events.setdefault(name, _Message("unsent"))
        return message.state != "unsent" or self._send(sender, message, content())

    def _send(self, sender: Sender, message: _Message, content: _Content) -> bool:
        """Send a message. Return whether it is in flight; False if the sender does not take it now."""

        def done(failure: str) -> None:
            message.state = "unsent" if failure else "arrived"
            if failure:
                self._fail(failure)

        message.state = "in flight"
        if not sender.send(content.topic, self._key, content.value, content.headers, done):
            message.state = "unsent"
            return False
        return True

    def _send_samples(self, sender: Sender) -> bool:
        """Send the samples in the log. Return whether all of them are in flight or have arrived."""
        if not self._plan.samples_topic:
            return True
        while self._samples and self._samples[0].state == "arrived":
            self._samples.popleft()
            self.failure = ""
        states = {message.state for message in self._samples}
        if "unsent" in states:
            if "in flight" in states:
                return False
            # Resend from there. Samples have identities, so repeats are recognised.
            self._tail.mark = self._samples[0].mark
            self._samples.clear()
        while len(self._samples) < _MAX_IN_FLIGHT:
            mark = self._tail.mark
            piece = self._tail.read()
            if piece is None:
                return True
            message = _Message("unsent", mark)
            value = encode_piece(self._plan.mention.run_id, piece, self._tail.first_us or piece.times_us[0])
            if not self._send(sender, message, _Content(self._plan.samples_topic, value)):
                self._tail.mark = mark
                return False
            self._samples.append(message)
        return False

    def _started(self) -> _Content:
        from ciml.events.cloudevents import STARTED, run_event

        return _Content(self._plan.events_topic, *run_event(STARTED, self._plan.mention))

    def _samples_end(self, recorder_us: int) -> _Content:
        from ciml.events import samples

        end = samples.End(self._plan.mention.run_id, recorder_us, self._tail.counts[recorder_us])
        return _Content(self._plan.samples_topic, samples.encode(end))

    def _finished(self, end: End) -> _Content:
        from ciml.events.cloudevents import finished_event

        return _Content(self._plan.events_topic, *finished_event(self._finished_facts(end)))

    def _finished_facts(self, end: End) -> RunFacts:
        facts = self._plan.mention
        other_labels = {name: value for name, value in facts.labels.items() if name not in end.labels}
        labels = {**end.labels, **other_labels}  # first, since those beyond MAX_LABELS are dropped
        return facts.replace(
            phase="finished",
            result=end.result,
            end_us=max(end.end_us, facts.start_us or 0),
            log_url=self._address(self._log_path),
            output_url=self._address(self._output_path),
            labels=dict(islice(labels.items(), MAX_LABELS)),
        )

    def _store_log(self) -> None:
        """Store the compressed log in its folder, once, and the output next to it.

        Without a folder, the samples are only in the topic.
        """
        if self._log_path or not self._plan.log_dir:
            return
        from ciml.storage import open_store

        store = open_store(self._plan.log_dir)
        data = _compressed(_log_pieces(self.recording))
        folder = _folder(self._plan.mention)
        prefix = f"{folder}/"
        if not store.create(f"{prefix}{LOG}.gz", data) and store.read(f"{prefix}{LOG}.gz") != data:
            # Another recording has the same run id. Ingest reports this one, and keeps the first committed run.
            prefix = f"{folder}/{hashlib.sha256(data).hexdigest()[:16]}-"
            store.create(f"{prefix}{LOG}.gz", data)
        if (output := self.recording.output_pieces()) is not None:
            store.create(f"{prefix}{OUTPUT}.gz", _compressed(output, _FAST))
            self._output_path = f"{prefix}{OUTPUT}.gz"
        self._log_path = f"{prefix}{LOG}.gz"

    def _address(self, path: str) -> str:
        """Return the public address of a path in the folder of logs; "" for none."""
        return log_address(self._plan.log_url or self._plan.log_dir, path) if path else ""


def encode_piece(run_id: str, piece: Piece, first_us: int) -> bytes:
    """Return the value of a message with samples; ``first_us`` is the time of the log's first sample."""
    from ciml.events.samples import encode_rows

    rows = zip(count(piece.first), piece.times_us, piece.boots, piece.values)
    return encode_rows(run_id, piece.recorder_us, first_us, piece.columns, list(rows))


def _folder(facts: RunFacts) -> str:
    return f"{path_safe(facts.build_name)}/{facts.run_id}"


def _log_pieces(recording: Recording) -> Iterator[bytes]:
    offset = 0
    while piece := recording.read_log(offset, _READ_BYTES):
        yield piece
        offset += len(piece)


def _compressed(pieces: Iterable[bytes], level: int = 9) -> bytes:
    """Compress with gzip, reproducibly."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=level, mtime=0) as file:
        for piece in pieces:
            file.write(piece)
    return out.getvalue()


def _listing_line(facts: RunFacts, log_path: str, output_path: str) -> bytes:
    from ciml.events.run_facts import run_from_facts

    run = run_from_facts(facts)
    for name in ("log_url", "output_url", "id", "job", "event"):
        run.pop(name, None)
    line = {"build_uuid": facts.build_uuid, "build_name": facts.build_name, "labels": {}, **run, "log_path": log_path}
    if output_path:
        line["output_path"] = output_path
    return json.dumps(line).encode() + b"\n"

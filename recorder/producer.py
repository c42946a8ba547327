"""Read a growing log as messages (`Tail`), and send them to Kafka (`Sender`) with a short queue: the log is the queue.

`Tail` reads the same samples as `ciml.transforms.parse.logs`, without Arrow. It reads logs of dool and
`ciml.recorder.sampler` only: they have an epoch column, and neither quotes nor text in a sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ciml.dstat import EARLIEST, LATEST, NUMBER, SECOND, read_columns
from ciml.kafka.options import KafkaOptions
from ciml.limits import MAX_RECORDING_LOG_BYTES

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message, Producer

#: Epoch microseconds from 2000 to 2099.
Micros = Annotated[int, msgspec.Meta(ge=946_684_800_000_000, lt=4_102_444_800_000_000)]
_QUEUE_KIB = 4096
_PIECE = 32 << 10  # of the log in one message; its JSON is at most three times as large
_NUMBER = re.compile(NUMBER)
_NO_GROUPS = re.compile(rb'"[^"\n]{0,99}:"|"[^"\n]{0,99} CSV [Oo]utput"')


class Sender:
    """Sends messages to one broker, without blocking; librdkafka reconnects to a broker that is unavailable.

    Args:
      options: connection options.

    Attributes:
      connection_error: why the broker is unavailable or rejects the connection; "" without a known error.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.connection_error = ""
        self._options = options
        self._producer: Producer | None = None

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Sequence[tuple[str, bytes]] | None,
        done: Callable[[str], None],
    ) -> bool:
        """Queue a message; `poll` calls ``done`` with "" after delivery, else with the error.

        Returns:
          False where the queue is full.

        Raises:
          CimlError: a Kafka property is invalid.
        """

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.connection_error = ""
            done(self._describe(error, topic) if error is not None else "")

        if self._producer is None:
            self._producer = self._make()
        try:
            self._producer.produce(topic, value, key=key, headers=list(headers or ()), on_delivery=delivered)
        except BufferError:
            return False
        except Exception as error:  # KafkaException: importing it costs what this module saves
            if type(error).__name__ != "KafkaException":
                raise
            self._producer.purge()  # a fatal error of this producer: the next one starts over
            self._producer.poll(0)
            self._producer = None
            return False
        return True

    def poll(self, wait_s: float = 0.0) -> None:
        """Report delivered and failed messages; wait for one at most ``wait_s`` seconds."""
        if self._producer is not None:
            self._producer.poll(wait_s)

    def _describe(self, error: KafkaError, topic: str) -> str:
        return f"Kafka at {self._options.bootstrap}, topic {topic}: {self._options.hide(error.str())}"

    def _make(self) -> Producer:
        from confluent_kafka import Producer

        from ciml.kafka.connect import make_client

        def failed(error: KafkaError) -> None:
            self.connection_error = f"Kafka at {self._options.bootstrap}: {self._options.hide(error.str())}"

        properties: dict[str, Any] = {
            "linger.ms": 5,
            "compression.type": "zstd",
            "queue.buffering.max.kbytes": _QUEUE_KIB,
            "message.timeout.ms": 0,  # no limit: the log keeps unsent samples
            "enable.idempotence": True,
            "socket.keepalive.enable": True,
            **self._options.common(),
        }
        return make_client(Producer, self._options, properties, failed)


@dataclass(frozen=True)
class Start:
    """A start of the recorder: its offset in the log, and its time, epoch microseconds."""

    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORDING_LOG_BYTES)]
    recorder_us: Micros


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of one start of the recorder, with the same columns.

    Attributes:
      recorder_us: time of the start, epoch microseconds.
      first: sequence number of the first sample, from 0 for each start.
      columns: full names of the columns.
      times_us, boots, values: one value, or one row of values, for each sample.
    """

    recorder_us: int
    first: int
    columns: tuple[str, ...]
    times_us: list[int] = field(default_factory=list)
    boots: list[bool] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Mark:
    """A position in a log, from which it can be read again.

    Attributes:
      offset: offset of the next byte.
      start: index of the recorder's start at this position.
      sequence: the next sample's number in it.
      header: the last header's two rows, as far as they are read.
      boot: whether the next row is the first below its header.
    """

    offset: int = 0
    start: int = 0
    sequence: int = 0
    header: tuple[bytes, ...] = ()
    boot: bool = False


class Tail:
    """Reads a log from its beginning, piece by piece.

    Args:
      log: called with (offset, count); returns at most count bytes, b"" where there are none yet.
      starts: the known starts; `add_start` adds a later one.

    Attributes:
      mark: its position.
      first_us: the time of the log's first sample, epoch microseconds, once it is read.
    """

    def __init__(self, log: Callable[[int, int], bytes], starts: Sequence[Start]) -> None:
        self._log = log
        self._starts = list(starts)
        self.mark = Mark()
        self.first_us: int | None = None
        self.counts: dict[int, int] = {start.recorder_us: 0 for start in starts}

    def read(self) -> Piece | None:
        """Return the next samples; None where there are no complete lines yet.

        Raises:
          OSError: the log cannot be read.
        """
        while data := self._lines():
            if piece := self._take(data):
                return piece
        return None

    def _lines(self) -> bytes:
        """Return complete lines from the mark on, up to the next start."""
        mark = self.mark
        while mark.start + 1 < len(self._starts) and mark.offset >= self._starts[mark.start + 1].offset:
            mark = self.mark = Mark(mark.offset, mark.start + 1)
        max_bytes = _PIECE
        if mark.start + 1 < len(self._starts):
            max_bytes = min(max_bytes, self._starts[mark.start + 1].offset - mark.offset)
        data = self._log(mark.offset, max_bytes)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == max_bytes:
            return data  # a line cut off by a restart, or not written by the recorder
        return data[:end]

    def _take(self, data: bytes) -> Piece | None:
        """Parse lines up to the next header after samples, and move the mark there."""
        mark = self.mark
        offset = self.mark.offset
        recorder_us = self._starts[mark.start].recorder_us
        header = mark.header
        boot = mark.boot
        columns = read_columns(*header) if len(header) == 2 else None
        piece = Piece(recorder_us, mark.sequence, _named(columns.names) if columns else ())
        for line in data.splitlines(keepends=True):
            row = line.rstrip(b"\r\n")
            if row.startswith(b'"'):
                if piece.times_us:
                    break
                header = (row,) if len(header) != 1 else (*header, row)
                if _NO_GROUPS.match(row):
                    header = ()
                columns = read_columns(*header) if len(header) == 2 else None
                piece = replace(piece, columns=_named(columns.names) if columns else ())
                boot = True
            elif row and columns is not None and columns.epoch is not None:
                cells = row.split(b",")
                if len(cells) == len(columns.names):
                    numbers = [_to_float(cell) for cell in cells]
                    moment = numbers[columns.epoch] * SECOND
                    if EARLIEST <= moment < LATEST:
                        piece.times_us.append(round(moment))
                        piece.boots.append(boot)
                        piece.values.append([number for number, name in zip(numbers, columns.names) if name])
                boot = False
            offset += len(line)
        sequence = mark.sequence + len(piece.times_us)
        self.mark = Mark(offset, mark.start, sequence, header, boot)
        self.counts[recorder_us] = max(sequence, self.counts.get(recorder_us, 0))
        if self.first_us is None and piece.times_us:
            self.first_us = piece.times_us[0]
        return piece if piece.times_us else None


def _named(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _to_float(cell: bytes) -> float:
    """Return the number in a cell; NaN where it is not a finite number."""
    text = cell.decode("ascii", "replace").strip()
    value = float(text) if _NUMBER.match(text) else math.nan
    return value if math.isfinite(value) else math.nan

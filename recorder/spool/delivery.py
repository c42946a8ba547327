"""Sending a recording: events and samples to Kafka, the log to its folder. The queue is on disk, not in memory."""

from __future__ import annotations

import gzip
import io
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import log_address
from ciml.events.run_id import RunId, path_safe
from ciml.limits import MAX_LABELS
from ciml.recorder.producer import Mark, Piece, Sender, Tail
from ciml.recorder.spool.recording import LOG, End, Recording

_IN_FLIGHT = 32  # messages in flight; the rest stays in the log
_AGAIN_S = 5.0
_READ = 1 << 20


@dataclass
class _Sent:
    """A message: whether it has arrived, None in flight; and its start in the log if it has samples."""

    arrived: bool | None = None
    mark: Mark | None = None


class Delivery:
    """The delivery of a recording.

    Args:
      recording: the recording.
      sender: of its broker; None where it has none.
      end: the end of the command, if known; else `finish` sets it later.
      announce: whether to send the start event too; False if it could differ from one that has arrived already.

    Attributes:
      recording: the recording.
      failure: why delivery makes no progress, in one line; "" while it does.
    """

    def __init__(
        self, recording: Recording, sender: Sender | None, end: End | None = None, *, announce: bool = True
    ) -> None:
        self.failure = ""
        self.recording = recording
        self._sender = sender
        self._end = end
        self._plan = recording.plan
        self._key = self._plan.mention.run_id.encode()
        self._tail = Tail(recording.read_log, recording.starts())
        self._sent: deque[_Sent] = deque()
        self._single: dict[str, _Sent] = {} if announce else {"started": _Sent(True)}
        self._log_at: str | None = None
        self._not_before = 0.0

    @property
    def progress(self) -> int:
        """Return a number that grows while delivery makes progress."""
        return self._tail.mark.offset - len(self._sent)

    def finish(self, end: End) -> None:
        """Set the command's end; the log does not grow any more."""
        self._end = end

    def step(self) -> bool:
        """Send as much as possible without blocking. Return whether everything has arrived.

        Raises:
          CimlError: it can never be sent.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            return self._step()
        except RejectedInput as rejected:
            raise CimlError(f"{self.recording.folder.path}: {rejected}") from None
        except CimlError as error:
            self._wait(str(error))
        except OSError as error:
            self._wait(f"{error.filename or self.recording.log}: {error.strerror or error}")
        return False

    def _wait(self, why: str) -> None:
        self.failure = why
        self._not_before = time.monotonic() + _AGAIN_S

    def _step(self) -> bool:
        if self._sender is None:
            return self._end is not None and bool(self._plan.log_dir) and self._put_log() and self._list(self._end)
        if not self._once("started", self._started) or not self._samples():
            return False
        if self._end is None or self._sent:
            return False
        starts = self._tail.counts if self._plan.samples_topic else ()
        ends = [self._once(f"end {start}", partial(self._end_of, start)) for start in starts]
        if not all(ends) or not self._put_log():
            return False
        return self._once("finished", self._finished) and all(message.arrived for message in self._single.values())

    def _once(self, name: str, render: Callable[[], tuple[str, bytes, Any]]) -> bool:
        """Send a message once. Return whether it is in flight or has arrived."""
        message = self._single.setdefault(name, _Sent(False))
        return message.arrived is not False or self._send(message, *render())

    def _send(self, message: _Sent, topic: str, value: bytes, headers: Any = None) -> bool:
        """Send a message. Return whether it is in flight; False where the queue is full."""
        assert self._sender is not None

        def done(failure: str) -> None:
            message.arrived = not failure
            if failure:
                self._wait(failure)

        message.arrived = None
        if not self._sender.send(topic, self._key, value, headers, done):
            message.arrived = False
        return message.arrived is not False

    def _samples(self) -> bool:
        """Send the samples in the log. Return whether all of them are in flight or have arrived."""
        if not self._plan.samples_topic:
            return True
        while self._sent and self._sent[0].arrived:
            self._sent.popleft()
            self.failure = ""
        if any(message.arrived is False for message in self._sent):
            if any(message.arrived is None for message in self._sent):
                return False
            assert self._sent[0].mark is not None
            self._tail.mark = self._sent[0].mark  # resend from there; samples have identities, so repeats are known
            self._sent.clear()
        while len(self._sent) < _IN_FLIGHT:
            mark = self._tail.mark
            piece = self._tail.read()
            if piece is None:
                return True
            message = _Sent(mark=mark)
            value = encode_piece(self._plan.mention.run_id, piece, self._tail.first_us or piece.times_us[0])
            if not self._send(message, self._plan.samples_topic, value):
                self._tail.mark = mark
                return False
            self._sent.append(message)
        return False

    def _started(self) -> tuple[str, bytes, Any]:
        from ciml.events.cloudevents import STARTED, run_event

        value, headers = run_event(STARTED, self._plan.mention)
        return self._plan.events_topic, value, headers

    def _finished(self) -> tuple[str, bytes, Any]:
        from ciml.events.cloudevents import finished_event

        assert self._end is not None
        value, headers = finished_event(self._finished_facts(self._end))
        return self._plan.events_topic, value, headers

    def _end_of(self, recorder_us: int) -> tuple[str, bytes, Any]:
        from ciml.events import samples

        end = samples.End(self._plan.mention.run_id, recorder_us, self._tail.counts[recorder_us])
        return self._plan.samples_topic, samples.encode(end), None

    def _finished_facts(self, end: End) -> RunFacts:
        facts = self._plan.mention
        labels = {**end.labels, **facts.labels, **end.labels}  # those of the end first: an event holds a limited number
        return facts.replace(
            phase="finished",
            result=end.result,
            end_us=max(end.end_us, facts.start_us or 0),
            log_url=self._log_at or "",
            labels=dict(islice(labels.items(), MAX_LABELS)),
        )

    def _put_log(self) -> bool:
        """Upload the compressed log once to its folder. Without such a folder the samples are only in the topic."""
        if self._log_at is not None:
            return True
        if not self._plan.log_dir:
            self._log_at = ""
            return True
        from ciml.storage import open_store

        store = open_store(self._plan.log_dir)
        data = _compressed(self.recording)
        path = f"{_folder(self._plan.mention)}/{LOG}.gz"
        if not store.create(path, data) and store.read(path) != data:
            # Another recording with the same run id. Ingest reports it, and the run that was committed first stays.
            import hashlib

            path = f"{_folder(self._plan.mention)}/{hashlib.sha256(data).hexdigest()[:16]}-{LOG}.gz"
            store.create(path, data)
        self._log_at = log_address(self._plan.log_url or self._plan.log_dir, path)
        return True

    def _list(self, end: End) -> bool:
        """Without a broker, write a line of a listing beside the log, for ``ciml backfill``."""
        from ciml.storage import open_store

        folder = _folder(self._plan.mention)
        line = _listing_line(self._finished_facts(end), f"{folder}/{LOG}.gz")
        open_store(self._plan.log_dir).replace(f"{folder}/run.json", line)
        return True


def encode_piece(run_id: str, piece: Piece, first_us: int) -> bytes:
    from ciml.events.samples import encode_rows

    rows = zip(count(piece.first), piece.times_us, piece.boots, piece.values)
    return encode_rows(run_id, piece.recorder_us, first_us, piece.columns, list(rows))


def _folder(facts: RunFacts) -> str:
    return f"{path_safe(facts.build_name)}/{facts.run_id}"


def _compressed(recording: Recording) -> bytes:
    """Compress the log with gzip, reproducibly."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        offset = 0
        while piece := recording.read_log(offset, _READ):
            file.write(piece)
            offset += len(piece)
    return out.getvalue()


def _listing_line(facts: RunFacts, log_path: str) -> bytes:
    from ciml.events.run_facts import run_from_facts

    run = run_from_facts(facts)
    labels = run.pop("labels", {})
    identity = RunId.decode(facts.run_id)
    for name in ("log_url", "id", "job", "event"):
        run.pop(name, None)
    line = {
        "build_uuid": identity.native_id,
        "build_name": facts.build_name,
        **run,
        "log_path": log_path,
        "labels": labels,
    }
    return json.dumps(line).encode() + b"\n"

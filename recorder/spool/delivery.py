"""Sending a recording: events and samples to Kafka, the log to its place. The folder is the queue, not memory."""

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
from recorder.producer import Sender
from recorder.spool.recording import LOG, End, Recording
from recorder.tail import Mark, Piece, Tail

_IN_FLIGHT = 32  # messages of a recording that are on their way; the rest stays in the log
_AGAIN_S = 5.0
_READ = 1 << 20


@dataclass(slots=True)
class _Sent:
    """A message on its way, and where in the log it begins."""

    mark: Mark
    arrived: bool | None = None


class Delivery:
    """A recording on its way.

    Args:
      recording: what is sent.
      sender: to its broker, or None where it has none.
      end: how it ended, where that is known. `finish` says it later.
      announce: whether the run's start is sent too. It is left out where the start's event would differ from the one
        that may have arrived already.

    Attributes:
      failure: why it does not get on, in one line; "" while it does.
    """

    def __init__(
        self, recording: Recording, sender: Sender | None, end: End | None = None, *, announce: bool = True
    ) -> None:
        self.failure = ""
        self._recording, self._sender, self._end = recording, sender, end
        self._plan = recording.plan
        self._key = self._plan.mention.run_id.encode()
        self._tail = Tail(recording.read_log, recording.starts())
        self._sent: deque[_Sent] = deque()
        self._states: dict[str, bool | None] = {}  # of single messages: None while on the way, whether they arrived
        if not announce:
            self._states["started"] = True
        self._log_at: str | None = None
        self._not_before = 0.0

    @property
    def progress(self) -> int:
        """How many bytes of the log were taken: it grows while all is well."""
        return self._tail.mark.offset - len(self._sent)

    def finish(self, end: End) -> None:
        """The command has ended, and nothing more comes into the log."""
        self._end = end

    def step(self) -> bool:
        """Send what can be sent now without waiting. Return whether all has arrived.

        Raises:
          CimlError: it can never be sent as it is.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            return self._step()
        except RejectedInput as refused:
            raise CimlError(f"{self._recording.folder.path}: {refused}") from None
        except CimlError as error:
            self._wait(str(error))
        except OSError as error:
            self._wait(f"{error.filename or self._recording.log}: {error.strerror or error}")
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
        return self._once("finished", self._finished) and all(self._states.values())

    def _once(self, name: str, render: Callable[[], tuple[str, bytes, Any]]) -> bool:
        """Send a message where it is not on its way or there yet. Return whether it is at least on its way."""
        assert self._sender is not None
        if self._states.get(name, False) is not False:
            return True
        topic, value, headers = render()

        def done(failure: str) -> None:
            self._states[name] = not failure
            if failure:
                self._wait(failure)

        self._states[name] = None
        if not self._sender.send(topic, self._key, value, headers, done):
            self._states[name] = False
            return False
        return True

    def _samples(self) -> bool:
        """Send what is in the log. Return whether all of it is on its way or has arrived."""
        if not self._plan.samples_topic:
            return True
        while self._sent and self._sent[0].arrived:
            self._sent.popleft()
            self.failure = ""
        if any(each.arrived is False for each in self._sent):
            if any(each.arrived is None for each in self._sent):
                return False
            self._tail.mark = self._sent[0].mark  # again from there; what did arrive is known by its identity
            self._sent.clear()
        while len(self._sent) < _IN_FLIGHT:
            mark = self._tail.mark
            piece = self._tail.read()
            if piece is None:
                return True
            if not self._send_piece(piece, mark):
                self._tail.mark = mark
                return False
        return False

    def _send_piece(self, piece: Piece, mark: Mark) -> bool:
        assert self._sender is not None
        sent = _Sent(mark)

        def done(failure: str) -> None:
            sent.arrived = not failure
            if failure:
                self._wait(failure)

        value = encode_piece(self._plan.mention.run_id, piece, self._tail.first_us or piece.times_us[0])
        if not self._sender.send(self._plan.samples_topic, self._key, value, None, done):
            return False
        self._sent.append(sent)
        return True

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
        labels = {**end.labels, **facts.labels, **end.labels}  # those of the end first: an event holds so many
        return facts.replace(
            phase="finished", result=end.result, end_us=max(end.end_us, facts.start_us or 0),
            log_url=self._log_at or "", labels=dict(islice(labels.items(), MAX_LABELS)),
        )  # fmt: skip

    def _put_log(self) -> bool:
        """Put the log, compressed, where it is fetched from, once. Without such a place it stays in the topic."""
        if self._log_at is not None:
            return True
        if not self._plan.log_dir:
            self._log_at = ""
            return True
        from ciml.storage.open import open_store

        store = open_store(self._plan.log_dir)
        data = _compressed(self._recording)
        path = f"{_folder(self._plan.mention)}/{LOG}.gz"
        if not store.create(path, data) and store.read(path) != data:
            # Another recording under the same run id. Ingest says so: the run as it was committed first stays.
            import hashlib

            path = f"{_folder(self._plan.mention)}/{hashlib.sha256(data).hexdigest()[:16]}-{LOG}.gz"
            store.create(path, data)
        self._log_at = log_address(self._plan.log_url or self._plan.log_dir, path)
        return True

    def _list(self, end: End) -> bool:
        """Without a broker: puts a line of a listing beside the log, for ``ciml backfill``."""
        from ciml.storage.open import open_store

        folder = _folder(self._plan.mention)
        line = _listing_line(self._finished_facts(end), f"{folder}/{LOG}.gz")
        open_store(self._plan.log_dir).replace(f"{folder}/run.json", line)
        return True


def encode_piece(run_id: str, piece: Piece, first_us: int) -> bytes:
    from ciml.events.samples import encode_rows

    rows = zip(count(piece.first), piece.times_us, piece.boots, piece.values, strict=False)
    return encode_rows(run_id, piece.recorder_us, first_us, piece.columns, list(rows))


def _folder(facts: RunFacts) -> str:
    return f"{path_safe(facts.build_name)}/{facts.run_id}"


def _compressed(recording: Recording) -> bytes:
    """Return the log in gzip, the same bytes each time."""
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
        "build_uuid": identity.native_id, "build_name": facts.build_name, **run, "log_path": log_path,
        "labels": labels,
    }  # fmt: skip
    return json.dumps(line).encode() + b"\n"

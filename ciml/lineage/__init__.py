"""Lineage: the data that the steps of training read and write, sent to an endpoint of OpenLineage.

A step is reported as a run: START, then COMPLETE, FAIL or ABORT, with its data. Reporting never fails or delays a step:
a thread sends the events in order, an exception in a description is logged, and `Lineage.close` waits for a few seconds
at most. This module is light: only the thread imports `ciml.lineage.openlineage`, and with it the library OpenLineage.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from ciml.events.redaction import redact_text
from ciml.extras import require

if TYPE_CHECKING:
    from ciml.data_root import DataRoot


State = Literal["START", "COMPLETE", "FAIL", "ABORT"]
#: How long `Lineage.close` waits for events that are not sent yet.
CLOSE_S = 5.0
_MAX_WAITING = 100  # events that are not sent yet; further ones are lost
_ERROR_CHARACTERS = 300
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Data that a step reads or writes.

    Attributes:
      address: a folder or ``s3://`` prefix; stable over versions.
      version: version of the data, such as a digest; "" if unknown.
      columns: (name, type) of each column.
      rows: number of rows; None if unknown.
      facts: further facts by name, as JSON.
    """

    address: str
    version: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    rows: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """The description of a step: its data, and its results.

    Attributes:
      inputs, outputs: the data that the step reads and writes.
      parameters: parameters of the step by name, as JSON.
      checks: name of each check, and whether it passed.
      facts: figures of the step by name, as JSON.
    """

    inputs: tuple[Data, ...] = ()
    outputs: tuple[Data, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[tuple[str, bool], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepEvent:
    """A state of a step.

    Attributes:
      run_id: UUID of this execution.
      job: name of the step, such as ``snapshot.provider``.
      state: what happened.
      time: when, in UTC.
      description: the data and facts that are known at that time.
      error: the exception's text, with FAIL.
    """

    run_id: str
    job: str
    state: State
    time: datetime
    description: Description
    error: str = ""


#: Returns the description of a step. Called only if lineage is on.
DescriptionSource = Callable[[], Description]


class Step:
    """An execution of a step, which may be described once more when it has completed."""

    def __init__(self) -> None:
        self._source: DescriptionSource | None = None

    def describe(self, source: DescriptionSource) -> None:
        """Set the source of the description that is reported when the step has completed."""
        self._source = source

    def final_description(self, first: Description) -> Description:
        """Return the description of the completed step; by default the description of the start."""
        return first if self._source is None else _description_of(self._source, first)


class Lineage:
    """Reports steps to the endpoint of OpenLineage's own configuration, by default into the data root.

    An event that cannot be sent is lost, with a warning. `OFF` reports nothing.

    Args:
      data: the data root.
      close_s: how long `close` waits, seconds.
    """

    def __init__(self, data: DataRoot, close_s: float = CLOSE_S) -> None:
        self._close_s = close_s
        self._waiting: queue.Queue[StepEvent | None] = queue.Queue(_MAX_WAITING)
        self._closed = False
        self._given_up = threading.Event()
        self._all_sent = threading.Event()
        # A daemon: a request that never ends must not keep the process.
        self._thread = threading.Thread(target=self._send_all, args=(data,), name="lineage", daemon=True)
        self._thread.start()

    @contextmanager
    def step(self, job: str, source: DescriptionSource | None = None) -> Iterator[Step]:
        """Report the execution of a block.

        Args:
          job: name of the step.
          source: returns the data that the step will read.

        Example:
          >>> with OFF.step("snapshot.provider") as step:
          ...     step.describe(lambda: Description(outputs=(Data("data/trainer/provider/snapshots", "5f1c…"),)))
        """
        description = Description() if source is None else _description_of(source, Description())
        first = StepEvent(_new_id(), job, "START", datetime.now(UTC), description)
        self.emit(first)
        step = Step()
        try:
            yield step
        except BaseException as error:
            state: State = "FAIL" if isinstance(error, Exception) else "ABORT"
            text = f"{type(error).__name__}: {error}"
            self.emit(replace(first, state=state, time=datetime.now(UTC), error=text))
            raise
        description = step.final_description(first.description)
        self.emit(replace(first, state="COMPLETE", time=datetime.now(UTC), description=description))

    def emit(self, event: StepEvent) -> None:
        """Queue an event, without waiting."""
        if self._closed:
            _LOG.warning("lineage: %s of %s is lost: lineage is closed", event.state, event.job)
            return
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            _LOG.warning("lineage: %s of %s is lost: %d events wait", event.state, event.job, _MAX_WAITING)

    def close(self) -> None:
        """Wait until all events are sent, for ``close_s`` at most."""
        self._closed = True
        until_s = time.monotonic() + self._close_s
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._close_s)
        self._thread.join(max(until_s - time.monotonic(), 0.0))
        if not self._all_sent.is_set():
            self._given_up.set()
            _LOG.warning("lineage: events were not sent within %g s and are lost", self._close_s)

    def _send_all(self, data: DataRoot) -> None:
        client: Any = None
        while (event := self._waiting.get()) is not None and not self._given_up.is_set():
            try:
                from ciml.lineage import openlineage

                client = client or openlineage.make_client(data)
                client.emit(openlineage.run_event(event, data))
            except Exception as error:  # noqa: BLE001  # whatever an endpoint does, the step continues
                text = redact_text(" ".join(f"{type(error).__name__}: {error}".split()))[:_ERROR_CHARACTERS]
                _LOG.warning("lineage: %s of %s was not sent: %s", event.state, event.job, text)
        if not self._given_up.is_set():
            self._all_sent.set()
        if client is not None:
            client.close(0)


class _Off(Lineage):
    """Reports nothing."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def step(self, job: str, source: DescriptionSource | None = None) -> Iterator[Step]:
        yield Step()

    def emit(self, event: StepEvent) -> None:
        pass

    def close(self) -> None:
        pass


OFF = _Off()


def _description_of(source: DescriptionSource, default: Description) -> Description:
    """Return the description of a step; ``default`` if its source raises."""
    try:
        return source()
    except Exception:  # noqa: BLE001  # the step continues
        _LOG.warning("lineage: a step cannot be described", exc_info=True)
        return default


def _new_id() -> str:
    """Return a UUID of version 7: later ones are greater."""
    milliseconds = int(time.time() * 1000)
    version = 7
    variant = 2
    number = milliseconds << 80 | version << 76 | secrets.randbits(12) << 64 | variant << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=number))


@contextmanager
def lineage_of(data: DataRoot, enabled: bool) -> Iterator[Lineage]:
    """Yield the `Lineage` that reports the steps on a data root, and close it after the block.

    Args:
      data: the data root. Its address is the namespace of the jobs, and the events go there unless OpenLineage is
        configured otherwise.
      enabled: whether lineage is on. If not, nothing is imported, and `OFF` is yielded.

    Raises:
      CimlError: lineage is on, and ``ciml[lineage]`` is not installed.
    """
    if not enabled:
        yield OFF
        return
    require("openlineage", "lineage")
    lineage = Lineage(data)
    try:
        yield lineage
    finally:
        lineage.close()

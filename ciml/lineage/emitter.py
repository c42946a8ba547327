"""The emitter of lineage: a thread that sends the events of steps in order, so that no endpoint delays a step."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ciml.events.redaction import redact_text
from ciml.extras import require
from ciml.lineage.steps import OFF, Lineage

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.lineage.steps import StepEvent

_LOG = logging.getLogger(__name__)
#: How long `close` waits for events that are not sent yet.
CLOSE_S = 5.0
_MAX_WAITING = 100  # events that are not sent yet; further ones are lost
_ERROR_CHARACTERS = 300


class Emitter:
    """Sends events to the endpoint of OpenLineage's own configuration, by default into the data root.

    An event that cannot be sent is lost, with a warning.

    Args:
      data: the data root.
      close_s: how long `close` waits, seconds.
    """

    def __init__(self, data: DataRoot, close_s: float = CLOSE_S) -> None:
        self._data = data
        self._close_s = close_s
        self._waiting: queue.Queue[StepEvent | None] = queue.Queue(_MAX_WAITING)
        self._given_up = threading.Event()
        # A daemon: a request that never ends must not keep the process.
        self._thread = threading.Thread(target=self._send_all, name="lineage", daemon=True)
        self._thread.start()

    def emit(self, event: StepEvent) -> None:
        """Queue an event, without waiting."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            _LOG.warning("lineage: %s of %s is lost: %d events wait", event.state, event.job, _MAX_WAITING)

    def close(self) -> None:
        """Wait until all events are sent, for ``close_s`` at most."""
        until = time.monotonic() + self._close_s
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._close_s)
        self._thread.join(max(until - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._given_up.set()
            _LOG.warning("lineage: events were not sent within %g s, and are lost", self._close_s)

    def _send_all(self) -> None:
        client: Any = None
        while (event := self._waiting.get()) is not None and not self._given_up.is_set():
            try:
                from ciml.lineage import openlineage

                client = client or openlineage.make_client(self._data)
                client.emit(openlineage.run_event(event, self._data))
            except Exception as error:  # noqa: BLE001  # whatever an endpoint does, the step goes on
                text = redact_text(" ".join(f"{type(error).__name__}: {error}".split()))[:_ERROR_CHARACTERS]
                _LOG.warning("lineage: %s of %s was not sent: %s", event.state, event.job, text)
        if client is not None:
            client.close(0)


@contextmanager
def lineage_of(data: DataRoot, enabled: bool) -> Iterator[Lineage]:
    """Yield the `Lineage` that reports the steps on a data root, and close it after the block.

    Args:
      data: the data root; its address is the namespace of the jobs, and it gets the events unless OpenLineage is
        configured otherwise.
      enabled: whether lineage is on; if not, nothing is imported.

    Raises:
      CimlError: it is on, and ``ciml[lineage]`` is not installed.
    """
    if not enabled:
        yield OFF
        return
    require("openlineage", "lineage")
    lineage = Lineage(Emitter(data))
    try:
        yield lineage
    finally:
        lineage.close()

"""The order in which threads fetch the logs or outputs of a batch, and the limit on their bytes.

Hosts take turns, and a slow host does not hold up the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.artifacts import JobFacts

Failure = RejectedInput | LogUnavailableError

_MAX_TIMEOUTS = 4  # consecutive ones of a host, after which a batch fetches nothing more from it
_TOO_LARGE = "the batch's logs together exceed its limit"


class Download:
    """A log or output to fetch, and its result: the log, unpacked, or a failure. It is compared by identity.

    Attributes:
      address: where it is. A download whose address was rejected has none: it has a failure and is never scheduled.
      facts: the CI job of its run.
      is_signed: whether the address holds a secret.
      seconds: duration of the fetch; None without a request.
    """

    def __init__(self, address: Address | RejectedInput, facts: JobFacts, is_signed: bool) -> None:
        self.facts = facts
        self.is_signed = is_signed
        self.log: bytes | None = None
        self.failure: Failure | None = None
        self.seconds: float | None = None
        if isinstance(address, RejectedInput):
            self.failure = address
        else:
            self.address = address


class Budget:
    """The limit on the total bytes of a batch's logs, which several threads fetch at the same time.

    Args:
      size: limit in bytes. A log that would exceed it gives up all its bytes, so that another one fits.
      enough: once this many bytes are used, or one log did not fit, no further log is started.

    Attributes:
      is_full: whether no further log is started.
    """

    def __init__(self, size: int, enough: int) -> None:
        self._size = size
        self._enough = min(enough, size)
        self._bytes_of: dict[Download, int] = {}
        self._released: set[Download] = set()
        self._total = 0
        self.is_full = False
        self._lock = threading.Lock()

    def grow(self, download: Download, size: int) -> None:
        """Reserve bytes for a download, or release them if the size is negative. Has no effect after its `release`.

        Raises:
          LogUnavailableError: ``batch_full``; the download is released.
        """
        with self._lock:
            if download in self._released:
                return
            self.is_full |= self._total + size >= self._enough
            if self._total + size > self._size:
                self._release(download)
                raise LogUnavailableError("batch_full", _TOO_LARGE)
            self._total += size
            self._bytes_of[download] = self._bytes_of.get(download, 0) + size

    def release(self, download: Download) -> None:
        """Release all bytes of a download."""
        with self._lock:
            self._release(download)

    def _release(self, download: Download) -> None:
        self._total -= self._bytes_of.pop(download, 0)
        self._released.add(download)


@dataclass(slots=True)
class Host:
    """The state of one host, which threads change under the schedule's lock.

    Attributes:
      waiting: downloads that no thread has started.
      running: number of threads that download from it.
      timeouts: number of consecutive timeouts.
    """

    waiting: deque[Download] = field(default_factory=deque)
    running: int = 0
    timeouts: int = 0


class Schedule:
    """Assigns downloads to threads: hosts take turns and share the threads.

    A slow host's downloads fail without a request.

    Args:
      downloads: those with an address.
      threads: number of threads that iterate over the schedule.
      batch_s: time after which no further download is started, seconds.
      budget: limit on their bytes together.
    """

    def __init__(self, downloads: list[Download], threads: int, batch_s: float, budget: Budget) -> None:
        self._budget = budget
        self._hosts: dict[str, Host] = {}
        for download in downloads:
            self._hosts.setdefault(download.address.origin, Host()).waiting.append(download)
        self._threads = threads
        self._turns = deque(self._hosts)  # those with downloads that wait
        self._end = time.monotonic() + batch_s
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Download]:
        """Yield the downloads for one thread; one is finished when the thread asks for the next one.

        An exception in a thread fails the batch, so it ends the schedule for all threads.
        """
        while (download := self._next()) is not None:
            try:
                yield download
            except GeneratorExit:
                self._end_all()
                raise
            self._finish(download)

    def _end_all(self) -> None:
        with self._lock:
            self._turns.clear()

    def _next(self) -> Download | None:
        with self._lock:
            is_late = time.monotonic() > self._end
            if is_late or self._budget.is_full:
                detail = "the batch's time limit was reached" if is_late else _TOO_LARGE
                for origin in self._turns:
                    _fail(self._hosts[origin], "batch_full", detail)
                self._turns.clear()
            return self._take_turn()

    def _take_turn(self) -> Download | None:
        """Start a download from the next host.

        The last host has all threads, and any other half of them, rounded up. So no thread that is free has to wait.
        """
        threads = self._threads if len(self._turns) == 1 else (self._threads + 1) // 2
        for origin in self._turns:
            host = self._hosts[origin]
            if host.running < threads:
                self._turns.remove(origin)
                host.running += 1
                download = host.waiting.popleft()
                if host.waiting:
                    self._turns.append(origin)
                return download
        return None

    def _finish(self, download: Download) -> None:
        with self._lock:
            origin = download.address.origin
            host = self._hosts[origin]
            host.running -= 1
            failure = download.failure if isinstance(download.failure, LogUnavailableError) else None
            if failure and failure.retry_after_s:
                detail = "its host answered a request for another log by asking to wait"
                _fail(host, failure.reason, detail, failure.retry_after_s)
            if failure and failure.reason == "log_timeout":
                host.timeouts += 1
                if host.timeouts >= _MAX_TIMEOUTS:
                    _fail(host, "log_timeout", "its host timed out for other logs")
            else:
                host.timeouts = 0
            if not host.waiting and origin in self._turns:
                self._turns.remove(origin)


def _fail(host: Host, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
    """Let the waiting downloads of a host fail. The caller holds the schedule's lock."""
    for download in host.waiting:
        download.failure = LogUnavailableError(reason, detail, retry_after_s=retry_after_s)
    host.waiting.clear()

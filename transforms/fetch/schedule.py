"""The order in which threads fetch the logs of a batch, and the limit on their bytes.

Hosts take turns, and a slow host does not hold up the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ciml.errors import RejectedInput
from ciml.http.addresses import Address
from ciml.transforms.fetch.artifacts import JobFacts
from ciml.transforms.fetch.policy import LogUnavailableError

Failure = RejectedInput | LogUnavailableError

_MAX_TIMEOUTS = 4  # in a row of one host; then a batch fetches no more from it
_TOO_LARGE = "the batch's logs exceed its limit together"


class Job:
    """A log to fetch, and its result: the log, unpacked, or a failure.

    Attributes:
      address: where it is.
      facts: the job of its run.
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
    """The limit on the bytes of the logs of a batch together, which threads fetch at the same time.

    Args:
      size: limit in bytes. A log that would exceed it gives up all its bytes, so that another one fits.
      enough: once this many bytes are used, or one log did not fit, no further log is started.

    Attributes:
      is_full: whether no further log is started.
    """

    def __init__(self, size: int, enough: int) -> None:
        self._size = size
        self._enough = min(enough, size)
        self._bytes_of: dict[Job, int] = {}
        self._released: set[Job] = set()
        self._total = 0
        self.is_full = False
        self._lock = threading.Lock()

    def grow(self, job: Job, size: int) -> None:
        """Reserve bytes for a job, or release them if the size is negative. Has no effect after its `release`.

        Raises:
          LogUnavailableError: ``batch_full``; the job is released.
        """
        with self._lock:
            if job in self._released:
                return
            self.is_full |= self._total + size >= self._enough
            if self._total + size > self._size:
                self._release(job)
                raise LogUnavailableError("batch_full", _TOO_LARGE)
            self._total += size
            self._bytes_of[job] = self._bytes_of.get(job, 0) + size

    def release(self, job: Job) -> None:
        """Release all bytes of a job."""
        with self._lock:
            self._release(job)

    def _release(self, job: Job) -> None:
        self._total -= self._bytes_of.pop(job, 0)
        self._released.add(job)


@dataclass(slots=True)
class Host:
    waiting: deque[Job] = field(default_factory=deque)
    running: int = 0
    timeouts: int = 0  # in a row


class Schedule:
    """Assigns jobs to threads: hosts take turns and share the threads. A slow host's jobs fail without a request."""

    def __init__(self, jobs: list[Job], threads: int, batch_s: float, budget: Budget) -> None:
        self._budget = budget
        self._hosts: dict[str, Host] = {}
        for job in jobs:
            self._hosts.setdefault(job.address.origin, Host()).waiting.append(job)
        self._threads_per_host = threads if len(self._hosts) == 1 else max(1, threads // 2)
        self._turns = deque(self._hosts)
        self._end = time.monotonic() + batch_s
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs for one thread; a job is finished when the thread asks for the next one."""
        while True:
            job = self._next()
            if job is None:
                return
            yield job
            self._finish(job)

    def _next(self) -> Job | None:
        with self._changed:
            while self._turns:
                is_late = time.monotonic() > self._end
                if is_late or self._budget.is_full:
                    for host in self._hosts.values():
                        _fail(host, "batch_full", "the batch's time limit was reached" if is_late else _TOO_LARGE)
                    return None
                job = self._take_turn()
                if job is not None:
                    return job
                if self._turns:
                    self._changed.wait(1.0)
            return None

    def _take_turn(self) -> Job | None:
        """Start a job of the next host with a free thread; a host without waiting jobs leaves the turns."""
        for _ in range(len(self._turns)):
            origin = self._turns.popleft()
            host = self._hosts[origin]
            if not host.waiting:
                continue
            self._turns.append(origin)
            if host.running < self._threads_per_host:
                host.running += 1
                return host.waiting.popleft()
        return None

    def _finish(self, job: Job) -> None:
        with self._changed:
            host = self._hosts[job.address.origin]
            host.running -= 1
            failure = job.failure if isinstance(job.failure, LogUnavailableError) else None
            if failure and failure.retry_after_s:
                _fail(host, failure.reason, "its host asked to wait, for another log", failure.retry_after_s)
            if failure and failure.reason == "log_timeout":
                host.timeouts += 1
                if host.timeouts >= _MAX_TIMEOUTS:
                    _fail(host, "log_timeout", "its host timed out for other logs")
            else:
                host.timeouts = 0
            self._changed.notify_all()


def _fail(host: Host, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
    """Let the waiting jobs of a host fail."""
    for job in host.waiting:
        job.failure = LogUnavailableError(reason, detail, retry_after_s=retry_after_s)
    host.waiting.clear()

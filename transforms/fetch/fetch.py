"""Fetch: the pending runs of a batch get their logs, or are deferred, or become dead letters."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ciml.errors import CimlError, RejectedInput, drop_frames
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Outcome, PendingRun
from ciml.http.addresses import Address, below, parse_address
from ciml.limits import PART_BYTES
from ciml.transforms.fetch.artifacts import JobFacts, job_facts
from ciml.transforms.fetch.files import first_found, read_file
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError
from ciml.transforms.guard import attempt, dead_letter

if TYPE_CHECKING:
    from ciml.http.outgoing import Resolve
    from ciml.transforms.fetch.files import S3Logs
    from ciml.transforms.fetch.http import HttpLogs

#: Why a log makes a run a dead letter at once: a closed set.
REJECTED = (
    "bad_address",
    "address_not_allowed",
    "too_many_redirects",
    "log_too_large",
    "log_encoding",
    "corrupt_gzip",
    "corrupt_archive",
)
#: Why a log is deferred; also the reason of a dead letter whose last try failed. ``batch_full`` is never one.
DEFERRED = ("log_not_found", "log_forbidden", "log_unavailable", "log_timeout", "log_cut", "batch_full")

_SLOW_IN_A_ROW = 4  # consecutive timeouts of one host, after which a batch stops asking it
_SECOND_US = 1_000_000
_TOO_LARGE = "the batch's logs exceed its limit together"


@dataclass(slots=True)
class _Job:
    """The log of a run at an address: repeats of an event, and runs with the same log, share it."""

    text: str
    facts: JobFacts
    address: Address | None = None
    data: bytes | None = None
    failure: RejectedInput | LogUnavailableError | None = None
    seconds: float | None = None  # None without a request
    held: int = 0  # bytes of the budget
    dropped: bool = False  # whether it released them for others


@dataclass(slots=True)
class _Host:
    waiting: deque[_Job] = field(default_factory=deque)
    running: int = 0
    slow: int = 0


class _Schedule:
    """Assigns jobs to threads: hosts take turns, share the threads, and a slow host is dropped."""

    def __init__(self, jobs: list[_Job], threads: int, batch_s: float, budget: _Budget) -> None:
        self._budget = budget
        self._hosts: dict[str, _Host] = {}
        for job in jobs:
            origin = job.address.origin if job.address else ""
            self._hosts.setdefault(origin, _Host()).waiting.append(job)
        self._share = threads if len(self._hosts) == 1 else max(1, threads // 2)
        self._turns = deque(self._hosts)
        self._end = time.monotonic() + batch_s
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[_Job]:
        """Yield the jobs for one thread; a job is over when the thread asks for the next."""
        while True:
            job = self._take()
            if job is None:
                return
            yield job
            self._over(job)

    def _take(self) -> _Job | None:
        with self._changed:
            while self._turns:
                over = time.monotonic() > self._end
                if over or self._budget.is_full:
                    for host in self._hosts.values():
                        self._drop(host, "batch_full", "the batch's time limit was reached" if over else _TOO_LARGE)
                    return None
                for _ in range(len(self._turns)):
                    origin = self._turns.popleft()
                    host = self._hosts[origin]
                    if not host.waiting:
                        continue  # removed from the turns
                    self._turns.append(origin)
                    if host.running < self._share:
                        host.running += 1
                        return host.waiting.popleft()
                if self._turns:
                    self._changed.wait(1.0)
            return None

    def _over(self, job: _Job) -> None:
        with self._changed:
            host = self._hosts[job.address.origin if job.address else ""]
            host.running -= 1
            failure = job.failure if isinstance(job.failure, LogUnavailableError) else None
            if failure and failure.retry_after_s:
                self._drop(host, failure.reason, "its host asked to wait, for another log", failure.retry_after_s)
            if failure and failure.reason == "log_timeout":
                host.slow += 1
                if host.slow >= _SLOW_IN_A_ROW:
                    self._drop(host, "log_timeout", "its host timed out for other logs")
            else:
                host.slow = 0
            self._changed.notify_all()

    @staticmethod
    def _drop(host: _Host, reason: str, detail: str, retry_after_s: float = 0.0) -> None:
        for job in host.waiting:
            job.failure = LogUnavailableError(reason, detail, retry_after_s=retry_after_s)
        host.waiting.clear()


class _Budget:
    """The byte limit of concurrent logs.

    Args:
      size: limit in bytes. A log that would exceed it releases all its bytes, so that the last one left fits.
      enough: once so many bytes are used, or one log did not fit, no further log is started.
    """

    def __init__(self, size: int, enough: int) -> None:
        self._size = size
        self._enough = enough
        self._held = 0
        self.is_full = False
        self._lock = threading.Lock()

    def release(self, job: _Job) -> None:
        """Release all bytes of a job."""
        with self._lock:
            self._held -= job.held
            job.held = 0
            job.dropped = True

    def grow(self, job: _Job, size: int) -> None:
        """Reserve bytes for a job, or release them where the size is negative."""
        with self._lock:
            if job.dropped:
                return
            self.is_full |= self._held + size >= min(self._enough, self._size)
            if self._held + size > self._size:
                self._held -= job.held
                job.held = 0
                job.dropped = True
                raise LogUnavailableError("batch_full", _TOO_LARGE)
            self._held += size
            job.held += size


class Fetcher:
    """Fetches the logs of batches by a policy. It keeps connections: create one per process, and `close` it.

    Args:
      policy: the allowed addresses, and the limits.
      resolve: maps host and port to IP addresses; by default the system's resolver.
    """

    def __init__(self, policy: FetchPolicy, resolve: Resolve | None = None) -> None:
        self.policy = policy
        self._resolve = resolve
        self._s3: S3Logs | None = None
        self._http: HttpLogs | None = None
        self._lock = threading.Lock()

    def _over_http(self) -> HttpLogs:
        with self._lock:
            if self._http is None:
                from ciml.http.outgoing import system_resolve  # an HTTP client, which is rarely needed
                from ciml.transforms.fetch.http import HttpLogs

                try:
                    self._http = HttpLogs(self.policy, self._resolve or system_resolve)
                except CimlError as error:  # the certificates cannot be read now
                    raise LogUnavailableError("log_unavailable", str(error)) from None
            return self._http

    def _over_s3(self) -> S3Logs:
        with self._lock:
            if self._s3 is None:
                from ciml.transforms.fetch.files import S3Logs

                self._s3 = S3Logs(self.policy)
            return self._s3

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()
        if self._s3 is not None:
            self._s3.close()

    def fetch(self, batch: Batch, now_us: int, seconds: list[float] | None = None) -> Batch:
        """Fetch the logs of a batch; see the function `fetch`."""
        return self.fetch_part(batch, now_us, seconds, self.policy.threads, self.policy.batch_s, 1 << 62)

    def fetch_part(
        self, batch: Batch, now_us: int, seconds: list[float] | None, threads: int, batch_s: float, enough: int
    ) -> Batch:
        """Fetch with so many threads, for so long; start no log once the others have ``enough`` bytes."""
        jobs: dict[tuple[str, str], _Job] = {}
        for pending in batch.pending_runs:
            key = _log_of(pending)
            if key not in jobs:
                jobs[key] = _Job(key[0], job_facts(pending.mention))
        self._run(list(jobs.values()), threads, batch_s, enough)
        if seconds is not None:
            seconds += [job.seconds for job in jobs.values() if job.seconds is not None]
        fetched = []
        settled = list(batch.settled)
        for pending in batch.pending_runs:
            job = jobs[_log_of(pending)]
            if job.failure is None:
                pending.log = job.data
                fetched.append(pending)
            else:
                outcome = attempt("fetch", _settle, pending, job.failure, self.policy, now_us)
                settled.append(dead_letter(pending, outcome) if isinstance(outcome, RejectedInput) else outcome)
        return Batch(batch.covers, batch.messages, fetched, settled)

    def _run(self, jobs: list[_Job], threads: int, batch_s: float, enough: int) -> None:
        budget = _Budget(self.policy.max_batch_bytes, enough)
        ready = []
        for job in jobs:
            address = attempt("fetch", parse_address, job.text)
            if isinstance(address, RejectedInput):
                job.failure = address
            else:
                job.address = address
                ready.append(job)
        if not ready:
            return
        schedule = _Schedule(ready, threads, batch_s, budget)
        threads = min(threads, len(ready))

        def work() -> None:
            for job in schedule:
                self._fetch_one(job, budget)

        with ThreadPoolExecutor(threads, "fetch") as pool:
            for thread in [pool.submit(work) for _ in range(threads)]:
                thread.result()

    def _fetch_one(self, job: _Job, budget: _Budget) -> None:
        start_s = time.monotonic()
        try:
            address = job.address or parse_address(job.text)
            read = attempt("fetch", self._read_or_fail, address, lambda size: budget.grow(job, size), job.facts)
            if isinstance(read, bytes):
                job.data = read
            else:
                drop_frames(read)
                job.failure = read
                budget.release(job)
        finally:
            job.seconds = time.monotonic() - start_s

    def _read_or_fail(
        self, address: Address, grow: Callable[[int], None], facts: JobFacts
    ) -> bytes | RejectedInput | LogUnavailableError:
        try:
            return self.read(address, grow, facts)
        except (RejectedInput, LogUnavailableError) as failure:
            return failure

    def read(self, address: Address, grow: Callable[[int], None] | None = None, job: JobFacts | None = None) -> bytes:
        """Fetch the log that an address leads to (`ciml.transforms.fetch.artifacts`), unpacked.

        Args:
          address: of a log, a folder or an archive.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.
          job: the job whose log it is, where the address is a list of artifacts.

        Raises:
          RejectedInput: with one of `REJECTED`.
          LogUnavailableError: with one of `DEFERRED`.
        """
        if address.scheme in ("http", "https"):
            from ciml.transforms.fetch.artifacts import read_http

            return read_http(self._over_http(), self.policy, address, job, grow)
        if address.is_folder:
            end = time.monotonic() + self.policy.total_s
            paths = below(address, self.policy.log_paths)
            return first_found(paths, lambda each: self._read_stored(each, grow, end))
        return self._read_stored(address, grow)

    def _read_stored(self, address: Address, grow: Callable[[int], None] | None, end: float | None = None) -> bytes:
        if address.scheme == "file":
            return read_file(self.policy, address.path, grow)
        if not any(address.host == bucket and address.path.startswith(key) for bucket, key in self.policy.prefixes):
            raise RejectedInput("address_not_allowed", "the object is not below an allowed prefix")
        return self._over_s3().fetch(address, grow, end)


def _log_of(pending: PendingRun) -> tuple[str, str]:
    """Return what the log of a run is fetched once by: its address, and its run where many have the same address."""
    text = pending.address or pending.mention.log_url
    return text, pending.mention.run_id if text.endswith("/artifacts") else ""


def _settle(
    pending: PendingRun, failure: RejectedInput | LogUnavailableError, policy: FetchPolicy, now_us: int
) -> Outcome:
    detail = failure.detail
    spent = pending.attempts > len(policy.delays_s)
    if isinstance(failure, LogUnavailableError) and pending.address:
        spent = True
        detail += "; its address holds a secret and is not stored for a retry; send the event again"
    defer = isinstance(failure, LogUnavailableError) and (
        not spent or (failure.reason == "batch_full" and not pending.address)
    )
    delay_s = 0.0
    if defer and policy.delays_s and failure.reason != "batch_full":
        delay_s = policy.delays_s[pending.attempts - 1]
        if isinstance(failure, LogUnavailableError):
            delay_s = max(delay_s, failure.retry_after_s)
    payload = payload_of(pending.message) if pending.message and not defer else None
    outcome = pending.outcome("deferred" if defer else "dead_letter", failure.reason, detail, payload=payload)
    return outcome.replace(
        first_seen_us=pending.first_seen_us if pending.first_seen_us is not None else now_us,
        not_before_us=now_us + round(delay_s * _SECOND_US) if defer else None,
    )


_fetchers: dict[tuple[int, FetchPolicy], Fetcher] = {}
_fetchers_lock = threading.Lock()


def fetch(batch: Batch, policy: FetchPolicy, now_us: int, seconds: list[float] | None = None) -> Batch:
    """Fetch the logs of a batch's pending runs, `FetchPolicy.threads` at once.

    Args:
      batch: the pending runs have an `address`, or a `log_url` in their facts.
      policy: the allowed addresses, and the limits.
      now_us: the present time, epoch microseconds; delays count from it.
      seconds: receives the duration of each request, s, failed ones included.

    Returns:
      The batch with the pending runs that have their ``log``, unpacked. Each of the others is settled: ``deferred``
      with ``not_before_us``, for a reason of `DEFERRED`; or ``dead_letter``, for one of `REJECTED`, or of `DEFERRED`
      where ``delays_s`` is used up. The order of the batch is kept.
    """
    return _fetcher(policy).fetch(batch, now_us, seconds)


def fetch_in_parts(
    batch: Batch, policy: FetchPolicy, now_us: int, seconds: list[float] | None = None
) -> Iterator[Batch]:
    """Fetch as `fetch`, one part of the batch after another, so that memory is bounded for any number of logs.

    A part ends when its logs have some MiB together (`ciml.limits.PART_BYTES`), at most ``max_batch_bytes``. The rest
    waits for the next part; it is deferred as ``batch_full`` only at the end of ``batch_s``.

    Yields:
      Batches without ``covers`` and messages. Each pending run is in one of them, as a copy or settled. Only the caller
      holds its log.
    """
    fetcher = _fetcher(policy)
    end = time.monotonic() + policy.batch_s
    waiting = batch.pending_runs
    threads = policy.threads
    while waiting:
        copies = Batch(None, pending_runs=[replace(pending) for pending in waiting])
        part = fetcher.fetch_part(copies, now_us, seconds, threads, end - time.monotonic(), PART_BYTES)
        del copies
        full = {(pending.origin, pending.run_id) for pending in part.settled if pending.reason == "batch_full"}
        if full and time.monotonic() < end:
            part.settled = [pending for pending in part.settled if pending.reason != "batch_full"]
            waiting = [pending for pending in waiting if (pending.origin, pending.mention.run_id) in full]
            # Where few logs fit, fetching many at once wastes work.
            threads = min(policy.threads, max(1, len(part.pending_runs)) * 2)
        else:
            waiting = []
        yield from _split(part)


def _split(part: Batch) -> Iterator[Batch]:
    """Split a part to bound the bytes to parse: many events may have the same log, and each gets its own table."""
    unread = part.pending_runs[::-1]
    settled = part.settled
    part.pending_runs = []
    while unread or settled:
        group = [unread.pop()] if unread else []
        size = sum(len(pending.log or b"") for pending in group)
        while unread and size + len(unread[-1].log or b"") <= PART_BYTES:
            size += len(unread[-1].log or b"")
            group.append(unread.pop())
        yield Batch(None, pending_runs=group, settled=settled)
        settled = []
        del group


def _fetcher(policy: FetchPolicy) -> Fetcher:
    key = (os.getpid(), policy)  # connections do not survive a fork
    with _fetchers_lock:
        fetcher = _fetchers.get(key)
        if fetcher is None:
            fetcher = _fetchers[key] = Fetcher(policy)
        return fetcher

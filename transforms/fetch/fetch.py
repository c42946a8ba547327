"""Fetch the logs of a batch's pending runs; a run without its log is deferred, or becomes a dead letter.

A *job* is one log to fetch. Repeats of an event, and runs with the same log, share it. Threads fetch the jobs of a
batch: hosts take turns, and a slow host does not hold up the others. A *budget* limits the bytes of all logs together.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ciml.errors import CimlError, LogUnavailableError, RejectedInput, drop_frames
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Outcome, PendingRun
from ciml.http.addresses import Address, below
from ciml.limits import MAX_HOST_WAIT_S, PART_BYTES
from ciml.transforms.fetch.artifacts import JobFacts, job_facts
from ciml.transforms.fetch.files import consume_file, first_found, read_file
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.fetch.schedule import Budget, Download, Failure, Schedule
from ciml.transforms.guard import attempt, dead_letter

if TYPE_CHECKING:
    from ciml.http.outgoing import Resolve
    from ciml.transforms.fetch.files import S3Logs
    from ciml.transforms.fetch.http import HttpLogs

#: Why a run becomes a dead letter without a further try: a closed set.
REJECTED = (
    "bad_address",
    "address_not_allowed",
    "too_many_redirects",
    "log_too_large",
    "log_encoding",
    "corrupt_gzip",
    "corrupt_archive",
)
#: Why a run is deferred: a closed set. All but ``batch_full`` are also reasons of a dead letter whose last try failed.
DEFERRED = ("log_not_found", "log_forbidden", "log_unavailable", "log_timeout", "log_cut", "batch_full")

#: The end of the detail of a run that is not deferred because of its address.
NOT_STORED = "; its address holds a secret and is not stored for a retry; send the event again"

_SECOND_US = 1_000_000

T = TypeVar("T")

_fetchers: dict[tuple[int, FetchPolicy], Fetcher] = {}
_fetchers_lock = threading.Lock()


def fetch_in_parts(
    batch: Batch, policy: FetchPolicy, now_us: int, seconds: list[float] | None = None
) -> Iterator[Batch]:
    """Fetch as `Fetcher.fetch`, one part of the batch after another, so that memory is bounded for any number of logs.

    A part ends when its logs exceed a few MiB (`ciml.limits.PART_BYTES`), at most ``max_batch_bytes``. The other runs
    wait for the next part. They are deferred as ``batch_full`` only at the end of ``batch_s``.

    Yields:
      Batches without ``covers`` and messages. Each pending run is in one of them, as a copy or settled. Only the caller
      holds its log.
    """
    fetcher = shared_fetcher(policy)
    end = time.monotonic() + policy.batch_s
    waiting = batch.pending_runs
    threads = policy.threads
    while waiting:
        copies = Batch(None, pending_runs=[replace(pending) for pending in waiting])
        part = fetcher.fetch_part(copies, now_us, seconds, threads, end - time.monotonic(), PART_BYTES)
        del copies
        not_fetched = {(outcome.origin, outcome.run_id) for outcome in part.settled if outcome.reason == "batch_full"}
        if not_fetched and time.monotonic() < end:
            part.settled = [outcome for outcome in part.settled if outcome.reason != "batch_full"]
            waiting = [pending for pending in waiting if (pending.origin, pending.mention.run_id) in not_fetched]
            # If few logs fit, fetching many at a time wastes work.
            threads = min(policy.threads, max(1, len(part.pending_runs)) * 2)
        else:
            waiting = []
        yield from _split(part)


def shared_fetcher(policy: FetchPolicy) -> Fetcher:
    """Return the fetcher of this process for a policy, which holds connections."""
    key = (os.getpid(), policy)  # connections do not survive a fork
    with _fetchers_lock:
        fetcher = _fetchers.get(key)
        if fetcher is None:
            fetcher = _fetchers[key] = Fetcher(policy)
        return fetcher


def _split(part: Batch) -> Iterator[Batch]:
    """Split a part to bound the bytes to parse: many events may have the same log, and each gets its own table."""
    remaining = part.pending_runs[::-1]
    settled = part.settled
    part.pending_runs = []
    while remaining or settled:
        group: list[PendingRun] = []
        size = 0
        while remaining and (not group or size + len(remaining[-1].log or b"") <= PART_BYTES):
            pending = remaining.pop()
            size += len(pending.log or b"")
            group.append(pending)
        yield Batch(None, pending_runs=group, settled=settled)
        settled = []
        del group  # only the caller holds the logs


class Fetcher:
    """Fetches the logs of batches by a policy. It holds connections: create one per process, and `close` it.

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

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()
        if self._s3 is not None:
            self._s3.close()

    def fetch(self, batch: Batch, now_us: int, seconds: list[float] | None = None) -> Batch:
        """Fetch the logs of a batch's pending runs, `FetchPolicy.threads` at a time.

        Args:
          batch: the pending runs have an `address`, or a `log_url` in their facts.
          now_us: the present time, epoch microseconds; delays count from it.
          seconds: receives the duration of each request, s, failed ones included.

        Returns:
          The batch with the pending runs that have their ``log``, unpacked. Each of the others is settled: ``deferred``
          with ``not_before_us``, for a reason of `DEFERRED`; or ``dead_letter``, for one of `REJECTED`, or of
          `DEFERRED` after the last of ``delays_s``. The order is unchanged.
        """
        return self.fetch_part(batch, now_us, seconds, self.policy.threads, self.policy.batch_s, 1 << 62)

    def fetch_part(
        self, batch: Batch, now_us: int, seconds: list[float] | None, threads: int, batch_s: float, enough: int
    ) -> Batch:
        """Fetch with ``threads``, for at most ``batch_s``; start no further log once the logs have ``enough`` bytes."""
        downloads: dict[tuple[str, str], Download] = {}
        for pending in batch.pending_runs:
            key = _download_key(pending)
            if key not in downloads:
                address = attempt("fetch", self.policy.parse_allowed, key[0])
                downloads[key] = Download(address, job_facts(pending.mention), is_signed=bool(pending.address))
        allowed = [download for download in downloads.values() if download.failure is None]
        allowed.sort(key=lambda download: not download.is_signed)  # they cannot be deferred
        self._run(allowed, threads, batch_s, enough)
        if seconds is not None:
            seconds += [download.seconds for download in downloads.values() if download.seconds is not None]
        fetched = []
        settled = list(batch.settled)
        for pending in batch.pending_runs:
            download = downloads[_download_key(pending)]
            if download.failure is None:
                pending.log = download.log
                fetched.append(pending)
            else:
                outcome = attempt("fetch", _settle, pending, download.failure, self.policy, now_us)
                settled.append(dead_letter(pending, outcome) if isinstance(outcome, RejectedInput) else outcome)
        return Batch(batch.covers, batch.messages, fetched, settled)

    def _run(self, downloads: list[Download], threads: int, batch_s: float, enough: int) -> None:
        """Run downloads: each gets its log or its failure."""
        if not downloads:
            return
        budget = Budget(self.policy.max_batch_bytes, enough)
        schedule = Schedule(downloads, threads, batch_s, budget)

        def work() -> None:
            for download in schedule:
                self._fetch(download, budget)

        threads = min(threads, len(downloads))
        with ThreadPoolExecutor(threads, "fetch") as pool:
            for thread in [pool.submit(work) for _ in range(threads)]:
                thread.result()

    def _fetch(self, download: Download, budget: Budget) -> None:
        start_s = time.monotonic()
        try:
            result = attempt("fetch", self._read_or_fail, download, lambda size: budget.grow(download, size))
            if isinstance(result, bytes):
                download.log = result
            else:
                drop_frames(result)
                download.failure = result
                budget.release(download)
        finally:
            download.seconds = time.monotonic() - start_s

    def _read_or_fail(self, download: Download, grow: Callable[[int], None]) -> bytes | Failure:
        try:
            return self.read(download.address, grow, download.facts)
        except (RejectedInput, LogUnavailableError) as failure:
            return failure

    def read(self, address: Address, grow: Callable[[int], None] | None = None, job: JobFacts | None = None) -> bytes:
        """Fetch the log that an address leads to, unpacked.

        Args:
          address: of a log, a folder or an archive.
          grow: as in `ciml.transforms.fetch.decompress.gunzip`.
          job: the job whose log it is, for a list of artifacts.

        Raises:
          RejectedInput: with one of `REJECTED`.
          LogUnavailableError: with one of `DEFERRED`.
        """
        if address.scheme in ("http", "https"):
            return self._over_http().fetch(address, job, grow)
        if address.is_folder:
            end = time.monotonic() + self.policy.total_s
            addresses = below(address, self.policy.log_paths)
            return first_found(addresses, lambda file_address: self._read_stored(file_address, grow, end))
        return self._read_stored(address, grow)

    def consume(self, addresses: Sequence[Address], limit: int, consume: Callable[[Address, Iterable[bytes]], T]) -> T:
        """Pass the bytes at the first address that has any to a function, as they arrive, and return its result.

        Args:
          addresses: of one host, in the order in which they are tried.
          limit: of the transferred bytes.
          consume: takes the address, and reads all chunks. It is called again for a retry.

        Raises:
          RejectedInput: with one of `REJECTED`; those of ``consume``.
          LogUnavailableError: with one of `DEFERRED`.
        """
        if addresses[0].scheme in ("http", "https"):
            return self._over_http().consume(addresses, limit, consume)
        end = time.monotonic() + self.policy.total_s
        return first_found(
            addresses, lambda address: self._consume_stored(address, limit, partial(consume, address), end)
        )

    def _consume_stored(self, address: Address, limit: int, consume: Callable[[Iterable[bytes]], T], end: float) -> T:
        if address.scheme == "file":
            return consume_file(self.policy, address.path, limit, consume)
        return self._over_s3().consume(address, limit, consume, end)

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

    def _read_stored(self, address: Address, grow: Callable[[int], None] | None, end: float | None = None) -> bytes:
        if address.scheme == "file":
            return read_file(self.policy, address.path, grow)
        return self._over_s3().fetch(address, grow, end)

    def _over_s3(self) -> S3Logs:
        with self._lock:
            if self._s3 is None:
                from ciml.transforms.fetch.files import S3Logs

                self._s3 = S3Logs(self.policy)
            return self._s3


def _download_key(pending: PendingRun) -> tuple[str, str]:
    """Return the key of a run's job: its address, and its run id if the address is a list of many runs' artifacts."""
    text = pending.address or pending.mention.log_url
    return text, pending.mention.run_id if text.endswith("/artifacts") else ""


def _settle(pending: PendingRun, failure: Failure, policy: FetchPolicy, now_us: int) -> Outcome:
    """Return the outcome of a run without its log: deferred, or a dead letter."""
    first_seen_us = pending.first_seen_us if pending.first_seen_us is not None else now_us
    detail = failure.detail
    if isinstance(failure, LogUnavailableError):
        delay_s = _delay_s(pending, failure, policy, (now_us - first_seen_us) / _SECOND_US)
        if delay_s is not None:
            outcome = pending.outcome("deferred", failure.reason, detail)
            not_before_us = now_us + round(delay_s * _SECOND_US)
            return outcome.replace(first_seen_us=first_seen_us, not_before_us=not_before_us)
        if pending.address:
            detail += NOT_STORED
    payload = payload_of(pending.message) if pending.message else None
    outcome = pending.outcome("dead_letter", failure.reason, detail, payload=payload)
    return outcome.replace(first_seen_us=first_seen_us)


def _delay_s(pending: PendingRun, failure: LogUnavailableError, policy: FetchPolicy, waited_s: float) -> float | None:
    """Return the delay before the next try, s; None if there is no further try."""
    if failure.reason == "batch_full":
        return 0.0
    if pending.address or not policy.delays_s:
        return None
    if pending.attempts > len(policy.delays_s) and not (failure.retry_after_s and waited_s < MAX_HOST_WAIT_S):
        return None
    return max(policy.delays_s[: pending.attempts][-1], failure.retry_after_s)

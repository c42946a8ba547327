"""Runs of a listing as a data set's source: their logs are read on demand, and not stored.

It imports the decoder of listings and the log readers, which a data set of stored runs does not need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, TypeVar
from zlib import crc32

import msgspec
import numpy as np
import pyarrow as pa

from ciml.datasets.definition import ResolvedDefinition
from ciml.events.listing import Listing, Reading
from ciml.events.records import Batch, OffsetRange, Outcome, RawFile, RunFacts, records_of
from ciml.pipelines.processes import process_pool, result_of
from ciml.runs.accounting import reconcile
from ciml.runs.run_log import RunDelta
from ciml.runs.state import RawState
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.context import with_context
from ciml.transforms.examples.downsample import Windows, downsample, merge_windows
from ciml.transforms.examples.from_logs import KEPT_BYTES, LogOf, LogReader
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.prepare import Examples, examples_from
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import guarded_runs
from ciml.transforms.ingest.decode import decode_lines
from ciml.trust import TrustPolicy, evaluate_batch

T = TypeVar("T")

_LOGS_AT_ONCE = 250  # read and parsed together
#: A log that is read for a data set has no raw object.
_NO_FILE = RawFile("", "", 0, 0)
#: The reader of a forked process.
_readers: list[LogReader] = []


class ListedRuns:
    """The runs of a listing, whose logs are read on demand and not stored. A context manager.

    An unusable log excludes its run, with the reason of its dead letter.

    Args:
      listing: an open listing.
      reading: how to interpret its lines.
      trust: the trust policy: columns and classes come from trusted runs, if there are any.
      fetch: allowed log sources and limits.
      jobs: number of processes that read logs; 1 means this one. More are forked on entry, when this process should
        have no threads.

    Attributes:
      log: the lines, as a log of runs.
      origin: the record of the listing for a data set's manifest.
    """

    def __init__(
        self, listing: Listing, reading: Reading, trust: TrustPolicy, fetch: FetchPolicy, *, jobs: int = 1
    ) -> None:
        self.log = ListedLog(listing, reading, trust)
        self.origin = {"url": listing.url, "digest": listing.digest, **asdict(reading)}
        # Opening files holds the interpreter lock: threads only slow it down.
        self._fetch = fetch.replace(threads=1) if "://" not in reading.logs else fetch
        self._jobs = jobs
        self._pools: list[ProcessPoolExecutor] = []
        self._stack = ExitStack()

    def __enter__(self) -> ListedRuns:
        if self._jobs > 1:
            size = KEPT_BYTES // self._jobs
            # One pool for each process: a run's log is cached in one process, which gets all of its requests.
            self._pools = [
                self._stack.enter_context(process_pool(1, "fork", _make_reader, self._fetch, size))
                for _ in range(self._jobs)
            ]
            for pool in self._pools:
                pool.submit(len, ())  # fork now, not at the first log
        return self

    def __exit__(self, *error: Any) -> None:
        self._pools = []
        self._stack.__exit__(*error)

    @cached_property
    def _reader(self) -> LogReader:
        return LogReader(self._fetch)

    def columns(self, runs: Sequence[SelectedRun]) -> Sequence[tuple[str, ...]]:
        """As `StoredRuns.columns`. Raises `EngineError` if a log cannot be read for a reason that is not the log's."""
        return [names for _, names in self._of_usable(runs, LogReader.columns)]

    def tables(self, runs: Sequence[SelectedRun]) -> Iterator[tuple[RunFacts, pa.Table]]:
        """As `StoredRuns.tables`. Raises `EngineError` if a log cannot be read for a reason that is not the log's."""
        for start in range(0, len(runs), _LOGS_AT_ONCE):
            for run, table in self._of_usable(runs[start : start + _LOGS_AT_ONCE], LogReader.tables):
                yield run.mention, table

    def templates(self, runs: Iterable[SelectedRun]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """As `StoredRuns.templates`: the outputs of listed runs are not read."""
        return iter(())

    def lengths(self, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
        """As `StoredRuns.lengths`. Raises `EngineError` if a log cannot be read for a reason that is not the log's."""
        counts = np.zeros(len(runs), np.int64)
        for indices, lengths in self._by_chunks(runs, partial(LogReader.lengths, resolved=resolved)):
            counts[indices] = lengths
        return counts

    def examples(self, part: SpanPlan, resolved: ResolvedDefinition) -> Examples:
        """As `StoredRuns.examples`. Raises `EngineError` if a log cannot be read for a reason that is not the log's."""

        def windows_of(indices: Sequence[int]) -> Windows:
            work = partial(LogReader.windows, resolved=resolved)
            parts = list(self._by_chunks([part.runs[index] for index in indices], work))
            if parts:
                return merge_windows(parts, len(indices))
            return with_context(downsample([], resolved), [], [], resolved)

        return examples_from([run.mention for run in part.runs], windows_of, resolved)

    def _of_usable(
        self, runs: Sequence[SelectedRun], work: Callable[[LogReader, Sequence[LogOf]], Sequence[T | None]]
    ) -> list[tuple[SelectedRun, T]]:
        """Return the runs whose logs are usable and their results, in the order of ``runs``, whatever the processes."""
        results: list[T | None] = [None] * len(runs)
        for indices, part in self._by_chunks(runs, work):
            for index, result in zip(indices.tolist(), part, strict=True):
                results[index] = result
        return [(run, result) for run, result in zip(runs, results, strict=True) if result is not None]

    def _by_chunks(
        self, runs: Sequence[SelectedRun], work: Callable[[LogReader, Sequence[LogOf]], T]
    ) -> Iterator[tuple[np.ndarray, T]]:
        """Yield (int64 [m] indices in ``runs``, result of ``work`` on their logs) by chunks.

        A run's log is always read by the same process.
        """
        logs = [self._log_of(run) for run in runs]
        process_numbers = np.array([crc32(log.run_id.encode()) % self._jobs for log in logs], np.int64)
        chunks: list[tuple[np.ndarray, Callable[[], T]]] = []
        for process in range(self._jobs):
            indices = np.flatnonzero(process_numbers == process)
            for start in range(0, indices.size, _LOGS_AT_ONCE):
                chunk = indices[start : start + _LOGS_AT_ONCE]
                chunks.append((chunk, self._start(process, work, [logs[index] for index in chunk.tolist()])))
        for chunk, result in chunks:
            yield chunk, result()

    def _start(
        self, process: int, work: Callable[[LogReader, Sequence[LogOf]], T], logs: Sequence[LogOf]
    ) -> Callable[[], T]:
        """Start work in a process; return a function that waits for its result.

        Without processes, the returned function does the work itself when it is called.
        """
        if not self._pools:
            return partial(work, self._reader, logs)
        return partial(result_of, self._pools[process].submit(_work_in_process, work, logs), "reads logs")

    def _log_of(self, run: SelectedRun) -> LogOf:
        facts = run.mention
        address = self.log.addresses.get((facts.run_id, facts.log_url), facts.log_url)
        return LogOf(address, facts, run.near)


def _make_reader(fetch: FetchPolicy, kept_bytes: int) -> None:
    import ciml.transforms.ingest.run_stages  # noqa: F401  # needed later; imported while the parent decodes lines

    _readers.append(LogReader(fetch, kept_bytes))


def _work_in_process(work: Callable[[LogReader, Sequence[LogOf]], T], logs: Sequence[LogOf]) -> T:
    return work(_readers[0], logs)


class ListedLog:
    """A listing as the raw manifest of one version that its backfill would commit if all logs were usable.

    The listing is decoded at the first `since` or `read`, which fill ``addresses`` and ``left_out``.

    Attributes:
      version: of that manifest.
      addresses: addresses of logs by run id and `RunFacts.log_url`, where that is not the address.
      left_out: number of lines without a run, by kind and reason.
    """

    version = 1

    def __init__(self, listing: Listing, reading: Reading, trust: TrustPolicy) -> None:
        self._listing = listing
        self._reading = reading
        self._trust = trust
        self.addresses: dict[tuple[str, str], str] = {}
        self.left_out = Counter[tuple[str, str]]()

    def url(self) -> str:
        """Return the listing, for messages."""
        return self._listing.url

    def since(self, version: int) -> Iterator[tuple[int, RunDelta]]:
        """As `ciml.runs.run_log.RunLog.since`."""
        if version < self.version:
            yield self.version, self._delta

    def read(self, version: int) -> RunDelta:
        """As `ciml.runs.run_log.RunLog.read`."""
        if version != self.version:
            raise FileNotFoundError(version)
        return self._delta

    @cached_property
    def _delta(self) -> RunDelta:
        listing = self._listing
        batches = (
            decode_lines(OffsetRange(listing.topic, "", 0, block.start, block.end), listing.read(block), self._reading)
            for block in listing.blocks
        )
        delta = reconcile(RawState(), map(self._settle, batches), 0)
        if delta is None:
            return RunDelta()
        self.left_out.update((kind, record.get("reason", "")) for kind, record in records_of(delta) if kind != "run")
        return msgspec.convert(delta, RunDelta)

    def _settle(self, decoded: Batch) -> Batch:
        """Settle the runs of a batch as rows without a raw object, and add the addresses of their logs."""
        runs = []
        batch = guarded_runs("trust", lambda part: evaluate_batch(part, self._trust), decoded)
        for pending in batch.pending_runs:
            runs.append(Outcome("run", pending.origin, mention=pending.mention, trust=pending.trust, file=_NO_FILE))
            if pending.address:
                self.addresses.setdefault((pending.mention.run_id, pending.mention.log_url), pending.address)
        return Batch(batch.covers, settled=[*batch.settled, *runs])

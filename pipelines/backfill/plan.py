"""A backfill's configuration, remaining work and progress. Threads settle work items, which are committed in order."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ciml.errors import CimlError
from ciml.events.listing import Block, ListedRun, Listing, Reading, decode_line
from ciml.events.records import Batch, OffsetRange, reasons_of, records_of, totals_of
from ciml.globs import glob_pattern
from ciml.manifest.coverage import RangeSet
from ciml.pipelines.ingest.committer import Committer, SettleConfig, committer
from ciml.storage import Store
from ciml.transforms.fetch.fetch import fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt
from ciml.transforms.ingest.decode import ALL_JOBS, CompletedRow, decode_lines
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import evaluate

_PROBES = 20
_ENOUGH = 10
_AHEAD = 3  # blocks in progress: while one waits for files, another is parsed


@dataclass(frozen=True)
class BackfillConfig(SettleConfig):
    """Configuration of a backfill.

    Attributes:
      reading: how to interpret the lines.
      selection: as of all that settle runs. Lines of other jobs stay unsettled.
      limit: largest number of unsettled lines to take; None for all.
      completions: stored rows that lines complete, by the line's number (`ciml.pipelines.backfill.load`).
      skip_known: do not read the log of a run with a raw row: its line is a repeat or a correction.
      take_missing: continue even if no log seems to exist.
      commit_lines: lines committed together.
      commit_s: longest wait of settled lines for others, seconds.
    """

    reading: Reading
    limit: int | None = None
    completions: Mapping[int, CompletedRow] = field(default_factory=dict)
    skip_known: bool = False
    take_missing: bool = False
    commit_lines: int = 2000
    commit_s: float = 10.0


def logs_root(text: str, name: str = "--logs") -> str:
    """Return the root of a listing's logs: an ``s3://`` prefix, or the absolute path of a folder.

    Args:
      text: the root as the user wrote it.
      name: of the option or argument, for the message.

    Raises:
      CimlError: it is neither, or the folder does not exist.
    """
    if text.startswith("s3://"):
        return text
    if "://" in text or not Path(text).is_dir():
        raise CimlError(f"{name} {text}: no such folder; name a folder or an s3:// prefix")
    return str(Path(text).resolve())


def fetch_below(logs: str, file: str | None = None) -> FetchPolicy:
    """Return a policy that allows the logs below a root, with the other rules of a TOML file where one is given."""
    # Several blocks of lines are in flight, so each has a share of the memory of one ingest batch.
    policy = FetchPolicy.load(file) if file else FetchPolicy(max_batch_bytes=128 << 20)
    return policy.check().allowing(roots=(logs,))


class Work(NamedTuple):
    """A work item: ranges of lines of a block to process.

    ``known`` are its lines with known runs; ``completed`` are the rows that lines complete, by the line's number.
    """

    block: Block
    parts: tuple[tuple[int, int], ...]
    known: frozenset[int] = frozenset()
    completed: tuple[tuple[int, CompletedRow], ...] = ()


@dataclass
class Tally:
    """Progress of a backfill.

    Attributes:
      lines: of the listing.
      before: lines settled when it began.
      passed: other lines read so far, including those of other jobs.
      settled: lines settled now.
      counts: outcomes of lines settled meanwhile, by (kind, reason).
      complete: False while the backfill runs, or after a stop.
    """

    lines: int
    before: int
    passed: int = 0
    settled: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    complete: bool = False

    def totals(self) -> dict[str, int]:
        """Return the number of outcomes by kind, zeros included."""
        return totals_of(self.counts)

    def to_json(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "settled_before": self.before,
            "settled": self.settled,
            "whole": self.complete,
            "totals": self.totals(),
            "reasons": reasons_of(self.counts),
        }


Report = Callable[[Tally], None]


def size_of(work: Work) -> int:
    """Return the number of lines of a work item."""
    return sum(end - start for start, end in work.parts)


class BackfillProgress:
    """Follows the manifest and counts the outcomes of a listing's lines."""

    def __init__(self, raw: Store, listing: Listing, report: Report | None = None) -> None:
        self.committing: Committer = committer(raw)
        self._topic = listing.topic
        self._report = report
        self._reported_s = 0.0
        with self.committing.state() as state:
            self._version = state.version
            self.covered = RangeSet(state.covered(self._topic, 0))
        self.tally = Tally(listing.lines, self.covered.count(), settled=self.covered.count())

    def update(self) -> None:
        """Apply new commits, report them, and let the manifest be maintained."""
        for version, delta in self.committing.log.since(self._version):
            self._version = version
            for kind, record in records_of(delta):
                if record["origin"][0] == self._topic:
                    self.tally.counts[kind, record.get("reason", "")] += 1
        with self.committing.state() as state:
            self.tally.settled = state.covered(self._topic, 0).count()
        self.committing.maintain()
        self._reported_s = 0.0
        self.report()

    def known(self, runs: Mapping[int, str]) -> frozenset[int]:
        """Return the keys of runs with a trusted raw row. The listing may reclaim the others."""
        with self.committing.state() as state:
            rows = {number: state.index.run(run_id) for number, run_id in runs.items()}
            return frozenset(number for number, run in rows.items() if run is not None and run.trusted)

    def report(self) -> None:
        """Report the progress, at most five times a second."""
        now = time.monotonic()
        if self._report is not None and now - self._reported_s > 0.2:
            self._reported_s = now
            self._report(self.tally)


def plan(config: BackfillConfig, listing: Listing, progress: BackfillProgress, stop: threading.Event) -> Iterator[Work]:
    """Yield the remaining work, block by block, until ``stop`` is set."""
    selective = config.selection != ALL_JOBS or config.limit is not None or config.skip_known
    selected = glob_pattern(config.selection).fullmatch
    remaining = config.limit
    for block in listing.blocks:
        if stop.is_set() or remaining == 0:
            return
        parts = tuple(progress.covered.missing(block.start, block.end))
        if parts and selective:
            missing = RangeSet(parts)
            chosen_lines = RangeSet()
            runs = {}
            for line in listing.read(block):
                if line.number not in missing or remaining == 0:
                    continue
                run = attempt("decode", decode_line, line.data, config.reading)
                if isinstance(run, ListedRun):  # else the line names no run
                    if run.fault is None and not selected(run.facts.build_name):
                        continue
                    runs[line.number] = run.facts.run_id
                remaining = remaining - 1 if remaining is not None else None
                chosen_lines.add(line.number, line.number + 1)
            progress.tally.passed += missing.count() - chosen_lines.count()
            if chosen_lines:
                stored = progress.known(runs) if config.skip_known else frozenset()
                completed = sorted(runs.keys() & config.completions.keys())
                rows = tuple((number, config.completions[number]) for number in completed)
                yield Work(block, tuple(chosen_lines), stored, rows)
        elif parts:
            yield Work(block, parts)


def probe_logs(config: BackfillConfig, listing: Listing, tally: Tally) -> None:
    """Check that logs of the first lines exist, before any line is settled.

    Raises:
      CimlError: if of at least ten lines no log exists.
    """
    if tally.settled or config.take_missing or not listing.blocks:
        return
    covers = OffsetRange(listing.topic, "", 0, 0, listing.blocks[0].end)
    pending_runs = decode_lines(covers, listing.read(listing.blocks[0]), config.reading).pending_runs
    selected = glob_pattern(config.selection).fullmatch
    probes = [pending for pending in pending_runs if selected(pending.mention.build_name)][:_PROBES]
    reasons: set[str] = set()
    for part in fetch_in_parts(Batch(None, pending_runs=probes), config.fetch, 0):
        if part.pending_runs:
            return
        reasons |= {pending.reason for pending in part.settled}
    if len(probes) >= _ENOUGH and reasons <= {"log_not_found", "address_not_allowed"}:
        first = probes[0].mention.log_url
        raise CimlError(
            f"none of the first {len(probes)} logs exists (the first is {first}); check --logs, or use "
            "--take-missing to record such lines as dead letters"
        )


def settle_work(config: BackfillConfig, listing: Listing, work: Work) -> list[Batch]:
    """Return the settled batches of a work item, one for each of its ranges."""
    lines = listing.read(work.block)
    completed = dict(work.completed)
    batches = [
        decode_lines(OffsetRange(listing.topic, "", 0, start, end), lines, config.reading, work.known, completed)
        for start, end in work.parts
    ]
    return settle(batches, config.trust, config.fetch, config.raw)


class OrderedCommitter:
    """Settles several work items concurrently in threads, and commits them in order of arrival.

    Args:
      config: of the backfill.
      listing: the listing of the work.
      committed: called after each commit.
    """

    def __init__(self, config: BackfillConfig, listing: Listing, committed: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self._listing = listing
        self._committed = committed
        self._pool = ThreadPoolExecutor(_AHEAD, "backfill")
        self._in_progress: deque[tuple[Work, Future[list[Batch]]]] = deque()
        self._settled: list[Batch] = []
        self._lines = 0
        self._since = time.monotonic()

    def put(self, work: Work) -> int:
        """Add a work item; block while enough are in progress. Return the number of lines settled meanwhile."""
        self._in_progress.append((work, self._pool.submit(settle_work, self._config, self._listing, work)))
        return self._take() if len(self._in_progress) > _AHEAD else 0

    def end(self) -> int:
        """Settle and commit the rest. Return the number of its lines."""
        lines = 0
        while self._in_progress:
            lines += self._take()
        self._commit()
        self._pool.shutdown()
        return lines

    def abandon(self) -> None:
        """Commit settled work, and drop work that has not begun."""
        for _, future in self._in_progress:
            future.cancel()
        self._pool.shutdown()
        self._commit()

    def _take(self) -> int:
        work, future = self._in_progress.popleft()
        self._settled += future.result()
        self._lines += (lines := size_of(work))
        waited_s = time.monotonic() - self._since
        if self._lines >= self._config.commit_lines or waited_s > self._config.commit_s:
            self._commit()
        return lines

    def _commit(self) -> None:
        settled = self._settled
        self._settled = []
        self._lines = 0
        if settled:
            committer(self._config.raw).commit(settled, partial(evaluate, self._config.trust))
            self._committed()
        self._since = time.monotonic()

"""A backfill's configuration, its remaining work, and its progress.

The lines of a listing are read in blocks. A *work item* has the lines of a block that are to be *settled*: fetched,
parsed and stored, up to their commit. Several are settled concurrently in threads, and committed in order.
"""

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

_PROBES = 20  # logs that are looked for before a backfill
_ENOUGH_PROBES = 10
_IN_PROGRESS = 3  # work items: while one waits for files, another is parsed
_REPORT_S = 0.2


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


class Work(NamedTuple):
    """A work item: lines of a block to settle.

    Attributes:
      block: the block.
      parts: ranges [start, end) of the lines, by their numbers.
      known: lines whose runs have a raw row.
      completed: the stored rows that lines complete, by the line's number.
    """

    block: Block
    parts: tuple[tuple[int, int], ...]
    known: frozenset[int] = frozenset()
    completed: tuple[tuple[int, CompletedRow], ...] = ()

    @property
    def lines(self) -> int:
        """The number of lines to settle."""
        return sum(end - start for start, end in self.parts)


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


def plan(config: BackfillConfig, listing: Listing, progress: BackfillProgress, stop: threading.Event) -> Iterator[Work]:
    """Yield the remaining work, block by block, until ``stop`` is set."""
    takes_all = config.selection == ALL_JOBS and config.limit is None and not config.skip_known
    remaining = config.limit
    for block in listing.blocks:
        if stop.is_set() or remaining == 0:
            return
        parts = tuple(progress.covered.missing(block.start, block.end))
        if not parts:
            continue
        if takes_all:
            yield Work(block, parts)
            continue
        unsettled = RangeSet(parts)
        run_ids = _select_lines(config, listing, block, unsettled, remaining)
        if remaining is not None:
            remaining -= len(run_ids)
        progress.tally.passed += unsettled.count() - len(run_ids)
        if run_ids:
            runs = {number: run_id for number, run_id in run_ids.items() if run_id is not None}
            known = progress.known(runs) if config.skip_known else frozenset()
            completed = sorted(runs.keys() & config.completions.keys())
            rows = tuple((number, config.completions[number]) for number in completed)
            lines = RangeSet((number, number + 1) for number in run_ids)
            yield Work(block, tuple(lines), known, rows)


def _select_lines(
    config: BackfillConfig, listing: Listing, block: Block, unsettled: RangeSet, most: int | None
) -> dict[int, str | None]:
    """Return the numbers of the unsettled lines to take, at most ``most``, with their run ids if they name a run."""
    is_selected = glob_pattern(config.selection).fullmatch
    run_ids: dict[int, str | None] = {}
    for line in listing.read(block):
        if len(run_ids) == most:
            break
        if line.number not in unsettled:
            continue
        run = attempt("decode", decode_line, line.data, config.reading)
        if not isinstance(run, ListedRun):
            run_ids[line.number] = None
        elif run.fault is not None or is_selected(run.facts.build_name):
            run_ids[line.number] = run.facts.run_id
    return run_ids


def probe_logs(config: BackfillConfig, listing: Listing, tally: Tally) -> None:
    """Check that logs of the first lines exist, before any line is settled.

    Raises:
      CimlError: if of at least ten lines no log exists.
    """
    if tally.settled or config.take_missing or not listing.blocks:
        return
    covers = OffsetRange(listing.topic, "", 0, 0, listing.blocks[0].end)
    pending_runs = decode_lines(covers, listing.read(listing.blocks[0]), config.reading).pending_runs
    is_selected = glob_pattern(config.selection).fullmatch
    probes = [pending for pending in pending_runs if is_selected(pending.mention.build_name)][:_PROBES]
    reasons: set[str] = set()
    for part in fetch_in_parts(Batch(None, pending_runs=probes), config.fetch, 0):
        if part.pending_runs:
            return
        reasons |= {pending.reason for pending in part.settled}
    if len(probes) >= _ENOUGH_PROBES and reasons <= {"log_not_found", "address_not_allowed"}:
        first = probes[0].mention.log_url
        raise CimlError(
            f"none of the first {len(probes)} logs exists (the first is {first}); check --logs, or use "
            "--take-missing to record such lines as dead letters"
        )


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
        if self._report is not None and now - self._reported_s > _REPORT_S:
            self._reported_s = now
            self._report(self.tally)


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
    """Settles work items concurrently in threads, and commits them in order of arrival.

    Args:
      config: of the backfill.
      listing: the listing of the work.
      committed: called after each commit.
    """

    def __init__(self, config: BackfillConfig, listing: Listing, committed: Callable[[], None] = lambda: None) -> None:
        self._config = config
        self._listing = listing
        self._committed = committed
        self._pool = ThreadPoolExecutor(_IN_PROGRESS, "backfill")
        self._in_progress: deque[tuple[Work, Future[list[Batch]]]] = deque()
        self._settled: list[Batch] = []
        self._lines = 0
        self._since = time.monotonic()

    def put(self, work: Work) -> int:
        """Add a work item; block while enough are in progress. Return the number of lines settled meanwhile."""
        self._in_progress.append((work, self._pool.submit(settle_work, self._config, self._listing, work)))
        return self._take() if len(self._in_progress) > _IN_PROGRESS else 0

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
        lines = work.lines
        self._lines += lines
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

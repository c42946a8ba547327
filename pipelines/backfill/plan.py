"""A backfill's configuration, its remaining work, and its progress.

The lines of a listing are read in blocks. A line is *settled* when its outcome is committed. A *work item* has the
lines of a block that are to be settled together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ciml.errors import CimlError
from ciml.events.listing import Block, ListedRun, Listing, Reading, decode_line
from ciml.events.records import Batch, OffsetRange, reasons_of, records_of, totals_of
from ciml.globs import glob_pattern
from ciml.manifest.coverage import RangeSet
from ciml.pipelines.ingest.committer import SettleConfig, committer
from ciml.storage import Store
from ciml.transforms.fetch.fetch import fetch_in_parts
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import attempt
from ciml.transforms.ingest.decode import ALL_JOBS, CompletedRow, decode_lines

_PROBES = 20  # lines whose logs are looked for before a backfill
_ENOUGH_PROBES = 10  # fewer missing logs may be a coincidence
_REPORT_S = 0.2  # between two reports of progress


@dataclass(frozen=True)
class BackfillConfig(SettleConfig):
    """Configuration of a backfill.

    Attributes:
      reading: how to interpret the lines.
      selection: globs of the jobs to take. Lines of other jobs remain unsettled.
      limit: largest number of unsettled lines to take; None for all.
      completions: stored rows that lines complete, by the line's number (`ciml.pipelines.backfill.load`).
      skip_known: do not read the log of a run with a trusted raw row: its line is a repeat or a correction.
      take_missing: continue even if no log seems to exist.
      commit_lines: number of processed lines after which they are committed.
      commit_s: time after which processed lines are committed even if they are fewer, seconds.
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
      known: numbers of the lines whose runs have a trusted raw row; empty unless `BackfillConfig.skip_known`.
      completions: (number of a line, the stored row that it completes), in order.
    """

    block: Block
    parts: tuple[tuple[int, int], ...]
    known: frozenset[int] = frozenset()
    completions: tuple[tuple[int, CompletedRow], ...] = ()

    @property
    def lines(self) -> int:
        """The number of lines to settle."""
        return sum(end - start for start, end in self.parts)


@dataclass
class Tally:
    """Progress of a backfill.

    Attributes:
      lines: number of lines of the listing.
      before: number of lines that were settled when the backfill began.
      handled: number of lines that the backfill has processed or skipped, at most ``lines - before``.
      settled: number of lines that are settled, including ``before``.
      counts: outcomes committed since the backfill began, by (kind, reason).
      complete: whether the backfill reached its end; False while it runs and after a stop. JSON has the key ``whole``.
    """

    lines: int
    before: int
    handled: int = 0
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


def take_work(
    config: BackfillConfig, listing: Listing, progress: BackfillProgress, stop: threading.Event
) -> Iterator[Work]:
    """Yield the remaining work, block by block, until ``stop`` is set.

    Lines that are not taken count as handled.
    """
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
        progress.tally.handled += unsettled.count() - len(run_ids)
        if run_ids:
            yield _work_of(config, block, run_ids, progress)


def _work_of(
    config: BackfillConfig, block: Block, run_ids: Mapping[int, str | None], progress: BackfillProgress
) -> Work:
    """Return the work item of some lines of a block.

    Args:
      run_ids: by line number, the id of the line's run; None for a line from which no run can be decoded.
    """
    runs = {number: run_id for number, run_id in run_ids.items() if run_id is not None}
    known = progress.known_lines(runs) if config.skip_known else frozenset()
    completing = sorted(runs.keys() & config.completions.keys())
    completions = tuple((number, config.completions[number]) for number in completing)
    return Work(block, tuple(RangeSet((number, number + 1) for number in run_ids)), known, completions)


def _select_lines(
    config: BackfillConfig, listing: Listing, block: Block, unsettled: RangeSet, most: int | None
) -> dict[int, str | None]:
    """Return the numbers of the unsettled lines to take, at most ``most``, each with the id of its run.

    The id is None for a line from which no run can be decoded.
    """
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
    """Check that some log of the first lines exists. A backfill that continues an earlier one is not checked again.

    Raises:
      CimlError: at least ten lines have logs to fetch, and none of these logs exists.
    """
    is_continued = tally.settled > 0
    if is_continued or config.take_missing or not listing.blocks:
        return
    block = listing.blocks[0]
    covers = OffsetRange(listing.topic, topic_id="", partition=0, start=0, end=block.end)
    pending_runs = decode_lines(covers, listing.read(block), config.reading).pending_runs
    is_selected = glob_pattern(config.selection).fullmatch
    probes = [pending for pending in pending_runs if is_selected(pending.mention.build_name)][:_PROBES]
    reasons: set[str] = set()
    for part in fetch_in_parts(Batch(covers=None, pending_runs=probes), config.fetch, now_us=0):
        if part.pending_runs:  # their logs were read
            return
        reasons |= {outcome.reason for outcome in part.settled}
    if len(probes) >= _ENOUGH_PROBES and reasons <= {"log_not_found", "address_not_allowed"}:
        first = probes[0].mention.log_url
        raise CimlError(
            f"none of the first {len(probes)} logs exists (the first is {first}); check --logs, or use "
            "--take-missing to record such lines as dead letters"
        )


class BackfillProgress:
    """Follows the manifest and counts the outcomes of a listing's lines.

    Args:
      raw: the raw store.
      listing: the listing.
      report: called with the tally after each commit, and between commits a few times a second at most.

    Attributes:
      covered: numbers of the lines that were settled at the start.
      tally: the counts.
    """

    def __init__(self, raw: Store, listing: Listing, report: Report | None = None) -> None:
        self._manifest = committer(raw)
        self._topic = listing.topic
        self._report = report
        self._reported_s = 0.0
        with self._manifest.state() as state:
            self._version = state.version
            self.covered = RangeSet(state.covered(self._topic, partition=0))
        before = self.covered.count()
        self.tally = Tally(listing.lines, before, settled=before)

    def update(self) -> None:
        """Count the outcomes of new commits, report them, and let the manifest be maintained."""
        for version, delta in self._manifest.log.since(self._version):
            self._version = version
            for kind, record in records_of(delta):
                if record["origin"][0] == self._topic:
                    self.tally.counts[kind, record.get("reason", "")] += 1
        with self._manifest.state() as state:
            self.tally.settled = state.covered(self._topic, partition=0).count()
        self._manifest.maintain()
        self._report_now()

    def known_lines(self, runs: Mapping[int, str]) -> frozenset[int]:
        """Return the numbers of lines whose runs have a trusted raw row.

        A run without one is not known: its line may replace an untrusted row.

        Args:
          runs: run ids by line number.
        """
        with self._manifest.state() as state:
            rows = {number: state.index.run(run_id) for number, run_id in runs.items()}
        return frozenset(number for number, row in rows.items() if row is not None and row.trusted)

    def report(self) -> None:
        """Report the progress, at most five times a second."""
        if time.monotonic() - self._reported_s > _REPORT_S:
            self._report_now()

    def _report_now(self) -> None:
        self._reported_s = time.monotonic()
        if self._report is not None:
            self._report(self.tally)


def load_fetch_policy(logs: str, file: str | None = None) -> FetchPolicy:
    """Return a policy that allows the logs of a backfill.

    Args:
      logs: folder or ``s3://`` prefix of the logs; see `ciml.events.listing.logs_root`.
      file: TOML file of the other rules; None for the defaults.
    """
    # Several blocks of lines are in progress, so each has a share of the memory of one ingest batch.
    policy = FetchPolicy.load(file) if file else FetchPolicy(max_batch_bytes=128 << 20)
    return policy.check().allowing(roots=(logs,))

"""Survey of a listing: decodes its lines, checks whether their logs exist if asked to, and commits nothing."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.events.listing import Listing
from ciml.events.records import Batch, OffsetRange, PendingRun
from ciml.http.addresses import Address, below, parse_address
from ciml.pipelines.backfill.plan import BackfillConfig, BackfillProgress, take_work
from ciml.storage import open_store
from ciml.transforms.fetch.files import first_found, open_log
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import guarded_runs
from ciml.transforms.ingest.decode import decode_lines
from ciml.trust import evaluate_batch

_MOST_FAULTS = 10


class MissingLog(NamedTuple):
    """A log that cannot be opened: its line's number from 0, the reason of `ciml.transforms.fetch`, and its place."""

    line: int
    reason: str
    where: str


@dataclass
class Survey:
    """The lines that a backfill would process.

    Attributes:
      lines: number of lines of the listing.
      settled: lines that an earlier backfill settled.
      blank: unsettled lines without content.
      take: lines that are neither blank, ignored nor bad, by (job, result).
      known: lines of ``take`` whose runs have a trusted raw row, or a row that they complete.
      others: lines of unselected jobs, beyond the limit, or not reached.
      ignored: lines that need no log, by reason.
      bad: lines that would become dead letters, by reason.
      faults: (line number from 1, reason, detail) of the first bad lines.
      trust: lines of ``take`` by (trusted, rule).
      missing: logs of lines of ``take`` that cannot be opened; empty unless they were checked.
    """

    lines: int
    settled: int = 0
    blank: int = 0
    known: int = 0
    others: int = 0
    take: Counter[tuple[str, str]] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    trust: Counter[tuple[bool, str]] = field(default_factory=Counter)
    missing: list[MissingLog] = field(default_factory=list)

    def count(self, batch: Batch, lines: int) -> None:
        """Count the lines of a decoded and judged batch."""
        self.blank += lines - len(batch.pending_runs) - len(batch.settled)
        for pending in batch.pending_runs:
            facts = pending.mention
            self.take[facts.build_name, facts.result] += 1
            if pending.trust is not None:
                self.trust[pending.trust.trusted, pending.trust.rule] += 1
        for outcome in batch.settled:
            if outcome.kind == "ignored":
                self.ignored[outcome.reason] += 1
                continue
            self.bad[outcome.reason] += 1
            if len(self.faults) < _MOST_FAULTS:
                self.faults.append((outcome.origin.offset + 1, outcome.reason, outcome.detail))

    def to_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("lines", "settled", "blank", "known", "others")}
        return {
            **counts,
            "take": [{"job": job, "result": word, "lines": n} for (job, word), n in sorted(self.take.items())],
            "ignored": dict(self.ignored),
            "bad": dict(self.bad),
            "faults": [{"line": line, "reason": reason, "detail": detail} for line, reason, detail in self.faults],
            "trust": [{"trusted": trusted, "rule": rule, "lines": n} for (trusted, rule), n in self.trust.items()],
        }


def survey(
    config: BackfillConfig,
    listing: Listing,
    *,
    check_logs: bool = False,
    stop: threading.Event | None = None,
    report: Callable[[int], None] = lambda lines: None,
) -> Survey:
    """Survey a listing as `ciml.pipelines.backfill.backfill.backfill` would process it.

    Args:
      config: of the backfill.
      listing: an open listing.
      check_logs: also check that the logs of lines that are not known exist, with a request for each.
      stop: when set, ends the survey early; ``others`` then counts lines that were not reached.
      report: called with the number of lines surveyed so far.

    Raises:
      EngineError: if the storage of the logs does not answer.
    """
    progress = BackfillProgress(config.raw, listing)
    result = Survey(listing.lines, progress.tally.settled)
    surveyed_lines = 0
    for work in take_work(config, listing, progress, stop or threading.Event()):
        pending_runs: list[PendingRun] = []
        lines = listing.read(work.block)
        for start, end in work.parts:
            covers = OffsetRange(listing.topic, "", 0, start, end)
            decoded = decode_lines(covers, lines, config.reading)
            batch = guarded_runs("trust", lambda part: evaluate_batch(part, config.trust), decoded)
            result.count(batch, end - start)
            pending_runs += batch.pending_runs
        runs = {pending.origin.offset: pending.mention.run_id for pending in pending_runs}
        stored = progress.known_lines(runs) | (config.completions.keys() & runs.keys())
        result.known += len(stored)
        if check_logs:
            unknown = [pending for pending in pending_runs if pending.origin.offset not in stored]
            result.missing += _find_missing(unknown, config.fetch)
        surveyed_lines += work.lines
        report(surveyed_lines)
    result.others = result.lines - result.settled - surveyed_lines
    return result


def _find_missing(pending_runs: Sequence[PendingRun], policy: FetchPolicy) -> list[MissingLog]:
    with ThreadPoolExecutor(policy.threads, "survey") as pool:
        results = pool.map(partial(_missing_log, policy=policy), pending_runs)
        return [missing for missing in results if missing is not None]


def _missing_log(pending: PendingRun, policy: FetchPolicy) -> MissingLog | None:
    """Look for the log of a run. Return None if it can be opened."""
    where = pending.mention.log_url
    try:
        address = parse_address(pending.address or where)
        if address.scheme != "s3":
            where = address.path
        places = below(address, policy.log_paths) if address.is_folder else [address]
        first_found(places, partial(_open, policy=policy))
    except (RejectedInput, LogUnavailableError) as failure:
        return MissingLog(pending.origin.offset, failure.reason, where)
    return None


def _open(address: Address, policy: FetchPolicy) -> bytes:
    """Open a log without reading it. Raises `RejectedInput` or `LogUnavailableError` if that is impossible."""
    if address.scheme != "s3":
        os.close(open_log(policy, address.path))
    elif not open_store(f"s3://{address.host}").exists(address.path):
        raise LogUnavailableError("log_not_found", "no such object")
    return b""

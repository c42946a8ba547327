"""Dry run of a backfill: reads the listing, but no log, and commits nothing."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ciml.events.listing_files import Listing
from ciml.events.records import OffsetRange, Outcome
from pipelines.backfill.plan import BackfillConfig, BackfillProgress, plan, size_of
from transforms.guard import guarded_runs
from transforms.ingest.decode_listing import decode_lines
from transforms.ingest.trust import judge

_FAULTS = 10


@dataclass
class Survey:
    """The lines that a backfill would process.

    Attributes:
      lines, settled, blank: lines of the listing; those settled by an earlier backfill; empty ones of the rest.
      take: lines whose logs would be read, by (job, result).
      known: lines of ``take`` whose runs have a raw row already.
      others: lines of unselected jobs, or beyond the limit.
      ignored, bad: lines by reason.
      faults: (line number from 1, reason, detail) of the first bad lines.
      trust: lines of ``take`` by (trusted, rule).
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

    def to_json(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("lines", "settled", "blank", "known", "others")}
        return {
            **counts,
            "take": [{"job": job, "result": word, "lines": n} for (job, word), n in sorted(self.take.items())],
            "ignored": dict(self.ignored),
            "bad": dict(self.bad),
            "faults": [{"line": at, "reason": reason, "detail": detail} for at, reason, detail in self.faults],
            "trust": [{"trusted": trusted, "rule": rule, "lines": n} for (trusted, rule), n in self.trust.items()],
        }


def survey(config: BackfillConfig, listing: Listing) -> Survey:
    """Survey a listing as `pipelines.backfill.backfill.backfill` would process it."""
    progress = BackfillProgress(config.raw, listing)
    found = Survey(listing.lines, progress.tally.settled)
    taken = 0
    for work in plan(config, listing, progress, threading.Event()):
        lines = listing.read(work.block)
        taken += size_of(work)
        runs: dict[int, str] = {}
        for start, end in work.parts:
            decoded = decode_lines(OffsetRange(listing.topic, "", 0, start, end), lines, config.reading)
            batch = guarded_runs("trust", lambda part: judge(part, config.trust), decoded)
            found.blank += end - start - len(batch.pending_runs) - len(batch.settled)
            for outcome in batch.settled:
                _count(found, outcome)
            for pending in batch.pending_runs:
                facts, trust = pending.mention, pending.trust
                found.take[facts.build_name, facts.result] += 1
                if trust is not None:
                    found.trust[trust.trusted, trust.rule] += 1
                runs[pending.origin.offset] = facts.run_id
        found.known += len(progress.known(runs))
    found.others = found.lines - found.settled - taken
    return found


def _count(found: Survey, outcome: Outcome) -> None:
    if outcome.kind == "ignored":
        found.ignored[outcome.reason] += 1
        return
    found.bad[outcome.reason] += 1
    if len(found.faults) < _FAULTS:
        found.faults.append((outcome.origin.offset + 1, outcome.reason, outcome.detail))

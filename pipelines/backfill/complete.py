"""Facts that a listing gives and stored rows of its own source lack: their rows are completed without reading a log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.listing import Reading, decode_line
from ciml.events.listing_files import Listing
from ciml.events.records import RunFacts
from ciml.limits import MAX_LABELS
from ciml.manifest.log import ManifestLog
from ciml.manifest.offsets import RangeSet
from ciml.raw.run_log import find_rows
from ciml.transforms.guard import attempt
from ciml.transforms.ingest.decode import why_ignored
from ciml.transforms.ingest.decode_listing import CompletedRow

#: Facts that may be completed, by their name in a listing. The facts that decide on the trust or the split of a run are
#: not: completing them would move it between training and test.
COMPLETABLE: Mapping[str, str] = {
    "start_time": "start_us",
    "end_time": "end_us",
    "node_provider": "provider",
    "node_region": "region",
    "node_flavor": "flavour",
}
#: Lines whose facts are in memory at a time, each about 2 KB; the manifest is read once for them.
_LINES_AT_ONCE = 100_000


@dataclass
class Completions:
    """What a listing says of runs that are stored.

    Attributes:
      rows: rows that it completes, by the number of the line.
      completed: number of rows that it completes, by fact; each label by its name.
      differing: number of rows that have another value of a fact than the line, by fact. The stored value stays.
    """

    rows: dict[int, CompletedRow] = field(default_factory=dict)
    completed: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)


def find_completions(log: ManifestLog, listing: Listing, reading: Reading, settled: RangeSet) -> Completions:
    """Compare the unsettled lines of a listing with the stored rows of their runs.

    Only rows of the listing's own source that came without a proof are compared: facts of one source never
    complete those of another.

    Args:
      log: the raw manifest.
      listing: an open listing.
      reading: how its lines are read.
      settled: numbers of the lines that are settled.

    Raises:
      EngineError: if the store does not answer.
    """
    found = Completions()
    lines = _runs_of(listing, reading, settled)
    while part := dict(islice(lines, _LINES_AT_ONCE)):
        for run_id, row in find_rows(log, part).items():
            number, facts = part[run_id]
            if row.mention.source != facts.source or row.mention.auth:
                continue
            if changes := _compare(row.mention, facts, found):
                facts = row.mention.replace(outcome=facts.outcome, result=facts.result, **changes)
                found.rows[number] = CompletedRow(facts, row.file)
    return found


def _runs_of(listing: Listing, reading: Reading, settled: RangeSet) -> Iterator[tuple[str, tuple[int, RunFacts]]]:
    """Yield the runs of the unsettled lines: run id, number of the line, and facts."""
    for block in listing.blocks:
        missing = RangeSet(settled.missing(block.start, block.end))
        for line in listing.read(block) if missing else ():
            if line.number not in missing:
                continue
            run = attempt("decode", decode_line, line.data, reading)
            if not isinstance(run, RejectedInput) and run.fault is None and not why_ignored(run.facts):
                yield run.facts.run_id, (line.number, run.facts)


def _compare(stored: RunFacts, line: RunFacts, found: Completions) -> dict[str, Any]:
    """Return the facts of a line that a stored run lacks; count them, and those that differ."""
    changes: dict[str, Any] = {}
    for name, attribute in COMPLETABLE.items():
        before, now = getattr(stored, attribute), getattr(line, attribute)
        if not now or now == before:
            continue
        if before or _ends_before_start(stored.replace(**{attribute: now})):
            found.differing[name] += 1
        else:
            found.completed[name] += 1
            changes[attribute] = now
    missing = sorted(line.labels.keys() - stored.labels.keys())[: MAX_LABELS - len(stored.labels)]
    if missing:
        found.completed.update(missing)
        changes["labels"] = {**stored.labels, **{name: line.labels[name] for name in missing}}
    found.differing.update(name for name, label in line.labels.items() if stored.labels.get(name, label) != label)
    return changes


def _ends_before_start(facts: RunFacts) -> bool:
    return facts.start_us is not None and facts.end_us is not None and facts.end_us < facts.start_us

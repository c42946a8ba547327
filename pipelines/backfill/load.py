"""Loads the runs of a table of results and a folder of logs: the table is surveyed as a whole, then backfilled.

rows of the table ─► lines of a listing, or reasons ─► survey: logs, known runs ─► too many bad? ─► backfill

The listing is derived from the table alone, so the same table gives the same lines, which an earlier load has settled.
A stored raw row that came from the same source and lacks facts of a line is *completed* without its log.
"""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, RejectedInput
from ciml.events.listing import Listing, Reading, decode_line, logs_root
from ciml.events.records import RunFacts
from ciml.limits import MAX_LABELS
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.backfill.load_report import LoadReport, RejectedTableError
from ciml.pipelines.backfill.plan import BackfillConfig, load_fetch_policy
from ciml.pipelines.backfill.survey import survey
from ciml.progress import Progress, no_progress
from ciml.runs.run_log import find_rows, outcomes_of
from ciml.runs.state import open_raw
from ciml.stored_trust import policy_of
from ciml.transforms.guard import attempt
from ciml.transforms.ingest.decode import ALL_JOBS, CompletedRow, why_ignored
from ciml.transforms.results.convert import BadRow, Conversion
from ciml.transforms.results.table import open_results
from ciml.trust import PolicySource

if TYPE_CHECKING:
    import pyarrow as pa

#: Lines whose facts are in memory at a time, each about 2 KB; the manifest is read once for them.
_LINES_AT_ONCE = 100_000


def load(
    data: DataRoot,
    logs: str,
    table: pa.Table | str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    zone: str | None = None,
    max_bad: float = 0.1,
    source: str = "backfill",
    jobs: Sequence[str] = ALL_JOBS,
    trust: PolicySource | None = None,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    progress: Progress = no_progress,
) -> LoadReport:
    """Load the runs of a table of results, and their logs, into the raw store: all that is usable, or nothing.

    Loading the same table again changes nothing; a table that grew adds its new rows. An interrupted load continues
    when it is repeated.

    Args:
      data: the data root; created if it does not exist.
      logs: the folder or ``s3://`` prefix of the logs.
      table: a file or ``s3://`` object of CSV, Parquet or JSON lines, or a `pyarrow.Table`, with a row per run.
      mapping: the meaning of columns, by name: a field of the listing, or ``-`` to leave the column out. The other
        columns are recognised by their names and values.
      zone: IANA name of the zone of times that have none.
      max_bad: largest share of rows that may be bad or without a log, 0 to 1.
      source: name of the table in the trust policy and in the run ids.
      jobs: globs of the jobs to load; all if empty.
      trust: names the trust policy; by default that of the data root, or the built-in one, which trusts ``backfill``.
      dry_run: only survey; commit nothing.
      stop: when set, ends the load after the work in progress is committed; the report is incomplete then.
      progress: called with the step, and the rows or lines done and in all.

    Raises:
      RejectedTableError: too many unusable rows, or no good one; nothing was committed.
      CimlError: no such folder or table, an empty or unreadable one, an unknown column or zone; nothing was committed.
      EngineError: a store does not answer.
    """
    if not 0 <= max_bad <= 1:
        raise CimlError(f"the largest share of bad rows is from 0 to 1, not {max_bad:g}")
    root = logs_root(logs, "LOGS")
    config = BackfillConfig(
        data.raw,
        Reading(source, source, root),
        selection=tuple(jobs) or ALL_JOBS,
        skip_known=True,
        take_missing=True,
        trust=trust or policy_of(data),
        fetch=load_fetch_policy(root),
    )
    opened = open_results(table)
    conversion = Conversion(opened, config.reading, roots=(os.path.abspath(logs),), mapping=mapping, zone=zone)
    report = LoadReport(opened.name, opened.form, conversion.columns, conversion.suggestions)
    with tempfile.TemporaryFile(prefix="ciml-load-") as file:
        row_numbers = _write_listing(conversion, file, report, progress)
        listing = Listing(opened.name, file)
        log, state = open_raw(config.raw)
        settled = RangeSet(state.covered(listing.topic, 0))
        if settled:
            report.earlier = outcomes_of(log, listing.topic)
            report.dead_letters.update(
                dead_letter.reason for key, dead_letter in state.index.dead_letters() if key[0].topic == listing.topic
            )
        completions = find_completions(log, listing, config.reading, settled)
        report.completed = completions.completed
        report.differing = completions.differing
        config = replace(config, completions=completions.rows)
        surveyed = survey(
            config,
            listing,
            check_logs=True,
            stop=stop,
            report=lambda lines: progress("looking for logs", lines, listing.lines),
        )
        if stop is not None and stop.is_set():
            return report
        report.count_survey(surveyed, row_numbers)
        _check_usable(report, max_bad, root)
        if not dry_run:
            tally = backfill(
                config,
                listing,
                stop=stop,
                report=lambda tally: progress("loading runs", tally.handled, tally.lines - tally.before),
            )
            report.count_outcomes(tally)
    return report


def _write_listing(conversion: Conversion, file: IO[bytes], report: LoadReport, progress: Progress) -> array[int]:
    """Write the good rows as a listing, and count all rows. Return the number of the row of each line."""
    row_numbers = array("L")
    try:
        for row in conversion.rows():
            report.rows += 1
            if isinstance(row, BadRow):
                report.count_unusable(row, report.bad)
            else:
                file.write(row.line + b"\n")
                row_numbers.append(row.number)
            if report.rows % 1000 == 0:
                progress("reading rows", report.rows, None)
        file.flush()
        file.seek(0)
    except OSError as error:
        raise EngineError(f"cannot write into {tempfile.gettempdir()}: {error.strerror}") from error
    return row_numbers


def _check_usable(report: LoadReport, max_bad: float, root: str) -> None:
    """Raise `RejectedTableError` unless enough of the rows can be loaded."""
    rows = report.rows - report.not_selected
    if not rows:
        raise RejectedTableError(f"{report.table}: no row of the selected jobs; correct --job", report)
    if report.unusable > max_bad * rows or not report.good + report.before:
        summary = (
            f"nothing was loaded: {report.unusable:,} of {rows:,} rows of {report.table} are unusable, and at most "
            f"{max_bad * 100:g} % may be (--max-bad)"
        )
        raise RejectedTableError(summary + _path_hint(report, root), report)


def _path_hint(report: LoadReport, root: str) -> str:
    """Describe a likely fault of all paths, judged by the first log that was not found; "" if none is recognised."""
    parent, name = os.path.split(root.rstrip("/"))
    first = next((row.value for row in report.examples if row.reason == "log_not_found"), "")
    if first.startswith(f"{root}/{name}/") and os.path.exists(f"{parent}/{first.removeprefix(root + '/')}"):
        return f"; the paths begin with {name}/: name {parent} as the folder of logs"
    if "\\" in first.removeprefix(root):
        return "; the paths have backslashes: write them with slashes"
    return ""


#: Attributes of the facts that may be completed, by their names in a listing. The facts that decide on the trust or the
#: split of a run are left out: completing them would move it between training and test.
COMPLETABLE: Mapping[str, str] = {
    "start_time": "start_us",
    "end_time": "end_us",
    "node_provider": "provider",
    "node_region": "region",
    "node_flavor": "flavour",
}


class Completions(NamedTuple):
    """The comparison of a listing with the stored rows of its runs.

    Attributes:
      rows: the stored rows that lines complete, by the line's number.
      completed: number of lines that have a fact which the stored row lacks, by fact.
      differing: number of lines that contradict a fact of the stored row, by fact.
    """

    rows: dict[int, CompletedRow]
    completed: Counter[str]
    differing: Counter[str]


def find_completions(log: ManifestLog, listing: Listing, reading: Reading, settled: RangeSet) -> Completions:
    """Compare the unsettled lines of a listing with the stored rows of their runs.

    Only rows of the listing's own source that came without a proof of their sender are compared: facts of one source
    never complete those of another.

    Args:
      log: the raw manifest.
      listing: an open listing.
      reading: how its lines are read.
      settled: numbers of the lines that are settled.

    Raises:
      EngineError: if the store does not answer.
    """
    result = Completions({}, Counter(), Counter())
    lines = _runs_of(listing, reading, settled)
    while part := dict(islice(lines, _LINES_AT_ONCE)):
        for run_id, row in find_rows(log, part).items():
            number, facts = part[run_id]
            if row.mention.source != facts.source or row.mention.auth:
                continue
            changes = _compare(row.mention, facts, result)
            if changes:
                facts = row.mention.replace(outcome=facts.outcome, result=facts.result, **changes)
                result.rows[number] = CompletedRow(facts, row.file, row.output)
    return result


def _runs_of(listing: Listing, reading: Reading, settled: RangeSet) -> Iterator[tuple[str, tuple[int, RunFacts]]]:
    """Yield the runs of the unsettled lines: run id, number of the line, and facts."""
    for block in listing.blocks:
        missing = RangeSet(settled.missing(block.start, block.end))
        if not missing:
            continue
        for line in listing.read(block):
            if line.number not in missing:
                continue
            run = attempt("decode", decode_line, line.data, reading)
            if not isinstance(run, RejectedInput) and run.fault is None and not why_ignored(run.facts):
                yield run.facts.run_id, (line.number, run.facts)


def _compare(stored: RunFacts, line: RunFacts, result: Completions) -> dict[str, Any]:
    """Count the facts that a line completes or contradicts. Return the changes of the stored facts by attribute."""
    changes: dict[str, Any] = {}
    for name, attribute in COMPLETABLE.items():
        before = getattr(stored, attribute)
        now = getattr(line, attribute)
        if not now or now == before:
            continue
        if before or _ends_before_start(stored.replace(**{attribute: now})):
            result.differing[name] += 1
        else:
            result.completed[name] += 1
            changes[attribute] = now
    result.differing.update(name for name, label in line.labels.items() if stored.labels.get(name, label) != label)
    missing = sorted(line.labels.keys() - stored.labels.keys())[: MAX_LABELS - len(stored.labels)]
    if missing:
        result.completed.update(missing)
        changes["labels"] = {**stored.labels, **{name: line.labels[name] for name in missing}}
    return changes


def _ends_before_start(facts: RunFacts) -> bool:
    return facts.start_us is not None and facts.end_us is not None and facts.end_us < facts.start_us

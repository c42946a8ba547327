"""Parses logs of dstat, dool and pcp-dstat, hundreds at a time.

Logs with the same columns are read together: `ciml.dstat` finds their headers, one call of `ciml.transforms.parse.rows`
reads their rows, and `ciml.transforms.parse.times` converts their times. Each log's table is a slice without a copy.
Only irregular logs (a clock change, a restarted recorder) are processed alone.

`parse_files` reads log files that a user names; `parse` is the stage of an ingest.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ciml.dstat import EARLIEST, END_LOCAL, FIRST_LOCAL, LATEST, SECOND, Columns, Segment, split_segments
from ciml.errors import RejectedInput, drop_frames
from ciml.events.fields import iso_time
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, Outcome, PendingRun
from ciml.limits import MAX_CLOCK_SKEW_S, MAX_PARSED_BYTES, PARSE_BATCH_BYTES, PART_BYTES
from ciml.telemetry import BOOT, TIME
from ciml.transforms.fetch.decompress import inflate
from ciml.transforms.fetch.files import read_file
from ciml.transforms.fetch.policy import FetchPolicy, LogUnavailableError
from ciml.transforms.guard import bisect
from ciml.transforms.parse.clock import check_zone, fixed_offset, to_utc
from ciml.transforms.parse.rows import Rows, read_rows, with_nans
from ciml.transforms.parse.times import (
    Bool,
    Int64,
    bits_of,
    check_size,
    join_starts,
    local_times,
    read_cells,
    read_epochs,
)

_TIME_TYPE = pa.timestamp("us", tz="UTC")
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Log:
    """A log as fetched, and the facts of its run.

    Attributes:
      data: the bytes; gzip or text.
      start_us, end_us: the run's start and end in µs UTC, where known. They decide year and zone where the log does
        not, and the start is the first sample's time in a log that has neither time nor date.
      zone: zone to assume where the log names none (an IANA name, an offset, or an abbreviation).
    """

    data: bytes
    start_us: int | None = None
    end_us: int | None = None
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """Limits on memory.

    Attributes:
      max_bytes: limit of one log's text, bytes; a day at 1 s of 30 columns is about 18 MB, of 60 columns 36 MB.
      batch_bytes: text that is parsed at a time, bytes. Larger is not faster. Parsing takes up to ten times its text.
    """

    max_bytes: int = MAX_PARSED_BYTES
    batch_bytes: int = PARSE_BATCH_BYTES


@dataclass(slots=True)
class _Part:
    """A segment during parsing."""

    log: int
    segment: Segment
    first: bool
    table: pa.Table | None = None
    dropped: int = 0
    bad_times: int = 0
    nulls: int = 0


def parse_logs(logs: Sequence[Log], limits: ParseLimits | None = None) -> list[pa.Table | RejectedInput]:
    """Parse telemetry logs.

    Args:
      logs: any number, in any mixture of variants.
      limits: limits on memory.

    Returns:
      For each log its table, or its rejection (the exception, not raised). A table has ``time`` (timestamp[us,
      UTC], never null, in recorded order even where the clock was set back), ``boot`` (bool: the first sample after a
      start of the recorder, which dstat and dool average since boot), then a float64 column for each column of the log
      under its full name. Further columns of a restarted recorder follow, null where they were not recorded. Cells
      that are not finite numbers are null. Its schema's metadata holds (as text) ``recorder``, ``starts``,
      ``dropped_rows`` (truncated, malformed or without a time) and ``null_cells``.

      Tables share the buffers of their batch, and pickling one includes all of them: write tables as Parquet or Arrow
      IPC (which write only the slice) in the same step, before they are pickled or stored.

      Reasons: not_telemetry, empty_telemetry, no_time, ambiguous_time, outside_run, log_too_wide, log_too_large,
      too_many_restarts, corrupt_gzip.
    """
    limits = limits or ParseLimits()
    logs = [_with_possible_times(log) for log in logs]
    results: list[pa.Table | RejectedInput] = [RejectedInput("not_telemetry")] * len(logs)
    batch: dict[int, list[_Part]] = {}
    size = 0
    for index, log in enumerate(logs):
        try:
            text = inflate(log.data, limits.max_bytes)
            batch[index] = [_Part(index, segment, not number) for number, segment in enumerate(split_segments(text))]
        except RejectedInput as rejection:
            results[index] = rejection
            continue
        size += len(text)
        if size >= limits.batch_bytes:
            _parse_batch(logs, batch, results)
            batch = {}
            size = 0
    _parse_batch(logs, batch, results)
    return results


def _with_possible_times(log: Log) -> Log:
    """Return the log without start and end times that are outside the valid range."""
    start = log.start_us
    end = log.end_us
    if (start is None or EARLIEST <= start < LATEST) and (end is None or EARLIEST <= end < LATEST):
        return log
    start, end = (us if us is not None and EARLIEST <= us < LATEST else None for us in (start, end))
    return replace(log, start_us=start, end_us=end)


def _parse_batch(logs: Sequence[Log], batch: dict[int, list[_Part]], results: list[pa.Table | RejectedInput]) -> None:
    groups: dict[Columns, list[_Part]] = defaultdict(list)
    rejected: dict[int, RejectedInput] = {}
    for index, parts in batch.items():
        try:
            check_size([part.segment for part in parts])
        except RejectedInput as rejection:
            rejected[index] = rejection
            continue
        for part in parts:
            groups[part.segment.columns].append(part)
    for columns, parts in groups.items():
        for indices, rows in read_rows([part.segment.body for part in parts], columns):
            _fill_tables(logs, columns, [parts[index] for index in indices], rows, rejected)
    for index, parts in batch.items():
        try:
            results[index] = rejected[index] if index in rejected else _of_run(_assemble(parts), logs[index])
        except RejectedInput as rejection:
            results[index] = rejection


def _of_run(table: pa.Table, log: Log) -> pa.Table:
    """Return a log's table. Raises `RejectedInput` if no sample is near the run: it is another run's log."""
    if log.start_us is None and log.end_us is None:
        return table
    span = pc.min_max(table.column(TIME).cast(pa.int64()))
    first = span["min"].as_py()
    last = span["max"].as_py()
    skew = MAX_CLOCK_SKEW_S * SECOND
    start = log.start_us
    end = log.end_us
    earliest = start if start is not None else end
    latest = end if end is not None else start
    if earliest is not None and latest is not None and last >= earliest - skew and first <= latest + skew:
        return table
    run = " to ".join(iso_time(time) for time in (start, end) if time is not None)
    raise RejectedInput(
        "outside_run",
        f"the samples are of {iso_time(first)} to {iso_time(last)}, the run is of {run}; a clock may differ by "
        f"{MAX_CLOCK_SKEW_S:,} s: correct the run's times or its log",
    )


def _fill_tables(
    logs: Sequence[Log], columns: Columns, parts: list[_Part], rows: Rows, rejected: dict[int, RejectedInput]
) -> None:
    """Fill in the tables of parts with the same columns, from their rows."""
    ends = np.cumsum(rows.counts, dtype=np.int64)
    slices = [slice(int(end) - count, int(end)) for end, count in zip(ends, rows.counts, strict=True)]
    utc, ok = _times(logs, columns, parts, rows, slices, rejected)
    boot = np.zeros(len(utc), np.bool_)
    for where, is_first in zip(slices, rows.first_kept, strict=True):
        if where.start < where.stop:
            boot[where.start] = is_first

    names = [name for name in columns.names if name]
    time = pa.Array.from_buffers(_TIME_TYPE, len(utc), [None, pa.py_buffer(utc)])
    table = pa.Table.from_arrays([time, _to_arrow(boot), *rows.values], names=[TIME, BOOT, *names])
    nullable = [index for index, column in enumerate(rows.values, 2) if column.null_count]
    all_ok = bool(ok.all())
    for part, where, dropped in zip(parts, slices, rows.dropped, strict=True):
        part_table = table.slice(where.start, where.stop - where.start)
        if not all_ok and not bool(ok[where].all()):
            part_table = part_table.filter(_to_arrow(ok[where]))
        part.table = part_table
        part.bad_times = where.stop - where.start - part_table.num_rows
        part.dropped = dropped + part.bad_times + part.segment.torn
        part.nulls = sum(part_table.column(index).null_count for index in nullable)


def _to_arrow(values: Bool) -> pa.Array:
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits_of(values)])


def _times(
    logs: Sequence[Log],
    columns: Columns,
    parts: list[_Part],
    rows: Rows,
    slices: list[slice],
    rejected: dict[int, RejectedInput],
) -> tuple[Int64, Bool]:
    """Return the time of each row in µs UTC, and whether it has one."""
    if rows.epoch is not None:
        return read_epochs(with_nans(rows.epoch))
    if rows.time is None:
        return _spaced_times(logs, parts, rows, slices)
    cells = read_cells(rows.time)
    references = [_reference(logs[part.log], part.segment) for part in parts]
    near_times = np.array([reference if reference is not None else _NO_TIME for reference in references], np.int64)
    reference = np.repeat(near_times, rows.counts)
    local, ok = local_times(cells, np.where(reference == _NO_TIME, 0, reference))
    ok &= (cells.year > 0) | (reference != _NO_TIME)
    clock_only = cells.ok & ~cells.absolute & (cells.month == 0)
    for where in slices if clock_only.any() else ():
        if clock_only[where].any():  # days are counted within one start of the recorder
            ok[where] = False
            if reference[where.start] != _NO_TIME:
                local[where], ok[where] = local_times(cells[where], reference[where])

    ok &= (local >= FIRST_LOCAL) & (local < END_LOCAL)  # before a zone is applied: a bad row affects only itself
    utc = np.where(cells.absolute, cells.instant, local)
    for part, where in zip(parts, slices, strict=True):
        log = logs[part.log]
        segment = part.segment
        part_ok = ok[where]
        if not part_ok.any():
            continue
        try:
            utc[where][part_ok] = to_utc(
                local[where][part_ok], segment.date_us, segment.zone, log.start_us, log.end_us, log.zone
            )
        except RejectedInput as rejection:
            rejected[part.log] = rejection
    ok |= cells.ok & cells.absolute
    return utc, ok & (utc >= EARLIEST) & (utc < LATEST)


def _reference(log: Log, segment: Segment) -> int | None:
    """Return a local time near the samples of a segment; within a day is close enough."""
    if segment.near_us is not None:
        return segment.near_us
    start_us = log.start_us if log.start_us is not None else log.end_us
    return start_us if start_us is None else start_us + (fixed_offset(segment.zone or log.zone or "") or 0)


def _spaced_times(logs: Sequence[Log], parts: list[_Part], rows: Rows, slices: list[slice]) -> tuple[Int64, Bool]:
    """Return times for logs without a time column: from the recorder's start, at its configured interval."""
    utc = np.zeros(sum(rows.counts), np.int64)
    for part, where in zip(parts, slices, strict=True):
        log = logs[part.log]
        segment = part.segment
        start = None
        if segment.date_us is not None:
            try:
                date = np.array([segment.date_us], np.int64)
                start = int(to_utc(date, segment.date_us, segment.zone, log.start_us, log.end_us, log.zone)[0])
            except RejectedInput:
                start = None
        if start is None and part.first:
            start = log.start_us
        if start is None:
            continue
        steps = np.arange(where.stop - where.start) * (segment.interval_s * SECOND)
        utc[where] = start + np.rint(np.minimum(steps, float(LATEST))).astype(np.int64)
    return utc, (utc >= EARLIEST) & (utc < LATEST)


def _assemble(parts: list[_Part]) -> pa.Table:
    """Return the table of one log, from its starts of the recorder."""
    tables = [part.table for part in parts if part.table is not None and part.table.num_rows]
    dropped = sum(part.dropped for part in parts)
    nulls = sum(part.nulls for part in parts)
    if not tables:
        bad_times = sum(part.bad_times for part in parts)
        if bad_times:
            why = "no readable time cell, no date and no start of the event"
            raise RejectedInput("no_time", f"none of {bad_times} rows has a time: {why}")
        raise RejectedInput("empty_telemetry", f"no sample ({dropped} rows dropped)" if dropped else "no sample")
    if nulls >= sum(table.num_rows * (table.num_columns - 2) for table in tables):
        raise RejectedInput("empty_telemetry", "no cell is a finite number")
    table = tables[0] if len(tables) == 1 else join_starts(tables)
    recorder = next((part.segment.recorder for part in parts if part.segment.recorder), "")
    return table.replace_schema_metadata(
        {
            "recorder": recorder,
            "starts": str(len(parts)),
            "dropped_rows": str(dropped),
            "null_cells": str(nulls),
        }
    )


def parse_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    start_us: int | None = None,
    end_us: int | None = None,
    zone: str | None = None,
) -> Iterator[pa.Table | RejectedInput]:
    """Read and parse log files part by part, with the limits of an ingest. An unusable file affects only itself.

    Args:
      paths: plain or gzip files.
      start_us, end_us, zone: of all of them, where known; see `ciml.transforms.parse.logs.Log`.

    Yields:
      For each path, in order, its table as from `ciml.transforms.parse.logs.parse_logs`, or its rejection: with a
      reason of the parser, or ``log_not_found``, ``log_unavailable``, ``log_too_large``, ``corrupt_gzip``.

    Raises:
      CimlError: an unknown zone.
    """
    if zone is not None:
        check_zone(zone)
    read: list[Log | RejectedInput] = []
    size = 0
    for path in paths:
        data = _read(os.fspath(path))
        read.append(data if isinstance(data, RejectedInput) else Log(data, start_us, end_us, zone))
        size += 0 if isinstance(data, RejectedInput) else len(data)
        if size >= PART_BYTES:
            yield from _parsed(read)
            read = []
            size = 0
    yield from _parsed(read)


def _read(path: str) -> bytes | RejectedInput:
    try:
        real = os.path.realpath(path)
        return read_file(FetchPolicy(file_roots=(os.path.dirname(real),)), real)
    except RejectedInput as rejected:
        return rejected
    except LogUnavailableError as error:
        return RejectedInput(error.reason, error.detail)
    except ValueError as error:  # a null character in the path
        return RejectedInput("log_not_found", str(error))


def _parsed(read: Sequence[Log | RejectedInput]) -> Iterator[pa.Table | RejectedInput]:
    logs = [entry for entry in read if isinstance(entry, Log)]
    tables = (
        table
        for _, tables_part in bisect("parse", logs, parse_logs)
        for table in ([tables_part] if isinstance(tables_part, RejectedInput) else tables_part)
    )
    for entry in read:
        yield next(tables) if isinstance(entry, Log) else entry


def parse(batch: Batch) -> Batch:
    """Parse the logs of a batch's pending runs: ``log`` becomes ``telemetry``.

    Returns:
      The batch; a rejected log has become a dead letter with the parser's reason.
    """
    if not batch.pending_runs:
        return batch
    logs = [
        Log(pending_run.log or b"", pending_run.mention.start_us, pending_run.mention.end_us)
        for pending_run in batch.pending_runs
    ]
    parsed: list[PendingRun] = []
    settled = list(batch.settled)
    for pending, result in zip(batch.pending_runs, parse_logs(logs), strict=True):
        pending.log = None
        if isinstance(result, RejectedInput):
            drop_frames(result)
            settled.append(_dead_letter(pending, result))
        else:
            pending.telemetry = result
            parsed.append(pending)
    return Batch(batch.covers, batch.messages, parsed, settled)


def _dead_letter(pending: PendingRun, rejected: RejectedInput) -> Outcome:
    payload = payload_of(pending.message) if pending.message else None
    return pending.outcome("dead_letter", rejected.reason, rejected.detail, payload=payload)

"""Parse logs of dstat, dool and pcp-dstat to tables of telemetry, hundreds at a time.

A log has one *segment* for each start of the recorder: a header and its rows. Segments with the same columns are read
together: `ciml.dstat` finds them, one call of `ciml.transforms.parse.rows` reads their rows, and
`ciml.transforms.parse.times` their times. Each table is a slice of the result, without a copy.

`parse_logs` parses logs in memory, `parse` is the stage of an ingest, and `parse_files` reads files that a user names.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ciml.dstat import EARLIEST, END_LOCAL, FIRST_LOCAL, LATEST, SECOND, Columns, Segment, split_segments
from ciml.errors import LogUnavailableError, RejectedInput, drop_frames
from ciml.events.fields import iso_time
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, PendingRun
from ciml.limits import (
    CELLS_PER_LOG_BYTE,
    MAX_CLOCK_SKEW_S,
    MAX_LOG_CELLS,
    MAX_LOG_COLUMNS,
    MAX_LOG_HEADERS,
    MAX_PARSED_BYTES,
    MIN_ROW_CELLS,
    PARSE_BATCH_BYTES,
    PART_BYTES,
)
from ciml.telemetry import BOOT, OWN_COLUMNS, TIME, telemetry_columns
from ciml.transforms.fetch.decompress import inflate
from ciml.transforms.fetch.files import read_file
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.guard import bisect
from ciml.transforms.parse.clock import check_zone, fixed_offset, to_utc
from ciml.transforms.parse.rows import Rows, read_rows, with_nans
from ciml.transforms.parse.times import Bool, Cells, Int64, local_times, read_cells, read_epochs

_TIME_TYPE = pa.timestamp("us", tz="UTC")
_NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Log:
    """A log as fetched, and the facts of its run.

    Attributes:
      data: the bytes; gzip or text.
      start_us, end_us: the run's start and end in µs UTC, where known. They decide year and zone where the log lacks
        them. In a log without times and date, the start is the time of the first sample.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """A start of the recorder: a segment of the log at index ``log``."""

    log: int
    segment: Segment
    is_first: bool


class _StartTable(NamedTuple):
    """The rows of a start that have a time, the numbers of its rows that are left out, and of its null cells."""

    table: pa.Table
    dropped: int  # including those without a time
    without_time: int
    nulls: int


class _RowTimes(NamedTuple):
    """The time of each row in µs UTC, whether it has one, and the rejected logs."""

    utc: Int64
    ok: Bool
    rejected: Mapping[int, RejectedInput]


def parse_logs(logs: Sequence[Log], limits: ParseLimits | None = None) -> list[pa.Table | RejectedInput]:
    """Parse telemetry logs.

    Args:
      logs: any number, in any mixture of variants.
      limits: limits on memory.

    Returns:
      For each log its table, or its rejection (the exception, not raised). The columns of a table are:

      - ``time``: timestamp[us, UTC], never null, in recorded order even where the clock was set back;
      - ``boot``: bool, the first sample after a start of the recorder, which dstat and dool average since boot;
      - float64 for each column of the log, under its full name, then further columns of a restarted recorder. A cell
        that was not recorded, or is not a finite number, is null.

      Its schema's metadata has (as text) ``recorder``, ``starts``, ``dropped_rows`` (truncated, malformed or without a
      time) and ``null_cells``.

      Tables share the buffers of their batch, and pickling one includes all of them: write tables as Parquet or Arrow
      IPC (which write only the slice) in the same step, before they are pickled or stored.

      Reasons: not_telemetry, empty_telemetry, no_time, ambiguous_time, outside_run, log_too_wide, log_too_large,
      too_many_restarts, corrupt_gzip.
    """
    limits = limits or ParseLimits()
    logs = [_with_possible_times(log) for log in logs]
    results: list[pa.Table | RejectedInput] = [RejectedInput("not_telemetry")] * len(logs)
    batch: dict[int, list[_Start]] = {}
    size = 0
    for index, log in enumerate(logs):
        try:
            text = inflate(log.data, limits.max_bytes)
            segments = split_segments(text)
        except RejectedInput as rejection:
            results[index] = rejection
            continue
        batch[index] = [_Start(index, segment, number == 0) for number, segment in enumerate(segments)]
        size += len(text)
        if size >= limits.batch_bytes:
            _parse_batch(logs, batch, results)
            batch = {}
            size = 0
    _parse_batch(logs, batch, results)
    return results


def _with_possible_times(log: Log) -> Log:
    """Return a log without start and end outside of the valid times; nearly always, that is the log itself."""
    if _possible(log.start_us) == log.start_us and _possible(log.end_us) == log.end_us:
        return log
    return replace(log, start_us=_possible(log.start_us), end_us=_possible(log.end_us))


def _possible(time_us: int | None) -> int | None:
    return time_us if time_us is not None and EARLIEST <= time_us < LATEST else None


def _parse_batch(logs: Sequence[Log], batch: dict[int, list[_Start]], results: list[pa.Table | RejectedInput]) -> None:
    """Set the results of a batch of logs."""
    rejected: dict[int, RejectedInput] = {}
    groups: dict[Columns, list[_Start]] = defaultdict(list)
    for index, starts in batch.items():
        try:
            _check_size([start.segment for start in starts])
        except RejectedInput as rejection:
            rejected[index] = rejection
            continue
        for start in starts:
            groups[start.segment.columns].append(start)
    tables: dict[_Start, _StartTable] = {}
    for columns, starts in groups.items():
        for indices, rows in read_rows([start.segment.body for start in starts], columns):
            group = [starts[index] for index in indices]
            times = _times(logs, group, rows)
            rejected.update(times.rejected)
            tables.update(zip(group, _tables(columns, group, rows, times), strict=True))
    for index, starts in batch.items():
        if index in rejected:
            results[index] = rejected[index]
            continue
        try:
            table = _join([start.segment for start in starts], [tables[start] for start in starts])
            _check_run(table, logs[index])
            results[index] = table
        except RejectedInput as rejection:
            results[index] = rejection


def _check_size(segments: Sequence[Segment]) -> None:
    """Check the size of a log's table before it is built.

    A segment has nulls in the columns of the others, so a kilobyte of headers could demand any number of them.

    Raises:
      RejectedInput: ``too_many_restarts`` for too many different headers; ``log_too_wide`` for too many columns of all
        segments together; ``log_too_large`` for too many cells, or too many for the log's size.
    """
    headers = {segment.columns for segment in segments}
    if len(headers) > MAX_LOG_HEADERS:
        raise RejectedInput("too_many_restarts", f"{len(headers)} different headers, at most {MAX_LOG_HEADERS}")
    columns = _count_columns(headers)
    if columns > MAX_LOG_COLUMNS:
        raise RejectedInput("log_too_wide", f"{columns} columns, at most {MAX_LOG_COLUMNS}")
    wide = max(columns, MIN_ROW_CELLS)
    size = sum(segment.size for segment in segments)
    if len(segments) == 1 and size * wide <= MAX_LOG_CELLS:
        return  # the common case: a row has at least a byte
    rows = sum(_max_rows(segment.body) for segment in segments)
    if rows * wide > MAX_LOG_CELLS:
        raise RejectedInput("log_too_large", f"{rows * wide} cells in {rows} rows, at most {MAX_LOG_CELLS}")
    if len(segments) > 1 and rows * columns > size * CELLS_PER_LOG_BYTE:
        raise RejectedInput(
            "log_too_large",
            f"{len(segments)} starts with different columns: {rows * columns} cells for {size} bytes, "
            f"at most {CELLS_PER_LOG_BYTE} per byte",
        )


def _count_columns(headers: Collection[Columns]) -> int:
    """Return the number of columns of all headers together, without time columns."""
    if len(headers) == 1:
        return sum(len(header.names) - header.names.count("") for header in headers)
    return len({name for header in headers for name in header.names if name})


def _max_rows(body: bytes) -> int:
    """Return an upper limit of a body's rows: a carriage return ends one as well."""
    lines = body.count(b"\n")
    return lines if b"\r" not in body else lines + body.count(b"\r") - body.count(b"\r\n")


def _times(logs: Sequence[Log], starts: list[_Start], rows: Rows) -> _RowTimes:
    """Determine the time of each row: from its epoch cell, its time cell, or its position."""
    if rows.epoch is not None:
        utc, ok = read_epochs(with_nans(rows.epoch))
        return _RowTimes(utc, ok, {})
    if rows.time is None:
        return _spaced_times(logs, starts, rows)
    cells = read_cells(rows.time)
    local, ok = _local_times(cells, [_reference(logs[start.log], start.segment) for start in starts], rows)
    ok &= (local >= FIRST_LOCAL) & (local < END_LOCAL)  # before a zone is applied: a bad row affects only itself
    utc = np.where(cells.absolute, cells.instant, local)
    rejected = {}
    for start, where in zip(starts, rows.slices(), strict=True):
        start_ok = ok[where]
        if not start_ok.any():
            continue
        try:
            utc[where][start_ok] = _to_utc(local[where][start_ok], logs[start.log], start.segment)
        except RejectedInput as rejection:
            rejected[start.log] = rejection
    ok |= cells.ok & cells.absolute
    return _RowTimes(utc, ok & (utc >= EARLIEST) & (utc < LATEST), rejected)


def _local_times(cells: Cells, references: list[int | None], rows: Rows) -> tuple[Int64, Bool]:
    """Convert cells to times by the recorder's clock, with a reference time for the rows of each start."""
    start_references = np.array([_NO_TIME if time_us is None else time_us for time_us in references], np.int64)
    reference = np.repeat(start_references, rows.counts)
    local, ok = local_times(cells, np.where(reference == _NO_TIME, 0, reference))
    ok &= (cells.year > 0) | (reference != _NO_TIME)
    clock_only = cells.ok & ~cells.absolute & (cells.month == 0)
    if not clock_only.any():
        return local, ok
    for time_us, where in zip(references, rows.slices(), strict=True):
        if clock_only[where].any():  # days are counted within one start of the recorder
            ok[where] = False
            if time_us is not None:
                local[where], ok[where] = local_times(cells[where], time_us)
    return local, ok


def _to_utc(local: Int64, log: Log, segment: Segment) -> Int64:
    return to_utc(local, segment.date_us, segment.zone, log.start_us, log.end_us, log.zone)


def _reference(log: Log, segment: Segment) -> int | None:
    """Return a local time near the samples of a segment; within a day is close enough."""
    if segment.near_us is not None:
        return segment.near_us
    start_us = log.start_us if log.start_us is not None else log.end_us
    return start_us if start_us is None else start_us + (fixed_offset(segment.zone or log.zone or "") or 0)


def _spaced_times(logs: Sequence[Log], starts: list[_Start], rows: Rows) -> _RowTimes:
    """Determine times without a time column: from the recorder's start, at its configured interval."""
    utc = np.zeros(sum(rows.counts), np.int64)
    for start, where in zip(starts, rows.slices(), strict=True):
        first_us = _first_time(logs[start.log], start)
        if first_us is not None:
            steps = np.arange(where.stop - where.start) * (start.segment.interval_s * SECOND)
            utc[where] = first_us + np.rint(np.minimum(steps, float(LATEST))).astype(np.int64)
    return _RowTimes(utc, (utc >= EARLIEST) & (utc < LATEST), {})


def _first_time(log: Log, start: _Start) -> int | None:
    """Return the time of a start's first row in µs UTC, by its header's date or else by the run; None if unknown."""
    if start.segment.date_us is not None:
        try:
            return int(_to_utc(np.array([start.segment.date_us], np.int64), log, start.segment)[0])
        except RejectedInput:
            pass  # the date is ambiguous: the run's start decides
    return log.start_us if start.is_first else None


def _tables(columns: Columns, starts: list[_Start], rows: Rows, times: _RowTimes) -> Iterator[_StartTable]:
    """Yield the table of each start, from the rows of all."""
    boot = np.zeros(len(times.utc), np.bool_)
    for where, has_first_row in zip(rows.slices(), rows.has_first, strict=True):
        if where.start < where.stop:
            boot[where.start] = has_first_row
    names = [name for name in columns.names if name]
    time = pa.Array.from_buffers(_TIME_TYPE, len(times.utc), [None, pa.py_buffer(times.utc)])
    table = pa.Table.from_arrays([time, _arrow_bools(boot), *rows.values], names=[TIME, BOOT, *names])
    nullable = [index for index, column in enumerate(rows.values, 2) if column.null_count]
    all_have_times = bool(times.ok.all())
    for start, where, dropped in zip(starts, rows.slices(), rows.dropped, strict=True):
        start_table = table.slice(where.start, where.stop - where.start)
        if not all_have_times and not times.ok[where].all():
            start_table = start_table.filter(_arrow_bools(times.ok[where]))
        without_time = where.stop - where.start - start_table.num_rows
        nulls = sum(start_table.column(index).null_count for index in nullable)
        yield _StartTable(start_table, dropped + without_time + start.segment.torn, without_time, nulls)


def _arrow_bools(values: Bool) -> pa.Array:
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _packed(values)])


def _packed(values: Bool) -> pa.Buffer:
    """Pack booleans to bits as Arrow does."""
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def _join(segments: list[Segment], starts: list[_StartTable]) -> pa.Table:
    """Join the tables of a log's segments.

    Raises:
      RejectedInput: ``no_time`` or ``empty_telemetry``, for a log without a usable sample.
    """
    tables = [start.table for start in starts if start.table.num_rows]
    dropped = sum(start.dropped for start in starts)
    nulls = sum(start.nulls for start in starts)
    if not tables:
        without_time = sum(start.without_time for start in starts)
        if without_time:
            why = "no readable time cell, no date and no start of the event"
            raise RejectedInput("no_time", f"none of {without_time} rows has a time: {why}")
        raise RejectedInput("empty_telemetry", f"no sample ({dropped} rows dropped)" if dropped else "no sample")
    if nulls >= sum(table.num_rows * (table.num_columns - 2) for table in tables):
        raise RejectedInput("empty_telemetry", "no cell is a finite number")
    table = tables[0] if len(tables) == 1 else _join_tables(tables)
    metadata = {
        "recorder": next((segment.recorder for segment in segments if segment.recorder), ""),
        "starts": str(len(segments)),
        "dropped_rows": str(dropped),
        "null_cells": str(nulls),
    }
    return table.replace_schema_metadata(metadata)


def _join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Join tables, at least two, with nulls for the columns that one lacks. Linear in the cells of the result.

    (For Arrow, a column that a table lacks is a chunk of that column; thousands of starts would have millions.)
    """
    if all(table.schema.equals(tables[0].schema) for table in tables):
        return pa.concat_tables(tables).combine_chunks()
    names = list(dict.fromkeys(name for table in tables for name in telemetry_columns(table.column_names)))
    index_of = {name: index for index, name in enumerate(names)}
    values = np.full((len(names), sum(table.num_rows for table in tables)), np.nan)
    begin = 0
    for table in tables:
        end = begin + table.num_rows
        for name in telemetry_columns(table.column_names):
            values[index_of[name], begin:end] = with_nans(table.column(name).combine_chunks())
        begin = end
    own_columns = pa.concat_tables([table.select(OWN_COLUMNS) for table in tables]).combine_chunks()
    return pa.Table.from_arrays(
        [*own_columns.columns, *map(_arrow_floats, values)], names=[*own_columns.column_names, *names]
    )


def _arrow_floats(column: np.ndarray) -> pa.Array:
    """Convert float64 [n] to Arrow without a copy; NaN becomes null."""
    valid = ~np.isnan(column)
    validity = None if valid.all() else _packed(valid)
    return pa.Array.from_buffers(pa.float64(), len(column), [validity, pa.py_buffer(column)])


def _check_run(table: pa.Table, log: Log) -> None:
    """Raise `RejectedInput` (``outside_run``) if no sample is near the run: it is another run's log."""
    run_times = [time_us for time_us in (log.start_us, log.end_us) if time_us is not None]
    if not run_times:
        return
    span = pc.min_max(table.column(TIME).cast(pa.int64()))
    first = span["min"].as_py()
    last = span["max"].as_py()
    skew = MAX_CLOCK_SKEW_S * SECOND
    if last < run_times[0] - skew or first > run_times[-1] + skew:
        raise RejectedInput(
            "outside_run",
            f"the samples are of {iso_time(first)} to {iso_time(last)}, the run is of "
            f"{' to '.join(map(iso_time, run_times))}; a clock may differ by {MAX_CLOCK_SKEW_S:,} s: correct the run's "
            "times or its log",
        )


def parse(batch: Batch) -> Batch:
    """Parse the logs of a batch's pending runs: ``log`` becomes ``telemetry``.

    Returns:
      The batch; a rejected log has become a dead letter with the parser's reason.
    """
    if not batch.pending_runs:
        return batch
    logs = [Log(run.log or b"", run.mention.start_us, run.mention.end_us) for run in batch.pending_runs]
    parsed: list[PendingRun] = []
    settled = list(batch.settled)
    for pending, result in zip(batch.pending_runs, parse_logs(logs), strict=True):
        pending.log = None
        if isinstance(result, RejectedInput):
            drop_frames(result)
            payload = payload_of(pending.message) if pending.message else None
            settled.append(pending.outcome("dead_letter", result.reason, result.detail, payload=payload))
        else:
            pending.telemetry = result
            parsed.append(pending)
    return Batch(batch.covers, batch.messages, parsed, settled)


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
      start_us, end_us, zone: the same for all files, as in `ciml.transforms.parse.logs.Log`.

    Yields:
      For each path, in order, its table as from `ciml.transforms.parse.logs.parse_logs`, or its rejection: with a
      reason of the parser, or ``log_not_found``, ``log_unavailable``, ``log_too_large``, ``corrupt_gzip``.

    Raises:
      CimlError: for an unknown zone.
    """
    if zone is not None:
        check_zone(zone)
    part: list[Log | RejectedInput] = []
    size = 0
    for path in paths:
        data = _read(os.fspath(path))
        if isinstance(data, RejectedInput):
            part.append(data)
            continue
        part.append(Log(data, start_us, end_us, zone))
        size += len(data)
        if size >= PART_BYTES:
            yield from _parse_part(part)
            part = []
            size = 0
    yield from _parse_part(part)


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


def _parse_part(part: Sequence[Log | RejectedInput]) -> Iterator[pa.Table | RejectedInput]:
    tables: list[pa.Table | RejectedInput] = []
    for _, parsed in bisect("parse", [log for log in part if isinstance(log, Log)], parse_logs):
        tables += [parsed] if isinstance(parsed, RejectedInput) else parsed
    remaining = iter(tables)
    for entry in part:
        yield next(remaining) if isinstance(entry, Log) else entry

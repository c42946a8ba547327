"""The examples of spans: make them from the raw store, then write, read and verify their Parquet files.

A span version has one file for each split. Its record in the manifest (`SpanVersion`) names the files, and each file's
digest covers its rows, not its bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ciml.datasets.definition import SPLITS, ResolvedDefinition
from ciml.datasets.schema import example_schema, schema_of
from ciml.datasets.state import ExampleFile, SpanRun, SpanVersion, span_folder
from ciml.digest import row_digests, sha256_json
from ciml.errors import IntegrityError, RejectedInput
from ciml.events.records import RunFacts
from ciml.runs.arrow import read_parquet
from ciml.runs.reader import Joined, read_joined
from ciml.runs.writer import is_sealed, seal, unreadable, unsealed
from ciml.storage import Store
from ciml.telemetry import OWN_COLUMNS
from ciml.transforms.examples.changes import SelectedRun
from ciml.transforms.examples.context import with_context
from ciml.transforms.examples.downsample import Windows, downsample, downsample_joined, merge_windows
from ciml.transforms.examples.plan import SpanPlan
from ciml.transforms.examples.prepare import (
    HELD_FACTS,
    Examples,
    Excluded,
    examples_from,
    run_facts,
)
from ciml.transforms.guard import bisect
from ciml.transforms.logs.run_outputs import StoredOutputs

#: Limits of the examples that are made at a time.
_BATCH_BYTES = 64 << 20
_BATCH_RUNS = 5000
#: Size of a row group before compression: writing takes as much memory again.
_GROUP_BYTES = 4 << 20


def batches_of(plan: SpanPlan, resolved: ResolvedDefinition) -> Iterator[SpanPlan]:
    """Split a span into parts whose examples fit in memory."""
    size = min(_BATCH_RUNS, max(1, _BATCH_BYTES // (4 * resolved.windows * len(resolved.features))))
    for start in range(0, len(plan.runs), size):
        yield SpanPlan(plan.span, plan.version, plan.runs[start : start + size])


def examples_of(raw: Store, plan: SpanPlan, resolved: ResolvedDefinition) -> Examples:
    """Make the examples of a plan's runs from their stored telemetry."""

    def windows_of(indices: Sequence[int]) -> Windows:
        return _stored_windows(raw, [plan.runs[index] for index in indices], resolved)

    return examples_from([run.mention for run in plan.runs], windows_of, resolved)


def lengths_of(raw: Store, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> np.ndarray:
    """Return the number of windows of each run, int64 [n], at most L; 0 for a run without an example."""
    counts: list[np.ndarray] = []
    start = 0
    while start < len(runs):
        end = start
        size = 0
        while end < len(runs) and (end == start or size < _BATCH_BYTES):
            size += 8 * runs[end].file.rows * (1 + len(resolved.columns))
            end += 1
        counts.append(_stored_windows(raw, runs[start:end], resolved).n_windows)
        start = end
    return np.concatenate([np.zeros(0, np.int64), *counts])


def _stored_windows(raw: Store, runs: Sequence[SelectedRun], resolved: ResolvedDefinition) -> Windows:
    output_of = StoredOutputs(raw, {run.run_id: run.output for run in runs})
    parts = []
    for batch in read_joined(raw, [run.file for run in runs], columns=[*OWN_COLUMNS, *resolved.columns]):
        if isinstance(batch, Joined):
            indices = batch.indices
            tables = list(_tables_of(batch)) if resolved.definition.context else []
            windows = downsample_joined(batch.table, np.array(batch.rows), resolved)
        else:
            indices = [index for index, _ in batch]
            tables = [table for _, table in batch]
            windows = downsample(tables, resolved)
        facts = [runs[index].mention for index in indices]
        neighbours = [runs[index].near for index in indices]
        parts.append((np.array(indices), with_context(windows, facts, tables, resolved, neighbours, output_of)))
    if not parts:
        return with_context(downsample([], resolved), [], [], resolved)
    return merge_windows(parts, len(runs))


def _tables_of(joined: Joined) -> Iterator[pa.Table]:
    """Yield the table of each joined run, without a copy."""
    start = 0
    for rows in joined.rows:
        yield joined.table.slice(start, rows)
        start += rows


def guarded_examples(plan: SpanPlan, make: Callable[[SpanPlan], Examples], resolved: ResolvedDefinition) -> Examples:
    """Make the examples of a plan's runs; a run for which ``make`` fails does not affect others.

    Args:
      plan: the runs.
      make: makes the examples; the result of a run must not depend on other runs.
      resolved: the definition.

    Returns:
      The result of ``make``; a run with an unexpected exception (`ciml.transforms.guard`) is excluded as
      ``internal_error``.
    """
    parts: list[Examples] = []
    for runs, examples in bisect("examples", plan.runs, lambda runs: make(replace(plan, runs=tuple(runs)))):
        if isinstance(examples, RejectedInput):
            excluded = Excluded(runs[0].run_id, examples.reason, examples.detail)
            examples = Examples(schema_of(resolved).empty_table(), (excluded,))
        parts.append(examples)
    if len(parts) == 1:
        return parts[0]
    table = pa.concat_tables([part.table for part in parts])
    splits = table.column("split").to_pylist()
    by_split = sorted(range(len(splits)), key=lambda row: SPLITS.index(splits[row]))
    all_excluded = tuple(excluded for part in parts for excluded in part.excluded)
    return Examples(table.take(pa.array(by_split, pa.int64())), all_excluded)


def result_path(results: str, span: int, version: int) -> str:
    """Return the path where a pipeline stores the record of a span version until it is committed."""
    return f"{results}/{span}-{version}.json"


def write_span(root: Store, plan: SpanPlan, parts: Sequence[Examples], resolved: ResolvedDefinition) -> SpanVersion:
    """Write a span's files, named by content and created exclusively; return the span's record for the manifest.

    Args:
      root: the data set's folder.
      plan: the span, and its selected runs.
      parts: the examples of its runs, in order.
      resolved: the definition.

    Raises:
      IntegrityError: if examples and exclusions together differ from the selected runs.
    """
    excluded = tuple(exclusion.to_json() for part in parts for exclusion in part.excluded)
    tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    runs_of: dict[str, list[SpanRun]] = {split: [] for split in SPLITS}
    for part in parts:
        for split, table in _of_splits(part.table):
            tables[split].append(table)
            runs_of[split] += _span_runs(table)
    facts = {run.run_id: run.mention for run in plan.runs}
    span_runs = {run.run_id: run for runs in runs_of.values() for run in runs}
    run_ids = span_runs.keys() | {exclusion["run_id"] for exclusion in excluded}
    count = sum(part.table.num_rows for part in parts) + len(excluded)
    if run_ids != facts.keys() or count != len(facts):
        raise IntegrityError(f"{root.url()}: the examples of span {plan.span} differ from its selected runs")
    files: dict[str, tuple[ExampleFile, ...]] = {}
    for split in SPLITS:  # one after another: two threads are hardly faster, and take twice the memory
        if tables[split]:
            table = pa.concat_tables(tables[split])
            digest = _rows_digest(runs_of[split], facts)
            path = f"{span_folder(plan.span, plan.version)}/{split}/examples-{digest[:16]}.parquet"
            root.create(path, write_examples(table, path))  # an existing file has the same rows
            files[split] = (ExampleFile(path, digest, table.num_rows),)
    positions = tuple(run.position for run in plan.runs)
    in_order = tuple(span_runs[run_id] for run_id in facts if run_id in span_runs)
    return SpanVersion(plan.span, plan.version, positions, in_order, excluded, files)


def _of_splits(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield each split that has rows, and its rows, which are adjacent."""
    splits = table.column("split").to_pylist()
    for split in SPLITS:
        count = splits.count(split)
        if not count:
            continue
        first = splits.index(split)
        if splits[first : first + count] != [split] * count:
            raise IntegrityError("examples are not grouped by split")
        yield split, table.slice(first, count)


def _span_runs(table: pa.Table) -> list[SpanRun]:
    names = ["run_id", "build_name", "split", "label", "label_name", "n_windows", "digest"]
    columns = [table.column(name).to_pylist() for name in names]
    return [SpanRun(*row) for row in zip(*columns, strict=True)]


def write_examples(table: pa.Table, path: str) -> bytes:
    """Encode examples as a Parquet file with a seal (`ciml.runs.writer`) for a path."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=[field.name for field in table.schema if field.type == pa.string()],
        write_statistics=False,
        write_page_checksum=True,
        version="2.6",
    ) as writer:
        writer.write_table(table, row_group_size=max(1, _GROUP_BYTES * table.num_rows // table.nbytes))
        writer.add_key_value_metadata(unsealed(path))
    return seal(bytes(sink.getvalue()))


def rows_digest(table: pa.Table) -> str:
    """Return the digest of examples: of all metadata of each row, and by its ``digest`` of the arrays."""
    names = ["split", "label", "label_name", "n_windows", "digest"]
    rows = table.select(names).to_pylist()
    facts = [facts.to_json() for facts in run_facts(table)]
    return sha256_json([[*row.values(), fields] for row, fields in zip(rows, facts, strict=True)])


def _rows_digest(runs: Sequence[SpanRun], facts: Mapping[str, RunFacts]) -> str:
    """Return `rows_digest` from the facts of runs. orjson encodes these values as `canonical_json` does."""
    rows = []
    for run, fields in zip(runs, msgspec.to_builtins([facts[run.run_id] for run in runs]), strict=True):
        held = {name: value for name, value in fields.items() if name in HELD_FACTS}
        held["phase"] = "finished"  # the default, as in `run_facts`
        rows.append([run.split, run.label, run.label_name, run.n_windows, run.digest, held])
    return hashlib.sha256(orjson.dumps(rows, option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_span(
    root: Store, span: SpanVersion, *, splits: Sequence[str] = SPLITS, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the examples of a span, split by split, each in the order of the raw manifest.

    Args:
      root: the data set's folder (`ciml.data_root.StoredDataset.store`).
      span: the version to read (`ciml.datasets.state.DatasetState.latest`).
      splits: which of ``train``, ``dev`` and ``test``.
      columns: only these; all by default.

    Raises:
      IntegrityError: if a file is missing or damaged, or its rows differ from the manifest.
    """
    files = [file for split in splits for file in span.files.get(split, ())]
    with ThreadPoolExecutor(max(1, len(files))) as pool:
        tables = list(pool.map(lambda file: read_examples(root, file, columns), files))
    if not tables:
        raise IntegrityError(f"{root.url(span.folder)} has no examples in {', '.join(splits)}")
    return pa.concat_tables(tables)


def read_examples(root: Store, file: ExampleFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of one file.

    The seal of a file is checked before it is parsed. A file of an older version has none: it is read as a whole, and
    compared with its digest.

    Raises:
      IntegrityError: if it is missing or damaged, or its rows differ from the manifest.
    """
    table, is_old = _read_file(root, file, columns)
    url = root.url(file.path)
    if is_old and (faults := _faults(table, file.digest)):
        raise IntegrityError(f"{url}: {faults[0]}; restore a backup")
    for name in columns or ():
        if name not in table.column_names:
            raise IntegrityError(f"{url} has no column {name!r}")
    return table if columns is None else table.select(list(columns))


def _read_file(root: Store, file: ExampleFile, columns: Sequence[str] | None = None) -> tuple[pa.Table, bool]:
    """Read a file, and return whether it is of an older version: then all columns, unchecked."""
    url = root.url(file.path)
    try:
        data = root.read(file.path)
        is_old = not is_sealed(data, file.path, url)
        table = read_parquet(data, None if is_old else columns).replace_schema_metadata(None)
    except FileNotFoundError:
        raise IntegrityError(f"{url} is in the manifest but does not exist") from None
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
        raise unreadable(url, error) from None
    if table.num_rows != file.rows:
        raise IntegrityError(f"{url} has {table.num_rows} rows, the manifest says {file.rows}; restore a backup")
    return table, is_old


def _faults(table: pa.Table, file_digest: str) -> list[str]:
    """List the differences of examples from their digest in the manifest, and of arrays from their row's digest."""
    schema = table.schema
    features = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    expected = example_schema(features, schema.field(features[0]).type.list_size) if features else None
    if schema != expected:
        return ["unexpected columns"]
    if any(table.column(field.name).null_count for field in schema if not field.nullable):
        return ["values are missing"]
    try:
        if rows_digest(table) != file_digest:
            return ["the rows differ from the digest in the manifest"]
        unrolled = np.stack([_flat(table.column(name)).reshape(table.num_rows, -1) for name in features])
        run_ids, n_windows, digests = (table.column(name).to_pylist() for name in ("run_id", "n_windows", "digest"))
        actual_digests = list(row_digests(run_ids, unrolled, features, n_windows))
    except (pa.ArrowException, ValueError) as error:  # a text that is not UTF-8, a time out of range, a null in a list
        return [f"invalid values: {error!s:.100}"]
    return [
        f"the arrays of {run_id} differ from their digest"
        for run_id, actual_digest, digest in zip(run_ids, actual_digests, digests, strict=True)
        if actual_digest != digest
    ]


def inputs_of(examples: pa.Table, resolved: ResolvedDefinition) -> np.ndarray:
    """Return the features of examples as input of a model: float32 [rows, L, F], not normalised."""
    inputs = np.empty((examples.num_rows, resolved.windows, len(resolved.features)), np.float32)
    for index, name in enumerate(resolved.features):
        inputs[:, :, index] = _flat(examples.column(name)).reshape(-1, resolved.windows)
    return inputs


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return np.from_dlpack(array.flatten()) if len(array) else np.zeros(0, np.float32)


def verify_span(
    root: Store, span: SpanVersion, resolved: ResolvedDefinition, formats: Counter[str] | None = None
) -> list[str]:
    """List the faults of a span's files, one line each: missing or unreadable files, other columns, other rows.

    Args:
      root: the data set's folder.
      span: the version to verify.
      resolved: the data set's definition.
      formats: counts the undamaged files by format (docs/compatibility.md): 2 has a seal, 1 has none.
    """
    all_faults: list[str] = []
    stored: set[tuple[str, str, int, str]] = set()
    for split, files in span.files.items():
        for file in files:
            try:
                table, is_old = _read_file(root, file)
            except IntegrityError as error:
                all_faults.append(str(error))
                continue
            if not table.schema.equals(schema_of(resolved)):
                all_faults.append(f"{root.url(file.path)} has other columns than the resolved definition")
                continue
            faults = _faults(table, file.digest)
            all_faults += [f"{root.url(file.path)}: {fault}" for fault in faults]
            if faults:
                continue
            if formats is not None:
                formats["1" if is_old else "2"] += 1
            run_ids, n_windows, digests = (table.column(name).to_pylist() for name in ("run_id", "n_windows", "digest"))
            for run_id, count, digest in zip(run_ids, n_windows, digests, strict=True):
                stored.add((run_id, split, count, digest))
    recorded = {(run.run_id, run.split, run.n_windows, run.digest) for run in span.runs}
    if not all_faults and stored != recorded:
        all_faults.append(f"{root.url(span.folder)}: the files hold other runs than the manifest")
    return all_faults

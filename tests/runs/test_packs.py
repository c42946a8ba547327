"""Packs: every run comes back as it went in, and only what is asked for is read."""

from __future__ import annotations

import gc
import hashlib
import shutil
import struct
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import RawFile
from ciml.runs.pack_index import (
    NamedRun,
    PackFile,
    PackState,
    day_ends_s,
    named_runs,
    pack_log,
    pack_state,
    run_of,
    split_path,
)
from ciml.runs.packing import GROUP_ROWS, PackWriter, columns_digest
from ciml.runs.packs import OpenPack, open_pack
from ciml.runs.reader import read_run, read_runs, verify_run
from ciml.runs.writer import write_run
from ciml.storage import LocalStore
from tests.runs.stored import OLD, runs_of
from tests.tier import tries
from tests.transforms import samples
from tests.transforms.samples import USR, corpus

FOLDER = "job=a/date=2020-01-01"
RUNS = 120


def table(usr: Sequence[float | None], *, metadata: Any = None, **more: Sequence[float | None]) -> pa.Table:
    times = [at * 1_000_000 for at in range(len(usr))]
    made = samples.table(times, boot=[at == 0 for at in range(len(usr))], usr=usr, **more)
    return made.replace_schema_metadata(metadata)


def stored(one: pa.Table) -> pa.Table:
    """Return the table as `read_run` gives it for an object of its own."""
    parquet = pq.ParquetFile(pa.BufferReader(write_run(one)))
    return parquet.read().replace_schema_metadata(parquet.metadata.metadata)


def file_of(run_id: str, one: pa.Table) -> RawFile:
    digest = telemetry_digest(run_id, one)
    return RawFile(f"runs/{FOLDER}/{run_id}.{digest[:16]}.parquet", digest, one.num_rows, 0)


def packed(runs: Mapping[str, pa.Table]) -> tuple[PackFile, bytes]:
    writer = PackWriter(FOLDER, next(iter(runs.values())).schema)
    for run_id, one in runs.items():
        file = file_of(run_id, one)
        writer.add(file.path.rpartition("/")[2], file.digest, one)
    return writer.finish()


def write_pack(raw: LocalStore, runs: Mapping[str, pa.Table]) -> tuple[OpenPack, bytes]:
    """Write a pack that no manifest names."""
    file, data = packed(runs)
    raw.create(file.path, data)
    return open_pack(raw, file), data


def keep(raw: LocalStore, *packs: tuple[PackFile, bytes], replaces: Sequence[str] = ()) -> None:
    """Write packs and commit them."""
    log = pack_log(raw, FOLDER)
    for file, data in packs:
        raw.create(file.path, data)
    delta = {"time_us": 7, "packs": [file.to_json() for file, _ in packs], "replaces": list(replaces), "alone": {}}
    assert log.try_append(1 + sum(1 for _ in log.since(0)), delta)


def same(one: pa.Table, other: pa.Table) -> bool:
    """Return whether tables are equal bit for bit, with schema and metadata."""
    if not one.schema.equals(other.schema, check_metadata=True) or one.num_rows != other.num_rows:
        return False
    return telemetry_digest("r", one) == telemetry_digest("r", other)


class Watched(LocalStore):
    """Counts what is read."""

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.read_from: list[tuple[str, int]] = []

    def read(self, path: str) -> bytes:
        data = super().read(path)
        self.read_from.append((path, len(data)))
        return data

    def read_range(self, path: str, start: int, size: int) -> bytes:
        data = super().read_range(path, start, size)
        self.read_from.append((path, len(data)))
        return data


def test_real_runs_come_back_as_they_were(tmp_path: Path) -> None:
    run_facts, tables, _ = corpus(RUNS)
    runs = {run.run_id: one for run, one in zip(run_facts, tables, strict=True)}
    file, data = packed(runs)
    raw = Watched(tmp_path)
    keep(raw, (file, data))
    assert (file.runs, file.rows, file.size) == (RUNS, sum(one.num_rows for one in tables), len(data))
    assert len(data) < 0.5 * sum(len(write_run(one)) for one in tables)
    files = [file_of(run_id, one) for run_id, one in runs.items()]
    found = read_runs(raw, files)
    assert all(got.equals(one, check_metadata=True) for got, one in zip(found, tables, strict=True))
    assert [path for path, _ in raw.read_from if path == file.path] == [file.path] * 2  # its description, its runs
    assert all(same(got, stored(one)) for got, one in zip(found, tables, strict=True))
    assert [verify_run(raw, run_id, one) for run_id, one in zip(runs, files, strict=True)] == [""] * RUNS
    chosen = (RUNS - 1, 3, 3, 70, 0)  # any order, any columns, the same one twice
    narrow = read_runs(raw, [files[at] for at in chosen], columns=["load avg:1m", "time", "no such column"])
    for got, at in zip(narrow, chosen, strict=True):
        assert got.column_names == ["load avg:1m", "time"]
        assert got.equals(tables[at].select(["load avg:1m", "time"]), check_metadata=True)
    assert read_run(raw, files[7].path).equals(tables[7], check_metadata=True)
    assert read_runs(raw, files, threads=4) == found


ODD_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0123))[0]
cells = st.none() | st.floats(width=64) | st.sampled_from([-0.0, float("nan"), ODD_NAN, float("inf")])
metas = st.none() | st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=6), max_size=3)


@settings(max_examples=tries(80))
@given(st.lists(st.tuples(st.lists(cells, max_size=6), metas), min_size=1, max_size=6), st.data())
def test_runs_of_every_content_are_packed(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], data: st.DataObject
) -> None:
    runs = {f"zuul~{at}.x~1": stored(table(usr, metadata=meta)) for at, (usr, meta) in enumerate(made)}
    raw = LocalStore(tmp_path_factory.mktemp("raw"))
    pack, _ = write_pack(raw, runs)
    assert [(run_of(run.name), run.rows) for run in pack.runs] == [(r, t.num_rows) for r, t in runs.items()]
    numbers = data.draw(st.lists(st.integers(0, len(runs) - 1), unique=True))
    found = pack.read(raw, numbers, None)
    assert sorted(found) == sorted(numbers)
    assert all(same(found[number], list(runs.values())[number]) for number in numbers)


def test_row_groups_have_a_bound_and_other_programs_see_whose_rows_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lengths = [20_000, 20_000, 100, GROUP_ROWS * 2 + 1, 5, 0, 7]
    runs = {f"zuul~{at}~1": stored(table(rng.normal(size=rows).tolist())) for at, rows in enumerate(lengths)}
    raw = Watched(tmp_path)
    pack, data = write_pack(raw, runs)
    described = pq.read_metadata(pa.BufferReader(data))
    groups = [described.row_group(at).num_rows for at in range(described.num_row_groups)]
    assert groups == [40_000, 100 + GROUP_ROWS * 2 + 1, 12]  # a group ends with a run
    for number, one in enumerate(runs.values()):
        assert same(pack.read(raw, [number], None)[number], one)
    raw.read_from.clear()
    pack.read(raw, [6], ["time"])
    assert sum(size for _, size in raw.read_from) < 200  # of a megabyte

    whole = pq.read_table(pa.BufferReader(data))
    assert whole.column_names == ["time", "boot", USR, "run_id", "digest"]
    assert whole.schema.field("run_id").type == pa.string()
    assert whole.column(USR).to_pylist() == [value for one in runs.values() for value in one.column(USR).to_pylist()]
    rows = list(zip(whole.column("run_id").to_pylist(), whole.column("digest").to_pylist(), strict=True))
    digests = {run_id: telemetry_digest(run_id, one) for run_id, one in runs.items()}
    assert rows == [(run_id, digests[run_id]) for run_id, one in runs.items() for _ in range(len(one))]
    assert pack.names == ("time", "boot", USR)


def test_a_log_with_a_column_of_that_name_is_a_pack_without_run_ids(tmp_path: Path) -> None:
    one = table([1.0, 2.0], run_id=[3.0, 4.0])
    pack, data = write_pack(LocalStore(tmp_path), {"zuul~1~1": one})
    assert pq.read_table(pa.BufferReader(data)).column_names == one.column_names
    assert (pack.names, pack.renewable) == (tuple(one.column_names), False)


def test_a_few_runs_do_not_keep_the_others_in_memory(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    pack, _ = write_pack(raw, {f"zuul~{at}~1": stored(table([1.0] * 100)) for at in range(300)})
    assert pack.read(raw, [7], None)[7].get_total_buffer_size() < 3000
    assert all(one.get_total_buffer_size() > 100_000 for one in pack.read(raw, range(300), None).values())


def test_an_opened_pack_is_freed_at_once(tmp_path: Path) -> None:
    """A build opens packs of megabytes a second; it collects cycles once in a million objects."""
    run_facts, tables, _ = corpus(20)
    raw = LocalStore(tmp_path)
    pack, _ = write_pack(raw, {run.run_id: one for run, one in zip(run_facts, tables, strict=True)})
    gc.collect()
    gc.disable()
    try:
        pack = open_pack(raw, pack.file)
        pack.read(raw, [3, 4], [USR])
        pack.read_joined(raw, [3, 4], [USR])
        known = weakref.ref(pack.schema), weakref.ref(pack)
        del pack
        assert [each() for each in known] == [None, None]
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [type(each).__name__ for each in gc.garbage if "arquet" in type(each).__module__] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_run_that_does_not_read_back_unchanged_is_not_packed() -> None:
    one = table([1.0, 2.0])
    writer = PackWriter(FOLDER, one.schema)
    writer.add("zuul~1~1.0123456789abcdef.parquet", "0" * 64, one)
    with pytest.raises(IntegrityError, match="does not read back from the pack unchanged"):
        writer.finish()


def test_equal_runs_are_an_equal_pack_and_other_columns_another_pack() -> None:
    runs = {f"zuul~{at}~1": table([at, 1.0], metadata={"recorder": "dool"}) for at in range(9)}
    assert packed(runs) == packed({run_id: pa.concat_tables([one[:1], one[1:]]) for run_id, one in runs.items()})
    one, other = table([1.0]), table([1.0], more=[2.0])
    assert columns_digest(one.schema) == columns_digest(one.replace_schema_metadata({"a": "b"}).schema)
    assert len({columns_digest(each.schema) for each in (one, other, other.select(["time"]), one.slice(0, 0))}) == 3


def test_exchanged_pages_are_an_error(tmp_path: Path) -> None:
    """Each is whole, header and checksum, so Parquet's reader has nothing to report."""
    file, data = packed({"zuul~1~1": table([0.1, 0.7, 0.3], other=[0.2, 0.9, 0.4])})
    chunks = [pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(at) for at in (2, 3)]
    (start, size), (other, same_size) = ((chunk.data_page_offset, chunk.total_compressed_size) for chunk in chunks)
    assert (start + size, size) == (other, same_size)
    raw = LocalStore(tmp_path)
    raw.create(file.path, data[:start] + data[other : other + size] + data[start:other] + data[other + size :])
    for read in (lambda pack: pack.read(raw, [0], None), lambda pack: pack.read_joined(raw, [0], ["other"])):
        with pytest.raises(IntegrityError, match="differs from its digest; restore a backup"):
            read(open_pack(raw, file))


def test_a_pack_of_an_older_version_is_read_whole_once(tmp_path: Path) -> None:
    shutil.copytree(OLD / "raw", tmp_path / "raw")
    raw = Watched(tmp_path / "raw")
    (run, *_) = runs_of(raw)
    for columns in (None, ["time"]):
        assert read_runs(raw, [RawFile(run.path, run.digest, run.rows, 0)], columns=columns)[0].num_rows == run.rows
    (file,) = pack_state(raw, run.folder).packs.values()
    assert [size for path, size in raw.read_from if path == file.path].count(file.size) == 1
    data = bytearray(raw.read(file.path))
    data[40] ^= 1  # it has no checksums, so its name proves its bytes
    raw.replace(file.path, bytes(data))
    with pytest.raises(IntegrityError, match="differs from its digest; restore a backup"):
        open_pack(raw, file).read(raw, [0], None)


def test_a_pack_that_is_not_that_of_the_manifest_is_an_error() -> None:
    file, data = packed({"zuul~1~1": table([1.0])})
    for wrong in (file.replace(rows=2), file.replace(runs=2)):
        with pytest.raises(IntegrityError, match="which differs from its manifest"):
            OpenPack(wrong, data[-file.footer :])
    for footer in (b"", data[-file.footer + 9 :], data[:-8]):
        with pytest.raises(IntegrityError, match="differs from the digest in its manifest"):
            OpenPack(file, footer)
    other = write_run(table([1.0]))  # a file of Parquet, and no pack
    footer = other[-int.from_bytes(other[-8:-4], "little") - 8 :]
    with pytest.raises(IntegrityError, match="cannot be read as a pack"):
        OpenPack(file.replace(footer_digest=hashlib.sha256(footer).hexdigest()[:32]), footer)


def test_runs_in_packs_and_out_of_them_in_the_order_given(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = {f"zuul~{at}~1": table([at, at + 0.5]) for at in range(6)}
    keep(raw, packed({run_id: runs[run_id] for run_id in list(runs)[:2]}), packed({"zuul~3~1": runs["zuul~3~1"]}))
    paths = [file_of(run_id, one).path for run_id, one in runs.items()]
    paths[5] = "elsewhere"
    for at in (2, 4, 5):
        raw.create(paths[at], write_run(runs[f"zuul~{at}~1"]))
    for order in ([5, 4, 3, 2, 1, 0], [0, 2, 0], [3], []):
        found = read_runs(raw, [paths[at] for at in order])
        assert [one.column(2)[0].as_py() for one in found] == order
    bad = RawFile(paths[0], "", 3, 0)
    for read in (lambda: read_runs(raw, [paths[1], bad]), lambda: read_run(raw, bad)):
        with pytest.raises(IntegrityError, match="has 2 rows, the manifest says 3"):
            read()
    for path in (f"runs/{FOLDER}/zuul~9~1.0123456789abcdef.parquet", "nowhere"):
        with pytest.raises(IntegrityError, match="is in the manifest but does not exist"):
            read_runs(raw, [paths[0], path])


def test_a_run_that_moves_while_it_is_known_elsewhere(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = {f"zuul~{at}~1": table([at, at + 0.5]) for at in range(4)}
    paths = [file_of(run_id, one).path for run_id, one in runs.items()]
    tables = list(runs.values())
    for path, one in zip(paths, tables, strict=True):
        raw.create(path, write_run(one))
    assert read_runs(raw, paths) == tables  # there are no packs, and this process knows it
    small = [packed({run_id: one}) for run_id, one in runs.items()]
    keep(raw, *small)
    for path in paths:
        raw.delete(path)
    assert read_run(raw, paths[2]) == tables[2]
    assert read_runs(raw, paths) == tables
    keep(raw, packed(runs), replaces=[file.path for file, _ in small])
    for file, _ in small:
        raw.delete(file.path)
    assert read_run(raw, paths[1]) == tables[1]
    assert read_runs(raw, paths) == tables


def test_paths_of_runs() -> None:
    assert split_path("runs/job=a/date=b/c.d") == ("job=a/date=b", "c.d")
    assert [split_path(path) for path in ("x", "runs/job=a/c", "runs/a/date=b/c", "packs/job=a/date=b/c")] == [None] * 4
    assert run_of("zuul~1.2~1.0123456789abcdef.parquet") == "zuul~1.2~1"
    assert day_ends_s("job=a/date=1970-01-02") == 172_800.0
    assert day_ends_s("job=a/date=1969-12-31") == 0.0
    assert {day_ends_s(f"job=a/date={bad}") for bad in ("", "9999-12-31", "2020-02-30")} == {float("inf")}
    file = {"path": "runs/job=a/date=b/r.1.parquet", "digest": "d", "rows": 3, "size": 9}
    runs = [{"file": file}, {}]
    delta = {"runs": runs, "corrections": [{"file": {**file, "path": "odd"}}], "repeats": [{"file": file}]}
    assert list(named_runs(delta)) == [NamedRun("job=a/date=b", "r.1.parquet", "d", 3)] * 2
    assert next(named_runs(delta)).path == file["path"]


def test_a_pack_manifest_that_contradicts_itself_is_an_error() -> None:
    state = PackState()
    with pytest.raises(IntegrityError, match="version 2 after 0"):
        state.apply(2, {})
    with pytest.raises(IntegrityError, match="replaces x"):
        state.apply(1, {"time_us": 0, "packs": [], "replaces": ["x"], "alone": {}})

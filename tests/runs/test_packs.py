"""Packs: every run comes back as it went in, and only what is asked for is read."""

from __future__ import annotations

import gc
import hashlib
import shutil
import struct
import weakref
from collections.abc import Sequence
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
from ciml.runs.packs import OpenPack, open_pack, prove_pack
from ciml.runs.reader import read_object, read_run, read_runs, verify_run
from ciml.runs.writer import write_run
from ciml.storage import LocalStore
from tests.runs.stored import OLD, runs_of
from tests.tier import tries
from tests.transforms.samples import corpus

FOLDER = "job=a/date=2020-01-01"
RUNS = 120


def table(usr: Sequence[float | None], *, metadata: Any = None, **more: Sequence[float | None]) -> pa.Table:
    rows = len(usr)
    data = {
        "time": pa.array([at * 1_000_000 for at in range(rows)], pa.timestamp("us", tz="UTC")),
        "boot": pa.array([at == 0 for at in range(rows)], pa.bool_()),
        "total cpu usage:usr": pa.array(usr, pa.float64()),
        **{name: pa.array(values, pa.float64()) for name, values in more.items()},
    }
    return pa.table(data).replace_schema_metadata(metadata)


def stored(one: pa.Table) -> pa.Table:
    """The table as `read_run` gives it for an object of its own."""
    parquet = pq.ParquetFile(pa.BufferReader(write_run(one)))
    return parquet.read().replace_schema_metadata(parquet.metadata.metadata)


def name_of(run_id: str, one: pa.Table) -> tuple[str, str]:
    digest = telemetry_digest(run_id, one)
    return f"{run_id}.{digest[:16]}.parquet", digest


def packed(runs: dict[str, pa.Table]) -> tuple[PackFile, bytes]:
    writer = PackWriter(FOLDER, next(iter(runs.values())).schema)
    for run_id, one in runs.items():
        writer.add(*name_of(run_id, one), one)
    return writer.finish()


def keep(raw: LocalStore, *packs: tuple[PackFile, bytes], replaces: Sequence[str] = ()) -> None:
    """Writes packs and commits them."""
    log = pack_log(raw, FOLDER)
    for file, data in packs:
        raw.create(file.path, data)
    delta = {"time_us": 7, "packs": [file.to_json() for file, _ in packs], "replaces": list(replaces), "alone": {}}
    assert log.try_append(1 + sum(1 for _ in log.since(0)), delta)


def same(one: pa.Table, other: pa.Table) -> bool:
    """Bit for bit, NaN and all; schema and metadata too."""
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
    paths = {run_id: f"runs/{FOLDER}/{name_of(run_id, one)[0]}" for run_id, one in runs.items()}
    assert (file.runs, file.rows, file.size) == (RUNS, sum(one.num_rows for one in tables), len(data))
    files = [RawFile(paths[run_id], name_of(run_id, one)[1], one.num_rows, 0) for run_id, one in runs.items()]
    found = read_runs(raw, files)
    assert all(got.equals(one, check_metadata=True) for got, one in zip(found, tables, strict=True))
    assert [path for path, _ in raw.read_from if path == file.path] == [file.path] * 2  # what it says, what it holds
    assert all(same(got, stored(one)) for got, one in zip(found, tables, strict=True))
    assert [verify_run(raw, run_id, one) for run_id, one in zip(runs, files, strict=True)] == [""] * RUNS
    # any order, any columns, the same one twice
    some = [files[at] for at in (RUNS - 1, 3, 3, 70, 0)]
    narrow = read_runs(raw, some, columns=["load avg:1m", "time", "no such column"])
    for got, at in zip(narrow, (RUNS - 1, 3, 3, 70, 0), strict=True):
        assert got.column_names == ["load avg:1m", "time"]
        assert got.equals(tables[at].select(["load avg:1m", "time"]), check_metadata=True)
    assert read_run(raw, paths[run_facts[7].run_id]).equals(tables[7], check_metadata=True)
    assert read_runs(raw, files, threads=4) == found
    assert len(data) < 0.5 * sum(len(write_run(one)) for one in tables)


def test_any_program_reads_a_pack_as_one_table() -> None:
    runs = {f"zuul~{number}~1": table([number, 0.5]) for number in range(5)}
    whole = pq.read_table(pa.BufferReader(packed(runs)[1]))
    assert whole.column("total cpu usage:usr").to_pylist() == [0, 0.5, 1, 0.5, 2, 0.5, 3, 0.5, 4, 0.5]


cells = st.none() | st.floats(width=64) | st.sampled_from([-0.0, float("nan"), float("inf")])
metas = st.none() | st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=6), max_size=3)


@settings(max_examples=tries(80))
@given(st.lists(st.tuples(st.lists(cells, max_size=6), metas), min_size=1, max_size=6), st.data())
def test_runs_of_every_content_are_packed(
    tmp_path_factory: pytest.TempPathFactory, made: list[Any], data: st.DataObject
) -> None:
    runs = {f"zuul~{at}.x~1": stored(table(usr, metadata=meta)) for at, (usr, meta) in enumerate(made)}
    raw = LocalStore(tmp_path_factory.mktemp("raw"))
    file, content = packed(runs)
    raw.create(file.path, content)
    opened = open_pack(raw, file)
    assert [(run_of(run.name), run.rows) for run in opened.runs] == [(r, t.num_rows) for r, t in runs.items()]
    numbers = data.draw(st.lists(st.integers(0, len(runs) - 1), unique=True))
    found = opened.read(raw, numbers, None)
    assert sorted(found) == sorted(numbers)
    assert all(same(found[number], list(runs.values())[number]) for number in numbers)


def test_a_nan_keeps_its_bits(tmp_path: Path) -> None:
    odd = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0123))[0]
    raw, runs = LocalStore(tmp_path), {"zuul~1~1": stored(table([odd, -0.0, 1.0]))}
    file, data = packed(runs)
    raw.create(file.path, data)
    column = open_pack(raw, file).read(raw, [0], None)[0].column("total cpu usage:usr").combine_chunks()
    assert np.from_dlpack(column).tobytes() == struct.pack("<QQd", 0x7FF8_0000_0000_0123, 1 << 63, 1.0)


def test_row_groups_have_a_bound_and_end_with_a_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    lengths = [20_000, 20_000, 100, GROUP_ROWS * 2 + 1, 5, 0, 7]
    runs = {f"zuul~{at}~1": stored(table(rng.normal(size=rows).tolist())) for at, rows in enumerate(lengths)}
    file, data = packed(runs)
    described = pq.read_metadata(pa.BufferReader(data))
    groups = [described.row_group(at).num_rows for at in range(described.num_row_groups)]
    assert groups == [40_000, 100 + GROUP_ROWS * 2 + 1, 12]
    raw = Watched(tmp_path)
    raw.create(file.path, data)
    opened = open_pack(raw, file)
    for number, one in enumerate(runs.values()):
        assert same(opened.read(raw, [number], None)[number], one)
    raw.read_from.clear()
    opened.read(raw, [6], ["time"])
    assert sum(size for _, size in raw.read_from) < 200  # of a megabyte


def test_a_few_runs_do_not_keep_the_others_in_memory(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    file, data = packed({f"zuul~{at}~1": stored(table([1.0] * 100)) for at in range(300)})
    raw.create(file.path, data)
    opened = open_pack(raw, file)
    assert opened.read(raw, [7], None)[7].get_total_buffer_size() < 3000
    assert all(one.get_total_buffer_size() > 100_000 for one in opened.read(raw, range(300), None).values())


def test_an_opened_pack_is_let_go_of_at_once(tmp_path: Path) -> None:
    """What a build opens and puts away is megabytes a second; it looks for cycles once in a million objects."""
    run_facts, tables, _ = corpus(20)
    runs = {run.run_id: one for run, one in zip(run_facts, tables, strict=True)}
    file, data = packed(runs)
    raw = LocalStore(tmp_path)
    raw.create(file.path, data)
    gc.collect()
    gc.disable()
    try:
        pack = open_pack(raw, file)
        pack.read(raw, [3, 4], ["total cpu usage:usr"])
        pack.read_joined(raw, [3, 4], ["total cpu usage:usr"])
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


def test_what_does_not_come_back_is_no_pack() -> None:
    one = table([1.0, 2.0])
    writer = PackWriter(FOLDER, one.schema)
    writer.add("zuul~1~1.0123456789abcdef.parquet", "0" * 64, one)
    with pytest.raises(IntegrityError, match="does not read back from the pack unchanged"):
        writer.finish()


def test_other_columns_are_another_pack() -> None:
    one, other = table([1.0]), table([1.0], more=[2.0])
    assert columns_digest(one.schema) == columns_digest(one.replace_schema_metadata({"a": "b"}).schema)
    assert len({columns_digest(each.schema) for each in (one, other, other.select(["time"]), one.slice(0, 0))}) == 3


def test_other_programs_see_whose_rows_they_are() -> None:
    lengths = {
        "zuul~1~1": 20_000,
        "zuul~2~1": 20_000,
        "zuul~3~1": 0,
        "zuul~4~1": 7,
        "zuul~5~2": GROUP_ROWS + 1,
        "a~b~1": 3,
    }
    runs = {run_id: table([float(at) for at in range(rows)]) for run_id, rows in lengths.items()}
    file, data = packed(runs)
    seen = pq.read_table(pa.BufferReader(data))
    assert seen.column_names == ["time", "boot", "total cpu usage:usr", "run_id", "digest"]
    assert seen.schema.field("run_id").type == pa.string()
    rows = list(zip(seen.column("run_id").to_pylist(), seen.column("digest").to_pylist(), strict=True))
    expected = [(run_id, telemetry_digest(run_id, one)) for run_id, one in runs.items()]
    assert rows == [whose for whose in expected for _ in range(lengths[whose[0]])]
    assert OpenPack(file, data[-file.footer :]).names == ("time", "boot", "total cpu usage:usr")


def test_a_log_with_such_a_column_is_a_pack_without_them() -> None:
    one = table([1.0, 2.0], run_id=[3.0, 4.0])
    file, data = packed({"zuul~1~1": one})
    assert pq.read_table(pa.BufferReader(data)).column_names == one.column_names
    opened = OpenPack(file, data[-file.footer :])
    assert (opened.names, opened.renewable) == (tuple(one.column_names), False)


def test_the_same_runs_are_the_same_pack() -> None:
    runs = {f"zuul~{at}~1": table([at, 1.0], metadata={"recorder": "dool"}) for at in range(9)}
    assert packed(runs) == packed({run_id: pa.concat_tables([one[:1], one[1:]]) for run_id, one in runs.items()})


def test_no_flipped_byte_goes_unseen_or_brings_anything_down(tmp_path: Path) -> None:
    runs = {f"zuul~{at}~1": stored(table([at, 2.0, None], metadata={"a": "b"})) for at in range(4)}
    file, data = packed(runs)
    assert prove_pack(LocalStore(tmp_path), file).endswith("does not exist")
    detected = 0
    for at in range(0, len(data), 5):
        raw = LocalStore(tmp_path / str(at))
        raw.create(file.path, data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        assert "differs from the digest in its name" in prove_pack(raw, file)
        try:
            found = open_pack(raw, file).read(raw, range(4), None)
        except IntegrityError:
            detected += 1
            continue
        assert all(same(found[number], one) for number, one in enumerate(runs.values()))
    assert detected > 0.95 * len(data) / 5  # the rest are the file's first bytes and the heads of pages


def test_exchanged_pages_are_an_error(tmp_path: Path) -> None:
    """Each is whole, header and checksum, so Parquet's reader has nothing to say."""
    run = {"zuul~1~1": table([0.1, 0.7, 0.3], other=[0.2, 0.9, 0.4])}
    file, data = packed(run)
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
    files = [RawFile(run.path, run.digest, run.rows, 0)]
    for columns in (None, ["time"]):
        assert read_runs(raw, files, columns=columns)[0].num_rows == run.rows
    (file,) = pack_state(raw, run.folder).packs.values()
    ranges = [size for path, size in raw.read_from if path == file.path]
    assert ranges.count(file.size) == 1


def test_a_pack_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
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
    for run_id in ("zuul~2~1", "zuul~4~1"):
        raw.create(f"runs/{FOLDER}/{name_of(run_id, runs[run_id])[0]}", write_run(runs[run_id]))
    raw.create("elsewhere", write_run(runs["zuul~5~1"]))
    paths = [f"runs/{FOLDER}/{name_of(run_id, one)[0]}" for run_id, one in runs.items()]
    paths[5] = "elsewhere"
    for order in ([5, 4, 3, 2, 1, 0], [0, 2, 0], [3], []):
        found = read_runs(raw, [paths[at] for at in order])
        assert [one.column(2)[0].as_py() for one in found] == order
    bad = RawFile(paths[0], "", 3, 0)
    with pytest.raises(IntegrityError, match="has 2 rows, the manifest says 3"):
        read_runs(raw, [paths[1], bad])
    with pytest.raises(IntegrityError, match="has 2 rows, the manifest says 3"):
        read_run(raw, bad)
    lost = f"runs/{FOLDER}/zuul~9~1.0123456789abcdef.parquet"
    for path in (lost, "nowhere"):
        with pytest.raises(IntegrityError, match="is in the manifest but does not exist"):
            read_runs(raw, [paths[0], path])


def test_a_run_that_moves_while_it_is_known_elsewhere(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    runs = {f"zuul~{at}~1": table([at, at + 0.5]) for at in range(4)}
    paths = [f"runs/{FOLDER}/{name_of(run_id, one)[0]}" for run_id, one in runs.items()]
    for path, one in zip(paths, runs.values(), strict=True):
        raw.create(path, write_run(one))
    wanted = list(runs.values())
    assert read_runs(raw, paths) == wanted  # there are no packs, and this process knows it
    small = [packed({run_id: one}) for run_id, one in runs.items()]
    keep(raw, *small)
    for path in paths:
        raw.delete(path)
    assert read_run(raw, paths[2]) == wanted[2]
    assert read_runs(raw, paths) == wanted
    keep(raw, packed(runs), replaces=[file.path for file, _ in small])
    for file, _ in small:
        raw.delete(file.path)
    assert read_run(raw, paths[1]) == wanted[1]
    assert read_runs(raw, paths) == wanted


def test_a_pack_that_is_lost_or_broken_hides_no_object(tmp_path: Path) -> None:
    runs = {f"zuul~{at}~1": table([at]) for at in range(2)}
    file, data = packed(runs)
    for number, content in enumerate((None, data[:-30])):
        raw = LocalStore(tmp_path / str(number))
        keep(raw, (file, data))
        raw.delete(file.path)
        if content is not None:
            raw.create(file.path, content)
        for run_id, one in runs.items():
            raw.create(f"runs/{FOLDER}/{name_of(run_id, one)[0]}", write_run(one))
        paths = raw.list("runs")
        assert read_runs(raw, paths) == list(runs.values())
        assert [read_run(raw, path) for path in paths] == list(runs.values())
        raw.delete(paths[0])
        with pytest.raises(IntegrityError, match="does not exist"):
            read_run(raw, paths[0])


def test_an_object_that_was_moved_aside_is_found(tmp_path: Path) -> None:
    raw, one = LocalStore(tmp_path), table([1.0])
    path = f"runs/{FOLDER}/{name_of('zuul~1~1', one)[0]}"
    raw.create(f"swept/{path}", write_run(one))
    assert read_run(raw, path) == one
    with pytest.raises(FileNotFoundError):
        read_object(raw, path)


def test_words() -> None:
    assert split_path("runs/job=a/date=b/c.d") == ("job=a/date=b", "c.d")
    assert [split_path(path) for path in ("x", "runs/job=a/c", "runs/a/date=b/c", "packs/job=a/date=b/c")] == [None] * 4
    assert run_of("zuul~1.2~1.0123456789abcdef.parquet") == "zuul~1.2~1"
    assert day_ends_s("job=a/date=1970-01-02") == 172_800.0
    assert day_ends_s("job=a/date=1969-12-31") == 0.0
    assert {day_ends_s(f"job=a/date={bad}") for bad in ("", "9999-12-31", "2020-02-30")} == {float("inf")}
    file = {"path": "runs/job=a/date=b/r.1.parquet", "digest": "d", "rows": 3, "size": 9}
    delta = {
        "runs": [{"file": file}, {}],
        "corrections": [{"file": {**file, "path": "odd"}}],
        "repeats": [{"file": file}],
    }
    assert list(named_runs(delta)) == [NamedRun("job=a/date=b", "r.1.parquet", "d", 3)] * 2
    assert next(named_runs(delta)).path == file["path"]


def test_a_pack_manifest_that_contradicts_itself() -> None:
    state = PackState()
    with pytest.raises(IntegrityError, match="version 2 after 0"):
        state.apply(2, {})
    with pytest.raises(IntegrityError, match="replaces x"):
        state.apply(1, {"time_us": 0, "packs": [], "replaces": ["x"], "alone": {}})

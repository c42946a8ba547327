"""Compaction: every run stays readable as it was, and nothing is left that nobody needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.runs.compact import CURSOR_PATH, Compaction, CompactionCursor, compact, load_cursor
from ciml.runs.pack_index import pack_state
from ciml.runs.reader import load_packs, verify_run
from tests.runs.compacting import DAY, FAR, FIRST, NOON, SECOND, all_there, objects, run, squeeze
from tests.runs.raw_world import Clock
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts


def test_runs_of_days_that_are_over_are_packed(anywhere: DataRoot) -> None:
    assert squeeze(anywhere.raw) == Compaction()  # of an empty store
    raw = RawStore(anywhere)
    raw.add([run(number) for number in range(1, 6)])
    raw.add([run(number, 1) for number in range(6, 9)], others=[run(1, rows=3)])
    raw.add([run(9, build_name="other job"), run(10)])
    done = compact(raw.store, older_than_s=3600, grace_s=0, min_runs=1, clock=Clock(NOON))
    assert (done.packing.runs, done.packing.packs, done.packing.faults) == (8, 2, [])
    assert (done.to_version, done.waiting, done.swept.objects) == (3, 1, 0)  # the objects are younger than 1970
    assert load_cursor(raw.store).pending == {SECOND: 2}
    assert objects(raw.store) == {"runs": 11, "packs": 2, "swept": 0}
    all_there(raw.store)
    assert len(load_packs(raw.store, FIRST).runs) == 7  # the other log of run 1 among them
    done = squeeze(raw.store)
    assert (done.packing.runs, done.packing.packs, done.waiting) == (3, 1, 0)
    assert (done.swept.objects, done.swept.unnamed, done.swept.packs) == (11, 0, 0)
    assert objects(raw.store) == {"runs": 0, "packs": 3, "swept": 0}
    all_there(raw.store)
    before = raw.store.list()
    assert squeeze(raw.store) == Compaction(to_version=3)
    assert raw.store.list() == before


def test_objects_and_packs_stay_for_the_grace(raw: RawStore, tmp_path: Path) -> None:
    raw.add([run(1), run(2)])
    for path, day in zip(raw.store.list("runs"), (2, 5), strict=True):  # one is older than the grace already
        os.utime(tmp_path / "raw" / path, (day * DAY, day * DAY))
    clock, grace = Clock(5 * DAY), 2 * DAY
    settings: dict[str, Any] = {"grace_s": grace, "older_than_s": DAY, "min_runs": 1, "clock": clock}
    assert compact(raw.store, **settings).packing.runs == 2
    file = next(iter(pack_state(raw.store, FIRST).packs))
    os.utime(tmp_path / "raw" / file, (5 * DAY, 5 * DAY))
    clock.now_s += grace - 1
    assert compact(raw.store, **settings).swept.objects == 0
    clock.now_s += 1
    assert compact(raw.store, **settings).swept.objects == 2
    assert objects(raw.store) == {"runs": 0, "packs": 1, "swept": 0}
    # two that came late: another pack, then one of both, then the grace of the packs that it replaces
    raw.add([run(3), run(4)])
    assert compact(raw.store, **settings).packing.merged == 2
    assert objects(raw.store) == {"runs": 2, "packs": 3, "swept": 0}
    for path in pack_state(raw.store, FIRST).replaced:  # written long ago, and replaced just now
        os.utime(tmp_path / "raw" / path, (1, 1))
    assert compact(raw.store, **settings, everything=True).swept.packs == 0
    clock.now_s = FAR.now_s
    done = compact(raw.store, **settings)  # replaced and written "long ago" by the real clock of the files
    assert (done.swept.objects, done.swept.packs) == (2, 2)
    assert objects(raw.store) == {"runs": 0, "packs": 1, "swept": 0}
    all_there(raw.store)


def test_runs_that_come_late_are_packed_and_packs_stay_few(raw: RawStore) -> None:
    for number in range(1, 25):
        raw.add([run(number)])
        squeeze(raw.store)
    all_there(raw.store)
    state = pack_state(raw.store, FIRST)
    assert sum(pack.runs for pack in state.packs.values()) == 24
    assert len(state.packs) <= 5
    assert objects(raw.store) == {"runs": 0, "packs": len(state.packs), "swept": 0}


def test_columns_apart_and_packs_of_a_bounded_size(raw: RawStore) -> None:
    many = [run(number, rows=2000) for number in range(1, 41)]
    narrow = [(about, one.drop_columns(["load avg:1m"])) for about, one in (run(n) for n in range(50, 55))]
    raw.add([*many, *narrow, (make_facts(60, start_us=0), many[0][1].replace_schema_metadata({"recorder": "dool"}))])
    done = squeeze(raw.store, pack_bytes=8 << 10)
    assert done.packing.runs == 46
    packs = pack_state(raw.store, FIRST).packs.values()
    assert len({pack.columns for pack in packs}) == 2
    assert len(packs) > 2
    assert max(pack.rows for pack in packs) <= 34_000 + 2000  # a row group
    all_there(raw.store)


def test_too_few_stay_alone_until_there_are_more(raw: RawStore) -> None:
    raw.add([run(1), run(2)])
    assert squeeze(raw.store, min_runs=4).packing.alone == 2
    assert objects(raw.store) == {"runs": 2, "packs": 0, "swept": 0}  # named, and so not swept
    squeeze(raw.store, min_runs=4)
    raw.add([run(3), run(4)])
    assert squeeze(raw.store, min_runs=4).packing.runs == 4
    assert objects(raw.store) == {"runs": 0, "packs": 1, "swept": 0}
    assert pack_state(raw.store, FIRST).alone == {}
    all_there(raw.store)


def test_a_broken_run_is_reported_and_stays_while_others_are_packed(raw: RawStore) -> None:
    raw.add([run(1), run(2), run(3), run(4)])
    paths = raw.store.list("runs")
    raw.store.replace(paths[0], b"PAR1 no more")
    raw.store.replace(paths[1], raw.store.read(paths[3]))  # another run's telemetry
    raw.store.delete(paths[2])
    done = squeeze(raw.store)
    assert done.packing.runs == 1
    assert [line.partition(": ")[0] for line in done.packing.faults] == paths[:3]
    for line, word in zip(
        done.packing.faults, ("as Parquet", "holds the seal of another file", "does not exist"), strict=True
    ):
        assert word in line
    assert raw.store.list("runs") == paths[:2]
    assert squeeze(raw.store).packing.faults == []  # reported once


def test_a_killed_workers_object_is_moved_aside_and_then_gone(raw: RawStore) -> None:
    raw.add([run(1)])
    orphan = raw.write(*run(7))
    raw.write(*run(1, rows=9))  # a log that changed between two tries
    raw.write(*run(1, build_name="told otherwise"))  # the named run, under a name that is nobody's
    raw.write(*run(8, 60_000))  # a day that is not over
    done = squeeze(raw.store)
    assert (done.swept.unnamed, done.swept.gone, done.swept.objects) == (3, 0, 1)
    assert objects(raw.store) == {"runs": 1, "packs": 1, "swept": 3}
    assert verify_run(raw.store, "zuul~7~1", orphan) == ""
    assert squeeze(raw.store, grace_s=3_000_000_000).swept.gone == 0
    assert squeeze(raw.store, aside_s=3_000_000_000).swept.gone == 0
    assert squeeze(raw.store).swept.gone == 3
    assert objects(raw.store) == {"runs": 1, "packs": 1, "swept": 0}


def test_what_is_named_after_it_was_moved_aside_comes_back(raw: RawStore) -> None:
    late, rare = [run(7), run(9)], run(8, build_name="rare")
    raw.add([run(1), run(2)])
    for each in (*late, rare):
        raw.write(*each)
    assert squeeze(raw.store).swept.unnamed == 3
    raw.add([*late, rare])
    for path in raw.store.list("runs"):  # the workers found the objects there, just before, and wrote none
        raw.store.delete(path)
    all_there(raw.store)
    done = squeeze(raw.store, min_runs=2)
    assert (done.packing.runs, done.packing.alone, done.packing.faults) == (2, 1, [])
    assert (done.swept.restored, done.swept.gone) == (1, 3)
    assert objects(raw.store) == {"runs": 1, "packs": 1, "swept": 0}
    all_there(raw.store)


@pytest.mark.parametrize("left", [None, slice(0, -4), slice(9, None)])
def test_no_object_goes_while_its_pack_is_lost_or_broken(raw: RawStore, left: slice | None) -> None:
    raw.add([run(1), run(2)])
    squeeze(raw.store, grace_s=3_000_000_000)
    (path,) = pack_state(raw.store, FIRST).packs
    data = raw.store.read(path)
    raw.store.delete(path)
    if left is not None:
        raw.store.create(path, data[left])
    all_there(raw.store)
    done = squeeze(raw.store)
    assert (len(done.swept.faults), done.swept.objects) == (1, 0)
    if left is not None:
        raw.store.replace(path, data)
    done = squeeze(raw.store)
    assert (done.packing.runs, done.swept.faults, done.swept.objects) == (2 if left is None else 0, [], 2)
    assert objects(raw.store) == {"runs": 0, "packs": 1, "swept": 0}
    all_there(raw.store)


@pytest.mark.parametrize("left", [None, b"{", b"{}", b"[]", "old", "other"])
def test_the_cursor_may_be_lost_or_belong_to_another_manifest(raw: RawStore, left: Any) -> None:
    raw.add([run(1), run(2)])
    squeeze(raw.store)
    old = raw.store.read(CURSOR_PATH)
    raw.add([run(3), run(4)])
    squeeze(raw.store)
    raw.store.delete(CURSOR_PATH)
    if left == "old":
        raw.store.replace(CURSOR_PATH, old)
    elif left == "other":
        raw.store.replace(CURSOR_PATH, b'{"cursor":2,"digest":"0","pending":{},"tidy":{}}')
        assert load_cursor(raw.store) == CompactionCursor()
    elif left is not None:
        raw.store.replace(CURSOR_PATH, left)
    raw.add([run(5), run(6)])
    assert squeeze(raw.store).packing.runs == 2
    assert load_cursor(raw.store).version == 3
    assert objects(raw.store)["runs"] == objects(raw.store)["swept"] == 0
    all_there(raw.store)


def test_a_long_manifest_is_compacted_in_parts(raw: RawStore) -> None:
    for number in range(1, 31):
        raw.add([run(number), run(100 + number, number % 3)])
    reports: list[tuple[str, int, int | None]] = []
    done = squeeze(raw.store, window_runs=8, progress=lambda *each: reports.append(each))
    assert done.packing.runs == 60
    assert objects(raw.store)["runs"] == 0
    packing = [each[1] for each in reports if each[0] == "packing runs"]
    assert packing == sorted(packing)
    assert packing[-1] == 60
    all_there(raw.store)


def test_pending_folders_are_taken_up_where_they_began(raw: RawStore) -> None:
    raw.add([run(1, 1)])
    raw.add([run(2)])
    raw.add([run(3, 1), run(4, 2)])
    assert compact(raw.store, older_than_s=0, clock=Clock(NOON), min_runs=1, window_runs=1).packing.runs == 1
    assert load_cursor(raw.store).pending == {SECOND: 1, "job=unit-tests/date=1970-01-03": 3}
    raw.add([run(5), run(6, 1)])
    done = compact(raw.store, older_than_s=0, clock=Clock(NOON + DAY), min_runs=1, window_runs=1)
    assert done.packing.runs == 4
    assert load_cursor(raw.store).pending == {"job=unit-tests/date=1970-01-03": 3}
    assert squeeze(raw.store).packing.runs == 1
    assert objects(raw.store)["runs"] == 0
    all_there(raw.store)

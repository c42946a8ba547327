"""Compaction while things die, fail and move: every run stays readable, and what was left undone is done later."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.errors import EngineError
from ciml.runs import collect_garbage
from ciml.runs.pack_index import PackState, pack_log, pack_state, run_of
from ciml.runs.reader import load_packs, read_runs
from ciml.storage import LocalStore, Store
from tests.durable import Steps, each_step
from tests.runs.compacting import FIRST, SECOND, all_there, named, objects, run, squeeze
from tests.runs.scenes import RawStore

Busy = Callable[[DataRoot], RawStore]


def busy_store(data: DataRoot) -> RawStore:
    """One with everything to do: runs to pack and to merge, packed objects, replaced packs, orphans old and new."""
    raw = RawStore(data)
    raw.add([run(1), run(2)])
    squeeze(raw.store, grace_s=3_000_000_000)
    raw.add([run(3), run(4), run(5, 1)])
    raw.write(*run(90))
    raw.store.replace("swept/" + raw.write(*run(91)).path, b"x")
    raw.add([run(6), run(7, 1)], others=[run(1, rows=3)])
    return raw


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Busy:
    """Return a function that makes a copy of a `busy_store`."""
    made = DataRoot.open(tmp_path_factory.mktemp("busy"))
    busy_store(made)

    def make(data: DataRoot) -> RawStore:
        for path in made.store.list():
            data.store.create(path, made.store.read(path))
        return RawStore(data)

    return make


def after_all(raw: Store) -> None:
    """What is left when compaction has run again, whatever happened before."""
    squeeze(raw)
    squeeze(raw)
    squeeze(raw, everything=True)
    all_there(raw)
    packs = {folder: pack_state(raw, folder) for folder in (FIRST, SECOND)}
    assert objects(raw) == {"runs": 0, "packs": sum(len(state.packs) for state in packs.values()), "swept": 0}
    assert {run.rsplit(".", 2)[0] for run in load_packs(raw, FIRST).runs} == {f"zuul~{n}~1" for n in (1, 2, 3, 4, 6)}
    assert sum(pack.runs for state in packs.values() for pack in state.packs.values()) == len(named(raw)) == 8


#: A pack is complete before the manifest names it, and its runs are deleted after that; an object that no manifest
#: names is copied before it is deleted; and the cursor moves when all is done.
STEPS = [
    f"create packs/{FIRST}/*.parquet",
    f"append packs/{FIRST}: packs",
    f"create packs/{FIRST}/*.parquet",
    f"append packs/{FIRST}: packs replaces",
    f"create packs/{SECOND}/*.parquet",
    f"append packs/{SECOND}: packs",
    "replace packs/compaction.json",
    f"delete swept/runs/{FIRST}/zuul~91~1.*.parquet",
    f"delete runs/{FIRST}/zuul~1~1.*.parquet",
    f"delete runs/{FIRST}/zuul~1~1.*.parquet",
    f"delete runs/{FIRST}/zuul~2~1.*.parquet",
    f"delete runs/{FIRST}/zuul~3~1.*.parquet",
    f"delete runs/{FIRST}/zuul~4~1.*.parquet",
    f"delete runs/{FIRST}/zuul~6~1.*.parquet",
    f"replace swept/runs/{FIRST}/zuul~90~1.*.parquet",
    f"delete runs/{FIRST}/zuul~90~1.*.parquet",
    f"replace swept/runs/{FIRST}/zuul~91~1.*.parquet",
    f"delete runs/{FIRST}/zuul~91~1.*.parquet",
    f"delete runs/{SECOND}/zuul~5~1.*.parquet",
    f"delete runs/{SECOND}/zuul~7~1.*.parquet",
    f"delete packs/{FIRST}/*.parquet",
    f"delete packs/{FIRST}/*.parquet",
    "replace packs/compaction.json",
]


def test_order_of_steps(anywhere: DataRoot, busy: Busy) -> None:
    raw = busy(anywhere).store
    with Steps(raw.root).recording() as recorded:
        squeeze(raw)
    steps = recorded.steps
    if isinstance(raw, LocalStore):
        assert steps == STEPS
    assert sorted(steps) == sorted(STEPS)  # on S3, objects are moved aside at the same time, each in its order
    for number in ("90", "91"):
        aside = [step for step in steps if f"~{number}~" in step and "swept" in step]
        assert steps.index(aside[-1]) < steps.index(f"delete runs/{FIRST}/zuul~{number}~1.*.parquet")


def test_killed_before_each_step(anywhere: DataRoot, busy: Busy) -> None:
    for index in each_step(len(STEPS), few=not isinstance(anywhere.store, LocalStore)):
        raw = busy(DataRoot(anywhere.store.child(str(index)))).store
        with Steps(raw.root, index).recording():
            squeeze(raw)
        all_there(raw)
        after_all(raw)


@pytest.mark.whole
def test_another_compactor_before_each_step(data: DataRoot, busy: Busy) -> None:
    for index in range(len(STEPS)):
        raw = busy(DataRoot(data.store.child(str(index)))).store
        with Steps(raw.root, index, partial(squeeze, raw)).recording() as steps:
            squeeze(raw)
        assert steps.before is None  # the other one ran
        all_there(raw)
        after_all(raw)


def test_an_object_that_is_named_late_is_restored_before_its_copy_is_removed(data: DataRoot) -> None:
    restored = [f"create runs/{FIRST}/zuul~8~1.*.parquet", f"delete swept/runs/{FIRST}/zuul~8~1.*.parquet"]
    for index in (None, *range(5)):
        raw = RawStore(DataRoot(data.store.child(str(index))))
        raw.add([run(1, 1)])
        path = raw.write(*run(8)).path
        squeeze(raw.store)
        raw.add([run(8)])
        raw.store.delete(path)  # the worker found it there, just before
        with Steps(raw.store.root, index).recording() as steps:
            squeeze(raw.store, min_runs=2)
        all_there(raw.store)
        assert index is not None or [step for step in steps.steps if "~8~" in step] == restored


def test_a_pack_that_is_committed_after_the_manifest_was_read_stays(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a compactor that was suspended between the two for longer than the grace."""
    raw = RawStore(data)
    raw.add([run(1)])
    squeeze(raw.store)
    late = f"packs/{FIRST}/late.parquet"

    def read(store: Store, folder: str) -> PackState:
        state = pack_state(store, folder)
        store.create(late, b"")
        return state

    monkeypatch.setattr(collect_garbage, "pack_state", read)
    raw.add([run(2)])
    squeeze(raw.store)
    assert raw.store.exists(late)


def test_packs_that_hold_a_run_twice_are_merged_into_one_that_holds_it_once(data: DataRoot) -> None:
    raw = RawStore(data)
    for numbers in ((1, 2), (3, 4)):
        raw.add([run(number) for number in numbers])
        squeeze(raw.store, grace_s=3_000_000_000)
    state = pack_state(raw.store, FIRST)
    former = [pack.to_json() for pack in state.replaced.values()]  # as a repair lists them again
    delta = {"time_us": 0, "packs": former, "replaces": [], "alone": {}}
    assert pack_log(raw.store, FIRST).try_append(state.version + 1, delta)
    raw.add([run(5)])
    squeeze(raw.store)
    (pack,) = load_packs(raw.store, FIRST).packs
    assert sorted(run.name.partition(".")[0] for run in pack.runs) == [f"zuul~{number}~1" for number in range(1, 6)]


def test_a_run_that_is_committed_before_any_step_is_never_moved_aside(data: DataRoot, busy: Busy) -> None:
    for index in range(len(STEPS)):
        raw = busy(DataRoot(data.store.child(str(index))))
        with Steps(raw.store.root, index, partial(raw.add, [run(50)])).recording():
            done = squeeze(raw.store)
        assert done.swept.unnamed == 2, index  # those that busy_store has
        all_there(raw.store)
        squeeze(raw.store)
        assert os.path.basename(raw.write(*run(50)).path) in load_packs(raw.store, FIRST).runs


def test_a_store_that_fails_before_each_step(data: DataRoot, busy: Busy) -> None:
    def fail() -> None:
        raise EngineError("no space left")

    for index in range(len(STEPS)):
        raw = busy(DataRoot(data.store.child(str(index)))).store
        with Steps(raw.root, index, fail).recording(), pytest.raises(EngineError):
            squeeze(raw)
        all_there(raw)
        after_all(raw)


def flip(data: DataRoot, path: str, at: int) -> None:
    """Flip a bit of an object."""
    content = bytearray(data.raw.read(path))
    content[at] ^= 1
    data.raw.replace(path, bytes(content))


@pytest.mark.parametrize(("place", "at"), [("pack", 40), ("pack", -20), ("manifest", 30)])
def test_a_damaged_pack_or_manifest_of_packs_keeps_no_other_folder_from_being_packed(
    data: DataRoot, place: str, at: int
) -> None:
    """Its faults are reported by each compaction, and its folder is packed once its backup is restored."""
    raw = RawStore(data)
    raw.add([run(1), run(2)])
    squeeze(raw.store)
    (pack,) = pack_state(raw.store, FIRST).packs
    damaged = {"pack": pack, "manifest": pack_log(raw.store, FIRST).path(1)}[place]
    backup = raw.store.read(damaged)
    flip(data, damaged, at)
    for number in range(3, 9, 3):  # two late runs of that day, and one of another day
        raw.add([run(number), run(number + 1), run(number + 2, 1)])
        for everything in (False, True):
            done = squeeze(raw.store, everything=everything)
            assert {*done.packing.faults, *done.swept.faults}, (number, everything)
    assert sum(pack.runs for pack in pack_state(raw.store, SECOND).packs.values()) == 2
    raw.store.replace(damaged, backup)
    for _ in range(2):
        squeeze(raw.store, everything=True)
    all_there(raw.store)
    assert objects(raw.store)["runs"] == 0


def test_an_object_in_swept_whose_pack_is_damaged_is_kept(data: DataRoot) -> None:
    """It is the last copy of a run that was committed and packed late."""
    raw = RawStore(data)
    raw.add([run(1)])
    squeeze(raw.store, grace_s=3_000_000_000)  # packed; its object is kept
    (path,) = named(raw.store)
    raw.store.replace(f"swept/{path}", raw.store.read(path))
    raw.store.delete(path)
    (pack,) = pack_state(raw.store, FIRST).packs
    flip(data, pack, -20)
    done = squeeze(raw.store)
    assert (len(done.swept.faults), done.swept.gone) == (1, 0)
    all_there(raw.store)


@pytest.mark.whole
def test_readers_never_fail_while_runs_move(anywhere: DataRoot) -> None:
    raw = RawStore(anywhere)
    is_over = threading.Event()

    def read(together: bool) -> None:
        is_last = False
        while not is_last:
            is_last = is_over.is_set()  # a whole round after the last move
            files = named(raw.store)
            tables = read_runs(raw.store, files.values()) if together else None
            for number, (path, file) in enumerate(files.items()):
                found = tables[number] if tables else read_runs(raw.store, [file])[0]
                assert telemetry_digest(run_of(os.path.basename(path)), found) == file.digest

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, together) for together in (True, False)]
        try:
            for number in range(12 if isinstance(anywhere.store, LocalStore) else 4):
                raw.add([run(3 * number), run(3 * number + 1, 1), run(3 * number + 2)])
                squeeze(raw.store)
        finally:
            is_over.set()
        for reader in readers:
            reader.result()
    assert objects(raw.store)["runs"] == 0

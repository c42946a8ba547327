"""Compaction while things die, fail and move: every run stays readable, and what was left undone is done later."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.errors import EngineError
from ciml.runs.compact import Compaction
from ciml.runs.pack_index import pack_state
from ciml.runs.reader import load_packs, read_runs
from ciml.storage import LocalStore, S3Store, Store
from tests.runs.compacting import FIRST, SECOND, all_there, named, objects, run, squeeze
from tests.runs.scenes import RawStore


class Killed(BaseException):
    """As a kill: nothing that is written for exceptions runs."""


class Scripted:
    """A store on which something happens just before or just after its n-th change."""

    def __init__(self, root: str, at: int, event: Callable[[], None], *, after: bool) -> None:
        super().__init__(root)  # type: ignore[call-arg]
        self.changes, self._when, self._event, self._after = 0, at, event, after

    def _change(self, work: Callable[..., Any], *arguments: Any) -> Any:
        self.changes += 1
        mine = self.changes == self._when
        if mine and not self._after:
            self._event()
        done = work(*arguments)
        if mine and self._after:
            self._event()
        return done

    def create(self, path: str, data: bytes) -> bool:
        return bool(self._change(super().create, path, data))  # type: ignore[misc]

    def replace(self, path: str, data: bytes) -> None:
        self._change(super().replace, path, data)  # type: ignore[misc]

    def delete(self, path: str) -> None:
        self._change(super().delete, path)  # type: ignore[misc]


class ScriptedLocal(Scripted, LocalStore):
    pass


class ScriptedS3(Scripted, S3Store):
    pass


def scripted(raw: Store, at: int, event: Callable[[], None], *, after: bool) -> Any:
    kind = ScriptedLocal if isinstance(raw, LocalStore) else ScriptedS3
    return kind(raw.root, at, event, after=after)


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


def changes_of(raw: Store) -> int:
    """How many changes one compaction makes."""
    counting = scripted(raw, 0, lambda: None, after=False)
    squeeze(counting)
    return int(counting.changes)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step(anywhere: DataRoot, after: bool) -> None:
    steps = changes_of(busy_store(DataRoot(anywhere.store.child("counted"))).store)
    assert steps > 15

    def die() -> None:
        raise Killed

    for step in range(1, steps + 1) if isinstance(anywhere.store, LocalStore) else range(1, steps + 1, 6):
        raw = busy_store(DataRoot(anywhere.store.child(f"step-{step}"))).store
        with pytest.raises(Killed):
            squeeze(scripted(raw, step, die, after=after))
        all_there(raw)
        after_all(raw)


@pytest.mark.whole
def test_another_compactor_at_every_step(anywhere: DataRoot) -> None:
    steps = changes_of(busy_store(DataRoot(anywhere.store.child("counted"))).store)
    for step in range(1, steps + 1) if isinstance(anywhere.store, LocalStore) else range(2, steps + 1, 6):
        raw = busy_store(DataRoot(anywhere.store.child(f"step-{step}"))).store
        ran: list[Compaction] = []
        squeeze(scripted(raw, step, lambda raw=raw, ran=ran: ran.append(squeeze(raw)), after=False))  # type: ignore[misc]
        assert len(ran) == 1
        all_there(raw)
        after_all(raw)


def test_a_run_that_is_committed_at_any_step_is_never_moved_aside(data: DataRoot) -> None:
    steps = changes_of(busy_store(DataRoot(data.store.child("counted"))).store)
    for step in range(1, steps + 1):
        raw = busy_store(DataRoot(data.store.child(f"step-{step}")))

        def late(raw: RawStore = raw) -> None:
            raw.add([run(50)])

        done = squeeze(scripted(raw.store, step, late, after=False))
        assert done.swept.unnamed == 2, step  # those that busy_store has
        all_there(raw.store)
        squeeze(raw.store)
        assert os.path.basename(raw.write(*run(50)).path) in load_packs(raw.store, FIRST).runs


def test_a_store_that_fails_at_every_step(data: DataRoot) -> None:
    steps = changes_of(busy_store(DataRoot(data.store.child("counted"))).store)

    def fail() -> None:
        raise EngineError("no space left")

    for step in range(1, steps + 1):
        raw = busy_store(DataRoot(data.store.child(f"step-{step}"))).store
        with pytest.raises(EngineError):
            squeeze(scripted(raw, step, fail, after=False))
        all_there(raw)
        after_all(raw)


def test_compactors_in_threads(data: DataRoot) -> None:
    raw = busy_store(data).store
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                squeeze(raw)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    after_all(raw)


@pytest.fixture
def reading() -> Iterator[Callable[[Store], list[BaseException]]]:
    """Starts readers of all named runs, which never stop; returns what went wrong with them."""
    over, threads = threading.Event(), []

    def start(raw: Store) -> list[BaseException]:
        failed: list[BaseException] = []

        def read(together: bool) -> None:
            try:
                while not over.is_set():
                    files = named(raw)
                    if together:
                        tables = read_runs(raw, files.values())
                    else:
                        tables = [read_runs(raw, [file])[0] for file in files.values()]
                    for path, found in zip(files, tables, strict=True):
                        assert telemetry_digest(os.path.basename(path).rsplit(".", 2)[0], found) == files[path].digest
                    failed_or_read.append(len(files))
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        for together in (True, False):
            threads.append(threading.Thread(target=read, args=(together,)))
            threads[-1].start()
        return failed

    failed_or_read: list[int] = []
    start.rounds = failed_or_read  # type: ignore[attr-defined]
    yield start
    over.set()
    for each in threads:
        each.join()


@pytest.mark.whole
def test_readers_never_fail_while_runs_move(anywhere: DataRoot, reading: Any) -> None:
    raw = RawStore(anywhere)
    failed = reading(raw.store)
    rounds = 20 if isinstance(anywhere.store, LocalStore) else 5
    for number in range(rounds):
        raw.add([run(3 * number), run(3 * number + 1, 1), run(3 * number + 2)])
        squeeze(raw.store)
        assert failed == []
    seen = len(reading.rounds)
    while len(reading.rounds) < seen + 2 and not failed:  # a whole round after the last move
        time.sleep(0.01)
    assert failed == []
    assert objects(raw.store)["runs"] == 0

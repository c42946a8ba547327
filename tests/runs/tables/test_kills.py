"""Publishers are killed, doubled and overtaken: afterwards the tables show what is stored, and readers never fail."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.pipelines.datasets.update import update_dataset
from ciml.runs.tables import store_of
from ciml.runs.tables.delta_log import DeltaLog
from ciml.runs.tables.publish import publish_tables
from ciml.storage import LocalStore
from tests.runs.compacting import run, squeeze
from tests.runs.scenes import RawStore
from tests.runs.tables.scenes import make_dataset, make_store
from tests.runs.tables.test_publish import TABLES, check
from tests.transforms.samples import make_facts

GRACE_S = 5_000_000_000  # the test clock of `squeeze` is far ahead
KILLS = 50


class Killed(BaseException):
    """As a kill: nothing that is written for exceptions runs."""


class Steps:
    """Something happens before or after a change of a store; its folders count together."""

    def __init__(self, at: int = 0, event: Callable[[], None] = lambda: None, *, after: bool = False) -> None:
        self.count, self.at, self.event, self.after = 0, at, event, after


class SteppedStore(LocalStore):
    def __init__(self, root: str, steps: Steps) -> None:
        super().__init__(root)
        self.steps = steps

    def create(self, path: str, data: bytes) -> bool:
        self.steps.count += 1
        mine = self.steps.count == self.steps.at
        if mine and not self.steps.after:
            self.steps.event()
        done = super().create(path, data)
        if mine and self.steps.after:
            self.steps.event()
        return done

    def child(self, path: str) -> LocalStore:
        return SteppedStore(super().child(path).root, self.steps)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], DataRoot]:
    """Makes a data root whose tables are behind its store."""
    made = tmp_path_factory.mktemp("grown")
    data = DataRoot.open(made)
    make_store(data)
    make_dataset(data)
    list(publish_tables(data))
    grow(data, 20)
    return lambda folder: DataRoot.open(shutil.copytree(made, folder))


def grow(data: DataRoot, number: int) -> None:
    raw = RawStore(data)
    raw.add([run(number), run(number + 1), run(number + 2, 1)], corrections=[make_facts(1, outcome=_word(number))])
    squeeze(data.raw, grace_s=GRACE_S)
    update_dataset(data.dataset("cpu"))


def _word(number: int) -> str:
    return "failure" if number % 2 else "success"


def publish_stepped(data: DataRoot, steps: Steps) -> None:
    list(publish_tables(DataRoot(SteppedStore(data.store.root, steps))))


def steps_of(data: DataRoot) -> int:
    counting = Steps()
    publish_stepped(data, counting)
    return counting.count


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_step(tmp_path: Path, grown: Callable[[Path], DataRoot], after: bool) -> None:
    count = steps_of(grown(tmp_path / "counted"))
    assert count == 6  # two parts, four commits

    def die() -> None:
        raise Killed

    for step in range(1, count + 1):
        data = grown(tmp_path / str(step))
        with pytest.raises(Killed):
            publish_stepped(data, Steps(step, die, after=after))
        list(publish_tables(data))
        check(data)


def test_overtaken_at_every_step(tmp_path: Path, grown: Callable[[Path], DataRoot]) -> None:
    """The store grows and another publisher is done, before each step of the first."""
    for step in range(1, steps_of(grown(tmp_path / "counted")) + 1):
        data = grown(tmp_path / str(step))

        def overtake(data: DataRoot = data) -> None:
            grow(data, 30)
            list(publish_tables(data))

        publish_stepped(data, Steps(step, overtake))
        check(data)
        assert not any(done.committed for done in publish_tables(data))


def test_publishers_at_once_make_one_version(anywhere: DataRoot) -> None:
    make_store(anywhere)
    make_dataset(anywhere)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: list(publish_tables(anywhere)), range(3)))
    assert sum(table.committed for tables in done for table in tables) == len(TABLES)
    assert {table.version for tables in done for table in tables} == {0}
    check(anywhere)


_LOOP = """
import sys
from ciml.data_root import DataRoot
from ciml.runs.tables.publish import publish_tables
data = DataRoot.open(sys.argv[1])
print("ready", flush=True)
while True:
    list(publish_tables(data))
"""


def _publisher(data: DataRoot) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _LOOP, data.store.root], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class Reader(threading.Thread):
    """Opens the newest version of each table, and reads it while others replace it."""

    def __init__(self, data: DataRoot) -> None:
        super().__init__(daemon=True)
        self.data, self.stop = data, threading.Event()
        self.read, self.failed = 0, ""

    def run(self) -> None:
        from deltalake import DeltaTable

        try:
            while not self.stop.is_set():
                opened = [DeltaTable(store_of(self.data, name).root) for name in TABLES]
                time.sleep(0.5)
                for table in opened:
                    files = table.get_add_actions(flatten=True)
                    assert table.to_pyarrow_table().num_rows == sum(files.column("num_records").to_pylist())
                    self.read += 1
        except Exception as error:  # noqa: BLE001 - the test reports whatever a reader may meet
            self.failed = f"{type(error).__name__}: {error}"


@pytest.mark.interop
@pytest.mark.timeout(1800)
def test_two_publishers_killed_fifty_times(data: DataRoot) -> None:
    make_store(data)
    make_dataset(data)
    list(publish_tables(data))
    rng, reader = random.Random(1), Reader(data)
    reader.start()
    publishers = [_publisher(data) for _ in range(2)]
    for kill in range(KILLS):
        grow(data, 100 + 3 * kill)
        time.sleep(rng.random())
        victim = rng.randrange(2)
        os.kill(publishers[victim].pid, signal.SIGKILL)
        publishers[victim].wait()
        publishers[victim] = _publisher(data)
    for each in publishers:
        assert each.poll() is None  # neither failed
        each.kill()
        each.wait()
    reader.stop.set()
    reader.join()
    assert (reader.failed, reader.read > 20) == ("", True)
    list(publish_tables(data))
    check(data)
    assert all(DeltaLog(store_of(data, name)).read().version > 20 for name in TABLES if name != "dead_letters")
    squeeze(data.raw)
    list(publish_tables(data))
    check(data)

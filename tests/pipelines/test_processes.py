"""Pools of processes end with the process that made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ciml.errors import EngineError
from ciml.pipelines.processes import Shared, process_pool, result_of

_PIDS = Shared[int]()


def _shared_pid() -> int:
    return _PIDS.get("pid", os.getpid)


_PARENT = """
import os, sys, time
from ciml.pipelines.processes import process_pool
with process_pool(2, sys.argv[1], int) as first, process_pool(1, sys.argv[1], int) as second:
    found = {*first.map(str, range(50)), second.submit(str, 7).result()}
    print(*first._processes, *second._processes, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_when_their_parent_is_killed(method: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, method], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert alive == []


def test_a_killed_worker_is_an_error_that_names_the_task() -> None:
    with process_pool(1, "fork", int) as pool, pytest.raises(EngineError, match="a process that adds was killed"):
        result_of(pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL), "adds")


def _touch_later(path: Path) -> None:
    time.sleep(10)
    path.touch()


def test_an_exception_ends_workers_that_are_busy(tmp_path: Path) -> None:
    workers = []

    def work() -> None:
        with process_pool(1, "fork", int) as pool:
            workers.append(psutil.Process(pool.submit(os.getpid).result()))
            pool.submit(_touch_later, tmp_path / "done")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_left_to_the_parent() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_pool(1, "fork", int) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_a_forked_process_makes_its_own_shared_objects() -> None:
    assert [_shared_pid(), _shared_pid(), _PIDS.get("other", int)] == [os.getpid(), os.getpid(), 0]
    with process_pool(1, "fork", int) as pool:
        assert pool.submit(_shared_pid).result() == pool.submit(os.getpid).result()

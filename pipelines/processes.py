"""Objects that a process makes once, and pools of worker processes, which end when it ends for any reason."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Generic, Literal, TypeVar

from ciml.errors import EngineError

T = TypeVar("T")


class Shared(Generic[T]):
    """Objects of this process by key, each made once for all threads. A forked process makes its own."""

    def __init__(self) -> None:
        self._objects: dict[tuple[int, Hashable], T] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the object of a key, which ``make`` makes when it is missing."""
        with self._lock:
            if (os.getpid(), key) not in self._objects:
                self._objects[os.getpid(), key] = make()
            return self._objects[os.getpid(), key]


@contextmanager
def process_pool(
    workers: int, method: Literal["fork", "spawn"], start: Callable[..., object], *arguments: object
) -> Iterator[ProcessPoolExecutor]:
    """Run worker processes within the ``with`` block; on an exception they are killed.

    Args:
      workers: number of processes.
      method: ``spawn`` for work that loads TensorFlow; ``fork`` starts faster if this process has no threads yet.
      start: called in each process before its first task.
      arguments: of ``start``.
    """
    children = set(multiprocessing.active_children())
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=partial(_start, start, *arguments))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - children:
            process.kill()
        raise
    finally:
        pool.shutdown()


def result_of(future: Future[T], task: str, remedy: str = "") -> T:
    """Return the result of a task. Raises `EngineError`, which names the task, if its process was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise EngineError(
            f"a process that {task} was killed, perhaps by the system for lack of memory{remedy}"
        ) from None


def _start(start: Callable[..., object], *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""The simulated world outside of ciml: a store in memory, time, and pools without threads."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from ciml.errors import EngineError
from ciml.manifest import checkpoints
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import Committer
from ciml.runs import reader as raw_reader
from ciml.storage import Entry, Store
from ciml.storage.json_files import digest_of
from tests.simulation.scheduler import Actor, Chaos, Scheduler, Violation

_DELTA = re.compile(r"(?:.*/)?_manifest/[0-9]{12}\.json")
_PAGE = 5


class Disk:
    """The durable storage: objects by path, and the invariants of each write.

    Attributes:
      objects: bytes and time of writing (epoch microseconds) by path.
      checked: paths that are known to be well-formed.
      rewrites: whether erasures may rewrite deltas, which then keep their digest in the chain.
      torn: whether a create is visible, and may stay, half done (a planted defect).
      created: called with the path and bytes of each new object.
      froze: called with an actor that was frozen at a commit.
    """

    torn = False

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.checked: set[str] = set()
        self.rewrites = False
        self.created: Callable[[str, bytes], None] = lambda path, data: None
        self.froze: Callable[[Actor], None] = lambda actor: None

    def write(self, path: str, data: bytes, now_us: int) -> None:
        before = self.objects.get(path)
        is_changed = before is not None and before[0] != data and _DELTA.fullmatch(path)
        if is_changed and not (self.rewrites and before and digest_of(before[0]) == digest_of(data)):
            raise Violation(f"{path} was committed, and is written again with other contents")
        self.objects[path] = (data, now_us)
        if before is None:
            self.created(path, data)


class SimStore(Store):
    """A view of the disk by one process. Every call is at least one step of the scheduler.

    Args:
      root: an address of this process's own, so that caches by address are not shared.
      disk: shared by all processes.
      chaos: None for a store that never fails.
      prefix: "" or the folder with a final slash.
    """

    def __init__(self, root: str, disk: Disk, scheduler: Scheduler, chaos: Chaos | None, prefix: str = "") -> None:
        self.root = root
        self.disk, self.scheduler, self.chaos, self.prefix = disk, scheduler, chaos, prefix

    def _call(self, verb: str, path: str, act: Callable[[], Any]) -> Any:
        scheduler = self.scheduler
        scheduler.step()
        where = f"{verb} {self.prefix}{path}"
        fault = self.chaos.fault() if self.chaos else None
        if fault == "before":
            scheduler.trace(f"{where} -> fails")
            raise EngineError(f"{where}: no answer")
        if fault == "slow" and self.chaos:
            scheduler.now_us += self.chaos.random.choice((1, 10, 60)) * 1_000_000
        answer: Any = None
        failure: FileNotFoundError | None = None
        try:
            answer = act()
        except FileNotFoundError as error:
            failure = error
        if fault == "after":
            scheduler.trace(f"{where} -> took effect, and fails")
            raise EngineError(f"{where}: no answer")
        if fault == "lost":  # the client retries and gets that answer
            scheduler.step()
            try:
                answer, failure = act(), None
            except FileNotFoundError as error:
                failure = error
        if failure is not None:
            scheduler.trace(f"{where} -> none")
            raise failure
        size = f"{len(answer)} B" if isinstance(answer, bytes) else answer
        scheduler.trace(f"{where} -> {size}{f' ({fault})' if fault else ''}")
        return answer

    def create(self, path: str, data: bytes) -> bool:
        full = self._full(path)
        if self.chaos and _DELTA.fullmatch(full):
            self.chaos.stall(self.scheduler, self.disk.froze)

        def act() -> bool:
            if full in self.disk.objects:
                return False
            if self.disk.torn:
                self.disk.objects[full] = (data[: len(data) // 2], self.scheduler.now_us)
                self.scheduler.step()
                del self.disk.objects[full]
            self.disk.write(full, data, self.scheduler.now_us)
            return True

        return bool(self._call("create", path, act))

    def replace(self, path: str, data: bytes) -> None:
        full = self._full(path)
        self._call("replace", path, lambda: self.disk.write(full, data, self.scheduler.now_us))

    def read(self, path: str) -> bytes:
        full = self._full(path)

        def act() -> bytes:
            if full not in self.disk.objects:
                raise FileNotFoundError(full)
            return self.disk.objects[full][0]

        return bytes(self._call("read", path, act))

    def exists(self, path: str) -> bool:
        full = self._full(path)
        return bool(self._call("exists", path, lambda: full in self.disk.objects))

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        return [entry.path for entry in self._entries(prefix, after)]

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return self._entries(prefix, "")

    def _entries(self, prefix: str, after: str) -> Iterator[Entry]:
        # In pages, as S3 lists: objects created or removed meanwhile may or may not be included.
        folder = self.prefix + (f"{prefix.rstrip('/')}/" if prefix else "")
        last = self.prefix + after if after else ""
        while True:

            def act(last: str = last) -> list[str]:
                return sorted(path for path in self.disk.objects if path.startswith(folder) and path > last)[:_PAGE]

            page = self._call("list", prefix, act)
            for path in page:
                if path in self.disk.objects:
                    data, written_us = self.disk.objects[path]
                    yield Entry(path.removeprefix(self.prefix), len(data), written_us / 1e6)
            if len(page) < _PAGE:
                return
            last = page[-1]

    def delete(self, path: str) -> None:
        full = self._full(path)
        self._call("delete", path, lambda: self.disk.objects.pop(full, None) and None)

    def child(self, path: str) -> SimStore:
        folder = self._full(path)
        return SimStore(f"{self.root}/{path}", self.disk, self.scheduler, self.chaos, f"{folder}/")

    def _full(self, path: str) -> str:
        if path not in self.disk.checked:
            self.url(path)
            self.disk.checked.add(path)
        return self.prefix + path


class FakeTime:
    """The module ``time``, by the clock of the simulation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def time(self) -> float:
        return self._scheduler.now_us / 1e6

    def time_ns(self) -> int:
        return self._scheduler.now_us * 1000

    monotonic = perf_counter = time

    def sleep(self, seconds: float) -> None:
        self._scheduler.pause(seconds)


class InlinePool:
    """A thread pool that runs its tasks one after the other, in an order from the seed."""

    random = random.Random(0)

    def __init__(self, max_workers: int | None = None, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  # as a pool keeps it until its result is asked for
            future.set_exception(error)
        return future

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Iterator[Any]:
        tasks = list(zip(*iterables, strict=False))
        order = self.random.sample(range(len(tasks)), len(tasks))
        futures = {index: self.submit(function, *tasks[index]) for index in order}
        return (futures[index].result() for index in range(len(tasks)))


@contextmanager
def substituted(replacements: Mapping[str, tuple[Any, Any]]) -> Iterator[None]:
    """Replace objects by substitutes in every module of the project that has them under that name.

    Args:
      replacements: (the real object, its substitute) by name.
    """
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            for attribute, (real, substitute) in replacements.items() if name.partition(".")[0] == "ciml" else ():
                if vars(module).get(attribute) is real:
                    stack.enter_context(patch.object(module, attribute, substitute))
        yield


@contextmanager
def replaced(scheduler: Scheduler, seed: int, grace_s: float, limits: Limits) -> Iterator[None]:
    """Use the simulation's time and thread pools in the project's modules, and forget the packs of earlier worlds.

    Args:
      scheduler: has the clock.
      seed: determines the order of the pools' tasks.
      grace_s: retention of replaced objects of manifests.
      limits: when a checkpoint of the raw manifest is due.
    """
    InlinePool.random = random.Random(f"pool {seed}")
    fake = FakeTime(scheduler)
    with (
        patch.dict(ManifestLog.__init__.__kwdefaults__ or {}, clock=fake.time, grace_s=grace_s),
        patch.object(Committer.__init__, "__defaults__", (fake.time, limits)),
        patch.object(raw_reader, "_cache", raw_reader._PackCache()),
        patch.object(checkpoints, "_GC_INTERVAL_S", min(checkpoints._GC_INTERVAL_S, grace_s / 4)),
        substituted({"time": (time, fake), "ThreadPoolExecutor": (ThreadPoolExecutor, InlinePool)}),
    ):
        yield

"""Limits of a server: which connection or request is rejected, and that what has ended counts no more."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import threading
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.http import intake as intake_module
from ciml.http.intake import ConnectionLimiter, Intake, RequestError, Workers, check_open_files
from ciml.limits import SPARE_FILES


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class Connection:
    """A connection of a limiter, which it leaves when it is rejected."""

    def __init__(self, limiter: ConnectionLimiter, address: str, clock: Any) -> None:
        self.limiter, self.address, self.loop = limiter, address, clock
        self.since_s: float | None = None
        self.rejections: list[str] = []

    def reject(self, status: int, message: str) -> None:
        self.rejections.append(f"{status} {message}")
        self.limiter.remove(self)


@pytest.mark.parametrize("seed", range(20))
def test_beyond_the_limit_the_oldest_of_the_longest_waiting_address_is_rejected(seed: int) -> None:
    """Against the definition: an address has waited for the sum of its waiting connections, and a second for each."""
    chance = random.Random(seed)
    clock = Clock()
    limiter = ConnectionLimiter(4, 1, 1, 1, "MOST")
    connections: list[Connection] = []
    for _ in range(100):
        clock.now_s += chance.randrange(5)
        verb = chance.choice(["add", "add", "wait", "work", "remove"])
        if verb == "add":
            connections.append(Connection(limiter, chance.choice("abc"), clock))
            connections[-1].since_s = clock.now_s
            limiter.add(connections[-1])
        elif connections:
            connection = chance.choice(connections)
            {"wait": limiter.mark_waiting, "work": limiter.mark_working, "remove": limiter.remove}[verb](connection)
            connection.since_s = clock.now_s if verb == "wait" else None
            if verb == "remove":
                connections.remove(connection)
        waits: defaultdict[str, list[float]] = defaultdict(list)
        for connection in connections:
            if connection.since_s is not None:
                waits[connection.address].append(clock.now_s + 1 - connection.since_s)
        rejected = [connection for connection in connections if connection.rejections]
        assert len(rejected) == (len(connections) > 4)
        for connection in rejected:
            assert connection.rejections == ["503 more than 4 connections (MOST)"]
            assert sum(waits[connection.address]) == max(map(sum, waits.values()))
            assert clock.now_s + 1 - (connection.since_s or 0.0) == max(waits[connection.address])
            connections.remove(connection)


def test_connections_and_spare_files_fit_into_the_open_files_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (SPARE_FILES + 30, resource.RLIM_INFINITY))
    check_open_files({"REST": 20, "gRPC": 10}, "--rest-connections")
    with pytest.raises(CimlError, match=f"20 REST and 11 gRPC connections take {SPARE_FILES + 31} files; the limit is"):
        check_open_files({"REST": 20, "gRPC": 11}, "--rest-connections")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    check_open_files({"REST": 1 << 40}, "--rest-connections")


async def parts_of(*sizes: int, until: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)
    if until is not None:
        await until.wait()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Intake:
    """An intake of 100 bytes in all, beyond the first 10 of each of at most three incomplete requests of 80."""
    monkeypatch.setattr(intake_module, "MAX_HELD_BYTES", 100)
    monkeypatch.setattr(intake_module, "SMALL_REQUEST_BYTES", 10)
    return Intake(body_s=60, max_bytes=80, max_reading=3, limit="MOST")


async def result(request: asyncio.Task[bytes]) -> tuple[int, int | str]:
    try:
        return 200, len(await request)
    except RequestError as error:
        return error.http_status, error.message.partition(":")[0]


def test_a_request_at_its_limit_is_read_and_one_beyond_it_is_not(small: Intake) -> None:
    async def read(*sizes: int, announced: str | None = None, most: int | None = None) -> int:
        with small.hold(most) as held:
            small.check_length(held, announced)
            return len(await small.read(held, parts_of(*sizes)))

    assert asyncio.run(read(30, 50, announced="80")) == 80
    assert asyncio.run(read(20, announced="20", most=20)) == 20
    for sizes, announced, most in (((30, 51), None, None), ((), "81", None), ((21,), None, 20), ((), "81", 99)):
        with pytest.raises(RequestError, match="MOST") as caught:
            asyncio.run(read(*sizes, announced=announced, most=most))
        assert caught.value.http_status == 413


def test_requests_that_have_ended_and_small_ones_count_no_more(small: Intake) -> None:
    async def serve() -> None:
        with ExitStack() as until_the_end:
            for _ in range(20):
                with small.hold() as first, small.hold() as second:
                    assert len(await small.read(first, parts_of(60))) == 60
                    assert len(await small.read(second, parts_of(60))) == 60
                held = until_the_end.enter_context(small.hold())
                assert len(await small.read(held, parts_of(10))) == 10

    asyncio.run(serve())


def test_beyond_all_bytes_the_largest_request_is_dropped(small: Intake) -> None:
    async def serve() -> list[tuple[int, int | str]]:
        arrived = asyncio.Event()

        async def request(size: int, until: asyncio.Event | None) -> bytes:
            with small.hold() as held:
                return await small.read(held, parts_of(size, until=until))

        requests = []
        for size, until in ((75, arrived), (20, arrived), (40, None)):
            requests.append(asyncio.create_task(request(size, until=until)))
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        arrived.set()
        return [await result(request) for request in requests]

    dropped = (503, "dropped as the largest")
    assert asyncio.run(serve()) == [dropped, (200, 20), (200, 40)]


def test_a_dropped_request_with_another_part_drops_no_other(small: Intake) -> None:
    dropped = RequestError("RESOURCE_EXHAUSTED", "dropped as the largest")

    async def serve() -> None:
        with small.hold() as other, small.hold() as held:
            await small.read(other, parts_of(70))
            held.rejection = dropped  # in this turn; its task has not run since
            with pytest.raises(RequestError, match="dropped as the largest"):
                await small.read(held, parts_of(70))
            assert other.rejection is None

    asyncio.run(serve())


async def late() -> AsyncIterator[bytes]:
    """Yield nothing, and take some time to end once cancelled."""
    try:
        await asyncio.sleep(60)
        yield b""
    finally:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(("body_s", "status"), [(0.01, "expired meanwhile"), (60.0, "is read")])
def test_a_request_that_is_rejected_as_the_oldest_affects_no_other(body_s: float, status: str) -> None:
    async def read_both() -> bytes:
        intake = Intake(body_s=body_s, max_bytes=100, max_reading=1)
        with intake.hold() as first, intake.hold() as second:
            oldest = asyncio.create_task(intake.read(first, late()))
            await asyncio.sleep(0.05)
            body = await intake.read(second, parts_of(4))
            with pytest.raises(RequestError, match="dropped as the oldest of 1 incomplete requests"):
                await oldest
        return body

    assert asyncio.run(read_both()) == bytes(4), status


def test_requests_beyond_the_threads_wait_up_to_a_limit_and_large_ones_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake_module, "MAX_WAITING_REQUESTS", 3)
    monkeypatch.setattr(intake_module, "LARGE_REQUEST_BYTES", 10)
    release = threading.Event()
    running: set[str] = set()

    def work(name: str) -> str:
        running.add(name)
        release.wait(30)
        return name

    async def serve() -> None:
        workers = Workers(2)
        try:
            for _ in range(2):  # what is done does not count the second time
                release.clear()
                running.clear()
                requests = [
                    asyncio.create_task(workers.run(size, partial(work, name)))
                    for size, name in ((11, "large"), (12, "next"), (10, "small"))
                ]
                while len(running) < 2:
                    await asyncio.sleep(0.001)
                assert running == {"large", "small"}
                with pytest.raises(RequestError, match="3 requests are waiting already"):
                    await workers.run(1, lambda: work("fourth"))
                release.set()
                assert await asyncio.gather(*requests) == ["large", "next", "small"]
        finally:
            release.set()
            workers.close()

    asyncio.run(serve())


def test_requests_that_their_clients_give_up_take_no_memory_and_no_second_thread() -> None:
    release = threading.Event()
    running = threading.Semaphore(0)
    bodies: list[Body] = []

    def work(body: Body) -> None:
        running.release()
        release.wait(30)
        raise RequestError("INVALID_ARGUMENT", "of a request that nobody waits for")

    async def serve() -> None:
        workers = Workers(1)
        logged: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

        async def request() -> None:
            body = Body()
            bodies.append(body)
            await workers.run(1, partial(work, body))

        try:
            requests = [asyncio.create_task(request()) for _ in range(5)]
            assert await asyncio.to_thread(running.acquire, timeout=30)
            held = weakref.WeakSet(bodies)
            bodies.clear()
            for task in requests:
                task.cancel()
            await asyncio.wait(requests)
            del requests, task
            await asyncio.sleep(0)
            assert len(held) == 1  # that of the thread, which cannot be interrupted
            later = asyncio.create_task(workers.run(1, lambda: "answered"))
            await asyncio.sleep(0.05)
            assert not later.done()
            release.set()
            assert await asyncio.wait_for(later, 30) == "answered"
            gc.collect()
            assert (len(held), logged) == (0, [])
        finally:
            release.set()
            workers.close()

    asyncio.run(serve())


class Body:
    """The body of a request."""

"""Load on the receiver of webhooks, beside slow and hostile clients: python -m tests.services.webhooks_load

Good deliveries come at a fixed rate from an address of their own, each at its due time whatever the others take, so
that a stall counts for all that it delays. Slow clients hold connections: silent ones, half a header, half a body.
Hostile ones send forged signatures, bodies over the limit, wrong paths and what is not HTTP. All on 127.0.0.0/8.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.integrations.receivers.probe import install
from tests.integrations.webhooks.hooking import delivery
from tests.integrations.webhooks.killing import Killed
from tests.integrations.webhooks.test_signatures import github

_HOST, _SLOW_HOSTS, _HOSTILE_HOST = "127.0.0.1", ("127.0.0.2", "127.0.0.3", "127.0.0.4"), "127.0.0.5"
_HEAD = b"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: sha256=" + b"0" * 64 + b"\r\n"
_SLOW = (b"", _HEAD, _HEAD + b"Content-Length: 100000\r\n\r\n{", _HEAD + b"Content-Length: 100000\r\n\r\n{")
_MIB = 1 << 20


@dataclass
class Load:
    """The results.

    Attributes:
      answers: good deliveries by status.
      seconds: of each, from its sending to its answer; ``late``: from its due time, with what this process was late.
      others: first lines that slow and hostile clients were answered.
      memory: resident bytes of the receiver, once a second; ``cpu_s``: its CPU time.
    """

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    cpu_s: float = 0.0


async def _forever(work: Callable[[], Awaitable[None]], every_s: float) -> None:
    while True:
        await work()
        await asyncio.sleep(every_s * random.uniform(0.5, 1.5))


async def _ask(load: Load, port: int, source: str, sent: bytes, what: str) -> None:
    try:
        reader, writer = await asyncio.open_connection(_HOST, port, local_addr=(source, 0))
    except OSError as error:
        load.others[f"{what}: {type(error).__name__}"] += 1
        return
    try:
        writer.write(sent)
        await writer.drain()
        async with asyncio.timeout(40.0):
            first = (await reader.read(200)).partition(b"\r\n")[0]
        load.others[f"{what}: {first.decode('latin-1') or 'closed'}"] += 1
    except (OSError, TimeoutError) as error:
        load.others[f"{what}: {type(error).__name__}"] += 1
    finally:
        writer.close()


def _hostile() -> bytes:
    return random.choice((
        _HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000,
        _HEAD + b"Content-Length: 900000\r\n\r\n" + b"x" * 900_000,
        _HEAD + b"Content-Length: 100000000\r\n\r\n" + b"x" * 100_000,
        b"POST /hooks/none HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\x16\x03\r\n\r\n",
    ))  # fmt: skip


async def _good(load: Load, port: int, body: bytes, due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    sent = time.monotonic()
    try:
        async with asyncio.timeout(30.0):
            reader, writer = await asyncio.open_connection(_HOST, port)
            try:
                signature = github(body)["x-hub-signature-256"].encode()
                writer.write(
                    b"POST /hooks/hub HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (signature, len(body), body)
                )
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        load.answers[type(error).__name__] += 1
        return
    load.answers[answer[9:12].decode()] += 1
    load.seconds.append(time.monotonic() - sent)
    load.late.append(time.monotonic() - due)


async def run_load(receiver: Killed, *, seconds: float, rate: float, slow: int, hostile: float, size: int) -> Load:
    """Send ``rate`` deliveries of ``size`` bytes a second beside ``slow`` connections and ``hostile`` requests/s."""
    load, port = Load(), receiver.port
    process = psutil.Process(receiver.program.pid)
    background = [
        asyncio.create_task(
            _forever(partial(_ask, load, port, _SLOW_HOSTS[number % 3], _SLOW[number % 4], "slow"), 2.0)
        )
        for number in range(slow)
    ]

    async def attack() -> None:
        await _ask(load, port, _HOSTILE_HOST, _hostile(), "hostile")

    background += [asyncio.create_task(_forever(attack, 4 / hostile)) for _ in range(4 if hostile else 0)]

    async def watch() -> None:
        load.memory.append(process.memory_info().rss)

    background.append(asyncio.create_task(_forever(watch, 1.0)))
    await asyncio.sleep(3.0)
    began, before = time.monotonic(), process.cpu_times()
    pad = "x" * max(0, size - 100)
    waiting: set[asyncio.Task[None]] = set()
    for number in range(int(seconds * rate)):
        due = began + number / rate
        waiting.add(asyncio.create_task(_good(load, port, delivery(number, text=pad), due)))
        if number % 50 == 0:
            waiting = {task for task in waiting if not task.done()}
            await asyncio.sleep(max(0.0, due - time.monotonic() - 0.5))
    await asyncio.gather(*waiting)
    after = process.cpu_times()
    load.cpu_s = after.user + after.system - before.user - before.system
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    return load


def main() -> int:
    """Run it on a broker of its own; the exit code is 1 if a good delivery was not answered 202."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--slow", type=int, default=1000, help="slow connections")
    parser.add_argument("--hostile", type=float, default=20.0, help="hostile requests a second")
    parser.add_argument("--size", type=int, default=20_000, help="bytes of a delivery")
    chosen = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, chosen.slow * 2 + 1000), most))
    from ciml import engines

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        probe = install(root / "probe")
        with engines.start(["kafka"], home=root / "home", settings=engines.Settings(tied=True)) as running:
            engines.create_topics(running.kafka, {"hooked": 2})
            receiver = Killed(root / "hooks", running.kafka, "hooked", probe)
            try:
                while "receiving" not in (root / "hooks" / "receiver.log").read_text():
                    time.sleep(0.2)
                load = asyncio.run(
                    run_load(
                        receiver, seconds=chosen.seconds, rate=chosen.rate, slow=chosen.slow, hostile=chosen.hostile,
                        size=chosen.size,
                    )
                )  # fmt: skip
            finally:
                receiver.program.kill()
    _report(load, chosen.seconds)
    return 0 if set(load.answers) == {"202"} else 1


def _report(load: Load, seconds: float) -> None:
    early, late = load.memory[len(load.memory) // 5], load.memory[-1]
    print(f"deliveries: {dict(load.answers)}; {len(load.seconds) / seconds:.0f} a second")
    for what, times in (("sent", sorted(load.seconds)), ("due", sorted(load.late))):
        p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
        print(f"answers since {what}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {times[-1] * 1000:.0f} ms")
    peak = max(load.memory)
    print(f"memory: {early / _MIB:.0f} MiB after a fifth, {late / _MIB:.0f} at the end, {peak / _MIB:.0f} at most")
    print(f"CPU of the receiver: {load.cpu_s / seconds:.0%} of a core; load average {os.getloadavg()[0]:.1f}")
    print(json.dumps(dict(load.others.most_common()), indent=1))


if __name__ == "__main__":
    sys.exit(main())

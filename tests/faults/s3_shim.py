"""An S3 endpoint for each process that runs trials, and a server before it that fails on every verb, by a seed."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ciml.engines import s3_environment
from ciml.engines.base import http_answers
from ciml.engines.processes import free_ports
from tests.faults.children import Program, python

_numbers = itertools.count(1)

#: What can happen to a request. ``after`` means that it took effect, and its answer is lost.
KINDS = ("500", "503", "reset", "500 after", "503 after", "reset after", "slow", "cut")
_ERRORS = {"500": "InternalError", "503": "SlowDown"}
_HOP = {"transfer-encoding", "content-length", "connection", "content-encoding", "server", "date"}


@dataclass
class Weather:
    """How bad it is: the share of requests that meet a fault, and whether nothing is answered at all."""

    share: float
    down: bool = False


class Shim:
    """The server, in a thread.

    Attributes:
      url: its address.
      weather: may be changed at any time.
      met: how many requests met what, by (verb, kind).
    """

    def __init__(self, endpoint: str, seed: int, weather: Weather) -> None:
        self._endpoint, self._random = endpoint, random.Random(seed)
        self.weather = weather
        self.met: Counter[tuple[str, str]] = Counter()
        self.url = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the shim does not come up")

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop())

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._ready.set()

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        kind = self._fault("LIST" if "list-type" in request.query else request.method)
        body = await request.read()
        if kind == "slow":
            await asyncio.sleep(self._random.uniform(0.3, 2.0))
        elif kind and not kind.endswith("after") and kind != "cut":
            return self._fail(request, kind)
        status, headers, answer = await self._forward(request, body)
        if kind and kind.endswith("after"):
            return self._fail(request, kind.removesuffix(" after"))
        if kind == "cut" and len(answer) > 1:
            return await self._cut(request, status, headers, answer)
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        return web.Response(status=status, headers=headers, body=answer)

    def _fault(self, verb: str) -> str:
        if self.weather.down:
            kind = self._random.choice(("503", "reset"))
        elif self._random.random() < self.weather.share:
            kind = self._random.choice(KINDS)
            if kind == "cut" and verb not in ("GET", "LIST"):
                kind = "reset after"
        else:
            return ""
        self.met[verb, kind] += 1
        return kind

    @staticmethod
    def _fail(request: web.Request, kind: str) -> web.Response:
        if kind == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        text = f"<Error><Code>{_ERRORS[kind]}</Code><Message>a bad day</Message></Error>"
        return web.Response(status=int(kind), text=text, content_type="application/xml")

    @staticmethod
    async def _cut(request: web.Request, status: int, headers: dict[str, str], answer: bytes) -> web.StreamResponse:
        """The head of an answer promises all of it, and half of it comes."""
        response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(answer))})
        await response.prepare(request)
        await response.write(answer[: len(answer) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        sent = {name: value for name, value in request.headers.items() if name.lower() not in (*_HOP, "expect")}
        arguments: dict[str, Any] = {"headers": sent, "data": body, "skip_auto_headers": ("Content-Type",)}
        url = f"{self._endpoint}{request.raw_path}"
        async with self._session.request(request.method, _as_it_is(url), **arguments) as answer:
            got = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if request.method == "HEAD" and "Content-Length" in answer.headers:
                got["Content-Length"] = answer.headers["Content-Length"]
            return answer.status, got, await answer.read()


def _as_it_is(url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)


class Endpoint:
    """moto's S3 in a process of its own; this process's own environment points at it."""

    def __init__(self, home: Path) -> None:
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        self.process: Program = python("moto.server", "-H", "127.0.0.1", "-p", str(port), log=home / f"s3-{port}.log")
        deadline = time.monotonic() + 60
        while not http_answers(f"{self.url}/moto-api/"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no S3: {self.process.said()}")
            time.sleep(0.05)
        os.environ.update(s3_environment(self.url))

    def client(self) -> Any:
        """Return a client of the endpoint itself, also if a shim is before it."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def bucket(self) -> str:
        """Create a bucket and return its address."""
        name = f"trial-{os.getpid()}-{next(_numbers)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def copy(self, source: str, target: str) -> None:
        """Copy all objects below one ``s3://`` prefix to another."""
        client = self.client()
        (bucket, _, prefix), (to, _, folder) = (each.removeprefix("s3://").partition("/") for each in (source, target))
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for item in page.get("Contents", ()):
                key = item["Key"]
                client.copy_object(Bucket=to, Key=f"{folder}/{key[len(prefix) + 1 :]}", CopySource=f"{bucket}/{key}")


_endpoints: dict[int, Endpoint] = {}


def own_s3(home: Path) -> Endpoint:
    """Return the endpoint of this process."""
    pid = os.getpid()
    found = _endpoints.get(pid)
    if found is None or found.process.poll() is not None:
        found = _endpoints[pid] = Endpoint(home)
        atexit.register(found.process.kill)
    return found

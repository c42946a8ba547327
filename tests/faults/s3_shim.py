"""A server before an S3 endpoint that fails on every verb, by a seed."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

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

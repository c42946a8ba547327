"""A Gerrit for tests of faults: an SSH server whose stream a test writes, and a REST API of changes that it sets.

What a real Gerrit says is in `tests.integrations.gerrit.test_executed`; a real one cannot be told to misbehave.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncssh

from ciml.engines.processes import lasting_ports
from ciml.integrations.config import GerritSource, load_receivers
from ciml.integrations.gerrit.session import GerritSession
from tests.integrations.gerrit.samples import source
from tests.integrations.receivers.kept import wait

PASSWORD = "an HTTP password of Gerrit"


@dataclass
class FakeGerrit:
    """The server. Streams begin empty: like Gerrit it repeats nothing.

    Attributes:
      ssh, rest: ports.
      changes: what the REST API answers, the latest first.
      asked: the queries of the REST API.
      answer: what it answers instead: status, headers and parts of the body; None for changes. Of the path.
      date: its clock, epoch seconds; None for the machine's.
      errors: what a stream writes to standard error when it begins.
      commands: of the streams.
    """

    folder: Path
    changes: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    answer: Callable[[str], tuple[int, dict[str, str], Iterable[bytes]] | None] | None = None
    date: float | None = None
    errors: bytes = b""
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.ssh, self.rest = lasting_ports(2)
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.folder / "key"))
        (self.folder / "key").chmod(0o600)
        key.write_public_key(str(self.folder / "key.pub"))
        public = self.host_key.export_public_key().decode().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.ssh} {' '.join(public)}\n")
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o600)
        self._thawed = threading.Event()
        self._streams: list[asyncssh.SSHServerProcess[bytes]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncssh.SSHAcceptor | None = None
        self._http: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen."""
        self._server = self._run(self._listen())
        self._http = ThreadingHTTPServer(("127.0.0.1", self.rest), _handler(self))
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End all connections, and listen no more."""
        if self._server is not None and self._http is not None:
            self._run(self._close(self._server))
            self._http.shutdown()
            self._http.server_close()
        self._server = self._http = None

    def close(self) -> None:
        """Stop, and end the event loop: the server cannot start again."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def write(self, *lines: bytes | dict[str, Any]) -> None:
        """Write lines to the streams."""
        text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)

        async def write() -> None:
            for one in self._streams:
                one.stdout.write(text)

        self._run(write())

    def end_streams(self) -> None:
        """End the streams, and no connection."""

        async def end() -> None:
            for one in list(self._streams):
                one.exit(1)

        self._run(end())

    def freeze(self) -> None:
        """Let the SSH server neither read nor answer."""
        self._thawed.clear()
        self._loop.call_soon_threadsafe(self._thawed.wait)

    def thaw(self) -> None:
        """Let it go on."""
        self._thawed.set()

    def wait_for_stream(self) -> None:
        """Wait until a stream is open."""
        wait(lambda: self._streams, "no stream is opened")

    def session(self, state: Any = None, **changes: object) -> GerritSession:
        """Return a session of a source with the state that an earlier one left."""
        folder = self.folder.parent
        if state is not None:
            (folder / "state").mkdir(exist_ok=True)
            self._position.write_text(json.dumps(state))
        (folder / "receivers.toml").write_text(source(self.folder, self.ssh, self.rest, **changes))
        receivers = load_receivers(folder / "receivers.toml")
        return GerritSession(receivers, receivers.of(GerritSource)[0])

    def position(self, key: str = "after") -> Any:
        """Return the time up to which the API was compared, once it is stored."""
        wait(lambda: self._position.exists() and key in json.loads(self._position.read_text()), "there is no position")
        return json.loads(self._position.read_text())[key]

    @property
    def _position(self) -> Path:
        return self.folder.parent / "state" / "gerrit-zuul.json"

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1", self.ssh, server_host_keys=[self.host_key], encoding=None, process_factory=self._stream,
            authorized_client_keys=str(self.folder / "key.pub"), reuse_address=True,
        )  # fmt: skip

    async def _close(self, server: asyncssh.SSHAcceptor) -> None:
        server.close()
        for one in self._streams:
            one.get_extra_info("connection").abort()
        await server.wait_closed()

    async def _stream(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self.commands.append(process.command or "")
        self._streams.append(process)
        process.stderr.write(self.errors)
        try:
            await process.wait_closed()
        finally:
            self._streams.remove(process)


def _handler(gerrit: FakeGerrit) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if gerrit.answer is not None and (other := gerrit.answer(url.path)) is not None:
                self.send_response_only(other[0])
                for name, value in ({"Date": formatdate(gerrit.date, usegmt=True)} | other[1]).items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for part in other[2]:
                        self.wfile.write(part)
                return
            expected = "Basic " + base64.b64encode(f"ci:{PASSWORD}".encode()).decode()
            status = 200 if self.headers["authorization"] == expected else 401
            body: Any = "3.10.2"
            if url.path.endswith("/changes/") and status == 200:
                asked = parse_qs(url.query)
                gerrit.asked.append(asked)
                start, count = int(asked["S"][0]), int(asked["n"][0])
                page = [dict(each) for each in gerrit.changes[start : start + count]]
                if page and start + count < len(gerrit.changes):
                    page[-1]["_more_changes"] = True
                body = page
            text = b")]}'\n" + json.dumps(body).encode()
            self.send_response_only(status)
            self.send_header("Date", formatdate(gerrit.date, usegmt=True))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler

"""The session with a Gerrit: its stream, and comparisons with its REST API, in one event loop.

Gerrit repeats no event of its stream. So the session compares with the REST API: after each new connection, after each
gap in the stream (an event that Gerrit dropped, or that is too long), and regularly. It produces the events that the
stream has not shown. The *position* is stored: the time up to which events were compared.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncssh

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import shown
from ciml.http.outgoing import call_in_daemon
from ciml.integrations.config import GerritSource, Receivers
from ciml.integrations.gerrit.approvals import TYPES, Changes, Event, events_of
from ciml.integrations.gerrit.stream import Lines, StoredEvents, epoch_s, is_inner_ref, parse_line
from ciml.integrations.registry import delivered, find_adapter
from ciml.integrations.secrets import Secrets
from ciml.integrations.sessions import Inbox, Lost, Session
from ciml.limits import MAX_STREAM_LINE_BYTES
from ciml.storage.json_files import read_json, write_json

T = TypeVar("T")

_COMMAND = " ".join(["gerrit stream-events", *(f"-s {kind}" for kind in (*TYPES, "dropped-output"))])
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_CHUNK_BYTES = 1 << 16
#: The size of the end of standard error that is kept.
_ERROR_BYTES = 1000
_TICK_S = 0.01
#: Time limits of the connection, of the login and of the start of the command, each.
_LOGIN_S = 20.0
_ALIVE_S = 20.0
#: A new stream may miss events for this time, so a comparison begins after it.
_SETTLE_S = 2.0
#: Each comparison overlaps the one before by this time, because the server's index lags.
_OVERLAP_S = 60.0
#: Pause before the API is asked again after an error.
_RETRY_S = 15.0
_log = logging.getLogger(__name__)
asyncssh.set_log_level(logging.WARNING)


class GerritSession(Session):
    """The session of a source.

    Args:
      receivers: the configuration.
      source: one of its sources.

    Raises:
      CimlError: a key, a secret or a certificate is missing or invalid, or the position cannot be stored.
    """

    def __init__(self, receivers: Receivers, source: GerritSource) -> None:
        super().__init__(source.name, source.ssh)
        self._source = source
        self._adapter = find_adapter(source.adapter)
        where = receivers.where(source)
        self._key = receivers.loaded(source, "key_file", asyncssh.read_private_key)
        self._hosts = receivers.loaded(source, "known_hosts_file", asyncssh.read_known_hosts)
        self._secrets = Secrets(where, source, receivers.file.parent)
        self._tls = receivers.loaded(source, "ca_file", lambda path: ssl.create_default_context(cafile=path))
        self._position_file = receivers.path(receivers.gerrit.state) / f"gerrit-{source.name}.json"
        self._stored_events = StoredEvents()
        # Over plain HTTP, anyone on the way may change the answers, so they prove nothing.
        api = urlsplit(source.rest)
        self._rest_auth = "ssh" if api.scheme == "https" or api.hostname in _LOCAL else ""
        self._comparison_problem = ""
        try:
            self._position = _Position.of(read_json(self._position_file))
        except OSError as error:
            raise CimlError(f"{where}: {self._position_file}: {error.strerror}; set state of [gerrit]") from None

    def run(self, inbox: Inbox, stop: threading.Event) -> None:
        super().run(inbox, stop)
        while not self.may_end(inbox, stop):  # Gerrit does not repeat what waits for Kafka
            inbox.settle()
            time.sleep(_TICK_S)

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        asyncio.run(self._serve(inbox, stop))

    async def _serve(self, inbox: Inbox, stop: threading.Event) -> None:
        """Receive until ``stop`` is set, and settle deliveries, also those of an earlier connection."""
        receiving = asyncio.create_task(self._receive(inbox))
        try:
            while not stop.is_set():
                inbox.settle()
                if receiving.done():
                    receiving.result()  # raises its error
                await asyncio.sleep(_TICK_S)
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive(self, inbox: Inbox) -> None:
        """Connect, and produce each event until the connection ends. Raises `Lost` then."""
        user, host, port = self._source.address
        connecting = asyncssh.connect(
            host,
            port,
            username=user,
            client_keys=[self._key],
            known_hosts=self._hosts,
            config=None,
            agent_path=None,
            preferred_auth=["publickey"],
            connect_timeout=_LOGIN_S,
            login_timeout=_LOGIN_S,
            keepalive_interval=_ALIVE_S,
            keepalive_count_max=3,
        )
        try:
            async with connecting as connection:
                try:
                    async with asyncio.timeout(_LOGIN_S):
                        process = await connection.create_process(_COMMAND, encoding=None, stdin=asyncssh.DEVNULL)
                    await self._read_and_compare(process, inbox)
                finally:
                    connection.abort()  # a server need not answer a polite end
        except (OSError, asyncssh.Error) as error:
            raise Lost(self._explain(error)) from None

    async def _read_and_compare(self, process: asyncssh.SSHClientProcess[bytes], inbox: Inbox) -> None:
        must_compare = asyncio.Event()
        must_compare.set()  # what happened before this connection is unknown
        errors = _ErrorOutput(process)
        tasks = [asyncio.create_task(self._read_stream(process, errors, inbox, must_compare))]
        if self._source.rest:
            tasks.append(asyncio.create_task(self._keep_comparing(inbox, must_compare)))
        self.problem = self._comparison_problem
        inbox.set_connected(True)
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, errors.task):
                task.cancel()
            await asyncio.gather(*tasks, errors.task, return_exceptions=True)

    async def _read_stream(
        self, process: asyncssh.SSHClientProcess[bytes], errors: _ErrorOutput, inbox: Inbox, must_compare: asyncio.Event
    ) -> None:
        """Produce each line of the stream. Raises `Lost` at the end of the stream."""
        lines = Lines(MAX_STREAM_LINE_BYTES)
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            for line in lines.feed(chunk):
                await _wait_for_room(inbox)
                if line is None:
                    must_compare.set()
                    inbox.reject("too_large", f"a line has more than {MAX_STREAM_LINE_BYTES} bytes")
                    continue
                event = parse_line(line)
                if event.get("type") == "dropped-output":
                    if not must_compare.is_set():
                        _log.warning("source %s: Gerrit has dropped events of the stream", self.name)
                    must_compare.set()
                elif not is_inner_ref(event):
                    self._put(inbox, line, partial(self._stored_events.add, event), "ssh")
        text = await errors.text()
        raise Lost(f"{self.shown} ended the stream{f': {shown(text, 300)}' if text else ''}")

    async def _keep_comparing(self, inbox: Inbox, must_compare: asyncio.Event) -> None:
        """Compare with the API after each gap, and regularly."""
        await asyncio.sleep(_SETTLE_S)
        errors = 0
        while True:
            passwords = self._secrets.keys()
            # While a password is replaced there are two, which alternate after each error.
            password = passwords[errors % len(passwords)] if passwords else b""
            api = Changes(self._source.rest, self._source.user or self._source.address[0], password, self._tls)
            pause_s = self._source.check_s
            must_compare.clear()
            try:
                await self._compare(api, inbox)
                self._report("")
            except CimlError as error:
                errors += 1
                pause_s = min(pause_s, _RETRY_S)
                self._report(str(error))
            finally:
                api.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await must_compare.wait()
                    await asyncio.sleep(_SETTLE_S)

    def _report(self, comparison_problem: str) -> None:
        """Report that comparisons fail, or again succeed with ""; the stream continues meanwhile."""
        if comparison_problem and comparison_problem != self._comparison_problem:
            _log.warning("source %s: %s; the stream continues", self.name, comparison_problem)
        self.problem = self._comparison_problem = comparison_problem

    async def _compare(self, api: Changes, inbox: Inbox) -> None:
        """Produce the events that the stream has not shown. Once Kafka has acknowledged them, store the position."""
        at_s = time.time()  # before the server's time: a difference makes the next comparison begin earlier
        now_s = await _in_thread(api.now)
        if self._position is not None:
            await self._produce_missed(api, self._position.begin(now_s), inbox)
        position = _Position(now_s, at_s)
        try:
            write_json(self._position_file, {"after": position.after_s, "at": position.at_s})
        except OSError as error:
            raise CimlError(f"{self._position_file}: {error.strerror}; set state of [gerrit]") from None
        self._position = position

    async def _produce_missed(self, api: Changes, after_s: float, inbox: Inbox) -> None:
        """Produce the events since a time that the stream has not shown. Return once Kafka has acknowledged them."""
        unstored = 0

        def note_stored(event: Mapping[str, Any]) -> None:
            nonlocal unstored
            unstored -= 1
            self._stored_events.add(event)

        pages = api.updated(after_s)
        while (page := await _in_thread(lambda: next(pages, None))) is not None:
            for change in page:
                for event in self._missed_events(change, after_s, inbox):
                    await _wait_for_room(inbox)
                    unstored += 1
                    line = json.dumps(event, sort_keys=True).encode()
                    self._put(inbox, line, partial(note_stored, event), self._rest_auth)
        while unstored:
            await asyncio.sleep(_TICK_S)

    def _missed_events(self, change: Mapping[str, Any] | None, after_s: float, inbox: Inbox) -> Iterator[Event]:
        """Yield the events of a change that the stream has not shown."""
        if change is None:
            inbox.reject("too_large", "a change of the REST API is too large")
            return
        try:
            events = events_of(change, after_s)
        except RejectedInput as error:
            inbox.reject("rejected", f"a change of the REST API is not understood: {error}")
            return
        yield from (event for event in events if event not in self._stored_events)

    def _put(self, inbox: Inbox, line: bytes, settled: Callable[[], object], auth: str) -> None:
        value, headers = delivered(self._adapter, self.name, line, {}, auth)
        inbox.put(value, headers, settled)

    def _explain(self, error: Exception) -> str:
        source = self._source
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return (
                f"{self.shown}: its host key is not in known_hosts_file {source.known_hosts_file}; compare it with the "
                "administrator's, then add it by ssh-keyscan"
            )
        if isinstance(error, asyncssh.PermissionDenied):
            return f"{self.shown} refuses key_file {source.key_file}; add its public key to the account's SSH keys"
        if isinstance(error, asyncssh.DisconnectError):
            return f"{self.shown} does not answer: {shown(error.reason or type(error).__name__, 300)}"
        return f"{self.shown} does not answer: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"


class _ErrorOutput:
    """Reads the server's standard error and keeps its end. If nobody read it, the server would block.

    Attributes:
      task: ends when the server has closed its standard error.
    """

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._tail = deque[int](maxlen=_ERROR_BYTES)
        self.task = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        while chunk := await process.stderr.read(_CHUNK_BYTES):
            self._tail.extend(chunk)

    async def text(self) -> str:
        """Return the text once the server has closed its standard error, or after a second."""
        await asyncio.wait([self.task], timeout=1.0)
        return bytes(self._tail).decode(errors="replace").strip()


@dataclass(frozen=True)
class _Position:
    """The time up to which events were compared with the API.

    Attributes:
      after_s: by the server's clock.
      at_s: by this machine's clock, a little earlier.
    """

    after_s: float
    at_s: float

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> _Position | None:
        """Return the stored position; None if there is none, or it holds no time."""
        after_s = epoch_s(stored or {}, "after")
        at_s = epoch_s(stored or {}, "at")
        return None if after_s is None else cls(after_s, math.inf if at_s is None else at_s)

    def begin(self, now_s: float) -> float:
        """Return the time where the next comparison begins, by the server's clock, which may have jumped in between."""
        elapsed_s = max(0.0, time.time() - self.at_s)
        return max(min(self.after_s, now_s - elapsed_s) - _OVERLAP_S, 0.0)


async def _in_thread(function: Callable[[], T]) -> T:
    return await asyncio.wrap_future(call_in_daemon(function, "gerrit REST"))


async def _wait_for_room(inbox: Inbox) -> None:
    while inbox.is_full:
        await asyncio.sleep(_TICK_S)

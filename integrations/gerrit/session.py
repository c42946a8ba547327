"""The session with a Gerrit: its stream, and comparisons with its REST API, in one event loop.

Gerrit repeats no event of its stream, so the position is a time up to which events were compared with the REST API.
Comparisons follow each new connection and each report of dropped events, and recur. Events that the stream has shown
are left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import ssl
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncssh

from ciml.errors import CimlError, RejectedInput
from ciml.events.redaction import shown
from ciml.integrations.config import GerritSource, Receivers
from ciml.integrations.gerrit.approvals import TYPES, Changes, events
from ciml.integrations.registry import delivered
from ciml.integrations.sessions import Inbox, Lost, Session
from ciml.limits import MAX_KNOWN_DELIVERIES, MAX_STREAM_LINE_BYTES
from ciml.secrets import Secrets
from ciml.storage.json_files import read_json, write_json

T = TypeVar("T")

_COMMAND = " ".join(["gerrit stream-events", *(f"-s {kind}" for kind in (*TYPES, "dropped-output"))])
_CHUNK_BYTES = 1 << 16
_TICK_S = 0.01
_SETTLE_S = 2.0  # until a new stream surely has what happens, before the first comparison
_SLACK_S = 60.0  # by which a comparison begins earlier: the server's index is late
_LATER_S = 60.0  # by which the stream's time of a vote may be later than the vote's own
_AGAIN_S = 15.0  # before the API is asked again after an error
_LOGIN_S = 20.0
_ALIVE_S = 20.0
_SAID_BYTES = 1000  # of what the server writes to standard error
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_log = logging.getLogger(__name__)
asyncssh.set_log_level(logging.WARNING)


class Lines:
    """Collects lines. A line over the limit is skipped whole, whatever its length, without keeping it.

    Args:
      most: bytes of a line.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts = list[bytes]()
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Return the lines that the chunk ends, without their ends and without empty ones; None for one too long."""
        lines: list[bytes | None] = []
        *ended, unfinished = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            line = b"".join(self._parts).strip() if self._size <= self._most else None
            if line != b"":
                lines.append(line)
            self._parts = []
            self._size = 0
        self._add(unfinished)
        return lines

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            self._parts = []
        elif part:
            self._parts.append(part)


class GerritSession(Session):
    """The session of a source.

    Args:
      receivers: the configuration.
      source: of it.

    Raises:
      CimlError: a key, a secret or a certificate is missing or invalid, or the position cannot be stored.
    """

    def __init__(self, receivers: Receivers, source: GerritSource) -> None:
        super().__init__(source.name, source.ssh)
        self._source = source
        self._adapter = source.found_adapter()
        where = receivers.where(source)
        self._key = receivers.loaded(source, "key_file", asyncssh.read_private_key)
        self._hosts = receivers.loaded(source, "known_hosts_file", asyncssh.read_known_hosts)
        self._secrets = Secrets(where, source.secret_file, source.secret_env, folder=receivers.file.parent)
        self._tls = receivers.loaded(source, "ca_file", lambda path: ssl.create_default_context(cafile=path))
        self._position = receivers.path(receivers.gerrit.state) / f"gerrit-{source.name}.json"
        self._had = _Had()
        # Who is between may write answers of plain HTTP.
        api = urlsplit(source.rest)
        self._rest_auth = "ssh" if api.scheme == "https" or api.hostname in _LOCAL else ""
        self._unchecked = ""
        try:
            self._compared = _Compared.of(read_json(self._position))
        except OSError as error:
            raise CimlError(f"{where}: {self._position}: {error.strerror}; set state of [gerrit]") from None

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        inbox.drop()
        asyncio.run(self._serve(inbox, stop))

    async def _serve(self, inbox: Inbox, stop: threading.Event) -> None:
        user, host, port = self._source.address
        try:
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
            async with (
                connecting as connection,
                connection.create_process(_COMMAND, encoding=None, stdin=asyncssh.DEVNULL) as process,
            ):
                try:
                    await self._work(process, inbox, stop)
                finally:
                    connection.abort()  # a server need not answer a polite end
        except (OSError, asyncssh.Error) as error:
            raise Lost(self._explained(error)) from None

    async def _work(self, process: asyncssh.SSHClientProcess[bytes], inbox: Inbox, stop: threading.Event) -> None:
        hole = asyncio.Event()
        hole.set()
        stderr = deque[int](maxlen=_SAID_BYTES)
        errors = asyncio.create_task(_drained(process, stderr))
        tasks = [asyncio.create_task(self._read(process, inbox, hole, errors, stderr))]
        if self._source.rest:
            tasks.append(asyncio.create_task(self._check(inbox, hole)))
        self.problem = self._unchecked
        inbox.connected(True)
        try:
            while not self.may_end(inbox, stop):
                inbox.settle()
                for task in tasks:
                    if stop.is_set():
                        task.cancel()
                    elif task.done():
                        task.result()
                await asyncio.sleep(_TICK_S)
        finally:
            for task in (*tasks, errors):
                task.cancel()
            await asyncio.gather(*tasks, errors, return_exceptions=True)

    async def _read(
        self,
        process: asyncssh.SSHClientProcess[bytes],
        inbox: Inbox,
        hole: asyncio.Event,
        errors: asyncio.Task[None],
        said: deque[int],
    ) -> None:
        """Produce each line of the stream. Raises `Lost` at its end."""
        lines = Lines(MAX_STREAM_LINE_BYTES)
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            for line in lines.feed(chunk):
                await _room(inbox)
                if line is None:
                    hole.set()
                    inbox.reject("too_large", f"a line has more than {MAX_STREAM_LINE_BYTES} bytes")
                    continue
                event = _parsed(line)
                if event.get("type") == "dropped-output":
                    if not hole.is_set():
                        _log.warning("source %s: Gerrit has dropped events of the stream", self.name)
                    hole.set()
                    continue
                if not _is_inner_ref(event):
                    self._put(inbox, line, partial(self._had.add, event), "ssh")
        await asyncio.wait([errors], timeout=1.0)
        text = bytes(said).decode(errors="replace").strip()
        raise Lost(f"{self.shown} ended the stream{f': {shown(text, 300)}' if text else ''}")

    async def _check(self, inbox: Inbox, hole: asyncio.Event) -> None:
        """Compare with the API, again and again."""
        await asyncio.sleep(_SETTLE_S)
        tries = 0
        while True:
            keys = self._secrets.keys()  # while a password is replaced: the other one after an error
            password = keys[tries % len(keys)] if keys else b""
            api = Changes(self._source.rest, self._source.user or self._source.address[0], password, self._tls)
            pause_s = self._source.check_s
            hole.clear()
            try:
                await self._compare(api, inbox)
                self.problem = self._unchecked = ""
            except CimlError as error:
                tries = tries + 1
                pause_s = min(pause_s, _AGAIN_S)
                if self._unchecked != str(error):
                    _log.warning("source %s: %s; the stream goes on", self.name, error)
                self.problem = self._unchecked = str(error)
            finally:
                api.close()
            try:
                async with asyncio.timeout(pause_s):
                    await hole.wait()
                    await asyncio.sleep(_SETTLE_S)
            except TimeoutError:
                pass

    async def _compare(self, rest: Changes, inbox: Inbox) -> None:
        """Produce what the stream has not had, and move the position when Kafka has it."""
        now_s = await _in_thread(rest.now)
        if self._compared is not None:
            after_s = self._compared.begin(now_s)
            waiting = list[None]()
            pages = rest.updated(after_s)
            while (page := await _in_thread(lambda: next(pages, None))) is not None:
                for event in (event for change in page for event in self._missed(change, after_s, inbox)):
                    await _room(inbox)
                    waiting.append(None)
                    line = json.dumps(event, sort_keys=True).encode()
                    self._put(inbox, line, partial(self._stored, event, waiting), self._rest_auth)
            while waiting:
                await asyncio.sleep(_TICK_S)
        compared = _Compared(now_s, time.time())
        try:
            write_json(self._position, {"after": compared.after_s, "at": compared.at_s})
        except OSError as error:
            raise CimlError(f"{self._position}: {error.strerror}; set state of [gerrit]") from None
        self._compared = compared

    def _stored(self, event: Mapping[str, Any], waiting: list[None]) -> None:
        waiting.pop()
        self._had.add(event)

    def _missed(self, change: Mapping[str, Any] | None, after_s: float, inbox: Inbox) -> list[dict[str, Any]]:
        if change is None:
            inbox.reject("too_large", "a change of the REST API is too large")
            return []
        try:
            return [event for event in events(change, after_s) if event not in self._had]
        except RejectedInput as error:
            inbox.reject("rejected", f"a change of the REST API is not understood: {error}")
            return []

    def _put(self, inbox: Inbox, line: bytes, settled: Any, auth: str) -> None:
        value, headers = delivered(self._adapter, self.name, line, {}, auth)
        inbox.put(value, headers, settled)

    def _explained(self, error: Exception) -> str:
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


@dataclass(frozen=True)
class _Compared:
    """A comparison with the API: the server's time, and this machine's."""

    after_s: float
    at_s: float

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> _Compared | None:
        """Return the stored one; None where there is none, or it holds no time."""
        after_s, compared_s = (_time(found or {}, name) for name in ("after", "at"))
        return None if after_s is None else cls(after_s, math.inf if compared_s is None else compared_s)

    def begin(self, now_s: float) -> float:
        """Return where the next comparison begins, by the server's clock: it may have jumped, ahead or back."""
        return max(min(self.after_s, now_s - max(0.0, time.time() - self.at_s)) - _SLACK_S, 0.0)


class _Had:
    """The events that Kafka has lately, as far as the API shows them too."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def add(self, event: Mapping[str, Any]) -> None:
        created_s = _created(event)
        for key in map(_digest, keys_of(event)):
            self._known[key] = created_s
            self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN_DELIVERIES:
            self._known.popitem(last=False)

    def __contains__(self, event: Mapping[str, Any]) -> bool:
        votes = event.get("type") in ("comment-added", "vote-deleted")
        for key in map(_digest, keys_of(event)):
            had_s = self._known.get(key)
            if had_s is None or (votes and not 0 <= had_s - _created(event) <= _LATER_S):
                return False
        return True


def keys_of(event: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what the event says: a key for each vote, else one."""
    try:
        change = event["change"]
        patchset = event["patchSet"]
        kind = event["type"]
        about = (kind, str(change["project"]), str(change["number"]), str(patchset["number"]))
        if kind not in ("comment-added", "vote-deleted"):
            return [about]
        who = event["author" if kind == "comment-added" else "reviewer"]
        name = str(who.get("username") or who.get("email") or who.get("name"))
        return [(*about, name, str(vote["type"]), str(vote["value"])) for vote in event.get("approvals", ())]
    except (KeyError, TypeError, AttributeError):
        return []


def _is_inner_ref(event: Mapping[str, Any]) -> bool:
    """Return whether an event is of a ref that is no branch: Gerrit updates several of them with each comment."""
    update = event.get("refUpdate")
    name = update.get("refName") if isinstance(update, Mapping) else ""
    return event.get("type") == "ref-updated" and not str(name).startswith("refs/heads/")


def _digest(key: tuple[Any, ...]) -> bytes:
    """Return what stands for a key: a line of a megabyte may be a single name."""
    return hashlib.blake2b(repr(key).encode(errors="surrogatepass"), digest_size=16).digest()


def _created(event: Mapping[str, Any]) -> float:
    return _time(event, "eventCreatedOn") or 0.0


def _time(found: Mapping[str, Any], name: str) -> float | None:
    """Return epoch seconds; None for what is no time."""
    when = found.get(name)
    return float(when) if isinstance(when, int | float) and 0 <= when < 1e11 else None


def _parsed(line: bytes) -> Mapping[str, Any]:
    """Return the event of a line; an empty one where it is none, which the adapter rejects."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if type(event) is dict else {}


async def _in_thread(function: Callable[[], T]) -> T:
    """Await a blocking call. Its thread is a daemon, so a server that does not answer never delays the end."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - raised where the result is awaited
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)


async def _room(inbox: Inbox) -> None:
    while inbox.is_full:
        await asyncio.sleep(_TICK_S)


async def _drained(process: asyncssh.SSHClientProcess[bytes], said: deque[int]) -> None:
    """Keep the end of what the server writes to standard error: unread, it would stop the stream too."""
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        said.extend(chunk)

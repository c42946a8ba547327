"""The session with a Gerrit: its stream, and comparisons with its REST API, in one event loop.

Gerrit repeats no event of its stream. So the session compares with the REST API: after each new connection, after each
*gap* in the stream (an event that Gerrit dropped, or that is too long), and regularly. It produces the events that the
stream has not shown. The *position*, up to which events were compared, is stored.
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
from ciml.integrations.registry import delivered, find_adapter
from ciml.integrations.secrets import Secrets
from ciml.integrations.sessions import Inbox, Lost, Session
from ciml.limits import MAX_KNOWN_DELIVERIES, MAX_STREAM_LINE_BYTES
from ciml.storage.json_files import read_json, write_json

T = TypeVar("T")

_COMMAND = " ".join(["gerrit stream-events", *(f"-s {kind}" for kind in (*TYPES, "dropped-output"))])
_CHUNK_BYTES = 1 << 16
_TICK_S = 0.01
_SETTLE_S = 2.0  # before the first comparison: until then a new stream may miss events
_SLACK_S = 60.0  # by which a comparison begins earlier: the server's index is late
_LATER_S = 60.0  # by which the stream's time of a vote may be later than the vote's own
_AGAIN_S = 15.0  # before the API is asked again after an error
_LOGIN_S = 20.0
_ALIVE_S = 20.0
_ERROR_BYTES = 1000  # the end of what the server writes to standard error
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_VOTES = ("comment-added", "vote-deleted")
_log = logging.getLogger(__name__)
asyncssh.set_log_level(logging.WARNING)


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
        self._adapter = find_adapter(source.adapter)
        where = receivers.where(source)
        self._key = receivers.loaded(source, "key_file", asyncssh.read_private_key)
        self._hosts = receivers.loaded(source, "known_hosts_file", asyncssh.read_known_hosts)
        self._secrets = Secrets(where, source, receivers.file.parent)
        self._tls = receivers.loaded(source, "ca_file", lambda path: ssl.create_default_context(cafile=path))
        self._position_file = receivers.path(receivers.gerrit.state) / f"gerrit-{source.name}.json"
        self._stored_events = _StoredEvents()
        # Over plain HTTP anyone on the way may write the answers, so they prove nothing.
        api = urlsplit(source.rest)
        self._rest_auth = "ssh" if api.scheme == "https" or api.hostname in _LOCAL else ""
        self._comparison_problem = ""
        try:
            self._position = _Position.of(read_json(self._position_file))
        except OSError as error:
            raise CimlError(f"{where}: {self._position_file}: {error.strerror}; set state of [gerrit]") from None

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
                    await self._run_tasks(process, inbox, stop)
                finally:
                    connection.abort()  # a server need not answer a polite end
        except (OSError, asyncssh.Error) as error:
            raise Lost(self._explain(error)) from None

    async def _run_tasks(self, process: asyncssh.SSHClientProcess[bytes], inbox: Inbox, stop: threading.Event) -> None:
        gap = asyncio.Event()
        gap.set()  # what happened before this connection
        errors = _ErrorOutput(process)
        tasks = [asyncio.create_task(self._read_stream(process, errors, inbox, gap))]
        if self._source.rest:
            tasks.append(asyncio.create_task(self._keep_comparing(inbox, gap)))
        self.problem = self._comparison_problem
        inbox.set_connected(True)
        try:
            while not self.may_end(inbox, stop):
                inbox.settle()
                for task in tasks:
                    if stop.is_set():
                        task.cancel()
                    elif task.done():
                        task.result()  # raises its error
                await asyncio.sleep(_TICK_S)
        finally:
            for task in (*tasks, errors.task):
                task.cancel()
            await asyncio.gather(*tasks, errors.task, return_exceptions=True)

    async def _read_stream(
        self, process: asyncssh.SSHClientProcess[bytes], errors: _ErrorOutput, inbox: Inbox, gap: asyncio.Event
    ) -> None:
        """Produce each line of the stream. Raises `Lost` at its end."""
        lines = Lines(MAX_STREAM_LINE_BYTES)
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            for line in lines.feed(chunk):
                await _wait_for_room(inbox)
                if line is None:
                    gap.set()
                    inbox.reject("too_large", f"a line has more than {MAX_STREAM_LINE_BYTES} bytes")
                    continue
                event = _parse(line)
                if event.get("type") == "dropped-output":
                    if not gap.is_set():
                        _log.warning("source %s: Gerrit has dropped events of the stream", self.name)
                    gap.set()
                elif not _is_inner_ref(event):
                    self._put(inbox, line, partial(self._stored_events.add, event), "ssh")
        text = await errors.text()
        raise Lost(f"{self.shown} ended the stream{f': {shown(text, 300)}' if text else ''}")

    async def _keep_comparing(self, inbox: Inbox, gap: asyncio.Event) -> None:
        """Compare with the API after each gap, and regularly."""
        await asyncio.sleep(_SETTLE_S)
        errors = 0
        while True:
            passwords = self._secrets.keys()  # while a password is replaced: the other one after an error
            password = passwords[errors % len(passwords)] if passwords else b""
            api = Changes(self._source.rest, self._source.user or self._source.address[0], password, self._tls)
            pause_s = self._source.check_s
            gap.clear()
            try:
                await self._compare(api, inbox)
                self.problem = self._comparison_problem = ""
            except CimlError as error:
                errors += 1
                pause_s = min(pause_s, _AGAIN_S)
                if self._comparison_problem != str(error):
                    _log.warning("source %s: %s; the stream continues", self.name, error)
                self.problem = self._comparison_problem = str(error)
            finally:
                api.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await gap.wait()
                    await asyncio.sleep(_SETTLE_S)

    async def _compare(self, api: Changes, inbox: Inbox) -> None:
        """Produce what the stream has not shown, and store the position when Kafka has it."""
        now_s = await _in_thread(api.now)
        if self._position is not None:
            await self._produce_missed(api, self._position.begin(now_s), inbox)
        position = _Position(now_s, time.time())
        try:
            write_json(self._position_file, {"after": position.after_s, "at": position.at_s})
        except OSError as error:
            raise CimlError(f"{self._position_file}: {error.strerror}; set state of [gerrit]") from None
        self._position = position

    async def _produce_missed(self, api: Changes, after_s: float, inbox: Inbox) -> None:
        """Produce the events since a time that the stream has not shown; return when Kafka has them."""
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


class _ErrorOutput:
    """The end of what the server writes to standard error: unread, it would stop the stream too.

    Attributes:
      task: reads it.
    """

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._tail = deque[int](maxlen=_ERROR_BYTES)
        self.task = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        while chunk := await process.stderr.read(_CHUNK_BYTES):
            self._tail.extend(chunk)

    async def text(self) -> str:
        """Return the text when the server has ended it, or after a second."""
        await asyncio.wait([self.task], timeout=1.0)
        return bytes(self._tail).decode(errors="replace").strip()


@dataclass(frozen=True)
class _Position:
    """The time up to which events were compared with the API: by the server's clock, and by this machine's."""

    after_s: float
    at_s: float

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> _Position | None:
        """Return the stored position; None if there is none, or it holds no time."""
        after_s = _time(stored or {}, "after")
        at_s = _time(stored or {}, "at")
        return None if after_s is None else cls(after_s, math.inf if at_s is None else at_s)

    def begin(self, now_s: float) -> float:
        """Return where the next comparison begins, by the server's clock: it may have jumped, ahead or back."""
        elapsed_s = max(0.0, time.time() - self.at_s)
        return max(min(self.after_s, now_s - elapsed_s) - _SLACK_S, 0.0)


class _StoredEvents:
    """The events that Kafka has lately, as far as the API shows them too."""

    def __init__(self) -> None:
        self._created_s: OrderedDict[bytes, float] = OrderedDict()  # time of the event by the digest of its key

    def add(self, event: Mapping[str, Any]) -> None:
        for key in map(_digest, keys_of(event)):
            self._created_s[key] = _created_s(event)
            self._created_s.move_to_end(key)
        while len(self._created_s) > MAX_KNOWN_DELIVERIES:
            self._created_s.popitem(last=False)

    def __contains__(self, event: Mapping[str, Any]) -> bool:
        return all(self._has(_digest(key), event) for key in keys_of(event))

    def _has(self, key: bytes, event: Mapping[str, Any]) -> bool:
        created_s = self._created_s.get(key)
        if created_s is None or event.get("type") not in _VOTES:
            return created_s is not None
        return 0 <= created_s - _created_s(event) <= _LATER_S  # else it is another vote with the same value


def keys_of(event: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what the event says: a key for each vote, else one."""
    try:
        change = event["change"]
        patchset = event["patchSet"]
        kind = event["type"]
        about = (kind, str(change["project"]), str(change["number"]), str(patchset["number"]))
        if kind not in _VOTES:
            return [about]
        who = event["author" if kind == "comment-added" else "reviewer"]
        name = str(who.get("username") or who.get("email") or who.get("name"))
        return [(*about, name, str(vote["type"]), str(vote["value"])) for vote in event.get("approvals", ())]
    except (KeyError, TypeError, AttributeError):
        return []


def _is_inner_ref(event: Mapping[str, Any]) -> bool:
    """Return whether an event is of a ref that is not a branch: Gerrit updates several of them with each comment."""
    update = event.get("refUpdate")
    name = update.get("refName") if isinstance(update, Mapping) else ""
    return event.get("type") == "ref-updated" and not str(name).startswith("refs/heads/")


def _digest(key: tuple[Any, ...]) -> bytes:
    """Return what stands for a key: a line of a megabyte may be a single name."""
    return hashlib.blake2b(repr(key).encode(errors="surrogatepass"), digest_size=16).digest()


def _created_s(event: Mapping[str, Any]) -> float:
    return _time(event, "eventCreatedOn") or 0.0


def _time(values: Mapping[str, Any], name: str) -> float | None:
    """Return epoch seconds; None for what is not a time."""
    when = values.get(name)
    return float(when) if isinstance(when, int | float) and 0 <= when < 1e11 else None


def _parse(line: bytes) -> Mapping[str, Any]:
    """Return the event of a line; an empty one where it is none, which the adapter rejects."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if type(event) is dict else {}


async def _in_thread(function: Callable[[], T]) -> T:
    return await asyncio.wrap_future(call_in_daemon(function, "gerrit REST"))


async def _wait_for_room(inbox: Inbox) -> None:
    while inbox.is_full:
        await asyncio.sleep(_TICK_S)

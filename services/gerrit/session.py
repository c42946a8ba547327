"""The session with a Gerrit: its stream, and comparisons with its REST API, in one event loop.

Gerrit repeats no event of its stream. So the position is a time up to which the REST API was compared: after each new
connection, when Gerrit says that it has dropped events, and from time to time. What the stream has had is left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import asyncssh

from adapters.registry import delivered
from ciml.errors import CimlError, RejectedInput
from ciml.json_files import read_json, write_json
from ciml.limits import MAX_KNOWN_DELIVERIES, MAX_STREAM_LINE_BYTES
from services.gerrit.lines import Lines
from services.gerrit.rest import Rest, RestError
from services.gerrit.reviews import TYPES, events
from services.receivers.config import GerritSource, Receivers
from services.receivers.secrets import Secrets
from services.receivers.sessions import Inbox, Lost, Session, invalid

_COMMAND = " ".join(["gerrit stream-events", *(f"-s {kind}" for kind in (*TYPES, "dropped-output"))])
_CHUNK_BYTES = 1 << 16
_TICK_S = 0.01
_SETTLE_S = 2.0  # until a new stream surely has what happens, before the first comparison
_SLACK_S = 60.0  # by which a comparison begins earlier: the server's index is late
_LATER_S = 60.0  # by which the stream's time of a vote may be later than the vote's own
_AGAIN_S = 15.0  # before the API is asked again after an error
_LOGIN_S, _ALIVE_S = 20.0, 20.0
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
        self._source, self._adapter, where = source, source.found_adapter(), receivers.where(source)
        self._key = _loaded(where, "key_file", receivers, source.key_file, asyncssh.read_private_key)
        self._hosts = _loaded(where, "known_hosts_file", receivers, source.known_hosts_file, asyncssh.read_known_hosts)
        self._secrets = Secrets(where, source.secret_file, source.secret_env, folder=receivers.file.parent)
        self._tls = _loaded(
            where, "ca_file", receivers, source.ca_file, lambda path: ssl.create_default_context(cafile=path)
        )
        self._position = receivers.path(receivers.gerrit.state) / f"gerrit-{source.name}.json"
        self._had = _Had()
        self._unchecked = ""
        try:
            self._after_s: float | None = _number(read_json(self._position))
        except OSError as error:
            raise CimlError(f"{where}: {self._position}: {error.strerror}; set state of [gerrit]") from None

    def serve(self, inbox: Inbox, stop: threading.Event) -> None:
        inbox.drop()
        asyncio.run(self._serve(inbox, stop))

    async def _serve(self, inbox: Inbox, stop: threading.Event) -> None:
        user, host, port = self._source.address
        try:
            connecting = asyncssh.connect(
                host, port, username=user, client_keys=[self._key], known_hosts=self._hosts, config=None,
                agent_path=None, preferred_auth=["publickey"], connect_timeout=_LOGIN_S, login_timeout=_LOGIN_S,
                keepalive_interval=_ALIVE_S, keepalive_count_max=3,
            )  # fmt: skip
            async with (
                connecting as connection,
                connection.create_process(_COMMAND, encoding=None, stdin=asyncssh.DEVNULL) as process,
            ):
                await self._work(process, inbox, stop)
                process.close()
        except (OSError, asyncssh.Error) as error:
            raise Lost(self._explained(error)) from None

    async def _work(self, process: asyncssh.SSHClientProcess[bytes], inbox: Inbox, stop: threading.Event) -> None:
        hole = asyncio.Event()
        hole.set()
        tasks = [asyncio.create_task(self._read(process, inbox, hole))]
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
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, process: asyncssh.SSHClientProcess[bytes], inbox: Inbox, hole: asyncio.Event) -> None:
        """Produce each line of the stream. Raises `Lost` at its end."""
        lines = Lines(MAX_STREAM_LINE_BYTES)
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            for line in lines.feed(chunk):
                await _room(inbox)
                if line is None:
                    hole.set()
                    inbox.reject("too_large", f"a line has more than {MAX_STREAM_LINE_BYTES} bytes", _nothing)
                    continue
                event = _parsed(line)
                if event.get("type") == "dropped-output":
                    _log.warning("source %s: Gerrit has dropped events of the stream", self.name)
                    hole.set()
                    continue
                self._put(inbox, line, partial(self._had.add, event))
        said = (await process.stderr.read(1000)).decode(errors="replace").strip()
        raise Lost(f"{self.shown} ended the stream{f': {said}' if said else ''}")

    async def _check(self, inbox: Inbox, hole: asyncio.Event) -> None:
        """Compare with the API, again and again."""
        await asyncio.sleep(_SETTLE_S)
        tries = 0
        while True:
            keys = self._secrets.keys()  # while a password is replaced: the other one after an error
            password = keys[tries % len(keys)].decode(errors="replace") if keys else ""
            rest = Rest(self._source.rest, self._source.user or self._source.address[0], password, self._tls)
            pause_s = self._source.check_s
            hole.clear()
            try:
                await self._compare(rest, inbox)
                self.problem = self._unchecked = ""
            except RestError as error:
                tries, pause_s = tries + 1, min(pause_s, _AGAIN_S)
                if self._unchecked != str(error):
                    _log.warning("source %s: %s; the stream goes on", self.name, error)
                self.problem = self._unchecked = str(error)
            finally:
                await rest.close()
            try:
                async with asyncio.timeout(pause_s):
                    await hole.wait()
                    await asyncio.sleep(_SETTLE_S)
            except TimeoutError:
                pass

    async def _compare(self, rest: Rest, inbox: Inbox) -> None:
        """Produce what the stream has not had, and move the position when Kafka has it."""
        now_s = await rest.now()
        if self._after_s is not None:
            after_s, waiting = self._after_s - _SLACK_S, list[None]()
            async for change in rest.changes(after_s):
                for event in self._missed(change, after_s, inbox):
                    await _room(inbox)
                    waiting.append(None)
                    self._put(inbox, json.dumps(event, sort_keys=True).encode(), partial(self._stored, event, waiting))
            while waiting:
                await asyncio.sleep(_TICK_S)
        try:
            write_json(self._position, {"after": now_s})
        except OSError as error:
            raise RestError(f"{self._position}: {error.strerror}; set state of [gerrit]") from None
        self._after_s = now_s

    def _stored(self, event: Mapping[str, Any], waiting: list[None]) -> None:
        waiting.pop()
        self._had.add(event)

    def _missed(self, change: Mapping[str, Any] | None, after_s: float, inbox: Inbox) -> list[dict[str, Any]]:
        if change is None:
            inbox.reject("too_large", "a change of the REST API is too large", _nothing)
            return []
        try:
            return [event for event in events(change, after_s) if event not in self._had]
        except RejectedInput as error:
            inbox.reject("rejected", f"a change of the REST API is not understood: {error}", _nothing)
            return []

    def _put(self, inbox: Inbox, line: bytes, settled: Any) -> None:
        value, headers = delivered(self._adapter, self.name, line, {}, "ssh")
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
        reason = (
            getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
        )
        return f"{self.shown} does not answer: {reason}"


class _Had:
    """The events that Kafka has lately, as far as the API shows them too."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Any, ...], float] = OrderedDict()

    def add(self, event: Mapping[str, Any]) -> None:
        for key in keys_of(event):
            self._known[key] = _created(event)
            self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN_DELIVERIES:
            self._known.popitem(last=False)

    def __contains__(self, event: Mapping[str, Any]) -> bool:
        votes = event.get("type") in ("comment-added", "vote-deleted")
        for key in keys_of(event):
            had_s = self._known.get(key)
            if had_s is None or (votes and not 0 <= had_s - _created(event) <= _LATER_S):
                return False
        return True


def keys_of(event: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what the event says: a key for each vote, else one."""
    try:
        change, made, kind = event["change"], event["patchSet"], event["type"]
        about = (kind, str(change["project"]), str(change["number"]), str(made["number"]))
        if kind not in ("comment-added", "vote-deleted"):
            return [about]
        who = event["author" if kind == "comment-added" else "reviewer"]
        name = str(who.get("username") or who.get("email") or who.get("name"))
        return [(*about, name, str(vote["type"]), str(vote["value"])) for vote in event.get("approvals", ())]
    except (KeyError, TypeError, AttributeError):
        return []


def _created(event: Mapping[str, Any]) -> float:
    found = event.get("eventCreatedOn")
    return float(found) if isinstance(found, int | float) else 0.0


def _parsed(line: bytes) -> Mapping[str, Any]:
    """Return the event of a line; an empty one where it is none, which the adapter rejects."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if type(found) is dict else {}


async def _room(inbox: Inbox) -> None:
    while inbox.is_full:
        await asyncio.sleep(_TICK_S)


def _nothing() -> None:
    pass


def _number(found: Mapping[str, Any] | None) -> float | None:
    after = (found or {}).get("after")
    return float(after) if isinstance(after, int | float) else None


def _loaded(where: str, key: str, receivers: Receivers, name: str, read: Any) -> Any:
    path = str(receivers.path(name)) if name else None
    try:
        return read(path)
    except (OSError, ValueError) as error:  # of asyncssh: KeyImportError and KeyEncryptionError are ValueErrors
        raise invalid(where, f"{key} {path}", error) from None

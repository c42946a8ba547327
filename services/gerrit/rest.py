"""The changes of Gerrit's REST API that were updated since a time."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ciml.events.redaction import shown
from ciml.limits import MAX_REVIEW_BYTES, MAX_REVIEW_CHANGES, MAX_REVIEW_VALUES, MAX_REVIEWED_CHANGES
from ciml.services.gerrit.reviews import OPTIONS

_TIMEOUT_S = 60.0  # for a connection, for a part of an answer, and for an answer
_MOST_SKIPPED = 10  # changes of a comparison
_TIMES_S = (0.0, 4e9)  # of a server's clock
_PREFIX = b")]}'"


class RestError(Exception):
    """The API does not answer, or refuses; the message says why."""


class _TooLarge(Exception):
    pass


class Rest:
    """The API.

    Args:
      base: its address, without a path of the API.
      user, password: of HTTP; "" for the anonymous user.
      tls: settings.
    """

    def __init__(self, base: str, user: str, password: str, tls: ssl.SSLContext) -> None:
        self._shown = base.rstrip("/")
        self._base = f"{self._shown}/a" if password else self._shown
        self._user = user
        auth = httpx.BasicAuth(user, password) if password else None
        # No redirect is followed: the password is of this host. Nothing is unpacked, so an answer has the size it has.
        self._client = httpx.AsyncClient(
            auth=auth, verify=tls, timeout=_TIMEOUT_S, trust_env=False, headers={"accept-encoding": "identity"}
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def now(self) -> float:
        """Return the server's time, epoch seconds. Raises `RestError`."""
        try:
            _, now = await self._get("config/server/version", {}, 1 << 16)
        except _TooLarge:
            raise RestError(f"{self._shown} is no REST API of Gerrit: its version is too long") from None
        return now

    async def changes(self, after_s: float) -> AsyncIterator[Mapping[str, Any] | None]:
        """Yield the changes that were updated since a time, the latest first; None for one that is too large.

        A change that is updated meanwhile moves others behind the present place, so some come twice and none is missed.

        Raises:
          RestError: the API does not answer, or refuses.
        """
        when = datetime.fromtimestamp(after_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        start, count, skipped = 0, MAX_REVIEW_CHANGES, 0
        while start < MAX_REVIEWED_CHANGES:
            asked = {"q": f'after:"{when}"', "o": list(OPTIONS), "S": start, "n": count}
            try:
                body, _ = await self._get("changes/", asked, MAX_REVIEW_BYTES)
                found = self._parsed(body)
            except _TooLarge:
                if count == 1:
                    yield None
                    start, skipped = start + 1, skipped + 1
                if skipped > _MOST_SKIPPED:
                    raise RestError(f"{self._shown}: more than {_MOST_SKIPPED} changes are too large") from None
                count = max(1, count // 4)
                continue
            if len(found) > count:
                raise RestError(f"{self._shown} answers {len(found)} changes, though {count} were asked for")
            for each in found:
                yield each
            start, count = start + len(found), min(count * 2, MAX_REVIEW_CHANGES)
            if not found or not found[-1].get("_more_changes"):
                return
        raise RestError(f"{self._shown} lists more than {MAX_REVIEWED_CHANGES} changes (MAX_REVIEWED_CHANGES)")

    async def _get(self, path: str, asked: Mapping[str, Any], most: int) -> tuple[bytes, float]:
        try:
            async with (
                asyncio.timeout(_TIMEOUT_S),
                self._client.stream("GET", f"{self._base}/{path}", params=dict(asked)) as answer,
            ):
                if answer.status_code != 200:
                    hint = (
                        f"; check user {self._user} and its HTTP password" if answer.status_code in (401, 403) else ""
                    )
                    raise RestError(f"{self._shown} answers {answer.status_code} {answer.reason_phrase}{hint}")
                body = bytearray()
                async for part in answer.aiter_raw():
                    body += part
                    if len(body) > most:
                        raise _TooLarge
                return bytes(body), self._date(answer.headers.get("date", ""))
        except TimeoutError:
            raise RestError(f"{self._shown} does not answer within {_TIMEOUT_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            why = shown(str(error)) if str(error) else type(error).__name__
            raise RestError(f"{self._shown} does not answer: {why}") from None

    def _date(self, text: str) -> float:
        """Return the server's time of an answer, and this machine's where it has none."""
        try:
            found = parsedate_to_datetime(text).timestamp()
        except ValueError:
            return datetime.now(UTC).timestamp()
        if not _TIMES_S[0] <= found <= _TIMES_S[1]:
            raise RestError(f"{self._shown}: its clock is wrong: {shown(text)}")
        return found

    def _parsed(self, body: bytes) -> list[dict[str, Any]]:
        if sum(map(body.count, (b",", b"[", b"{"))) > MAX_REVIEW_VALUES:
            raise _TooLarge  # values take up to a hundred times their text's memory
        try:
            found = json.loads(body.removeprefix(_PREFIX))
        except (ValueError, RecursionError):
            found = None
        if type(found) is not list or not all(type(each) is dict for each in found):
            raise RestError(f"{self._shown} is no REST API of Gerrit: it answers no list of changes")
        return found

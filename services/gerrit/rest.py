"""The changes of Gerrit's REST API that were updated since a time."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ciml.limits import MAX_REVIEW_BYTES, MAX_REVIEW_CHANGES
from services.gerrit.reviews import OPTIONS

_TIMEOUT_S = 60.0
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
        # No redirect is followed: the password is of this host.
        self._client = httpx.AsyncClient(auth=auth, verify=tls, timeout=_TIMEOUT_S, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def now(self) -> float:
        """Return the server's time, epoch seconds. Raises `RestError`."""
        _, now = await self._get("config/server/version", {}, 1 << 16)
        return now

    async def changes(self, after_s: float) -> AsyncIterator[Mapping[str, Any] | None]:
        """Yield the changes that were updated since a time, the latest first; None for one that is too large.

        A change that is updated meanwhile moves others behind the present place, so some come twice and none is missed.

        Raises:
          RestError: the API does not answer, or refuses.
        """
        when = datetime.fromtimestamp(after_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
        start, count = 0, MAX_REVIEW_CHANGES
        while True:
            asked = {"q": f'after:"{when}"', "o": list(OPTIONS), "S": start, "n": count}
            try:
                body, _ = await self._get("changes/", asked, MAX_REVIEW_BYTES)
            except _TooLarge:
                if count == 1:
                    yield None
                    start += 1
                count = max(1, count // 4)
                continue
            found = self._parsed(body)
            for each in found:
                yield each
            start += len(found)
            if not found or not found[-1].get("_more_changes"):
                return

    async def _get(self, path: str, asked: Mapping[str, Any], most: int) -> tuple[bytes, float]:
        try:
            async with self._client.stream("GET", f"{self._base}/{path}", params=dict(asked)) as answer:
                if answer.status_code != 200:
                    hint = (
                        f"; check user {self._user} and its HTTP password" if answer.status_code in (401, 403) else ""
                    )
                    raise RestError(f"{self._shown} answers {answer.status_code} {answer.reason_phrase}{hint}")
                body = bytearray()
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > most:
                        raise _TooLarge
                return bytes(body), _date(answer.headers.get("date", ""))
        except httpx.HTTPError as error:
            raise RestError(f"{self._shown} does not answer: {error or type(error).__name__}") from None

    def _parsed(self, body: bytes) -> list[dict[str, Any]]:
        try:
            found = json.loads(body.removeprefix(_PREFIX))
        except (ValueError, RecursionError):
            found = None
        if type(found) is not list or not all(type(each) is dict for each in found):
            raise RestError(f"{self._shown} is no REST API of Gerrit: it answers no list of changes")
        return found


def _date(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return datetime.now(UTC).timestamp()

"""The REST API of a review system.

`Rest` calls one host, within limits on time and bytes; no error contains a secret. Answers are not trusted: they are
decoded as the declared type, and no redirect is followed. `ciml.integrations.review.ReviewClient` uses this API.
"""

from __future__ import annotations

import base64
import ipaddress
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec

from ciml.errors import CimlError, EngineError, RejectedInput
from ciml.events.redaction import redact_text
from ciml.http.addresses import HostRule, parse_address
from ciml.http.outgoing import FetchLimits, Pinned, header, retry_after_s, system_resolve
from ciml.limits import MAX_ANSWER_BYTES

T = TypeVar("T")
Query = Mapping[str, str | int]
#: Returns the present secret.
Secret = Callable[[], bytes]

#: Longest duration of a call of a client, seconds, from connecting to the last byte of the answer. The outbox settles a
#: call of unknown outcome only after this time, so that no late request can follow its reading.
CALL_S = 30.0
#: The reason of a `Refused` that concerns our credentials, not this request: it is tried again, until an operator has
#: corrected them.
UNAUTHORIZED = "unauthorized"
#: Pause for a system that limits requests without naming a time, seconds, as GitHub asks for.
LIMITED_S = 60.0
#: Limit of one step of a request, seconds: to connect, to read or to write.
_STEP_S = 20.0
#: Characters of an answer's own message, or of an error of the connection, in an error.
_MESSAGE_CHARACTERS = 160
_REASONS: Mapping[int, str] = {403: "forbidden", 404: "not_found", 409: "conflict", 410: "not_found"}
#: Headers whose last word is a secret, such as ``Authorization: Bearer SECRET``.
_SECRET_HEADERS = frozenset({"Authorization", "PRIVATE-TOKEN"})
#: Most digits of an announced length that is compared with the limit: ``int`` raises for thousands of digits.
_MAX_LENGTH_DIGITS = 19


class Busy(EngineError):
    """The system asks to wait: 429, 503 with Retry-After, a rate limit. Nothing was changed.

    Attributes:
      retry_after_s: for how long no request may be sent, seconds.
    """

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unsettled(EngineError):
    """A request that changes something was sent, and its outcome is unknown: a timeout, a reset, a 5xx."""


class FailedAnswer(EngineError):
    """The system answers a request that changes nothing with an error of its own: 5xx, 408, 425.

    Attributes:
      status: that of the answer.
    """

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


class Refused(CimlError):
    """The system rejects this request, and would reject it again: 400, 403, 404, 409, 422. Nothing was changed.

    Attributes:
      reason: a short word from a closed set: ``forbidden``, ``not_found`` (404 and 410 alone), ``moved``, ``conflict``,
        ``invalid``; `UNAUTHORIZED` (401) for credentials.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Unreadable(Exception):
    """The content of an answer cannot be read; the message gives the reason."""


class TooLarge(Unreadable):
    """The content of an answer exceeds the limit on its bytes."""


@dataclass(frozen=True)
class Answer:
    """An answer of any status.

    Attributes:
      response: its status and headers.
      content: its body, or why the body cannot be read.
    """

    response: httpcore.Response
    content: bytes | Unreadable

    def header(self, name: bytes) -> bytes:
        """Return a header by its lower-case name; b"" if it is missing."""
        return header(self.response, name)

    def body(self) -> bytes:
        """Return the content. Raises `Unreadable`."""
        if isinstance(self.content, Unreadable):
            raise self.content
        return self.content


class _Message(msgspec.Struct, frozen=True):
    message: str = ""
    error: str = ""


class Rest:
    """The API at one address, which may be private. One thread uses it.

    No redirect is followed; no proxy and no cookie is used. No message quotes a header, so none has a secret.

    Args:
      base: its address, to which all paths are appended; see `check_base`.
      tls: settings for https.
      secret: returns the present secret; no error quotes it.
      rights: what to check if the system rejects the credentials, for people.
      header: returns the headers that prove a secret.
      prefix: bytes of an answer before its JSON.
      max_bytes, limit: limit on an answer, and its name for messages.
    """

    #: Limit on the duration of a call, seconds.
    call_s: ClassVar[float] = CALL_S

    def __init__(
        self,
        base: str,
        tls: ssl.SSLContext,
        secret: Secret,
        rights: str,
        header: Callable[[bytes], Mapping[str, str]],
        prefix: bytes = b"",
        max_bytes: int = MAX_ANSWER_BYTES,
        limit: str = "MAX_ANSWER_BYTES",
    ) -> None:
        self._address = parse_address(base.rstrip("/"))
        self.origin = self._address.origin
        rule = HostRule(self._address.scheme, self._address.host, self._address.port, private=True)
        self._limits = FetchLimits()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=1,
            keepalive_expiry=10.0,
            network_backend=Pinned((rule,), system_resolve, self._limits),
        )
        self._max_bytes = max_bytes
        self._limit = limit
        self._secret = secret
        self._rights = rights
        self._header = header
        self._prefix = prefix
        self._own_ids: dict[bytes, int] = {}  # id of our account, by the present secret

    def auth(self, path: str) -> Mapping[str, str]:
        """Return the headers of a request that prove who we are. Raises as `get`."""
        return self._header(self._secret())

    def forget(self) -> None:
        """Forget what was derived from the secret: the system has rejected it."""

    def own_id(self, path: str, kind: type[Account]) -> int:
        """Return the id of our own account, which is at ``path``. Another secret may be of another account."""
        secret = self._secret()
        if secret not in self._own_ids:
            self._own_ids = {secret: self.get(path, kind).id}
        return self._own_ids[secret]

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def call(self) -> AbstractContextManager[None]:
        """Limit all requests of the block together."""
        return self._limits.within(self.call_s)

    def get(self, path: str, kind: type[T], query: Query | None = None) -> T:
        """Return the answer to a GET request as the type ``kind``.

        Raises:
          Busy, Refused, EngineError: see `ciml.integrations.review.ReviewClient`.
        """
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path, kind)[0]

    def lookup(
        self, path: str, kind: type[T], query: Query | None = None, absent: tuple[str, ...] = ("not_found",)
    ) -> T | None:
        """Return the answer as `get` does; None if the system refuses with one of the reasons ``absent``."""
        try:
            return self.get(path, kind, query)
        except Refused as refused:
            if refused.reason not in absent:
                raise
            return None

    def pages(self, path: str, kind: type[T], query: Query, most: int) -> Iterator[T]:
        """Yield the pages of a list, numbered by the key ``page``, until an answer names no next one.

        The address of the next page is not used. Raises as `get`, and `Refused` after ``most`` pages.
        """
        for number in range(1, most + 1):
            page, answer = self._request("GET", f"{path}?{urlencode({**query, 'page': number})}", kind)
            yield page
            if b'rel="next"' not in answer.header(b"link"):  # a page may lack items that this account may not see
                return
        raise Refused("invalid", f"{self.origin}{path} has more than {most} pages")

    def send(self, method: str, path: str, kind: type[T], body: object, *, changes: bool = True) -> T:
        """Send JSON, and return the answer as the type ``kind``.

        Args:
          method, path, kind: as in `get`.
          body: the JSON.
          changes: whether the request changes what reviewers see, so that a failure after it was sent is `Unsettled`.

        Raises:
          Unsettled, Busy, Refused, EngineError: see `ciml.integrations.review.ReviewClient`.
        """
        return self._request(method, path, kind, msgspec.json.encode(body), changes=changes)[0]

    def own_url(self, text: str) -> str:
        """Return an address in an answer if it is of this system, else ""."""
        try:
            address = parse_address(text)
        except RejectedInput:
            return ""
        host = self._address.host
        is_own = address.scheme in ("http", "https") and address.host in (host, host.removeprefix("api."))
        return text if is_own else ""

    def _request(
        self, method: str, path: str, kind: type[T], body: bytes | None = None, *, changes: bool = False
    ) -> tuple[T, Answer]:
        answer = self.answer(method, path, body, changes=changes)
        try:
            return msgspec.json.decode(answer.body().removeprefix(self._prefix), type=kind), answer
        except Unreadable as error:
            problem = str(error)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            problem = f"unexpected JSON: {error}"
        raise self._unknown_outcome_error(f"answers {answer.response.status} with {problem}", changes)

    def answer(self, method: str, path: str, body: bytes | None = None, *, changes: bool = False) -> Answer:
        """Return the answer to a request, undecoded. Raises as `send`."""
        address = self._address
        auth = self.auth(path)
        headers = {"Host": address.host_header, "User-Agent": "ciml", "Accept-Encoding": "identity"}
        headers |= {"Accept": "application/json", **auth} | ({"Content-Type": "application/json"} if body else {})
        target = (address.path.rstrip("/") + path).encode()
        url = httpcore.URL(scheme=address.scheme.encode(), host=address.host.encode(), port=address.port, target=target)
        timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), _STEP_S)}
        try:
            with (
                self.call(),
                self._pool.stream(
                    method, url, headers=list(headers.items()), content=body, extensions=timeouts
                ) as response,
            ):
                answer = Answer(response, self._read(response))
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout, RejectedInput) as error:
            raise EngineError(f"{self.origin} cannot be reached: {_shortened(error)}") from None
        except httpcore.TimeoutException as error:
            raise self._unknown_outcome_error(f"does not answer in time: {_shortened(error)}", changes) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ValueError) as error:
            raise self._unknown_outcome_error(f"breaks off the answer: {_shortened(error)}", changes) from None
        if not 200 <= answer.response.status < 300:
            raise self._status_error(answer, auth, changes)
        return answer

    def _read(self, response: httpcore.Response) -> bytes | Unreadable:
        """Return the content of an answer, which is never unpacked, so only its bytes take memory."""
        encoding = header(response, b"content-encoding").lower()
        if encoding not in (b"", b"identity"):
            return Unreadable(f"the content encoding {encoding.decode('latin-1')!r:.40}, which was not asked for")
        announced = header(response, b"content-length")
        if announced.isdigit() and len(announced) <= _MAX_LENGTH_DIGITS and int(announced) > self._max_bytes:
            return TooLarge(f"{int(announced)} bytes, at most {self._max_bytes} ({self._limit})")
        content = bytearray()
        for part in response.iter_stream():
            content += part
            if len(content) > self._max_bytes:
                return TooLarge(f"more than {self._max_bytes} bytes ({self._limit})")
        return bytes(content)

    def _status_error(self, answer: Answer, auth: Mapping[str, str], changes: bool) -> CimlError:
        """Return the exception for an answer whose status is not 2xx."""
        status = answer.response.status
        message = self._message(answer, auth)
        wait_s = retry_after_s(answer.response)
        limited = status == 429 or (status == 403 and (wait_s > 0 or "rate limit" in message.lower()))
        if limited or (status == 503 and wait_s > 0 and not changes):
            wait_s = wait_s or LIMITED_S
            return Busy(f"{self.origin} answers {status} and asks to wait for {wait_s:.0f} s", wait_s)
        text = f"answers {status}{f': {message}' if message else ''}"
        if status >= 500 or status in (408, 425):
            failed = FailedAnswer(f"{self.origin} {text}", status)
            return self._unknown_outcome_error(text, changes) if changes else failed
        if status == 401:
            self.forget()
            return Refused(UNAUTHORIZED, f"{self.origin} rejects the credentials: {self._rights}")
        if status < 400:
            # A redirect may lead to another host, which must not get the secret. If a project has moved, the operator
            # configures its new address.
            return Refused("moved", f"{self.origin} answers {status}, a redirect, which is not followed")
        hint = f"; {self._rights}" if status == 403 else ""
        return Refused(_REASONS.get(status, "invalid"), f"{self.origin} {text}{hint}")

    def _unknown_outcome_error(self, problem: str, changes: bool) -> CimlError:
        """Return the exception for a request whose outcome is unknown, which matters if it ``changes`` something."""
        text = f"{self.origin} {problem}"
        return Unsettled(f"{text}; the request may have taken effect") if changes else EngineError(text)

    def _message(self, answer: Answer, auth: Mapping[str, str]) -> str:
        """Return the message of an answer, short and printable; "" if there is none or it quotes a secret."""
        if isinstance(answer.content, Unreadable):
            return ""
        try:
            error = msgspec.json.decode(answer.content.removeprefix(self._prefix), type=_Message)
            text = error.message or error.error
        except (msgspec.DecodeError, ValueError, RecursionError):
            text = answer.content[: 4 * _MESSAGE_CHARACTERS].decode(errors="replace")
        secret_words = (auth[key].split()[-1] for key in _SECRET_HEADERS & auth.keys())
        secrets = {self._secret().decode(errors="replace"), *secret_words}
        if any(secret in text for secret in secrets - {""}):
            return ""
        short = redact_text(text[: 4 * _MESSAGE_CHARACTERS])
        return "".join(character if character.isprintable() else " " for character in short)[
            :_MESSAGE_CHARACTERS
        ].strip()


def _shortened(error: Exception) -> str:
    text = error.detail if isinstance(error, RejectedInput) else f"{error}"
    return text[:_MESSAGE_CHARACTERS] or type(error).__name__


class Account(Protocol):
    """An account in an answer."""

    @property
    def id(self) -> int: ...


def check_base(key: str, base: str, example: str) -> None:
    """Check the address of an API: https, or http on this machine, because a secret is sent there.

    Raises:
      ValueError: it is not such an address.
    """
    try:
        parts = urlsplit(base)
        parse_address(base)
        plain = bool(parts.hostname) and not (parts.query or parts.fragment or parts.username)
    except (ValueError, RejectedInput):
        plain = False
    if not plain or parts.scheme not in ("https", "http"):
        raise ValueError(f"{key}: {base!r:.120} is not an address such as {example}")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ValueError(f"{key}: {base!r:.120} would get the secret unencrypted; want https://")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(secret: bytes) -> bytes:
    """Return a token. Raises `ValueError` if it cannot be sent in a header."""
    if not all(0x21 <= byte <= 0x7E for byte in secret):
        raise ValueError("is not a token: it may contain only printable ASCII characters, and no spaces")
    return secret


def basic_auth(user: str, password: bytes) -> Mapping[str, str]:
    """Return the header of a user and its password; without a password the user is anonymous."""
    if not password:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(user.encode() + b':' + password).decode()}"}


def path_segment(text: str) -> str:
    """Return a text as one segment of a path.

    Raises:
      Refused: it is empty, "." or "..", or not UTF-8.
    """
    try:
        coded = quote(text, safe="")
    except UnicodeEncodeError:
        coded = ""
    if coded in ("", ".", ".."):
        raise Refused("invalid", f"{text!r:.80} is not a name of a project, change or commit")
    return coded

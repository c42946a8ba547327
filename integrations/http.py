"""The REST API of a review system: one host, limits on the time and the bytes of a call, errors without secrets.

Built on httpcore and the connections of `ciml.transforms.fetch`, which end in time even if bytes drip. No redirect is
followed, no proxy or cookie is used. Nothing that an answer says is believed beyond its declared type.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec

from ciml.errors import CimlError, EngineError, RejectedInput
from ciml.events.redaction import redact_text
from ciml.http.addresses import Address, HostRule, parse_address
from ciml.http.outgoing import OneLog, Pinned, header, retry_after_s, system_resolve, tls_context
from ciml.integrations.review import CALL_S, UNAUTHORIZED, Busy, Refused, System, Unsettled
from ciml.limits import MAX_ANSWER_BYTES
from ciml.secrets import Secrets

T = TypeVar("T")

#: What a system that limits requests without saying for how long is spared, seconds: what GitHub asks for.
LIMITED_S = 60.0
#: Characters of an answer's own message in an error.
_SAID = 160
_REASONS: Mapping[int, str] = {403: "forbidden", 404: "not_found", 409: "conflict", 410: "not_found"}
_STEP_S = 20.0
#: Headers whose last word is a secret.
_SECRETS = frozenset({"Authorization", "PRIVATE-TOKEN"})


class _Said(msgspec.Struct, frozen=True):
    message: str = ""
    error: str = ""


class _Unreadable(Exception):
    """The answer exceeds a limit, or is not what was asked for; the message says what is wrong with it."""


class Rest:
    """The API at one address. It is used by one thread.

    Args:
      base: its address; see `check_base`.
      ca_file: certificates that sign the server's, "" for those of the system.
      secret: returns the present secret, so that no error quotes it.
      rights: what to check where the system rejects the credentials, for people.
      prefix: what an answer begins with before its JSON.
    """

    def __init__(self, base: str, ca_file: str, secret: Callable[[], bytes], rights: str, prefix: bytes = b"") -> None:
        self._address: Address = parse_address(base.rstrip("/"))
        self._secret = secret
        self._rights = rights
        self._prefix = prefix
        self._limits = OneLog()
        rule = HostRule(self._address.scheme, self._address.host, self._address.port, private=True)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls_context(ca_file) if rule.scheme == "https" else None,
            max_connections=1,
            keepalive_expiry=10.0,
            network_backend=Pinned((rule,), system_resolve, self._limits),
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def call(self) -> AbstractContextManager[None]:
        """Limit all requests of the block together to `CALL_S`."""
        return self._limits.within(CALL_S)

    def get(self, path: str, kind: type[T], auth: Mapping[str, str], query: Mapping[str, str | int] | None = None) -> T:
        """Return the answer to a GET request, as the type ``kind``.

        Raises:
          Busy, Refused, EngineError: see `ciml.integrations.review`.
        """
        asked = f"{path}?{urlencode(query)}" if query else path
        return self._ask("GET", asked, kind, auth, None, changes=False)[0]

    def pages(
        self, path: str, kind: type[T], auth: Mapping[str, str], query: Mapping[str, str | int], most: int
    ) -> Iterator[T]:
        """Yield the pages of a list, whose numbers are the key ``page``, until an answer names no next one.

        The address of the next page is not used. Raises as `get`, and `Refused` after ``most`` pages.
        """
        for page in range(1, most + 1):
            asked = f"{path}?{urlencode({**query, 'page': page})}"
            found, response = self._ask("GET", asked, kind, auth, None, changes=False)
            yield found
            if b'rel="next"' not in header(response, b"link"):  # a page may lack items that not everybody may see
                return
        raise Refused("invalid", f"{self._address.origin}{path} has more than {most} pages")

    def send(
        self, method: str, path: str, kind: type[T], auth: Mapping[str, str], body: object, *, changes: bool = True
    ) -> T:
        """Send JSON, and return the answer as the type ``kind``.

        Args:
          changes: whether the request changes what reviewers see, so that a failure after it was sent is `Unsettled`.

        Raises:
          Unsettled, Busy, Refused, EngineError: see `ciml.integrations.review`.
        """
        return self._ask(method, path, kind, auth, msgspec.json.encode(body), changes=changes)[0]

    def own_url(self, text: str) -> str:
        """Return an address of the system, "" where it is none of its own: an answer may say anything."""
        try:
            found = parse_address(text) if text else None
        except RejectedInput:
            return ""
        own = {self._address.host, self._address.host.removeprefix("api.")}
        return text if found is not None and found.scheme in ("http", "https") and found.host in own else ""

    def _ask(
        self, method: str, path: str, kind: type[T], auth: Mapping[str, str], body: bytes | None, *, changes: bool
    ) -> tuple[T, httpcore.Response]:
        with self.call():
            response, content = self._exchange(method, path, auth, body, changes)
        status = response.status
        if not 200 <= status < 300:
            raise self._failed(response, content, auth, changes)
        try:
            if isinstance(content, _Unreadable):
                raise content
            return msgspec.json.decode(content.removeprefix(self._prefix), type=kind), response
        except (msgspec.DecodeError, ValueError, RecursionError, _Unreadable) as error:
            what = str(error) if isinstance(error, _Unreadable) else f"no such JSON as is expected: {error}"
            raise self._unknown(f"answers {status} with {what}", changes) from None

    def _exchange(
        self, method: str, path: str, auth: Mapping[str, str], body: bytes | None, changes: bool
    ) -> tuple[httpcore.Response, bytes | _Unreadable]:
        """Return the answer and its content, or what is wrong with it."""
        address = self._address
        target = (address.path.rstrip("/") + path).encode()
        url = httpcore.URL(scheme=address.scheme.encode(), host=address.host.encode(), port=address.port, target=target)
        headers = {"Host": address.host_header, "User-Agent": "ciml", "Accept-Encoding": "identity"} | dict(auth)
        headers.setdefault("Accept", "application/json")
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), _STEP_S)
        try:
            with self._pool.stream(
                method, url, headers=list(headers.items()), content=body, extensions={"timeout": timeout}
            ) as response:
                return response, _content(response)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout) as error:
            raise EngineError(f"{address.origin} is not reached: {_words(error)}") from None
        except RejectedInput as rejected:
            raise EngineError(f"{address.origin} is not reached: {rejected.detail}") from None
        except httpcore.TimeoutException as error:
            raise self._unknown(f"does not answer in time: {_words(error)}", changes) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, ValueError) as error:
            raise self._unknown(f"breaks off the answer: {_words(error)}", changes) from None

    def _failed(
        self, response: httpcore.Response, content: bytes | _Unreadable, auth: Mapping[str, str], changes: bool
    ) -> CimlError:
        status = response.status
        said = self._said(content, auth)
        wait_s = retry_after_s(response)
        limited = status == 429 or (status == 403 and (wait_s > 0 or "rate limit" in said.lower()))
        if limited or (status == 503 and wait_s > 0 and not changes):
            wait_s = wait_s or LIMITED_S
            return Busy(f"{self._address.origin} answers {status} and asks to wait for {wait_s:.0f} s", wait_s)
        what = f"answers {status}{f': {said}' if said else ''}"
        if status >= 500 or status in (408, 425):
            return self._unknown(what, changes)
        if status == 401:
            return Refused(UNAUTHORIZED, f"{self._address.origin} rejects the credentials: {self._rights}")
        if status < 400:
            # The secret is of this host. A project that has moved is named by its present address.
            return Refused("not_found", f"{self._address.origin} answers {status}, a redirect, which is not followed")
        hint = f"; {self._rights}" if status == 403 else ""
        return Refused(_REASONS.get(status, "invalid"), f"{self._address.origin} {what}{hint}")

    def _unknown(self, what: str, changes: bool) -> CimlError:
        text = f"{self._address.origin} {what}"
        return Unsettled(f"{text}; it may have done what was asked") if changes else EngineError(text)

    def _said(self, content: bytes | _Unreadable, auth: Mapping[str, str]) -> str:
        """Return the message of an answer, short and printable, "" where there is none or it has a secret."""
        if isinstance(content, _Unreadable):
            return ""
        try:
            found = msgspec.json.decode(content.removeprefix(self._prefix), type=_Said)
            text = found.message or found.error
        except (msgspec.DecodeError, ValueError, RecursionError):
            text = content[: 4 * _SAID].decode(errors="replace")
        secrets = {self._secret().decode(errors="replace"), *(auth[key].split()[-1] for key in _SECRETS & auth.keys())}
        if any(each in text for each in secrets):
            return ""
        return "".join(each if each.isprintable() else " " for each in redact_text(text[: 4 * _SAID]))[:_SAID].strip()


def _content(response: httpcore.Response) -> bytes | _Unreadable:
    """Return the content of an answer; within the limits of a call nothing but its bytes takes memory."""
    encoding = header(response, b"content-encoding").lower()
    if encoding not in (b"", b"identity"):
        return _Unreadable(f"the content encoding {encoding.decode('latin-1')!r:.40}, which was not asked for")
    announced = header(response, b"content-length")
    if announced.isdigit() and len(announced) < 20 and int(announced) > MAX_ANSWER_BYTES:
        return _Unreadable(f"{int(announced)} bytes, at most {MAX_ANSWER_BYTES} (MAX_ANSWER_BYTES)")
    content = bytearray()
    for part in response.iter_stream():
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            return _Unreadable(f"more than {MAX_ANSWER_BYTES} bytes (MAX_ANSWER_BYTES)")
    return bytes(content)


def _words(error: Exception) -> str:
    return f"{error}"[:_SAID] or type(error).__name__


def check_base(key: str, base: str, example: str) -> None:
    """Check the address of an API: https, or http on this machine, because a secret is sent there.

    Raises:
      ValueError: it is none.
    """
    try:
        found = urlsplit(base)
        parse_address(base)
        plain = bool(found.hostname) and not (found.query or found.fragment or found.username)
    except (ValueError, RejectedInput):
        plain = False
    if not plain or found.scheme not in ("https", "http"):
        raise ValueError(f"{key}: {base!r:.120} is not an address such as {example}")
    if found.scheme == "http" and not _is_own(found.hostname or ""):
        raise ValueError(f"{key}: {base!r:.120} would get the secret unencrypted; want https://")


def _is_own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def secret_of(
    system: System, where: str, folder: Path, what: str, check: Callable[[bytes], bytes]
) -> Callable[[], bytes]:
    """Return a function that returns the present secret of a system; a file is read again when it has changed.

    Args:
      system: names the file or the variable.
      where: of the configuration, for messages.
      folder: of the configuration.
      what: the secret is, for people.
      check: returns the secret; raises `ValueError` with what is wanted.

    Raises:
      CimlError: there is none or more than one, or it is invalid.
    """
    if len(system.secret_file) + len(system.secret_env) != 1:
        raise CimlError(f"{where}: secret_file: name one file, or one variable in secret_env, with {what}")
    secrets = Secrets(where, system.secret_file, system.secret_env, check, folder)
    return lambda: secrets.keys()[0]


def token(secret: bytes) -> bytes:
    """Return a token. Raises `ValueError` where it cannot be sent in a header."""
    if not all(0x21 <= each <= 0x7E for each in secret):
        raise ValueError("is no token of printable ASCII without blanks")
    return secret


def basic(user: str, password: bytes) -> Mapping[str, str]:
    """Return the header of a user and its password."""
    return {"Authorization": f"Basic {base64.b64encode(user.encode() + b':' + password).decode()}"}


def quoted(text: str) -> str:
    """Return a text as one segment of a path.

    Raises:
      Refused: it is empty, "." or "..", which lead elsewhere, or no UTF-8.
    """
    try:
        coded = quote(text, safe="")
    except UnicodeEncodeError:
        coded = ""
    if coded in ("", ".", ".."):
        raise Refused("invalid", f"{text!r:.80} is no name of a project, change or commit")
    return coded


def number(text: str) -> str:
    """Return the number of a change. Raises `Refused` if the text is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Refused("invalid", f"{text!r:.80} is no number of a change")
    return str(int(text))


def commit(*texts: str) -> str:
    """Return the first of some texts that is a commit's id, "" for none."""
    for text in texts:
        if 7 <= len(text) <= 64 and set(text) <= set("0123456789abcdef"):
            return text
    return ""


def says_not_helpful(text: str) -> bool:
    """Return whether a line of a text is "not helpful". A line that quotes another text is not."""
    return any(line.strip().rstrip(".").casefold() == "not helpful" for line in text.splitlines())


def accounts(names: Sequence[str], most: int) -> tuple[str, ...]:
    """Return names, each once, in order, at most ``most``."""
    return tuple(dict.fromkeys(name for name in names if name))[:most]

"""Addresses and payloads without what gives access: user names, passwords, tokens and signatures."""

from __future__ import annotations

import re
from urllib.parse import unquote

REDACTED = "REDACTED"
_NAMES = (
    r"(?:x-(?:amz|goog|oss|obs|cos)-(?:signature|credential|security-token)|"
    r"awsaccesskeyid|googleaccessid|ossaccesskeyid|"
    r"(?:temp_url_)?sig(?:nature)?|(?:[a-z0-9]+[_-])*(?:token|secret|password|passwd|pwd|apikey|auth|credentials?)|"
    r"(?:[a-z0-9]+[_-])*(?:api|access|private|sas)[_-]?key(?:[_-]?id)?|key|code|jwt|session(?:id)?)"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*@")
_PAIR_IN_BYTES = re.compile(rb"([?&;#]|\\u0026|%26)([A-Za-z0-9_.%-]{1,64})=([^&;#\"'\s\\<>]*)")
_USERINFO_IN_BYTES = re.compile(rb"(\\?/\\?/)[^/?#\"'\s\\<>@]*@")
_AUTHORIZATION_IN_BYTES = re.compile(rb"\b(bearer|basic)\s{1,8}[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


def redact_url(url: str) -> str:
    """An address as it may be stored and shown: no userinfo, no fragment, secret query values replaced.

    The rest stays as it is, so an address without secrets comes back unchanged (fragment apart).
    """
    if "@" in url:
        url = _USERINFO.sub(r"\1//", url)
    if "#" in url:
        url = url.partition("#")[0]
    if "?" not in url:
        return url
    base, _, query = url.partition("?")
    return f"{base}?{'&'.join(_redact_pair(pair) for pair in re.split('[&;]', query))}"


def _redact_pair(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={REDACTED}" if equals and _SECRET_NAME.fullmatch(unquote(name)) else pair


def redact_bytes(data: bytes) -> bytes:
    """A payload, whole or broken, with the secrets of the addresses in it replaced by ``REDACTED``.

    Works on bytes, because a payload that is kept is often one that could not be decoded.
    """
    if b"@" in data:
        data = _USERINFO_IN_BYTES.sub(rb"\1", data)
    if b"=" in data:
        data = _PAIR_IN_BYTES.sub(_redact_match, data)
    return _AUTHORIZATION_IN_BYTES.sub(rb"\1 " + REDACTED.encode(), data)


def _redact_match(match: re.Match[bytes]) -> bytes:
    if _SECRET_NAME.fullmatch(unquote(match[2].decode())):
        return match[1] + match[2] + b"=" + REDACTED.encode()
    return match[0]

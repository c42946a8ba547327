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
_SECRET_IN_BYTES = re.compile(rb"([?&;]|\\u0026|%26)(" + _NAMES.encode() + rb")=[^&;#\"'\s\\<>]*", re.IGNORECASE)
_USERINFO_IN_BYTES = re.compile(rb"(:\\?/\\?/)[^/?#\"'\s\\<>@]*@")
_AUTHORIZATION_IN_BYTES = re.compile(rb"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


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
    replaced = REDACTED.encode()
    if b"@" in data:
        data = _USERINFO_IN_BYTES.sub(rb"\1", data)
    if b"=" in data:
        data = _SECRET_IN_BYTES.sub(rb"\1\2=" + replaced, data)
    return _AUTHORIZATION_IN_BYTES.sub(rb"\1 " + replaced, data)

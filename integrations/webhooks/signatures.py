"""How the sender of a webhook is proved, by scheme. Pure: headers, raw body, keys and the present time in.

A scheme reads a *claim* from the headers, before the body is read: the signatures, and what is signed next to the body.
A claim whose form or time is wrong is none. Signatures and tokens are compared in constant time, with every key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ciml.limits import MAX_SIGNATURE_AGE_S

#: The most signatures in one header: a sender that rotates its secret has two.
_MOST = 8
_DIGEST = r"(?P<digest>[0-9a-f]{64})"
_PRINTABLE = r"(?P<token>[!-~](?:[ -~]{0,4094}[!-~])?)"
_HEX = re.compile(_DIGEST)
_SECONDS = re.compile(r"[0-9]{1,12}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{43}=")
# Without a dot, which separates the id from the time in the signed text.
_SIGNED_ID = re.compile(r"[!-\-/-~]{1,256}")
_ID = re.compile(r"[!-~]{1,256}")


@dataclass(frozen=True)
class Claim:
    """What a request's headers say about its sender; not proved yet.

    Attributes:
      digests: the HMAC-SHA256 signatures, of which one has to be right.
      prefix: what is signed before the body.
      token: the secret itself, where the scheme sends it instead of a signature.
      signed_id: the delivery's id, where the signature covers it.
    """

    digests: tuple[bytes, ...] = ()
    prefix: bytes = b""
    token: bytes | None = None
    signed_id: str = ""

    def is_proved(self, body: bytes, keys: Sequence[bytes]) -> bool:
        """Return whether one of the keys proves the claim, in a time that does not depend on which."""
        proved = False
        for key in keys:
            if self.token is not None:
                # Digests have one length: comparing them does not show that of the key.
                proved |= hmac.compare_digest(_sha256(self.token), _sha256(key))
                continue
            signed = hmac.new(key, self.prefix, hashlib.sha256)
            signed.update(body)
            for digest in self.digests:
                proved |= hmac.compare_digest(signed.digest(), digest)
        return proved

    def identity(self, body: bytes) -> bytes:
        """Return what identifies the delivery of a proved claim; b"" for a token, whose holder can send anything.

        It is of what is signed: a copy of a delivery may have another id in a header that is not.
        """
        return b"" if self.token is not None else _sha256(self.signed_id.encode() or body)


@dataclass(frozen=True)
class Scheme:
    """A scheme of signatures.

    Attributes:
      auth: the header ``ciml_auth`` of its messages.
      headers: lower-case names of the headers that it reads.
      read: (headers, present time in epoch seconds) -> the claim, or None.
      ids: headers of a delivery's id, the first that is there. Only such that the proof covers: an event's id follows
        from them, and a copy of a delivery must not get another one. Else it follows from the body.
      needs_body: whether the body is part of the proof.
      key: a secret as it is configured -> the key. Raises `ValueError` without the secret's text.
    """

    auth: str
    headers: tuple[str, ...]
    read: Callable[[Mapping[str, str], float], Claim | None]
    ids: tuple[str, ...] = ()
    needs_body: bool = True
    key: Callable[[bytes], bytes] = lambda secret: secret

    def delivery_id(self, headers: Mapping[str, str]) -> str:
        """Return the delivery's id; "" without a valid one."""
        delivery_id = next((headers[name] for name in self.ids if name in headers), "")
        return delivery_id if _ID.fullmatch(delivery_id) else ""


def _one_header(auth: str, header: str, pattern: str, ids: tuple[str, ...] = ()) -> Scheme:
    """Return a scheme with one header, whose form has the groups ``digest`` and perhaps ``stamp``, or ``token``."""
    form = re.compile(pattern)
    has_token = "token" in form.groupindex

    def read(headers: Mapping[str, str], now_s: float) -> Claim | None:
        match = form.fullmatch(headers.get(header, ""))
        if match is None:
            return None
        if has_token:
            return Claim(token=match["token"].encode())
        stamp = match.groupdict().get("stamp")
        if stamp is not None and not _is_recent(stamp, now_s):
            return None
        return Claim((bytes.fromhex(match["digest"]),), f"{stamp}.".encode() if stamp else b"")

    return Scheme(auth, (header,), read, ids, needs_body=not has_token)


def _circleci(headers: Mapping[str, str], now_s: float) -> Claim | None:
    parts = [part.partition("=") for part in headers.get("circleci-signature", "").split(",", _MOST)]
    digests = [digest for version, _, digest in parts if version == "v1" and _HEX.fullmatch(digest)]
    return Claim(tuple(map(bytes.fromhex, digests))) if digests and len(parts) <= _MOST else None


def _standard(headers: Mapping[str, str], now_s: float) -> Claim | None:
    message = headers.get("webhook-id", "")
    stamp = headers.get("webhook-timestamp", "")
    parts = headers.get("webhook-signature", "").split(" ", _MOST)
    if not _SIGNED_ID.fullmatch(message) or not _is_recent(stamp, now_s) or len(parts) > _MOST:
        return None
    digests = tuple(filter(None, map(_base64_digest, parts)))
    if not digests:
        return None
    return Claim(digests, f"{message}.{stamp}.".encode(), signed_id=message)


def _is_recent(stamp: str, now_s: float) -> bool:
    return _SECONDS.fullmatch(stamp) is not None and abs(now_s - int(stamp)) <= MAX_SIGNATURE_AGE_S


def _base64_digest(part: str) -> bytes | None:
    version, _, text = part.partition(",")
    if version != "v1" or not _BASE64.fullmatch(text):
        return None
    digest = base64.b64decode(text)
    # The last character has two bits that no byte takes: only one of its four spellings is right.
    return digest if base64.b64encode(digest).decode() == text else None


def _standard_key(secret: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(b"whsec_"), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("want whsec_ and base64, as the sender shows it")
    return key


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


#: Schemes by their name in a configuration and in `adapters.Adapter.signature`.
SCHEMES: Mapping[str, Scheme] = {
    "github": _one_header("hmac-sha256", "x-hub-signature-256", f"sha256={_DIGEST}"),
    "gitlab-token": _one_header("token", "x-gitlab-token", _PRINTABLE, ("webhook-id", "idempotency-key")),
    "standard-webhooks": Scheme(
        "standard-webhooks",
        ("webhook-id", "webhook-timestamp", "webhook-signature"),
        _standard,
        ("webhook-id",),
        key=_standard_key,
    ),
    "buildkite": _one_header(
        "hmac-sha256", "x-buildkite-signature", f"timestamp=(?P<stamp>[0-9]{{1,12}}),signature={_DIGEST}"
    ),
    "circleci": Scheme("hmac-sha256", ("circleci-signature",), _circleci),
    "bearer": _one_header("token", "authorization", "[Bb]earer +(?P<token>[!-~]{1,4096})"),
}


def client_scheme(header: str) -> Scheme:
    """Return the scheme ``mtls``: a proxy has verified the client's certificate, and names its subject in a header.

    The caller checks that the request comes from that proxy.
    """
    return _one_header("mtls", header, _PRINTABLE)


#: The scheme ``none``: nothing is proved.
UNSIGNED = Scheme("", (), lambda headers, now_s: Claim(token=b""), needs_body=False)

"""Sealed JSON objects: their format, and their reading from bytes, stores and small local files.

A sealed object carries the sha256 of its bytes, so that damage is detected before parsing. It begins with the key
``seal`` and ends with the key ``sha256``, whose digits cover all bytes before them:

    {"seal":"","estimator":"dnn",…,"sha256":"<64 hex digits>"}

The two keys are at opposite ends, so that a damaged seal is not mistaken for a missing one. Objects of older versions
have neither. The value of ``seal`` is text that the writer adds, such as the digest of the previous delta of a log.
An object that an erasure has rewritten names, before ``sha256``, the digest of the object that it replaces. It counts
as that of the object too, so that other objects which name it need no change:

    {"seal":"…",…,"erased":"<64 hex digits>","sha256":"<64 hex digits>"}

The state of local engines and services is in files, which `write_json` replaces atomically.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ciml.errors import CimlError, IntegrityError
from ciml.storage.base import Store
from ciml.storage.local import replace_file

_FIRST = b'{"seal":"'
_LAST = b',"sha256":"'
_REPLACES = b',"erased":"'
_END = b'"}'
_DIGITS = 64
_TAIL = len(_LAST) + _DIGITS + len(_END)
_REPLACED = re.compile(rb',"erased":"([0-9a-f]{64})","sha256":".{64}"\}', re.DOTALL)
_REPLACED_TAIL = len(_REPLACES) + _DIGITS + 1 + _TAIL
_HEAD = re.compile(rb'\{"seal":"([0-9a-f:]*)",')
RESTORE = "restore a backup"


class Seal(NamedTuple):
    """The seal of an undamaged object.

    Attributes:
      text: the value of its key ``seal``.
      digest: hex sha256 of all bytes before the digits; of an object that an erasure has rewritten, that of the first
        object which it replaces.
    """

    text: str
    digest: str


def seal(document: bytes, text: str = "", replaces: str = "") -> bytes:
    """Return a JSON object with a seal.

    Args:
      document: the bytes of an object, without white space around it.
      text: digits, letters from a to f, and colons.
      replaces: the digest of the object that an erasure replaces by this one; "" without one.
    """
    members = document[1:-1]
    separator = b'",' if members else b'"'
    erased = b"".join((_REPLACES, replaces.encode(), b'"')) if replaces else b""
    content = b"".join((_FIRST, text.encode(), separator, members, erased, _LAST))
    return b"".join((content, hashlib.sha256(content).hexdigest().encode(), _END))


def seal_of(data: bytes, where: str, remedy: str = RESTORE, error: type[CimlError] = IntegrityError) -> Seal | None:
    """Return the seal of a stored object; None for one that an older version wrote without a seal.

    Args:
      data: the bytes of the object.
      where: its address, for errors.
      remedy: what to do about damage, for errors.
      error: the class of errors.

    Raises:
      CimlError: of the class ``error``: it has a seal, or a part of one, and differs from it.
    """
    has_tail = len(data) > _TAIL and data.startswith(_LAST, len(data) - _TAIL) and data.endswith(_END)
    if not has_tail and not data.startswith(_FIRST):
        return None
    head = _HEAD.match(data)
    digest = hashlib.sha256(memoryview(data)[: -len(_END) - _DIGITS]).hexdigest()
    if not has_tail or head is None or data[-len(_END) - _DIGITS : -len(_END)] != digest.encode():
        raise error(f"{where} differs from its digest; {remedy}")
    return Seal(head[1].decode(), _replaced_digest(data) or digest)


def digest_of(data: bytes) -> str:
    """Return the digest in a sealed object, as `seal_of` does, without comparing it."""
    return _replaced_digest(data) or data[-_DIGITS - len(_END) : -len(_END)].decode()


def _replaced_digest(data: bytes) -> str:
    """Return the digest of the object that a sealed one replaces; "" if no erasure has rewritten it."""
    match = _REPLACED.fullmatch(data, max(0, len(data) - _REPLACED_TAIL))
    return match[1].decode() if match else ""


def without_seal(data: bytes) -> bytes:
    """Return an object as it was before `seal`; one without a seal unchanged. The digest is not compared."""
    head = _HEAD.match(data)
    if head is None or not data.startswith(_LAST, len(data) - _TAIL):
        return data
    return b"".join((b"{", data[head.end() : -_REPLACED_TAIL if _replaced_digest(data) else -_TAIL], b"}"))


def read_object(
    data: bytes, where: str, remedy: str = RESTORE, error: type[CimlError] = IntegrityError
) -> dict[str, Any]:
    """Parse a stored object, with or without a seal; return it without the keys of the seal.

    Raises:
      CimlError: of the class ``error``: it differs from its seal, or is not a JSON object.
    """
    seal_of(data, where, remedy, error)
    try:
        value = json.loads(without_seal(data))
    except (ValueError, RecursionError) as damage:
        raise error(f"{where} is unreadable ({damage}); {remedy}") from None
    if not isinstance(value, dict):
        raise error(f"{where} is unreadable (not a JSON object); {remedy}")
    return value


def read_stored(store: Store, path: str) -> dict[str, Any] | None:
    """Return an object of a store, or None if the file does not exist. Raises `IntegrityError` if it is damaged."""
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    return read_object(data, store.url(path))


def read_json(path: Path, remedy: str = "remove it", error: type[CimlError] = CimlError) -> dict[str, Any] | None:
    """Return an object written by `write_json`, or None if the file does not exist.

    Raises:
      CimlError: of the class ``error``, with the ``remedy``: the file contains no JSON object, or is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return read_object(data, str(path), remedy, error)


def write_json(path: Path, value: dict[str, Any], mode: int = 0o644) -> None:
    """Write a sealed object to a file, which is replaced atomically. Its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, seal(json.dumps(value, indent=2).encode()), mode)

"""Gzip, whatever the file is called: members one after another, within a limit on what comes out."""

from __future__ import annotations

import zlib

from ciml.errors import Refused

MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 16
_MAX_MEMBERS = 10_000  # a member costs some 10 µs however small it is
_MAX_NESTING = 2  # a server that compresses a compressed file again is common, a deeper nest is an attack


def inflate(data: bytes, max_bytes: int) -> bytes:
    """The text of a log: decompressed where it is gzip, else as it is.

    Args:
      data: the log as fetched, by its content gzip or not; its name plays no part.
      max_bytes: the most that any layer may hold, so that memory stays bounded whatever comes.

    Raises:
      Refused: ``corrupt_gzip`` when a member is cut or broken (what could be read of it may be wrong), or
        ``log_too_large``.
    """
    for _ in range(_MAX_NESTING):
        if not data.startswith(MAGIC):
            break
        data = _members(data, max_bytes)
    if data.startswith(MAGIC):
        raise Refused("corrupt_gzip", f"gzip within gzip, more than {_MAX_NESTING} deep")
    if len(data) > max_bytes:
        raise Refused("log_too_large", f"more than {max_bytes} bytes of text")
    return data


def _members(data: bytes, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes
    position = 0
    for _ in range(_MAX_MEMBERS):
        part, position = _member(data, position, left)
        parts.append(part)
        left -= len(part)
        if data.startswith(MAGIC, position):
            continue
        if data[position:].strip(b"\x00"):  # tapes and some uploaders pad with zeros
            raise Refused("corrupt_gzip", f"what follows byte {position} is no gzip member")
        return part if len(parts) == 1 else b"".join(parts)
    raise Refused("corrupt_gzip", f"more than {_MAX_MEMBERS} members")


def _member(data: bytes, position: int, left: int) -> tuple[bytes, int]:
    """One member from ``position``: its text, and where the next one starts."""
    member = zlib.decompressobj(wbits=31)
    parts: list[bytes] = []
    try:
        # In chunks, since each member copies what is left of its input: the whole rest would make many small
        # members cost the square of their number.
        while position < len(data) and not member.eof:
            chunk = data[position : position + _CHUNK]
            position += len(chunk)
            while chunk and not member.eof:
                part = member.decompress(chunk, left + 1)
                left -= len(part)
                if left < 0:
                    raise Refused("log_too_large", "decompresses to more than the limit")
                parts.append(part)
                chunk = member.unconsumed_tail
    except zlib.error as error:
        raise Refused("corrupt_gzip", str(error)) from None
    if not member.eof:
        raise Refused("corrupt_gzip", "the last member is cut")
    return b"".join(parts), position - len(member.unused_data)

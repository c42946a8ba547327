"""Splits a stream of bytes into lines of bounded length."""

from __future__ import annotations


class Lines:
    """Collects lines. A line over the limit is skipped whole, whatever its length, without keeping it.

    Args:
      most: bytes of a line.
    """

    def __init__(self, most: int) -> None:
        self._most, self._parts, self._size = most, list[bytes](), 0

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """Return the lines that the chunk ends, without their ends and without empty ones; None for one too long."""
        found: list[bytes | None] = []
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._add(part)
            line = b"".join(self._parts).strip() if self._size <= self._most else None
            if line != b"":
                found.append(line)
            self._parts, self._size = [], 0
        self._add(rest)
        return found

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            self._parts = []
        elif part:
            self._parts.append(part)

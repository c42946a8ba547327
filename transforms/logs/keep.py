"""Keep the head and the tail of an output that is too large to be kept whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ciml.errors import RejectedInput
from ciml.limits import MAX_OUTPUT_BYTES, MAX_OUTPUT_UNPACKED_BYTES
from ciml.runs.outputs import KeptOutput
from ciml.transforms.fetch.decompress import unpack


def keep_readable(chunks: Iterable[bytes], limit: int = MAX_OUTPUT_BYTES) -> KeptOutput:
    """Read an output, plain or gzip, in memory of about the limit. Of a broken gzip file, return what was read before.

    Args:
      chunks: its bytes, in their order.
      limit: most bytes to keep: a half at the beginning, a half at the end.

    Raises:
      RejectedInput: ``corrupt_gzip`` if nothing can be read.
    """
    parts = _HeadAndTail(limit // 2)
    try:
        unpack(chunks, MAX_OUTPUT_UNPACKED_BYTES, parts.add)
    except RejectedInput:
        if not parts.size:
            raise
    return parts.kept()


class _HeadAndTail:
    """The first and the last bytes of those that were added, at most ``half`` of each."""

    def __init__(self, half: int) -> None:
        self._half = half
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0
        self._dropped_lines = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
        while self._tail_size - len(self._tail[0] if self._tail else b"") > self._half:
            first = self._tail.popleft()
            self._tail_size -= len(first)
            self._drop(first)

    def _drop(self, data: bytes | bytearray) -> None:
        self._dropped += len(data)
        self._dropped_lines += data.count(b"\n")

    def kept(self) -> KeptOutput:
        """Return whole lines. A line that the gap touches belongs to the gap."""
        tail = b"".join(self._tail)
        self._tail.clear()
        if not self._dropped and len(tail) <= self._half:
            self._head += tail
            return KeptOutput(bytes(self._head), self._head.count(b"\n") + 1)
        self._drop(tail[: max(len(tail) - self._half, 0)])
        tail = tail[max(len(tail) - self._half, 0) :]
        begin = tail.find(b"\n") + 1 or len(tail)  # its first line is not whole, or may not be
        self._drop(tail[:begin])
        end = self._head.rfind(b"\n") + 1
        self._drop(self._head[end:])
        head_lines = self._head.count(b"\n")
        return KeptOutput(bytes(self._head[:end]) + tail[begin:], head_lines, self._dropped_lines, self._dropped)

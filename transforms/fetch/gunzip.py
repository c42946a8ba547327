"""Decompression with limits: nested gzip, several members, bombs; memory stays within the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO

from zlib_ng import zlib_ng as zlib  # takes half the time of the standard library's

from ciml.errors import RejectedInput
from ciml.limits import MAX_GZIP_LAYERS, MAX_GZIP_MEMBERS

_PIECE = 1 << 18
#: Bytes per call: zlib copies the rest after each member, so calls must be small. Each costs about 10 µs.
_SLICE = 1 << 16
_MAGIC = b"\x1f\x8b"


class _Layer:
    """Passes bytes on, unchanged or, where they start as gzip, unpacked."""

    def __init__(self, limit: int, layers_left: int, sink: Callable[[bytes], None]) -> None:
        self._limit = limit
        self._layers_left = layers_left
        self._sink = sink
        self._start = b""  # the first bytes, until the format is known
        self._known = False
        self._inflate: zlib._Decompress | None = None
        self._next: _Layer | None = None
        self._passed = 0
        self._members = 0

    def feed(self, data: bytes) -> None:
        if not self._known:
            data = self._start + data
            if len(data) < len(_MAGIC):
                self._start = data
                return
            self._begin(data)
        for at in range(0, len(data), _SLICE):
            self._take(data[at : at + _SLICE])

    def close(self) -> None:
        if not self._known:
            self._begin(self._start)
            self._take(self._start)
        if self._inflate is not None and not self._inflate.eof:
            raise RejectedInput("corrupt_gzip", "the gzip data is cut short")
        if self._next is not None:
            self._next.close()

    def _begin(self, data: bytes) -> None:
        self._known = True
        if not data.startswith(_MAGIC):
            return
        if not self._layers_left:
            raise RejectedInput("corrupt_gzip", f"more than {MAX_GZIP_LAYERS} layers of gzip")
        self._inflate = self._member()
        self._next = _Layer(self._limit, self._layers_left - 1, self._sink)

    def _take(self, data: bytes) -> None:
        if self._inflate is None or self._next is None:
            self._count(data)
            self._sink(data)
            return
        while data:
            if self._inflate.eof:  # another member, or zeros as padding
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._inflate = self._member()
            try:
                out = self._inflate.decompress(data, _PIECE)
            except zlib.error as error:  # type: ignore[misc]  # its stub does not declare it as an exception
                raise RejectedInput("corrupt_gzip", str(error)) from None
            # Each layer must be within the limit: a large one may unpack to a small one, at any cost of time.
            self._count(out)
            self._next.feed(out)
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail

    def _member(self) -> zlib._Decompress:
        self._members += 1
        if self._members > MAX_GZIP_MEMBERS:
            raise RejectedInput("corrupt_gzip", f"more than {MAX_GZIP_MEMBERS} members")
        return zlib.decompressobj(wbits=31)

    def _count(self, data: bytes) -> None:
        self._passed += len(data)
        if self._passed > self._limit:
            raise RejectedInput("log_too_large", f"more than {self._limit} bytes unpacked")


def gunzip(chunks: Iterable[bytes], limit: int, grow: Callable[[int], None] | None = None) -> bytes:
    """Join chunks and unpack gzip (detected by the first bytes, never by a name), at most twice.

    Args:
      chunks: bytes in their order, of any sizes.
      limit: limit in bytes of the result, and of each layer.
      grow: called with each number of bytes that the result grows by, and with their negative sum on failure. An
        exception from it ends the work.

    Raises:
      RejectedInput: ``log_too_large`` above the limit; ``corrupt_gzip`` where gzip is cut short or damaged.
    """
    output = BytesIO()  # returns its bytes without a copy

    def sink(data: bytes) -> None:
        if grow is not None:
            grow(len(data))
        output.write(data)

    layer = _Layer(limit, MAX_GZIP_LAYERS, sink)
    try:
        for chunk in chunks:
            layer.feed(chunk)
        layer.close()
    except BaseException:
        if grow is not None:
            grow(-output.tell())
        raise
    return output.getvalue()


def inflate(data: bytes, limit: int) -> bytes:
    """Unpack a log in memory; return it unchanged, not a copy, where it is not gzip. Raises as `gunzip`."""
    if data.startswith(_MAGIC):
        return gunzip((data,), limit)
    if len(data) > limit:
        raise RejectedInput("log_too_large", f"more than {limit} bytes unpacked")
    return data

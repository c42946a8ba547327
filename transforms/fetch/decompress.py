"""Unpack logs within limits: gzip, nested or of several members, and the log among the members of a zip archive.

Memory stays within the limit even for a compression bomb. Of an archive, only the log is unpacked.

A job writes its archives, so they may be hostile. Python's zipfile makes an object of each entry before anything can be
checked. It accepts files that overlap, data around the archive, and headers that contradict the directory. `unzip`
reads only the plain form that CI systems write: one directory at the end, which agrees with the header of the log;
neither encrypted nor zip64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import IO, NamedTuple
from zlib import crc32

from zlib_ng import zlib_ng as zlib  # takes half the time of the standard library's

from ciml.errors import LogUnavailableError, RejectedInput
from ciml.limits import (
    MAX_ARCHIVE_BYTES,
    MAX_ARCHIVE_DIRECTORY_BYTES,
    MAX_ARCHIVE_ENTRIES,
    MAX_ARCHIVE_RATIO,
    MAX_GZIP_LAYERS,
    MAX_GZIP_MEMBERS,
)

_CHUNK_BYTES = 1 << 18
#: Bytes per call: zlib copies the rest after each member, so calls must be small. Each costs about 10 µs.
_CALL_BYTES = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
#: The fixed parts of a zip archive: the end of the directory, an entry of the directory, and the header of a member.
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_STORED = 0
_DEFLATED = 8
#: Flags of a member.
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_PATCHED = 0x20
_SIZES_FOLLOW = 0x8  # the sizes are after the data instead of in the header


def gunzip(chunks: Iterable[bytes], limit: int, grow: Callable[[int], None] | None = None) -> bytes:
    """Join chunks and unpack gzip (detected by the first bytes, never by a name), at most twice.

    Args:
      chunks: bytes in their order, of any sizes.
      limit: limit in bytes of the result, and of each layer.
      grow: called with the number of bytes whenever the result grows, and with their negative sum on failure. An
        exception from it stops the work.

    Raises:
      RejectedInput: ``log_too_large`` above the limit; ``corrupt_gzip`` if gzip is truncated or damaged.
    """
    output = BytesIO()  # returns its bytes without a copy

    def sink(data: bytes) -> None:
        if grow is not None:
            grow(len(data))
        output.write(data)

    try:
        unpack(chunks, limit, sink)
    except BaseException:
        if grow is not None:
            grow(-output.tell())
        raise
    return output.getvalue()


def unpack(chunks: Iterable[bytes], limit: int, sink: Callable[[bytes], None]) -> None:
    """Pass bytes to a sink, unpacked as by `gunzip`, and raise its errors."""
    layer = _Layer(limit, MAX_GZIP_LAYERS, sink)
    for chunk in chunks:
        layer.feed(chunk)
    layer.close()


def inflate(data: bytes, limit: int) -> bytes:
    """Unpack a log in memory as `gunzip`; return the same bytes if they are not gzip."""
    if data.startswith(_GZIP_MAGIC):
        return gunzip((data,), limit)
    if len(data) > limit:
        raise RejectedInput("log_too_large", f"more than {limit} bytes unpacked")
    return data


class _Layer:
    """Passes bytes to a sink: unpacked by a further layer if they start as gzip, unchanged otherwise."""

    def __init__(self, limit: int, layers_left: int, sink: Callable[[bytes], None]) -> None:
        self._limit = limit
        self._layers_left = layers_left
        self._sink = sink
        self._start = b""  # the first bytes, while the format is unknown
        self._is_known = False
        self._inflate: zlib._Decompress | None = None
        self._next: _Layer | None = None
        self._passed = 0
        self._members = 0

    def feed(self, data: bytes) -> None:
        if not self._is_known:
            data = self._start + data
            if len(data) < len(_GZIP_MAGIC):
                self._start = data
                return
            self._detect_format(data)
        for start in range(0, len(data), _CALL_BYTES):
            self._pass_on(data[start : start + _CALL_BYTES])

    def close(self) -> None:
        if not self._is_known:
            self._detect_format(self._start)
            self._pass_on(self._start)
        if self._inflate is not None and not self._inflate.eof:
            raise RejectedInput("corrupt_gzip", "the gzip data is cut short")
        if self._next is not None:
            self._next.close()

    def _detect_format(self, data: bytes) -> None:
        self._is_known = True
        if not data.startswith(_GZIP_MAGIC):
            return
        if not self._layers_left:
            raise RejectedInput("corrupt_gzip", f"more than {MAX_GZIP_LAYERS} layers of gzip")
        self._inflate = self._new_member()
        self._next = _Layer(self._limit, self._layers_left - 1, self._sink)

    def _pass_on(self, data: bytes) -> None:
        if self._inflate is None or self._next is None:
            self._count(data)
            self._sink(data)
            return
        while data:
            if self._inflate.eof:  # another member, or zeros as padding
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._inflate = self._new_member()
            unpacked = _decompress(self._inflate, data, "corrupt_gzip")
            # Each layer must be within the limit: a large one may unpack to a small one, at any cost of time.
            self._count(unpacked)
            self._next.feed(unpacked)
            data = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail

    def _new_member(self) -> zlib._Decompress:
        self._members += 1
        if self._members > MAX_GZIP_MEMBERS:
            raise RejectedInput("corrupt_gzip", f"more than {MAX_GZIP_MEMBERS} members")
        return zlib.decompressobj(wbits=31)

    def _count(self, data: bytes) -> None:
        self._passed += len(data)
        if self._passed > self._limit:
            raise RejectedInput("log_too_large", f"more than {self._limit} bytes unpacked")


def _decompress(stream: zlib._Decompress, data: bytes, reason: str) -> bytes:
    """Decompress at most `_CHUNK_BYTES`. Raises `RejectedInput` with the reason if the stream is damaged."""
    try:
        return stream.decompress(data, _CHUNK_BYTES)
    except zlib.error as error:  # type: ignore[misc]  # its stub does not declare it as an exception
        raise RejectedInput(reason, str(error)) from None


def is_archive(file: IO[bytes]) -> bool:
    """Return whether a file starts as a zip archive does, also an empty one."""
    file.seek(0)
    return file.read(4) in (b"PK\3\4", b"PK\5\6")


def unzip(file: IO[bytes], paths: Sequence[str]) -> Iterator[bytes]:
    """Unpack the log in an archive, and yield its bytes.

    Args:
      file: the archive.
      paths: `FetchPolicy.log_paths`.

    Raises:
      RejectedInput: ``corrupt_archive``; ``log_too_large`` for too many entries, or too many bytes unpacked.
      LogUnavailableError: ``log_not_found``.
    """
    member = _find_log(_read_directory(file), paths)
    if member is None:
        raise LogUnavailableError("log_not_found", "no file in the archive has the name of a log")
    offset = _find_data(file, member)
    size = 0
    crc = 0
    for chunk in _stored(file, offset, member) if member.method == _STORED else _inflated(file, offset, member):
        size += len(chunk)
        if size > member.size:
            break
        crc = crc32(chunk, crc)
        yield chunk
    if size != member.size or crc != member.crc:
        raise _corrupt("the log is not what its directory says")


class Member(NamedTuple):
    """A file in an archive, as the directory describes it.

    Attributes:
      name: its path, of any bytes; it is compared and never opened.
      flags, method, crc: as in the archive.
      packed, size: bytes in the archive, and unpacked.
      start, end: offsets of its header, and of the next header or the directory.
    """

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    end: int


def _read_directory(file: IO[bytes]) -> list[Member]:
    """Read the members of an archive; their number and sizes are checked first."""
    end = file.seek(0, 2) - _END.size
    if end < 0:
        raise _corrupt("it is cut short")
    file.seek(end)
    mark, disk, first, disk_count, count, size, start, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6" or comment:
        raise _corrupt("it does not end with its directory")
    if max(count, disk_count) > MAX_ARCHIVE_ENTRIES:
        raise RejectedInput(
            "log_too_large", f"an archive of {max(count, disk_count)} files, at most {MAX_ARCHIVE_ENTRIES}"
        )
    if disk or first or disk_count != count or start + size != end:
        raise _corrupt("its directory is elsewhere: it is split, zip64, or has other data around it")
    if size > MAX_ARCHIVE_DIRECTORY_BYTES:
        raise RejectedInput(
            "log_too_large", f"an archive with {size} bytes of directory, at most {MAX_ARCHIVE_DIRECTORY_BYTES}"
        )
    file.seek(start)
    members = _parse_entries(file.read(size), count, start)
    unpacked = sum(member.size for member in members)
    if unpacked > MAX_ARCHIVE_BYTES:
        raise RejectedInput("log_too_large", f"an archive of {unpacked} bytes unpacked, at most {MAX_ARCHIVE_BYTES}")
    return members


def _parse_entries(data: bytes, count: int, start: int) -> list[Member]:
    members: list[Member] = []
    offset = 0
    for _ in range(count):
        if offset + _ENTRY.size > len(data):
            raise _corrupt("its directory is cut short")
        fields = _ENTRY.unpack_from(data, offset)
        mark, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, header = fields
        name = data[offset + _ENTRY.size : offset + _ENTRY.size + lengths[0]]
        offset += _ENTRY.size + sum(lengths)
        if mark != b"PK\1\2" or offset > len(data):
            raise _corrupt("its directory is damaged")
        if size > MAX_ARCHIVE_RATIO * packed:
            raise _corrupt("a file has more bytes than any that is packed so small")
        members.append(Member(name, flags, method, crc, packed, size, header, start))
    if offset != len(data):
        raise _corrupt("its directory is longer than its entries")
    return _with_ends(members, start)


def _with_ends(members: list[Member], directory: int) -> list[Member]:
    """Return members with their ends. Rejects overlapping ones, which could unpack to any size."""
    ordered = sorted(members, key=lambda member: member.start)
    ends = [*(member.start for member in ordered), directory][1:]
    with_ends: list[Member] = []
    for member, end in zip(ordered, ends, strict=True):
        if member.start + _HEADER.size + len(member.name) + member.packed > end:
            raise _corrupt("its files overlap")
        with_ends.append(member._replace(end=end))
    return with_ends


def _find_log(members: list[Member], paths: Sequence[str]) -> Member | None:
    """Return the member with the first of the paths, else with the first of their last names; None if there is none."""
    exact = {path.encode(): position for position, path in reversed(list(enumerate(paths)))}
    last = {path.rpartition(b"/")[2]: position for path, position in exact.items()}

    def rank(member: Member) -> tuple[int, int, bytes] | None:
        name = member.name.removeprefix(b"./")
        if name in exact:
            return exact[name], 0, name
        position = last.get(name.rpartition(b"/")[2])
        return None if position is None else (len(paths) + position, name.count(b"/"), name)

    ranked = []
    for member in members:
        order = rank(member)
        if order is not None:
            ranked.append((order, member))
    return min(ranked)[1] if ranked else None


def _find_data(file: IO[bytes], member: Member) -> int:
    """Return the offset of a member's data. Rejects a header that contradicts the directory."""
    if member.flags & _ENCRYPTED:
        raise _corrupt("the log is encrypted")
    if member.flags & _PATCHED or member.method not in (_STORED, _DEFLATED):
        raise _corrupt(f"the log is packed by method {member.method}, want deflate")
    file.seek(member.start)
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise _corrupt("it is cut short")
    mark, _, flags, method, _, _, *sizes, name, extra = _HEADER.unpack(header)
    start: int = member.start + _HEADER.size + name + extra
    agrees = (mark, flags, method) == (b"PK\3\4", member.flags, member.method) and file.read(name) == member.name
    if not flags & _SIZES_FOLLOW:
        agrees = agrees and sizes == [member.crc, member.packed, member.size]
    if not agrees or start + member.packed > member.end:
        raise _corrupt("a header does not agree with the directory")
    return start


def _stored(file: IO[bytes], position: int, member: Member) -> Iterator[bytes]:
    end = position + member.packed
    while position < end:
        file.seek(position)
        chunk = file.read(min(_CHUNK_BYTES, end - position))
        if not chunk:
            return
        position += len(chunk)
        yield chunk


def _inflated(file: IO[bytes], position: int, member: Member) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=-15)
    end = position + member.packed
    data = b""
    while not inflate.eof:
        if not data:
            file.seek(position)
            data = file.read(min(_CALL_BYTES, end - position))
            position += len(data)
        chunk = _decompress(inflate, data, "corrupt_archive")
        if not chunk and not data:
            raise _corrupt("the log is cut short")
        data = inflate.unconsumed_tail
        yield chunk
    if inflate.unused_data or position < end:
        raise _corrupt("data follow the log")


def _corrupt(detail: str) -> RejectedInput:
    return RejectedInput("corrupt_archive", detail)

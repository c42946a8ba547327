"""Zip archives for the tests: good ones, and ones that lie, overlap, or unpack to any size."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

_ZEROS = bytes(1 << 20)


def zipped(files: dict[str, bytes], streamed: bool = False, stored: bool = False) -> bytes:
    """An archive as CI systems write it; ``streamed``: sizes follow the data, as GitHub's do."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not streamed

        def tell(self) -> int:
            if streamed:
                raise OSError
            return super().tell()

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (2026, 11, 26, 0, 0, 0))
            info.compress_type = archive.compression
            archive.writestr(info, data)
    return pipe.getvalue()


def entry(
    name: bytes, packed: bytes, size: int, crc: int = 0, offset: int = 0, flags: int = 0, method: int = 8
) -> tuple[bytes, bytes]:
    """A member as it stands in an archive, and its entry in the directory: with any fields."""
    common = struct.pack("<5H3L2H", 20, flags, method, 0, 0, crc, len(packed), size, len(name), 0)
    header = b"PK\3\4" + common + name + packed
    listed = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2L", 0, 0, 0, 0, offset) + name
    return header, listed


def archive(members: list[tuple[bytes, bytes]], count: int | None = None) -> bytes:
    """An archive of members as `entry` makes them; offsets in their entries are set, unless they are."""
    body, listed, at = [], [], 0
    for header, item in members:
        offset = struct.unpack_from("<L", item, 42)[0] or at
        body.append(header)
        listed.append(item[:42] + struct.pack("<L", offset) + item[46:])
        at += len(header)
    count = len(members) if count is None else count
    directory = b"".join(listed)
    return b"".join((*body, directory, struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), at, 0)))


def zeros(size: int) -> bytes:
    """``size`` zeros in deflate, about a thousandth of it; made without holding them."""
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(_ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)  # whole bytes: may be repeated
    return first * (size >> 20) + b"\x03\x00"

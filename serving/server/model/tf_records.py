"""TFRecord framing with bounds: a length is trusted only after its checksum and the file's size are checked.

TensorFlow's own reader allocates the declared length, and aborts the process if that fails.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ciml.errors import IntegrityError

_HEAD = struct.Struct("<QI")  # the length of the data, and its checksum
_FOOT = struct.Struct("<I")  # the data's checksum
_MASK = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """Return the masked CRC32C of TFRecord files."""
    import google_crc32c  # of the extra `serve`; who only asks a server has no use for it

    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """Return a record in TFRecord framing."""
    length = struct.pack("<Q", len(record))
    return length + _FOOT.pack(masked_crc(length)) + record + _FOOT.pack(masked_crc(record))


def read_records(data: bytes, *, max_records: int, max_record_bytes: int) -> Iterator[bytes]:
    """Iterate over the records of a TFRecord file (uncompressed).

    Args:
      data: the whole file.
      max_records: the most records that the file may hold.
      max_record_bytes: the largest record, bytes.

    Raises:
      IntegrityError: naming the first record that is truncated, fails its checksum, or exceeds a limit.
    """
    at = number = 0
    while at < len(data):
        if number >= max_records:
            raise IntegrityError(f"more than {max_records} records")
        if at + _HEAD.size > len(data):
            raise IntegrityError(f"record {number} is cut short")
        length, length_crc = _HEAD.unpack_from(data, at)
        if masked_crc(data[at : at + 8]) != length_crc:
            raise IntegrityError(f"record {number}: checksum of the length does not match")
        if length > max_record_bytes:
            raise IntegrityError(f"record {number}: {length} bytes exceed {max_record_bytes}")
        at += _HEAD.size
        end = at + length
        if end + _FOOT.size > len(data):
            raise IntegrityError(f"record {number} is cut short")
        record = data[at:end]
        if masked_crc(record) != _FOOT.unpack_from(data, end)[0]:
            raise IntegrityError(f"record {number}: checksum of the data does not match")
        yield record
        at, number = end + _FOOT.size, number + 1

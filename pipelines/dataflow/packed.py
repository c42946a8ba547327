"""Search in a serialised pipeline, whose functions and elements are packed."""

from __future__ import annotations

import base64
import bz2
import re
import zlib
from collections.abc import Iterable, Iterator

#: Beam packs a pickled object by bz2 or zlib, and then by base64: both have a fixed beginning.
_PACKED = re.compile(rb"(?:QlpoO|eNo|eNr|eNp|eJx)[A-Za-z0-9+/]{8,}={0,2}")


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield the data, and all that is packed in it, at any depth."""
    waiting = [data]
    while waiting:
        yield (each := waiting.pop())
        for match in _PACKED.finditer(each):
            content = base64.b64decode(match[0][: len(match[0]) // 4 * 4])
            try:  # what follows the end is ignored: letters after the text may belong to something else
                unpack = bz2.BZ2Decompressor() if content.startswith(b"BZh") else zlib.decompressobj()
                found = unpack.decompress(content)
            except (OSError, zlib.error):
                continue  # not packed
            waiting += [found] * bool(found)


def holds(data: bytes, secrets: Iterable[bytes]) -> bool:
    """Return whether a serialised pipeline holds one of the secrets, plain or packed."""
    wanted = [secret for secret in secrets if secret]
    return bool(wanted) and any(secret in each for each in unpacked(data) for secret in wanted)

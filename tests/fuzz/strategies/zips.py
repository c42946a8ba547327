"""Zip archives: as CI systems write them, and damaged: bytes changed, cut, put in, or fields set to odd numbers."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from tests.transforms.fetch.zips import zipped

#: Names of files, some of which are those of logs.
names = st.sampled_from(
    ("dstat.csv", "logs/dstat.csv", "a/dstat-csv.log", "../dool.csv", "dool.csv/", "other", "é", "a\\dool.csv", "")
)
contents = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda byte, times: bytes([byte]) * times, st.integers(0, 255), st.integers(0, 40_000)),
    st.just(b"\x1f\x8b\x08 no gzip"),
)
files = st.dictionaries(names, contents, max_size=5)
_MARKS = (b"PK\3\4", b"PK\1\2", b"PK\5\6")


@st.composite
def zips(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """An archive and the contents of its files; perhaps damaged in a few places, most of them in headers."""
    packed = draw(files)
    data = bytearray(zipped(packed, draw(st.booleans()), draw(st.booleans())))
    for _ in range(draw(st.integers(0, 3))):
        change = draw(st.sampled_from(("field", "field", "flip", "cut", "put", "drop", "twice")))
        starts = [at for mark in _MARKS for at in range(len(data)) if data.startswith(mark, at)]
        at = draw(st.sampled_from(starts)) + draw(st.integers(0, 45)) if starts and change == "field" else 0
        at = min(at, len(data)) or draw(st.integers(0, len(data)))
        if change == "field":
            size = draw(st.sampled_from((1, 2, 4)))
            number = draw(st.sampled_from((0, 1, 8, 0xFF, 0xFFFF, 0xFFFFFFFF)) | st.integers(0, 300))
            data[at : at + size] = struct.pack("<L", number)[:size]
        elif change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at:]
        elif change == "put":
            data[at:at] = draw(st.binary(max_size=8))
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 30))]
        else:
            data += data[at : at + 60]
    return bytes(data), list(packed.values())

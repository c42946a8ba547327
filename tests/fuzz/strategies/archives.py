"""Archives: gzip as logs come in it, whole, nested, in members, padded, and damaged in any of these."""

from __future__ import annotations

import gzip
import zlib

from hypothesis import strategies as st

MAGIC = b"\x1f\x8b"

#: What is packed: short texts, runs of one byte, and gzip by its first bytes alone.
contents = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda byte, times: bytes([byte]) * times, st.integers(0, 255), st.integers(0, 40_000)),
    st.just(MAGIC),
    st.just(MAGIC + b"\x08no gzip at all"),
)


def packed(data: bytes, level: int, named: bool) -> bytes:
    """One member; with a name, a comment and further fields in its header where ``named``."""
    if not named:
        return gzip.compress(data, level, mtime=0)  # else the same draws give other bytes a second later
    body = zlib.compressobj(level, wbits=-15)
    head = MAGIC + b"\x08\x1e" + bytes(6) + b"\x03\x00abc" + b"name\0" + b"comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    tail = zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return head + body.compress(data) + body.flush() + tail


members = st.builds(packed, contents, st.sampled_from((0, 1, 9)), st.booleans())


def _wrapped(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """An archive of archives, or some after one another, with padding between or behind."""
    return st.one_of(
        st.builds(packed, inner, st.sampled_from((1, 9)), st.booleans()),
        st.lists(inner, min_size=1, max_size=4).map(b"".join),
        st.builds(lambda data, zeros: data + bytes(zeros), inner, st.integers(0, 40)),
    )


whole = st.recursive(st.one_of(contents, members), _wrapped, max_leaves=6)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An archive, perhaps cut, with other bytes, or with some put in or left out."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(("cut", "flip", "put", "drop", "twice")))
        if change == "cut":
            del data[at:]
        elif change == "flip" and data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif change == "put":
            data[at:at] = draw(st.binary(max_size=8))
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 9))]
        else:
            data += data[at:]
    return bytes(data)

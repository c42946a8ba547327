"""Whatever an archive holds, it is what Python's gzip makes of it, or refused with a reason, within its limit."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.limits import MAX_GZIP_LAYERS
from ciml.transforms.fetch.decompress import gunzip
from tests.fuzz.frame import fuzz
from tests.growth import assert_linear

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


LIMIT = 30_000


def directly(data: bytes) -> bytes | None:
    """The same by the standard library, layer by layer; None for what is damaged or too deep."""
    for _ in range(MAX_GZIP_LAYERS):
        if not data.startswith(MAGIC):
            return data
        try:
            _check_headers(data)
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return None
    return None if data.startswith(MAGIC) else data


def _check_headers(data: bytes) -> None:
    """Raises `zlib.error` for a member whose header has another checksum than it says, which gzip does not look at."""
    while data.startswith(MAGIC):
        member = zlib.decompressobj(31)
        member.decompress(data)
        data = member.unused_data.lstrip(bytes(1))


def _unpacked(data: bytes, size: int, limit: int, grow: Callable[[int], None] | None = None) -> bytes | RejectedInput:
    try:
        return gunzip([data[at : at + size] for at in range(0, len(data), size)], limit, grow)
    except RejectedInput as refused:
        return refused


@fuzz
@given(archives(), st.integers(1, 5000), st.integers(0, 1))
@example(gzip.compress(gzip.compress(b"a" * LIMIT)), 1, 0)
@example(gzip.compress(gzip.compress(MAGIC)), 7, 0)
@example(gzip.compress(b"") * 50, 3, 0)
@example(gzip.compress(bytes(10 * LIMIT)), 100, 1)
def test_an_archive_is_what_gzip_makes_of_it_or_refused(data: bytes, size: int, spare: int) -> None:
    held = most = 0

    def grow(by: int) -> None:
        nonlocal held, most
        held += by
        most = max(most, held)

    expected = directly(data)
    limit = LIMIT + spare
    found = _unpacked(data, size, limit, grow)
    if isinstance(found, RejectedInput):
        assert found.reason in ("corrupt_gzip", "log_too_large")
        assert held == 0
        assert found.reason == "log_too_large" or expected is None
    else:
        assert found == expected
        assert held == len(found) <= limit
    assert most <= limit


@pytest.mark.parametrize(
    "member",
    [gzip.compress(b""), gzip.compress(b"a"), gzip.compress(gzip.compress(b"")), gzip.compress(b"") + bytes(64)],
    ids=["empty", "one byte", "nested", "padded"],
)  # fmt: skip
@pytest.mark.parametrize("size", [1 << 20, 700])
def test_many_members_cost_in_proportion(member: bytes, size: int) -> None:
    def work(data: bytes) -> None:
        _unpacked(data, size, 1 << 20)  # or refused: there are more members than may be

    assert_linear(lambda number: member * number, work, 1200)

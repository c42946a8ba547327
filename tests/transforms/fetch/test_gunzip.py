"""Decompression: the same bytes as Python's gzip, whatever the chunks, and no more than the limit."""

from __future__ import annotations

import gzip
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.transforms.fetch.decompress import gunzip
from tests.transforms.fetch.log_server import bomb

LIMIT = 1 << 20


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def in_gzip(data: bytes) -> bytes:
    """The same bytes at any time: they are part of a test's name."""
    return gzip.compress(data, mtime=0)


@given(st.binary(max_size=2000), st.integers(0, 2), st.integers(1, 700), st.integers(1, 3))
def test_equals_gzip(data: bytes, layers: int, size: int, members: int) -> None:
    if data.startswith(b"\x1f\x8b"):
        data = b"x" + data
    packed = data
    for _ in range(layers):
        half = len(packed) // members + 1
        packed = b"".join(gzip.compress(part) for part in chunks(packed, half) or [b""])
    assert gunzip(chunks(packed, size), LIMIT) == data


@pytest.mark.parametrize("data", [b"", b"\x1f", b"\x1f\x00", b"plain"])
def test_what_is_no_gzip_stays(data: bytes) -> None:
    assert gunzip(chunks(data, 1), LIMIT) == data


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (in_gzip(os.urandom(5000))[:-1], "the gzip data is cut short"),
        (in_gzip(b"a" * 5000)[:12], "the gzip data is cut short"),
        (b"\x1f\x8b", "the gzip data is cut short"),
        (b"\x1f\x8bno gzip at all", "Error -3"),
        (in_gzip(b"a") + b"tail", "Error -3"),
        (in_gzip(in_gzip(in_gzip(b"a"))), "more than 2 layers"),
        (in_gzip(in_gzip(b"a" * 500)[:-9]), "the gzip data is cut short"),
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_damaged(data: bytes, detail: str, size: int) -> None:
    with pytest.raises(RejectedInput, match=detail) as caught:
        gunzip(chunks(data, size), LIMIT)
    assert caught.value.reason == "corrupt_gzip"


def test_limit_is_exact() -> None:
    packed = gzip.compress(bytes(LIMIT))
    assert len(gunzip([packed], LIMIT)) == LIMIT
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([packed], LIMIT - 1)
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([bytes(LIMIT)] * 2, LIMIT)
    inner = in_gzip(b"a")  # padded by zeros: of each layer the bytes are limited
    assert gunzip([in_gzip(inner.ljust(LIMIT, b"\0"))], LIMIT) == b"a"
    with pytest.raises(RejectedInput, match="log_too_large"):
        gunzip([in_gzip(inner.ljust(LIMIT + 1, b"\0"))], LIMIT)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_bomb_is_refused_within_its_limit_of_memory(layers: int) -> None:
    packed = bomb(64 << 20)
    for _ in range(layers - 1):
        packed = gzip.compress(packed)
    tracemalloc.start()
    try:
        with pytest.raises(RejectedInput, match="log_too_large"):
            gunzip([packed], LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 4 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 24, 5000])
def test_members_have_a_limit(size: int) -> None:
    many = gzip.compress(b"a") * 10_000
    assert gunzip(chunks(many, size), LIMIT) == b"a" * 10_000
    with pytest.raises(RejectedInput, match="more than 10000 members"):
        gunzip(chunks(many * 20, size), LIMIT)
    with pytest.raises(RejectedInput, match="more than 10000 members"):
        gunzip([gzip.compress(many * 20)], 1 << 24)


def test_growth_is_reported() -> None:
    grown: list[int] = []
    assert gunzip([gzip.compress(bytes(700_000))], LIMIT, grown.append) == bytes(700_000)
    assert sum(grown) == 700_000
    with pytest.raises(RejectedInput):
        gunzip([gzip.compress(bytes(700_000))[:-1]], LIMIT, grown.append)
    assert (min(grown), sum(grown)) == (-700_000, 700_000)  # what is rejected takes nothing

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
from tests.fuzz.strategies.archives import MAGIC, archives
from tests.growth import assert_linear

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

"""The head and the tail of a large output: whole lines, with their numbers, in bounded memory."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.transforms.logs import keep as module
from ciml.transforms.logs.keep import keep_readable


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(2, 200), st.integers(1, 50))
@example([12] * 60, 2, 50)
@example([0, 3], 4, 1)
def test_kept_lines_are_those_of_the_output_with_their_numbers(lengths: list[int], limit: int, chunk: int) -> None:
    """By an oracle: each kept line is the line of its number, and what is dropped is what is missing."""
    lines = [str(number).rjust(length, "x").encode() for number, length in enumerate(lengths)]
    data = b"\n".join(lines)
    kept = keep_readable((data[start : start + chunk] for start in range(0, len(data), chunk)), limit)
    texts = kept.data.split(b"\n") if kept.data else []
    for number, text in enumerate(texts, 1):
        if text or number < len(texts):  # what follows the last line feed may be nothing: no line
            assert lines[kept.number(number) - 1] == text
    assert len(kept.data) + kept.dropped_bytes == len(data)
    assert kept.data.count(b"\n") + kept.dropped_lines == data.count(b"\n")
    assert len(kept.data) <= limit or not kept.dropped_bytes
    if len(data) <= limit // 2 * 2:
        assert kept.data == data


def test_gzip_is_unpacked() -> None:
    data = b"".join(b"line %d\n" % number for number in range(1000))
    assert keep_readable([gzip.compress(data)]) == keep_readable([data]) == (data, 1001, 0, 0)


def test_a_bomb_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTPUT_UNPACKED_BYTES", 1 << 20)
    bomb = gzip.compress(b"0123456\n" * (1 << 18))
    kept = keep_readable([bomb], 1 << 10)
    assert (1 << 10) - 8 <= len(kept.data) <= 1 << 10


def test_a_gzip_file_that_is_cut_short_is_read_up_to_its_end() -> None:
    packed = gzip.compress(b"".join(b"line %d\n" % number for number in range(10_000)))
    assert keep_readable([packed[:-2000]]).data.startswith(b"line 0\nline 1\n")
    with pytest.raises(RejectedInput, match="corrupt_gzip"):
        keep_readable([packed[:3] + b"\xff" * 20])

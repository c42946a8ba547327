"""JSON from outside: what a writer of strict JSON meant is read, and all other bytes are rejected."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.fields import parse_json

_TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["a", "b", "", ":", '":', "\\", '"', "a:b", "\x7f"]))
_SCALARS = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 1e300, 5e-324, 10**18, 10**19 - 1, 1 << 63, 1 << 64]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=5)),
    max_leaves=20,
)


@given(_VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_a_written_value_is_read(value: Any, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert repr(parse_json(data)) == repr(value)


@given(st.binary(max_size=40))
@example(b"-0")
@example(b"[-0.0, 1E5, 1e-7]")
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    with contextlib.suppress(RejectedInput):
        parse_json(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a":1,"a":2}', "appears twice"),
        (b'{"a" : "x:y", "b": {"c": 1, "c": [":"]}}', "appears twice"),
        (b'{"":":","":"::"}', "appears twice"),
        (b"{", "at character 1"),
        (b'{"a":1}{"a":1}', "Extra data"),
        (b"[1e400]", "exceeds the range of a float"),
        (b"[NaN]", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b'"\0"', "control character"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "at character 0"),
        (b'{"a":' * 60_000 + b"1" + b"}" * 60_000, "nested deeper than 32"),
        (b"[" * 100_000, "nested deeper than 32"),
    ],
)
def test_what_is_not_strict_json_is_rejected(data: bytes, problem: str) -> None:
    with pytest.raises(RejectedInput, match=f"^broken_json: .*{problem}"):
        parse_json(data)

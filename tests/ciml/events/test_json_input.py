"""JSON from outside: the fast parser gives the strict parser's result, or defers to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events import json_input
from ciml.events.json_input import parse_json

_TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["a", "b", "", ":", '":', "\\", '"', "a:b", "\x7f"]))
_SCALARS = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 65), 1 << 65),
    st.floats(allow_nan=False),
    st.sampled_from([-0.0, 1e300, 5e-324, 10**18, 10**19 - 1, 1 << 63, 1 << 64]),
)


def _written(value: Any, ascii_only: bool, space: str) -> str:
    """Return JSON of scalars, lists and lists of pairs; pairs become an object, duplicate keys included."""
    if type(value) is tuple:
        inner = (
            f"{json.dumps(k, ensure_ascii=ascii_only)}{space}:{space}{_written(v, ascii_only, space)}" for k, v in value
        )
        return "{" + f",{space}".join(inner) + "}"
    if type(value) is list:
        return "[" + ",".join(_written(item, ascii_only, space) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(st.tuples(_TEXTS, inner), max_size=5).map(tuple)),
    max_leaves=20,
)


def _outcome(parse: Any, data: bytes) -> tuple[str, str]:
    try:
        return "value", repr(parse(data))
    except RejectedInput as rejected:
        return rejected.reason, rejected.detail


@given(_VALUES, st.booleans(), st.sampled_from(["", " ", "\n\t"]))
@example((("a", 1), ("a", 1)), False, "")
@example((("a", ":"), ("a", "")), False, "")
@example((("a", {}), ("\\", 1), ("\\", 2)), False, " ")
@example([1 << 64], False, "")
def test_both_ways_agree(value: Any, ascii_only: bool, space: str) -> None:
    data = _written(value, ascii_only, space).encode("utf-8", "surrogatepass")
    assert _outcome(parse_json, data) == _outcome(json_input._parse_strictly, data)


@given(st.binary(max_size=40))
@example(b"[1e400]")
@example(b"[NaN]")
@example(b'"\xff"')
@example(b"\xef\xbb\xbf{}")
@example(b"-0")
@example(b"[-0.0, 1E5, 1e-7]")
def test_both_ways_agree_on_bytes(data: bytes) -> None:
    assert _outcome(parse_json, data) == _outcome(json_input._parse_strictly, data)


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b'{"a" : "x:y", "b": {"c": 1, "c": [":"]}}', b'{"":":","":"::"}'])
def test_a_duplicate_key_is_rejected(data: bytes) -> None:
    assert json_input._parse_fast(data) is None
    with pytest.raises(RejectedInput, match="appears twice"):
        parse_json(data)


def test_plain_events_take_the_quick_way() -> None:
    data = json.dumps({"id": "e1", "time": "2026-11-24T12:00:00Z", "data": {"runs": [{"n": 1.5}, {"n": -7}]}}).encode()
    assert json_input._parse_fast(data) == json.loads(data)

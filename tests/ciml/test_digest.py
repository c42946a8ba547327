"""Digests: what counts as the same has the same one, what does not has another."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest

from ciml.digest import arrays_digest, canonical_json, sha256_json, telemetry_digest

X = np.array([1.5, -0.0, np.nan])


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == b'{"a":null,"b":[1,"\xc3\xa9"]}'
    assert sha256_json({"b": 1, "a": 2}) == sha256_json(json.loads('{"a": 2, "b": 1}'))
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))


def test_arrays_digest_is_that_of_its_encoding() -> None:
    """Written out once by hand: a change of the encoding would make every stored digest wrong."""
    encoding = (
        b"\x01\0\0\0\0\0\0\0r" + b"\x01\0\0\0\0\0\0\0x" + b"\x07\0\0\0\0\0\0\0<f8(2,)"
        + b"\x10\0\0\0\0\0\0\0" + np.array([1.0, 2.0], "<f8").tobytes() + b"\x08\0\0\0\0\0\0\0" + b"\x05\0\0\0\0\0\0\0"
    )  # fmt: skip
    assert arrays_digest("r", [("x", np.array([1.0, 2.0]))], 5) == hashlib.sha256(encoding).hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        X.astype(">f8"),
        np.stack([X, X], axis=1)[:, 0],  # not contiguous
        np.array([1.5, -0.0, -np.float64("nan")]),
        np.frombuffer(X.tobytes()[:16] + b"\x01\0\0\0\0\0\xf8\xff"),  # a NaN of another payload
    ],
)
def test_equal_values_have_equal_digests(same: np.ndarray) -> None:
    assert arrays_digest("r", [("x", same)]) == arrays_digest("r", [("x", X)])


@pytest.mark.parametrize(
    ("run", "arrays", "numbers"),
    [
        ("s", [("x", X)], ()),
        ("r", [("y", X)], ()),
        ("r", [("x", X.astype("f4"))], ()),
        ("r", [("x", X.reshape(1, 3))], ()),
        ("r", [("x", X[:2])], ()),
        ("r", [("x", np.array([1.5, 0.0, np.nan]))], ()),
        ("r", [("x", X), ("x", X)], ()),
        ("r", [("x", X)], (0,)),
        ("rx", [("", X)], ()),
    ],
)
def test_different_values_have_different_digests(
    run: str, arrays: list[tuple[str, np.ndarray]], numbers: tuple[int, ...]
) -> None:
    assert arrays_digest(run, arrays, *numbers) != arrays_digest("r", [("x", X)])


def telemetry(values: list[float | None] | None = None, **more: pa.Array) -> pa.Table:
    return pa.table(
        {
            "time": pa.array([0, 1_000_000, 2_000_000], pa.timestamp("us", tz="UTC")),
            "boot": pa.array([True, False, False]),
            "total cpu usage:usr": pa.array([1.0, None, 3.0] if values is None else values, pa.float64()),
            **more,
        }
    )


def test_telemetry_digest_takes_content_and_order_and_nothing_else() -> None:
    table = telemetry()
    digest = telemetry_digest("r", table)
    assert telemetry_digest("r", pa.concat_tables([table[:1], table[1:]])) == digest
    assert telemetry_digest("r", table.replace_schema_metadata({"recorder": "dstat"})) == digest
    assert telemetry_digest("r", telemetry([1.0, float("nan"), 3.0])) == digest  # a null is a NaN
    assert telemetry_digest("r", table.select(["boot", "time", "total cpu usage:usr"])) != digest
    assert telemetry_digest("r", table.rename_columns(["time", "boot", "usr"])) != digest
    assert telemetry_digest("r", telemetry([1.0, None, 3.5])) != digest
    assert telemetry_digest("other", table) != digest
    with pytest.raises(TypeError, match="string"):
        telemetry_digest("r", telemetry(extra=pa.array(["a", "b", "c"])))

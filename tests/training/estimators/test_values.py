"""Parameters as JSON: read back as they were, in one form, and up to the limits."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest

from ciml.errors import InvalidSettingError
from ciml.limits import MAX_DESCRIPTION_BYTES, MAX_JSON_DEPTH, MAX_PARAMETER_ITEMS
from ciml.training.estimators.values import Decoder, check_description_json, encode


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("check", "most"),
    [
        (lambda number: check_description_json(nested(number)), MAX_JSON_DEPTH),
        (lambda number: check_description_json("x" * (number - 2)), MAX_DESCRIPTION_BYTES),  # in quotation marks
        (lambda number: encode(np.zeros(number), "parameters.x"), MAX_PARAMETER_ITEMS),
    ],
)
def test_a_limit_itself_is_allowed_and_no_more(check: Any, most: int) -> None:
    check(most)
    with pytest.raises(InvalidSettingError, match="MAX_"):
        check(most + 1)


@pytest.mark.parametrize(
    "value",
    [{"tuple": [1]}, {"float": "nan"}, {"a": {"class": "x"}}, {1: 2, 0: 3}, {"a": 1}, (1, [2, (3,)]), slice(0, 5)],
)
def test_a_value_is_read_back(value: Any) -> None:
    assert Decoder().decode(encode(value, "parameters.x"), "parameters.x") == value


@pytest.mark.parametrize("kind", [np.bool_, np.float32, np.int64, float, int, bool, str])
def test_a_type_of_numbers_is_read_back(kind: type) -> None:
    assert Decoder().decode(encode(kind, "parameters.x"), "parameters.x") is kind
    assert Decoder().decode(encode(np.dtype(kind), "x"), "x") == np.dtype(kind)


def test_equal_dicts_have_one_form() -> None:
    assert encode({1: 2, 0: 3}, "x") == encode({0: 3, 1: 2}, "x") == {"dict": [[0, 3], [1, 2]]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"tuple": [1], "more": 1}, "unknown keys next to 'tuple'"),
        ({"array": [1], "dtype": "int64", "x": 1}, "unknown keys next to 'array'"),
        ({"array": [1]}, "'dtype' is missing next to 'array'$"),
        ({"tuple": "ab"}, "'tuple' must be a list, not 'ab'"),
        ({"tuple": {"dict": [[0, 1]]}}, "'tuple' must be a list"),
        ({"slice": "abc"}, "'slice' must be a list"),
        ({"range": [5]}, "not a valid form of range: ValueError"),
        ({"dict": ["ab"]}, "not a valid form of dict: TypeError: expected a list of pairs"),
        ({"dict": {"a": 1}}, "'dict' must be a list"),
        ({"float": 1.5}, "'float' must be a text, not 1.5"),
        ({"distribution": "uniform", "arguments": "", "keywords": {}}, "'arguments' must be a list"),
        ({"distribution": "uniform", "arguments": [], "keywords": []}, "'keywords' must be an object"),
    ],
)
def test_a_form_has_its_own_keys_alone_and_content_of_one_type(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"^x: {message}"):
        Decoder().decode(value, "x")


class Color(str, Enum):  # noqa: UP042 - the text of a StrEnum is its value
    RED = "red"


class Level(IntEnum):
    LOW = 1


def test_a_member_of_an_enumeration_is_encoded_as_its_value() -> None:
    assert encode([Color.RED, Level.LOW], "x") == ["red", 1]
    assert [type(item) for item in encode([Color.RED, Level.LOW], "x")] == [str, int]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((0, 3)), r"an array of shape \(0, 3\) has no form in JSON"),
        (np.ma.masked_array([1, 2], mask=[False, True]), "a masked array has no form in JSON"),
        (np.dtype(">i4"), "a Int32DType cannot be described"),
        (complex, r"the class complex itself; give an object, complex\(\)"),
    ],
)
def test_a_value_that_would_not_be_read_back_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=f"^x: {message}"):
        encode(value, "x")


@pytest.mark.parametrize("shape", [(), (0,), (2,), (3, 0), (2, 3)])
def test_an_array_is_read_back_with_its_shape(shape: tuple[int, ...]) -> None:
    decoded = Decoder().decode(encode(np.zeros(shape), "x"), "x")
    assert (decoded.shape, decoded.dtype) == (shape, np.float64)


def test_a_lone_surrogate_is_not_reported_as_nan() -> None:
    with pytest.raises(InvalidSettingError, match="estimator: a text has a lone surrogate"):
        check_description_json({"a": "\ud800"})

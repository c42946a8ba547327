"""Parameters as JSON: read back as they were, in one form, and up to the limits."""

from __future__ import annotations

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


def test_another_class_is_an_error() -> None:
    with pytest.raises(InvalidSettingError, match=r"x: the class complex itself; give an object, complex\(\)"):
        encode(complex, "x")


def test_equal_dicts_have_one_form() -> None:
    assert encode({1: 2, 0: 3}, "x") == encode({0: 3, 1: 2}, "x") == {"dict": [[0, 3], [1, 2]]}


@pytest.mark.parametrize("value", [{"tuple": [1], "more": 1}, {"array": [1]}, {"array": [1], "dtype": "int64", "x": 1}])
def test_a_form_has_its_own_keys_alone(value: Any) -> None:
    with pytest.raises(InvalidSettingError, match="unknown keys next to"):
        Decoder().decode(value, "x")

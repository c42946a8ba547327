"""Configuration files: an error is one line that names the key."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, field

from ciml.errors import CimlError
from ciml.limits import MAX_SOURCES
from ciml.settings import Settings, check_name, check_range, pairs, parse_toml, pop_tables


class Inner(Settings, frozen=True, kw_only=True):
    color: Literal["red", "green"] = "red"
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.color == "green" and self.share:
            raise ValueError("share: has no meaning with green")


class Outer(Settings, frozen=True, kw_only=True):
    title = "paint"

    number: int
    inner: Inner = Inner()
    tags: tuple[str, ...] = ()
    kinds: tuple[Literal["a", "b"], ...] | None = None
    list: tuple[Inner, ...] = ()
    more: dict[str, bool | int | float | str | None] = field(default_factory=dict)


KEYS = "number, inner, tags, kinds, list, more"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({}, "paint: number: is missing"),
        ({"number": "1"}, "paint: number: expected int, got str"),
        ({"number": 1.0}, "paint: number: expected int, got float"),
        ({"number": True}, "paint: number: expected int, got bool"),
        ({"number": 1, "colour": "red"}, f"paint: colour: unknown key; choose from {KEYS}"),
        ({"number": 1, "numbers": 2, "tag": 3}, "paint: numbers: unknown key; did you mean number?"),
        ({"number": 1, "two\nlines" + "x" * 100: 1}, f"paint: two lines{'x' * 71}: unknown key; choose from {KEYS}"),
        ({"number": 1, "inner": {"colour": "red"}}, "paint: inner.colour: unknown key; did you mean color?"),
        ({"number": 1, "list": [{}, {"shar": 1.0}]}, "paint: list.1.shar: unknown key; did you mean share?"),
        ({"number": 1, "inner": {"color": "blue\n" * 99}}, None),
        ({"number": 1, "inner": {"color": "blue"}}, "paint: inner.color: 'blue' is unknown; choose from red, green"),
        ({"number": 1, "inner": {"share": 1.0}}, "paint: inner.share: expected float < 1.0"),
        ({"number": 1, "inner": {"share": float("nan")}}, "paint: inner.share: expected float >= 0.0"),
        ({"number": 1, "inner": {"color": "green", "share": 0.5}}, "paint: inner: share: has no meaning with green"),
        ({"number": 1, "inner": 2}, "paint: inner: expected object, got int"),
        ({"number": 1, "tags": ["a", 3]}, "paint: tags.1: expected str, got int"),
        ({"number": 1, "kinds": ["a", "c"]}, "paint: kinds.1: 'c' is unknown; choose from a, b"),
        ({"number": 1, "more": {"x": [1]}}, "paint: more: expected bool | int | float | str | null, got array"),
        ([], "paint: expected object, got array"),
    ],
)
def test_an_error_is_one_line(value: Any, line: str | None) -> None:
    with pytest.raises(CimlError) as caught:
        Outer.from_json(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert line is None or str(caught.value) == line


def test_settings_are_json_and_back() -> None:
    one = Outer(number=1, inner=Inner(share=0.25), tags=("x",), more={"y": None, "z": 2.5})
    value = one.to_json()
    assert value == json.loads(json.dumps(value))
    assert Outer.from_json(value) == one
    assert Outer.from_json(value).digest == one.digest != one.replace(number=2).digest
    with pytest.raises(ValueError, match="share: has no meaning with green"):
        Inner(share=0.5).replace(color="green")


def test_toml_is_read_back() -> None:
    texts = ("\x7f", '"', "\\", "\n\t\r", "\u00fc\u2028", "a=b")
    one = Outer(number=1, tags=texts, kinds=("a",), more=dict.fromkeys(texts, True))
    assert Outer.from_json(parse_toml(one.to_toml(), "x")) == one


@pytest.mark.parametrize("name", ["a" * 101, "", "a/b", "a/../../b", "..", ".a", "-a", "a\n", "a b"])
def test_a_name_is_safe_in_a_path(name: str) -> None:
    for valid in ("a", "A0_.-", "a" * 100):
        check_name(valid)
    with pytest.raises(ValueError, match=r"name: .* is not valid"):
        check_name(name)


@pytest.mark.parametrize("value", [0.999, 2.001, float("nan"), 1e999])
def test_a_number_is_within_its_limits(value: float) -> None:
    for valid in (1, 2):
        check_range("x", valid, 1, 2)
    with pytest.raises(ValueError, match=r"x: .* is not between 1 and 2"):
        check_range("x", value, 1, 2)


def test_a_file_has_a_limited_number_of_tables() -> None:
    def tables(number: int) -> int:
        value = {"source": [{"kind": "inner"} for _ in range(number)]}
        return len(pop_tables(value, "source", "kind", {"inner": Inner}, "f.toml"))

    assert tables(MAX_SOURCES) == MAX_SOURCES
    with pytest.raises(CimlError, match=rf"f.toml: {MAX_SOURCES + 1} sources, at most {MAX_SOURCES} \(MAX_SOURCES\)"):
        tables(MAX_SOURCES + 1)


def test_the_name_of_a_source_and_any_other_value_may_contain_the_sign() -> None:
    assert pairs("--source", ["https://ci/x?a=b=zuul"]) == [("https://ci/x?a=b", "zuul")]
    assert pairs("-X", ["sasl.password=a=b"]) == [("sasl.password", "a=b")]
    for text in ("x", "=x"):
        with pytest.raises(CimlError, match="want NAME=VALUE"):
            pairs("-X", [text])

"""Fields of nested JSON: found, empty where absent, and rejected with their path where their type is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.integrations.adapter import Delivery
from ciml.integrations.fields import (
    address,
    differ,
    event_id,
    filled,
    inner,
    joined,
    maybe,
    moment,
    natural,
    needed,
    objects,
    value,
    word,
    words,
)

BODY: dict[str, Any] = {"run": {"id": 7, "name": "unit", "steps": [{"name": "build"}], "none": None}, "list": [1]}


def test_a_field_is_reached_by_its_path() -> None:
    assert value(BODY, "run", "id") == 7
    assert word(BODY, "run", "id") == "7"
    assert inner(BODY, "run")["name"] == "unit"
    assert list(objects(BODY, "run", "steps", most=1)) == [{"name": "build"}]


def test_what_is_absent_or_null_is_empty() -> None:
    assert value(BODY, "run", "none", "deeper") is None
    assert word(BODY, "nothing", "at", "all") == ""
    assert maybe(BODY, "run", "none") == {}
    assert objects(BODY, "run", "none", most=1) == ()
    assert moment({"end": ""}, "end") is moment({"end": "0001-01-01T00:00:00Z"}, "end") is None


@pytest.mark.parametrize(
    ("call", "reason", "detail"),
    [
        (lambda: value(BODY, "run", "name", "first"), "bad_field", "run.name: want an object, not a text"),
        (lambda: inner(BODY, "gone"), "missing_field", "gone"),
        (lambda: inner(BODY, "list"), "bad_field", "list: want an object, not a list"),
        (lambda: maybe(BODY, "run", "id"), "bad_field", "run.id: want an object, not a whole number"),
        (lambda: objects(BODY, "list", most=1), "bad_field", r"list[0]: want an object, not a whole number"),
        (lambda: objects(BODY, "run", most=1), "bad_field", "run: want a list, not an object"),
        (lambda: objects({"list": [{}, {}]}, "list", most=1), "too_many_runs", "list: 2 entries, at most 1"),
        (lambda: word(BODY, "run", "steps"), "bad_field", "run.steps: want a text, not a list"),
        (lambda: word({"a": {"b": "x\u202e"}}, "a", "b"), "bad_field", "a.b: holds an unprintable character"),
        (lambda: address({"a": {"url": []}}, "a", "url"), "bad_field", "a.url: want a text, not a list"),
        (lambda: needed({"a": {"b": " "}}, "a", "b"), "missing_field", "a.b"),
        (lambda: moment({"run": {"end": "today"}}, "run", "end"), "bad_time", "run.end: 'today' is not ISO 8601"),
        (lambda: moment({"end": True}, "end"), "bad_time", "end: want ISO 8601 or epoch seconds, not true or false"),
    ],
)
def test_a_wrong_type_is_rejected_with_its_path(call: Callable[[], object], reason: str, detail: str) -> None:
    with pytest.raises(RejectedInput) as caught:
        call()
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z"),
        ("2026-11-24 12:00:00 UTC", "2026-11-24T12:00:00Z"),
        ("2026-11-24 12:00:00.25 +0130", "2026-11-24T12:00:00.25+01:30"),
        (1795521600.5, 1795521600.5),
    ],
)
def test_times_of_all_systems_become_iso_8601_or_seconds(given: object, found: object) -> None:
    assert moment({"end": given}, "end") == found


def test_a_fork_is_another_repository() -> None:
    assert (differ("a/b", "a/b"), differ("a/b", "c/b"), differ("a/b", ""), differ("", "c/b")) == ("no", "yes", "", "")


def test_an_address_may_be_longer_than_a_text() -> None:
    long = "https://ci.example/" + "a" * 1500
    assert address({"url": long}, "url") == long
    with pytest.raises(RejectedInput, match="characters, at most"):
        word({"url": long}, "url")


def test_fields_without_a_value_are_left_out() -> None:
    assert filled(a="", b=None, c=(), d=0, e="x", f=False) == {"d": 0, "e": "x", "f": False}


def test_an_identifier_of_parts_needs_each_and_holds_no_secret() -> None:
    assert (joined("81", "unit"), joined("", "unit"), joined("81", "token=abc"), joined("81", "x" * 600)) == (
        "81/unit", "", "", "",
    )  # fmt: skip


def test_lists_of_texts_and_numbers_from_one() -> None:
    assert words({"a": ["x", 7]}, "a") == ("x", "7")
    assert natural({"a": {"b": 7}}, "a", "b") == 7
    for wrong in (0, -1, True, "7", 7.0, 1 << 63):
        with pytest.raises(RejectedInput, match="b: want a whole number from 1"):
            natural({"b": wrong}, "b")


def test_a_delivery_without_an_id_is_known_by_its_body() -> None:
    assert event_id(Delivery(b"{}", {}, "d1")) == "d1"
    assert event_id(Delivery(b"{}", {})) == event_id(Delivery(b"{}", {})) != event_id(Delivery(b"[]", {}))

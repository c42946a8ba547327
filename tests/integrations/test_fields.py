"""Fields of nested JSON: found, empty where absent, and rejected with their path where their type is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.integrations.adapter import Delivery
from ciml.integrations.fields import (
    address_at,
    differ,
    event_id,
    join_id,
    non_empty,
    number_at,
    object_at,
    objects_at,
    required_number,
    required_object,
    required_text,
    text_at,
    texts_at,
    time_at,
    value_at,
)

BODY: dict[str, Any] = {"run": {"id": 7, "name": "unit", "steps": [{"name": "build"}], "none": None}, "list": [1]}


def test_a_field_is_reached_by_its_path() -> None:
    assert value_at(BODY, "run", "id") == 7
    assert text_at(BODY, "run", "id") == "7"
    assert required_object(BODY, "run")["name"] == "unit"
    assert list(objects_at(BODY, "run", "steps", most=1)) == [{"name": "build"}]


def test_what_is_absent_or_null_is_empty() -> None:
    assert value_at(BODY, "run", "none", "deeper") is None
    assert text_at(BODY, "nothing", "at", "all") == ""
    assert object_at(BODY, "run", "none") == {}
    assert objects_at(BODY, "run", "none", most=1) == ()
    assert time_at({"end": ""}, "end") is time_at({"end": "0001-01-01T00:00:00Z"}, "end") is None


@pytest.mark.parametrize(
    ("call", "reason", "detail"),
    [
        (lambda: value_at(BODY, "run", "name", "first"), "bad_field", "run.name: want an object, not a text"),
        (lambda: required_object(BODY, "gone"), "missing_field", "gone"),
        (lambda: required_object(BODY, "list"), "bad_field", "list: want an object, not a list"),
        (lambda: object_at(BODY, "run", "id"), "bad_field", "run.id: want an object, not a whole number"),
        (lambda: objects_at(BODY, "list", most=1), "bad_field", r"list[0]: want an object, not a whole number"),
        (lambda: objects_at(BODY, "run", most=1), "bad_field", "run: want a list, not an object"),
        (lambda: objects_at({"list": [{}, {}]}, "list", most=1), "too_many_runs", "list: 2 entries, at most 1"),
        (lambda: text_at(BODY, "run", "steps"), "bad_field", "run.steps: want a text, not a list"),
        (lambda: text_at({"a": {"b": "x\u202e"}}, "a", "b"), "bad_field", "a.b: holds an unprintable character"),
        (lambda: address_at({"a": {"url": []}}, "a", "url"), "bad_field", "a.url: want a text, not a list"),
        (lambda: required_text({"a": {"b": " "}}, "a", "b"), "missing_field", "a.b"),
        (lambda: number_at({"a": {"b": "07"}}, "a", "b"), "bad_field", "a.b: want a number from 1, not '07'"),
        (lambda: time_at({"run": {"end": "today"}}, "run", "end"), "bad_time", "run.end: 'today' is not ISO 8601"),
        (lambda: time_at({"end": True}, "end"), "bad_time", "end: want ISO 8601 or epoch seconds, not true or false"),
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
    assert time_at({"end": given}, "end") == found


def test_a_fork_is_another_repository() -> None:
    assert (differ("a/b", "a/b"), differ("a/b", "c/b"), differ("a/b", ""), differ("", "c/b")) == ("no", "yes", "", "")


def test_an_address_may_be_longer_than_a_text() -> None:
    long = "https://ci.example/" + "a" * 1500
    assert address_at({"url": long}, "url") == long
    with pytest.raises(RejectedInput, match="characters, at most"):
        text_at({"url": long}, "url")


def test_fields_without_a_value_are_left_out() -> None:
    assert non_empty(a="", b=None, c=(), d=0, e="x", f=False) == {"d": 0, "e": "x", "f": False}


def test_an_identifier_of_parts_needs_each_and_holds_no_secret() -> None:
    assert (join_id("81", "unit"), join_id("", "unit"), join_id("81", "token=abc"), join_id("81", "x" * 600)) == (
        "81/unit", "", "", "",
    )  # fmt: skip


def test_lists_of_texts_and_numbers_from_one() -> None:
    assert texts_at({"a": ["x", 7]}, "a") == ("x", "7")
    assert required_number({"a": {"b": 7}}, "a", "b") == 7
    for wrong in (0, -1, True, "7", 7.0, 1 << 63):
        with pytest.raises(RejectedInput, match="b: want a whole number from 1"):
            required_number({"b": wrong}, "b")


def test_a_delivery_without_an_id_is_known_by_its_body() -> None:
    assert event_id(Delivery(b"{}", {}, "d1")) == "d1"
    assert event_id(Delivery(b"{}", {})) == event_id(Delivery(b"{}", {})) != event_id(Delivery(b"[]", {}))

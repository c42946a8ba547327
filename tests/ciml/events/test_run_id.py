"""A run's identity: one text form, safe in a path, and back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.run_id import RunId, bounded_id, path_safe

UUID = "5e70d239-95b5-466e-9798-41053314c81b"


def test_text_form() -> None:
    assert RunId("zuul", UUID).encode() == f"zuul~{UUID}~1"
    assert RunId("github", "17/23", 4).encode() == "github~17%2F23~4"
    assert RunId("zuul", "a~b").encode() == "zuul~a%7Eb~1"
    assert path_safe("half of a pair: \ud800") == "half%20of%20a%20pair%3A%20%ED%A0%80"


def test_a_long_id_becomes_its_digest() -> None:
    assert [bounded_id(native) for native in ("a" * 100, "é" * 16)] == ["a" * 100, "é" * 16]
    assert bounded_id("é" * 17) == hashlib.sha256(("é" * 17).encode()).hexdigest()
    assert bounded_id("\ud800" * 17) == hashlib.sha256(b"\xed\xa0\x80" * 17).hexdigest()
    assert bounded_id("abc", most=2) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("native", ["a b", *r"../x /etc/passwd . .. a/../b a\b %2e%2e ~ é -rf".split()])
def test_any_id_stays_one_folder(native: str, tmp_path: Path) -> None:
    text = RunId("zuul", native).encode()
    assert "/" not in text
    assert os.path.dirname(os.path.normpath(tmp_path / text)) == str(tmp_path)
    assert RunId.decode(text) == RunId("zuul", native)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=14), st.integers(1, 999_999_999))
def test_round_trip(native: str, attempt: int) -> None:
    run = RunId("zuul", native, attempt)
    assert RunId.decode(run.encode()) == run
    assert not path_safe(native).startswith(".")


@pytest.mark.parametrize(
    ("source", "native", "attempt"),
    [("", "a", 1), ("Zuul", "a", 1), ("-zuul", "a", 1), ("z/u", "a", 1), ("z" * 64, "a", 1), ("zuul", "", 1),
     ("zuul", "a", 0), ("zuul", "a", True), ("zuul", "a" * 200, 1), ("zuul", "é" * 40, 1), ("zuul\n", "a", 1),
     ("zuul", "half of a pair: \ud800", 1)],
)  # fmt: skip
def test_malformed(source: str, native: str, attempt: int) -> None:
    with pytest.raises(RejectedInput, match=r"^bad_run_id\b"):
        RunId(source, native, attempt)


NOT_CANONICAL = "zuul zuul~a zuul~a~0 zuul~a~01 zuul~a~1~2 zuul~%61~1 zuul~a/b~1 zuul~%ff~1 zuul~~1 zuul~..~1".split()


@pytest.mark.parametrize("text", ["", "zuul~a~1\n", *NOT_CANONICAL])
def test_only_canonical_text_decodes(text: str) -> None:
    with pytest.raises(RejectedInput, match=r"^bad_run_id\b"):
        RunId.decode(text)

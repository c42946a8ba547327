"""Globs in which a star ends at a slash: compared with the definition, and with fnmatch without slashes."""

from __future__ import annotations

import fnmatch
import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.globs import PathGlobs, crosses_slash, glob_pattern, greedy
from tests.tier import tries


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("release/*", ["release/1", "release/"], ["release/1/2", "release", "release/x/PR-5"]),
        ("release/**", ["release/1", "release/x/y", "release/"], ["release", "releases/1"]),
        ("**-fork", ["a-fork", "octo/widget-fork"], ["octo-fork/widget"]),
        ("v[!1]", ["v2"], ["v1", "v/", "v"]),
        ("a[.-0]b", ["a.b", "a0b"], ["a/b"]),
        ("[]", ["[]"], ["", "a"]),
        ("[!]", ["[!]"], ["a"]),
        ("[", ["["], [""]),
    ],
)
def test_a_star_ends_at_a_slash_and_two_stars_do_not(glob: str, matching: list[str], other: list[str]) -> None:
    globs = PathGlobs([glob])
    assert [text for text in (*matching, *other) if globs.fullmatch(text)] == matching


def by_definition(glob: str, text: str) -> bool:
    """Match a glob of letters, ``/``, ``*``, ``**`` and ``?`` by trying everything."""

    @cache
    def match(at: int, place: int) -> bool:
        if at == len(glob):
            return place == len(text)
        if glob.startswith("**", at):
            return match(at + 2, place) or (place < len(text) and match(at, place + 1))
        if glob[at] == "*":
            return match(at + 1, place) or (place < len(text) and text[place] != "/" and match(at, place + 1))
        same = place < len(text) and (glob[at] == text[place] or (glob[at] == "?" and text[place] != "/"))
        return same and match(at + 1, place + 1)

    return match(0, 0)


@settings(max_examples=tries(400))
@given(st.text("ab/*?", max_size=7), st.text("ab/", max_size=7))
def test_globs_match_by_their_definition(glob: str, text: str) -> None:
    assert PathGlobs([glob]).fullmatch(text) == by_definition(glob, text)


@settings(max_examples=tries(400))
@given(st.text("ab*?[]!-", max_size=8), st.text("ab[]!-*", max_size=6))
def test_without_a_slash_globs_match_as_always(glob: str, text: str) -> None:
    assert PathGlobs([glob]).fullmatch(text) == fnmatch.fnmatchcase(text, glob)


@settings(max_examples=tries(400))
@given(st.text("ab/*?[]!-0", max_size=8), st.text("ab/-0", max_size=6))
def test_only_globs_that_cross_a_slash_match_less(glob: str, text: str) -> None:
    former = glob_pattern([glob]).fullmatch(text) is not None
    assert former or not PathGlobs([glob]).fullmatch(text)
    assert crosses_slash(glob) or former == PathGlobs([glob]).fullmatch(text)


def test_any_of_several_globs_matches_and_none_matches_nothing() -> None:
    assert PathGlobs(["main", "release/*"]).fullmatch("release/1")
    assert not PathGlobs([]).fullmatch("")


def test_no_text_takes_long() -> None:
    """Several stars in one glob: a regular expression would take years."""
    globs = PathGlobs(["**a**a**a**a**a**a**a**b", "*a*a*a*a*a*a*a*b"])
    began = time.process_time()
    assert not globs.fullmatch("a" * 1024)
    assert time.process_time() - began < 2.0


def test_greedy_quantifiers_replace_possessive_ones_alone() -> None:
    assert greedy(r"a++[+]*+c?+d{1,2}+\++e+") == r"a+[+]*c?d{1,2}\+e+"
    assert greedy(rb"a++b") == rb"a+b"

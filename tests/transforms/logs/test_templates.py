"""Templates: equal for the lines of equal runs, different where a person would see a difference."""

from __future__ import annotations

import pytest

from ciml.transforms.logs.templates import shapes_of, templates_of
from ciml.transforms.logs.text_arrays import strings


def template(line: str) -> str:
    return str(templates_of(strings([line]))[0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 3.25s", "took 0.7s"),
        ("cloned into /tmp/build-17/src/x", "cloned into /home/zuul/src/x"),
        (r"reading D:\a\x\y.py", r"reading C:\b\z\y.py"),
        ("commit 3f2a91bc77d", "commit 00aa91bc77d"),
        ("id 79cb9e86-830c-41c2-8dcc-69292f45e678", "id 0b1dbb8a-7c92-43cb-a0b1-000000000000"),
        ("GET https://a.example/x?y=1", "GET http://b.example/"),
        ("2 failed", "13 failed"),
        ("errors: 2", "errors=13"),
        ("at 0x7f3bb30517d0", "at 0x55"),
        ("Mon Jan 3 started", "Tue Feb 14 started"),
        ("ports 1 2 3", "ports 4 5"),
        ("......x.....s....   [ 12%]", ".....s.......x.x.   [ 84%]"),
        ("urllib3.exceptions.MaxRetryError: no", "requests.MaxRetryError: no"),
    ],
)
def test_details_are_masked(one: str, other: str) -> None:
    assert template(one) == template(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 failed", "0 failed"),
        ("failures: 1", "failures: 0"),
        ("2 tests failed", "0 tests failed"),
        ("No module named 'attrs'", "No module named 'yaml'"),
        ("PASSED", "FAILED"),
        (".............", ".....F......."),
        ("jinja2.exceptions.TemplateSyntaxError: no", "jinja2.exceptions.UndefinedError: no"),
        ("read and write", "read or write"),
    ],
)
def test_a_difference_that_a_person_would_see_stays(one: str, other: str) -> None:
    assert template(one) != template(other)


def test_findings_of_one_kind_have_one_shape() -> None:
    lines = [
        "src/a/b/io.py:44:28 - error: \"utf8_lower\" is no attribute of module 'pyarrow.compute'",
        "src/c/d/x.py:7:1 - error: \"trim\" is no attribute of module 'pandas'",
    ]
    shapes = shapes_of(templates_of(strings(lines))).to_pylist()
    assert shapes == ["<*><*> - error: <*> is no attribute of module <*>"] * 2

"""The map of promises: each quotes a document, and names the tests that fail when it is broken."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = tomllib.loads((ROOT / "tests/promises.toml").read_text())["promise"]


@functools.cache
def words_of(document: str) -> str:
    """The text of a document or module, with single spaces, so that a quotation may cross lines."""
    return " ".join((ROOT / document).read_text().split())


@functools.cache
def names_of(file: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise['document']}: {promise['text'][:40]}")
def test_a_promise_is_still_made_and_its_tests_exist(promise: dict[str, object]) -> None:
    assert " ".join(str(promise["text"]).split()) in words_of(str(promise["document"]))
    tests = promise["tests"]
    assert isinstance(tests, list)
    assert tests
    for test in tests:
        file, name = test.split("::")
        assert name in names_of(file), test

"""No regular expression of the code backtracks: each is tried on text that would make it."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.growth import assert_linear
from tests.project.test_rooms import FOLDERS
from tests.tier import part

ROOT = Path(__file__).parents[2]
METHODS = {"match", "fullmatch", "search", "findall", "finditer", "sub", "split"}
#: What a pattern is tried on: each of these repeated, with an end that nothing matches, or with none.
PIECES = [
    *"aAz09_ \t\n\r\"',.:;/\\-+=&%@#?$()[]{}<>*|~^`\u2014", "`", "#", "\x00",
    "a.", "a.b", "a$", "A.", "1.", "1.1", ".1", "1e", "a1", "-a", "--", "0.", '",', ',"', '"a",', '"a"\n',
    '"a"\n"b"\n', '\n"', '"Cmdline:","', '"Date:"', '"Date:","24 Nov 2026 12:00:00 ', " CSV ", "//", "http://",
    "\\/", "\\u0026", "&a=", "?a=b", "a@", "//a", "/a", "/a:", "/v1/models/a", "bearer ", "Bearer a ", "a ",
    "Caused by: ", "IntegrityError: ", "AException", "AError: ", "a.AException: ", " - at `$", "`key` in `", "(?a",
    "(?:", "#1", "<metadata>", "a(", "sd", "sda1", "aA", "  ", "\r\n", "\n\r", "a\n", "1\n",
]  # fmt: skip
ENDS = ("", "\x00", "\n!", "x")
LENGTH = 3000
SUSPICIOUS_S = 0.0015  # where linear work on so much text takes a tenth
MOST = 30.0  # times the time of an eighth: square work has 64


def constant(node: ast.expr, known: dict[str, str | bytes]) -> str | bytes | None:
    """The text of an expression of literals and known names; None for any other."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = constant(node.left, known), constant(node.right, known)
        return None if left is None or right is None else left + right  # type: ignore[operator]
    return None


@cache
def constants(path: Path) -> dict[str, str | bytes]:
    """The texts that a module names, or imports under their names from a module beside it."""
    found: dict[str, str | bytes] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            module = ROOT / f"{node.module.replace('.', '/')}.py"
            if any(alias.name.isupper() for alias in node.names) and module.exists():
                theirs = constants(module)
                found.update((alias.name, theirs[alias.name]) for alias in node.names if alias.name in theirs)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = constant(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


@cache
def patterns(path: Path) -> list[tuple[int, set[str], str | bytes, int]]:
    """The line, the methods, the text and the flags of each pattern in a module that is not made when it runs."""
    found = []
    source, known = path.read_text(), constants(path)
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    names = {
        id(node.value): node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "re") or not call.args:
            continue
        text = constant(call.args[0], known)
        if text is None or call.func.attr not in METHODS | {"compile"}:
            continue
        flags = 0
        for given in (*call.args[1:], *(keyword.value for keyword in call.keywords)):
            for name in re.findall(r"re\.(\w+)", ast.unparse(given)):
                flags |= getattr(re, name)
        used = METHODS & set(re.findall(rf"\b{names.get(id(call))}\.(\w+)", source))
        methods = {call.func.attr} if call.func.attr in METHODS else used or {"finditer"}
        found.append((call.lineno, methods, text, flags))
    return found


def modules() -> list[str]:
    found = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found if "import re\n" in path.read_text())


def cpu_s(work: Callable[[str | bytes], object], given: str | bytes, repeats: int = 1) -> float:
    """The CPU time of work, in seconds."""
    began = time.process_time()
    for _ in range(repeats):
        work(given)
    return time.process_time() - began


@pytest.mark.parametrize("module", modules())
def test_no_pattern_takes_more_than_linear_time(module: str) -> None:
    for line, methods, text, flags in patterns(ROOT / module):
        pattern = re.compile(text, flags)
        for method in methods & {"match", "fullmatch", "search"} or {"finditer"}:
            run = getattr(pattern, method)

            def work(given: str | bytes, run=run) -> None:  # type: ignore[no-untyped-def]
                found = run(given)
                if isinstance(found, Iterator):
                    for _ in found:
                        pass

            for number, piece in enumerate(PIECES):
                for end in part(ENDS, number):

                    def make(count: int, piece: str = piece, end: str = end) -> str | bytes:
                        grown = piece * count + end
                        return grown.encode() if isinstance(text, bytes) else grown  # noqa: B023

                    count = LENGTH // len(piece)
                    seconds = cpu_s(work, make(count))
                    if seconds < SUSPICIOUS_S or seconds <= MOST * cpu_s(work, make(count // 8), 8) / 8:
                        continue
                    try:
                        assert_linear(make, work, count // 8, most=MOST)
                    except AssertionError as error:
                        raise AssertionError(f"{module}:{line} {method} of {piece!r} … {end!r}: {error}") from None


def test_the_patterns_are_found() -> None:
    found = [text for module in modules() for _, _, text, _ in patterns(ROOT / module)]
    assert len(found) >= 40

"""What `make check` and `make test` select, and in which order."""

from __future__ import annotations

import re
import runpy
import tomllib

import hypothesis
import pytest

import tests.tier
from tests.conftest import LONGEST, pytest_collection_modifyitems
from tests.distribution import ON_ENGINE
from tests.project.test_rooms import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
MARKERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]


def recipe(target: str) -> str:
    """The lines of a target."""
    return MAKEFILE.split(f"\n{target}: ")[1].split("\n\n")[0]


def test_check_is_quick_and_test_and_interop_leave_nothing_out() -> None:
    marks = [line.partition(":")[0] for line in MARKERS]
    assert set(marks) == {"engines", "bench", "interop", "whole"}
    assert all(f"not {mark}" in recipe("check") for mark in marks)
    assert "CIML_TESTS=quick" in recipe("check")
    for target in ("test", "tests", "interop"):
        assert "quick" not in recipe(target)
        assert "not " not in recipe(target)


@pytest.mark.parametrize(("tier", "tried"), [("quick", 50), ("", 200), ("random", 2000)])
def test_a_quarter_is_tried_in_the_quick_tier(tier: str, tried: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hypothesis.settings.get_profile("ciml").max_examples == tests.tier.tries(100)
    monkeypatch.setenv("CIML_TESTS", tier)
    assert runpy.run_path(tests.tier.__file__)["tries"](200) == tried


class Item:
    """A collected test, of which only the id is read."""

    def __init__(self, nodeid: str) -> None:
        self.nodeid = nodeid


def test_the_longest_files_come_first_and_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
    found = [Item(f"{name}::test") for name in ("tests/a.py", LONGEST[1], "tests/b.py", LONGEST[0])]
    pytest_collection_modifyitems(found)  # type: ignore[arg-type]
    want = [LONGEST[0], LONGEST[1], "tests/a.py", "tests/b.py"]
    assert [item.nodeid for item in found] == [f"{name}::test" for name in want]
    assert "--no-loadscope-reorder" in MAKEFILE


@pytest.mark.parametrize(
    ("engine", "fixture"), [("flink", r"\bflink(_jobs)?: str"), ("cluster", r"\bcluster: (Any|Engines)\b")]
)
def test_the_files_on_one_engine_are_those_that_ask_for_it(engine: str, fixture: str) -> None:
    paths = {path for path in (ROOT / "tests").rglob("test_*.py") if re.search(fixture, path.read_text())}
    found = {path.relative_to(ROOT).as_posix() for path in paths}
    assert {name for name in found if not name.startswith("tests/bench/")} == ON_ENGINE[engine]

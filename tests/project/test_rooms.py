"""Every tool knows every package of the tree, and each package is small and says what is in it."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The top-level packages of ciml: the folders of the tree that are packages, those of tests left out.
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
ROOMS = sorted(path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("__init__.py"))
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
MAX_FILES = 16


def test_setuptools_finds_every_package() -> None:
    assert {each.removesuffix("*") for each in TOOLS["setuptools"]["packages"]["find"]["include"]} == PACKAGES


def test_mypy_checks_every_package() -> None:
    assert set(TOOLS["mypy"]["packages"]) == PACKAGES


def test_ruff_checks_everything_but_documents() -> None:
    assert TOOLS["ruff"]["extend-exclude"] == ["*.md"]


def test_import_linter_knows_every_package() -> None:
    layers, siblings = TOOLS["importlinter"]["contracts"]
    assert set(TOOLS["importlinter"]["root_packages"]) == PACKAGES
    named = {each for layer in layers["layers"] for each in re.split(r"\s*[|:]\s*", layer)}
    floor = {path.stem for path in (ROOT / "ciml").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == (PACKAGES - {"ciml"}) | {f"ciml.{name}" for name in floor - {"__init__"}}
    assert set(siblings["ancestors"]) == PACKAGES


def test_every_folder_of_modules_is_a_package() -> None:
    """One without ``__init__.py`` is in no wheel."""
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert folders == set(ROOMS)


def test_every_package_is_typed() -> None:
    assert {path.parent.name for path in ROOT.glob("*/py.typed")} == PACKAGES


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_a_package_is_small_and_says_what_is_in_it(room: Path) -> None:
    files = list((ROOT / room).glob("*.py"))
    assert len(files) <= MAX_FILES, sorted(path.name for path in files)
    said = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text()))
    assert said, f"{room}/__init__.py has no docstring"

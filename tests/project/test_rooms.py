"""One import package: every room is a folder of the tree, a link in ``ciml``, and imported as ``ciml.<room>``."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Folders of the tree that are installed: `ciml` with the core, and a room each.
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "studies"}
ROOMS = FOLDERS - {"ciml"}
PACKAGES = sorted(path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def installed(path: str) -> str:
    """Where a file of the tree is installed."""
    return f"ciml/{path}" if path.partition("/")[0] in ROOMS else path


def test_every_room_is_a_link_in_ciml() -> None:
    links = {path.name: path.readlink() for path in (ROOT / "ciml").iterdir() if path.is_symlink()}
    assert links == {room: Path("..", room) for room in ROOMS}


#: A line that may import a room without the prefix. Few files have one, and only these are parsed.
MENTIONED = re.compile(rf"\b(?:import|from)\b.*(?<![.\w])(?:{'|'.join(sorted(ROOMS))})\b")


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, also in code held as text; none where no room is mentioned."""
    source = path.read_text()
    if not MENTIONED.search(source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]
    yield from re.findall(rf"(?:^|[\"';])\s*(?:from|import) ({'|'.join(sorted(ROOMS))})[. ;\"']", source, re.MULTILINE)


def test_no_import_names_a_room_without_the_prefix() -> None:
    """It would work in a checkout, and find another project's folder anywhere else."""
    folders = [ROOT / name for name in (*FOLDERS, "tests", "examples", "deploy", "studies")]
    own = Path(__file__)
    files = [*(path for folder in folders for path in folder.rglob("*.py") if path != own), ROOT / "setup.py"]
    assert len(files) > 500
    assert [f"{path.relative_to(ROOT)}: {name}" for path in files for name in imported(path) if name in ROOMS] == []


def test_imports_without_the_prefix_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import serving.push\nfrom cli import x\nRUN = 'import training.x'\nfrom ciml.cli import y\n"
    )
    assert set(imported(tmp_path / "a.py")) & ROOMS == {"serving", "cli", "training"}


def test_ruff_checks_everything_but_documents() -> None:
    assert TOOLS["ruff"]["extend-exclude"] == ["*.md"]


def test_the_layers_name_every_room_and_module_of_the_core() -> None:
    layers, _ = TOOLS["importlinter"]["contracts"]
    named = {name for layer in layers["layers"] for name in re.split(r"\s*[|:]\s*", layer)}
    core = {path.stem for path in (ROOT / "ciml").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == {f"ciml.{name}" for name in core - {"__init__", "__main__"}}


def test_every_folder_of_modules_is_a_package_that_states_its_purpose() -> None:
    """One without ``__init__.py`` is in no wheel."""
    folders = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert folders == set(PACKAGES)
    texts = {package: (ROOT / package / "__init__.py").read_text() for package in PACKAGES}
    assert [package for package, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


def test_type_checkers_find_the_package_where_it_is_installed(tmp_path: Path) -> None:
    """They follow paths, not the import hooks of an editable installation."""
    (tmp_path / "user.py").write_text(
        "import ciml\nfrom ciml.training.experiment import Experiment\nreveal_type(Experiment)\n"
    )
    options = ["--follow-imports=skip", "--no-incremental", "--config-file="]  # what they import takes a minute
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "-m", "user", "-m", "ciml.training.experiment"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "import-not-found" not in found.stdout
    assert "ciml.training.experiment.Experiment" in found.stdout

"""Every command of the tutorial runs as it stands, in order, on real engines; the README's commands are among them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What installs, or runs the whole demo or all the tests: these are run by hand and by CI, not by a test of themselves.
NOT_HERE = re.compile(r"^(git clone|cd |make (install|demo|test)|make$)")


def commands(text: str) -> list[str]:
    """The lines after ``$ `` of all ``console`` blocks, continuation lines joined."""
    found: list[str] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.S | re.M):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                found.append(line[2:].split("  # ")[0].strip())
    return found


def run(line: str, folder: Path) -> str:
    """Run a command in a folder, as a user does; return what it prints. Engines have their home there."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "140", "CIML_HOME": str(folder / ".ciml")}
    environment.pop("CIML_TRUST_POLICY", None)
    done = subprocess.run(
        ["bash", "-ec", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_commands_are_found() -> None:
    text = "```console\n$ a \\\n   b  # why\nout\n$ c\n```\n```\n$ no\n```\n"
    assert commands(text) == ["a b", "c"]


def test_the_readme_is_short_and_the_index_complete() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def of_document(name: str) -> list[str]:
    return [line for line in commands((ROOT / name).read_text()) if not NOT_HERE.match(line)]


def test_the_commands_of_the_readme_are_the_first_ones_of_the_tutorial() -> None:
    found, rest = of_document("README.md"), iter(of_document("docs/tutorial.md"))
    assert len(found) >= 8, found
    assert [line for line in found if line not in rest] == []  # in the same order


@pytest.mark.engines
@pytest.mark.timeout(600)
def test_every_command_of_the_tutorial_runs(tmp_path: Path) -> None:
    found = of_document("docs/tutorial.md")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    try:
        for line in found:
            run(line.replace("500", "50"), tmp_path)  # the epochs of the talk's network, whose accuracy is not compared
    finally:
        run("ciml down", tmp_path)

"""The wheel works in a project whose own folders have the names of ciml's rooms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_extras import store
from tests.project.test_rooms import ROOMS, ROOT
from tests.project.test_wheels import UV, wheel

__all__ = ["store", "wheel"]

pytestmark = pytest.mark.interop

SCRIPT = """
import ciml

data = ciml.open("data")
result = data.train("jobs", "random_forest")
print(result)
print(data.datasets())
"""


def test_the_api_and_the_commands_work_where_the_projects_folders_come_first(
    wheel: Path, store: Path, tmp_path: Path
) -> None:
    for room in sorted(ROOMS):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(f"raise SystemExit('{room} of the project was run')\n")
    (tmp_path / "data").symlink_to(store)
    (tmp_path / "jobs.toml").write_text('class_label = "status"\nspan_runs = 10\n')
    (tmp_path / "use.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    python = tmp_path / "env" / "bin" / "python"

    def run(*words: str | Path) -> str:
        done = subprocess.run(list(map(str, words)), cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode in (0, 5), done.stderr  # 5: the gate rejects a model of 20 runs
        return done.stdout

    run(UV, "venv", "-q", "--python", sys.executable, tmp_path / "env")
    lock = ROOT / "requirements.lock"
    run(UV, "pip", "install", "-q", "--python", python, "--constraint", lock, f"{wheel}[train,serve]")
    ciml = python.with_name("ciml")
    run(ciml, "dataset", "create", "jobs", "--definition", "jobs.toml", "--data-path", "data")
    run(ciml, "dataset", "update", "jobs", "--data-path", "data")
    run(ciml, "refresh", "--dataset", "jobs", "--data-path", "data")
    run(python, "-m", "ciml.cli.main", "runs", "--data-path", "data")
    assert "['jobs']" in run(python, "use.py")

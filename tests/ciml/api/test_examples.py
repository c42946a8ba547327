"""The examples in the docstrings of the public API run as they stand, and leave the settings of their process alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ciml.api.examples import SLOW, examples
from tests.serving.process import ServerProcess

NAMES = [name for name, _ in examples()]


@pytest.fixture(scope="module")
def results(
    served: Path, model_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The faults and the changes of each example. All run in one process, in the order of the page."""
    folder = shutil.copytree(served, tmp_path_factory.mktemp("examples") / "folder")
    url = f"http://127.0.0.1:{model_server.rest_port}"
    command = [sys.executable, "-m", "tests.ciml.api.examples", str(folder), url]
    process = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.whole if name in SLOW else ()) for name in NAMES]
)
def test_an_example_runs_and_changes_no_setting_of_its_process(name: str, results: dict[str, dict[str, Any]]) -> None:
    assert results[name] == {"faults": "", "changes": {}}


def test_what_a_person_calls_has_an_example() -> None:
    assert {
        "ciml.open", "ciml.parse_log", "ciml.Data.runs", "ciml.Data.samples", "ciml.Data.define_dataset",
        "ciml.Data.train", "ciml.Data.cross_validate", "ciml.Data.refresh", "ciml.Data.model", "ciml.Client",
        "ciml.Dataset.to_numpy", "ciml.Model.predict", "ciml.sklearn.Downsample",
    } <= set(NAMES)  # fmt: skip

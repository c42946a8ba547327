"""What steps of deployments share: the program, the logs that they run on, and what the commands of ciml give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.corpus import CORPUS, builds

#: With the program beside the interpreter of the tests.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
#: A value that a shell would run, and one that a command would read as an option.
HOSTILE = ("x; touch planted $(touch planted) `touch planted` # '\"", "--help")
#: The data set, and the estimators that are compared on it.
DATASET: Mapping[str, str] = {"dataset": "cpu", "features_regex": "^(usr|1m)$", "sample_interval": "1s"}
ESTIMATORS = ("random_forest", "svm")
#: The served model: a network that learns in seconds.
SERVED = "epochs = 40\n"
MODEL = "status"


@dataclass(frozen=True)
class Learned:
    """Figures of a chain from logs to a model.

    Attributes:
      runs: that were loaded.
      trained: (accuracy, base rate) of each stored experiment by its name.
      best: name of the most accurate one.
      outcome: of the refresh.
      version: that was pushed; "" without one.
    """

    runs: int
    trained: Mapping[str, tuple[float, float]]
    best: str
    outcome: str
    version: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return figures of a file."""
        found = json.loads(path.read_text())
        return cls(**{**found, "trained": {name: tuple(pair) for name, pair in found["trained"].items()}})

    def write(self, path: Path) -> None:
        """Write figures to a file."""
        path.write_text(json.dumps(asdict(self)))


def write_listing(folder: Path) -> Path:
    """Write a table of 120 runs of the corpus, whose logs are below `CORPUS`, and return it."""
    listing = folder / "builds.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in builds(120)))
    return listing


def ciml(*words: str, data: Path, as_json: bool = True) -> Any:
    """Run a command of ciml, and return its JSON, or its text."""
    command = [sys.executable, "-m", "ciml.cli.main", *words, "--data-path", str(data)]
    done = subprocess.run([*command, *["--json"] * as_json], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 5), done.stderr
    return json.loads(done.stdout) if as_json else done.stdout


def learn_by_commands(folder: Path) -> Learned:
    """Load, build, train, compare and refresh in a folder, as a person does at a terminal."""
    data, served = folder / "data", folder / "served.toml"
    served.write_text(SERVED)
    loaded = ciml("load", str(CORPUS), "--results", str(write_listing(folder)), data=data)
    options = (f"--{name.replace('_', '-')}={value}" for name, value in DATASET.items())
    ciml("dataset", "build", *options, data=data, as_json=False)
    trained = {}
    for estimator in ESTIMATORS:
        result = ciml("experiment", "train", "--dataset", "cpu", "--estimator", estimator, data=data)
        test = result["test"]
        trained[result["experiment"]["name"]] = (test["accuracy"]["value"], test["base_rate"]["value"])
    compared = ciml("experiment", "compare", "--dataset", "cpu", data=data)
    refreshed = ciml("refresh", "--dataset", "cpu", "--model", MODEL, "--experiment", str(served), data=data)
    version = str(refreshed["version"] or "")
    return Learned(loaded["totals"]["run"], trained, compared[0]["experiment"], refreshed["outcome"], version)


def served_versions(data: Path) -> dict[str, int]:
    """Return the labels of the served model, with their versions."""
    labels: dict[str, int] = ciml("models", "list", data=data)[MODEL]["labels"]
    return labels

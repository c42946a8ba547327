"""OpenVINO, an independent reader of SavedModels, gives the probabilities of the estimators themselves.

OpenVINO is installed once into ``~/.cache/ciml/openvino``, from PyPI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from sklearn.ensemble import AdaBoostClassifier, ExtraTreesClassifier, GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ciml.training.experiments.results import experiment_of
from tests.bench.measuring import real_examples
from tests.training.exporting import fit_and_export

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

OPENVINO = "openvino==2026.4.*"
FLAT = {"view": "flat"}
SUMMARY = {"view": "summary"}
NETWORK = {"hidden_layers": [16], "epochs": 20}
#: OpenVINO computes in float32. Trees are here over values that it does not have to round.
ESTIMATORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a forest of 300 trees": ("random_forest", FLAT),
    "trees of random splits": (ExtraTreesClassifier(300), FLAT),
    "gradient boosting": (GradientBoostingClassifier(), FLAT),
    "gradient boosting over histograms": ("hist_gradient_boosting", FLAT),
    "adaptive boosting": (AdaBoostClassifier(), FLAT),
    "xgboost": ("xgboost:XGBClassifier", FLAT),
    "lightgbm": ("lightgbm:LGBMClassifier", FLAT | {"parameters": {"verbose": -1}}),
    "a logistic pipeline": (make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), SUMMARY),
    "a dense network": ("dnn", NETWORK),
    "a convolutional network": ("cnn", NETWORK),
    "a recurrent network": ("gru", NETWORK),
}
WINDOWS = 92
RANDOM_RUNS = 10_000


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has OpenVINO."""
    folder = Path.home() / ".cache" / "ciml" / "openvino"
    folder.parent.mkdir(parents=True, exist_ok=True)
    installed = folder / "installed"
    with FileLock(folder.with_suffix(".lock")):
        if not installed.exists():
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            python = folder / "bin" / "python"
            subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, OPENVINO], check=True)
            installed.touch()
    return folder / "bin" / "python"


def random_runs(features: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and numbers of windows of random runs, half of them of whole numbers."""
    random = np.random.default_rng(0)
    n_windows = random.integers(1, WINDOWS + 1, RANDOM_RUNS).astype(np.int32)
    inputs = random.gamma(1.0, 20.0, (RANDOM_RUNS, WINDOWS, features)).astype(np.float32)
    inputs[::2] = np.round(inputs[::2])
    inputs[np.arange(WINDOWS) >= n_windows[:, np.newaxis]] = 0
    return inputs, n_windows


@pytest.mark.parametrize("name", ESTIMATORS)
def test_openvino_gives_the_probabilities_of_the_estimator(name: str, python: Path, tmp_path: Path) -> None:
    estimator, keys = ESTIMATORS[name]
    resolved, runs = real_examples("status", WINDOWS)
    predict = fit_and_export(experiment_of(estimator, keys, "tried"), resolved, runs, tmp_path / "model")
    largest = []
    for inputs, n_windows in ((runs.inputs, runs.n_windows), random_runs(len(resolved.features))):
        arrays, answers = tmp_path / "inputs.npz", tmp_path / "probabilities.npy"
        np.savez(arrays, inputs=inputs, n_windows=n_windows)
        program = Path(__file__).with_name("predict.py")
        command = [python, program, tmp_path / "model", arrays, answers]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={})
        assert done.returncode == 0, done.stderr[-3000:]
        largest.append(np.abs(np.load(answers) - predict(inputs, n_windows)).max())
    print(f"{name}: {len(runs)} recorded runs {largest[0]:.0e}, {RANDOM_RUNS} random ones {largest[1]:.0e}")
    assert max(largest) <= 1e-6

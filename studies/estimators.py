"""Try 25 estimators from training to a served answer. Writes the table of docs/estimators.md.

    python -m studies.estimators DATA DATASET LOGS

DATA is a data root with the data set DATASET of status, and LOGS a folder of logs. Every estimator is trained,
cross-validated, compared, refreshed, pushed, served, and asked in five ways: a file, a folder, a stored run, the model
server, and an announcement of the stream, there by its candidate if it was not pushed. Then its export is compared with
its own probabilities on the stored runs and on random ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

import ciml
from ciml.api.types import Run
from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import render_runs
from ciml.serving.predict.predictor import Predictor, PredictPolicy
from ciml.serving.predict.sources import ModelSource, ServedVersions
from ciml.training.candidate_source import Candidates
from ciml.training.conversion.step import ConversionError
from ciml.training.data.examples import InMemoryDataset, read_dataset
from ciml.training.estimators import fit, inputs_for, modules_named
from ciml.training.experiments.results import experiment_of
from ciml.training.export import export, load_exported
from ciml.trust import TrustPolicy
from tests.serving.process import server_process

RANDOM_RUNS = 10_000
_LOGS = 20
_USER = "tests.training.estimators.user_models"
_NETWORK = {"epochs": 60, "hidden_layers": [16], "learning_rate": 0.01}


class Tried(NamedTuple):
    """An estimator to try: what `ciml.Data.train` takes, and its keys."""

    estimator: Any
    keys: dict[str, Any]


def _named_columns() -> Any:
    """Return a pipeline that selects columns by their names."""
    columns = make_column_transformer(
        (StandardScaler(), make_column_selector("usr")), (MinMaxScaler(), ["n_windows"]), remainder="passthrough"
    )
    return make_pipeline(columns, ExtraTreesClassifier(100))


TRIED: dict[str, Tried] = {
    "`dnn`": Tried("dnn", _NETWORK),
    "`cnn`": Tried("cnn", _NETWORK),
    "`gru`": Tried("gru", {"epochs": 20, "hidden_layers": [8], "learning_rate": 0.01}),
    "`svm`": Tried("svm", {}),
    "`random_forest`": Tried("random_forest", {}),
    "`hist_gradient_boosting`": Tried("hist_gradient_boosting", {}),
    "`boosted_summaries`": Tried("boosted_summaries", {}),
    "LogisticRegression": Tried("LogisticRegression", {"parameters": {"max_iter": 500}, "view": "summary"}),
    "ExtraTreesClassifier": Tried(ExtraTreesClassifier(300), {}),
    "GradientBoostingClassifier": Tried(GradientBoostingClassifier(), {}),
    "AdaBoostClassifier": Tried(AdaBoostClassifier(), {"view": "summary"}),
    "GaussianNB": Tried(GaussianNB(), {"view": "summary"}),
    "LinearDiscriminantAnalysis": Tried(LinearDiscriminantAnalysis(), {"view": "summary"}),
    "MLPClassifier": Tried(MLPClassifier((16,), max_iter=100), {"view": "summary"}),
    "RidgeClassifier, a decision function": Tried(RidgeClassifier(), {"view": "summary"}),
    "KNeighborsClassifier": Tried(KNeighborsClassifier(), {"view": "summary"}),
    "pipeline: scaler, logistic regression": Tried(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), {"view": "summary"}
    ),
    "pipeline: columns by name, extra trees": Tried(_named_columns(), {}),
    "pipeline: scaler, PCA, SVC": Tried(make_pipeline(StandardScaler(), PCA(10), SVC()), {"view": "summary"}),
    "voting and stacking": Tried(
        VotingClassifier(
            [
                ("trees", ExtraTreesClassifier(50)),
                ("stack", StackingClassifier([("bayes", GaussianNB())], LogisticRegression(max_iter=500))),
            ],
            voting="soft",
        ),
        {"view": "summary"},
    ),
    "xgboost": Tried(XGBClassifier(n_estimators=100), {}),
    "lightgbm": Tried(LGBMClassifier(n_estimators=100, verbose=-1), {}),
    "a class of the user's": Tried(f"{_USER}:Shares", {"view": "summary"}),
    "a function that returns a Keras model": Tried(f"{_USER}:network", {"epochs": 30}),
    "a grid search": Tried(
        GridSearchCV(HistGradientBoostingClassifier(early_stopping=False), {"max_leaf_nodes": [7, 15]}),
        {"view": "summary"},
    ),
}
#: Estimators of scikit-learn's interface that accept NaN.
_ACCEPT_NAN = ("xgboost", "lightgbm", "a grid search", "ExtraTreesClassifier", "`boosted_summaries`")


def steps(data: ciml.Data, dataset: str, name: str, tried: Tried) -> Iterator[tuple[str, str]]:
    """Yield each step of an estimator before it is served, and "yes" or the message that a user gets."""
    model = f"m{list(TRIED).index(name)}"
    arguments = {"estimator": tried.estimator, **tried.keys}

    def trained() -> None:
        assert data.train(dataset, **arguments).runs > 0

    def compared() -> None:
        results = (data.train(dataset, **arguments), data.train(dataset, "svm", seed=1))
        assert data.compare(dataset, *results).num_rows == 2

    def cross_validated() -> None:
        assert data.cross_validate(dataset, folds=3, hold_out="change", **arguments).runs > 0

    def pushed() -> None:
        result = data.refresh(dataset, model, accept_baselines=("duration",), **arguments)
        if result.outcome != "pushed":
            raise CimlError("; ".join(result.reasons))

    yield "train", _answer(trained)
    yield "cross-validate", _answer(cross_validated)
    yield "compare", _answer(compared)
    yield "push", _answer(pushed)


def _answer(step: Callable[[], object]) -> str:
    try:
        step()
    except CimlError as error:
        return " ".join(str(error).split())
    return "yes"


def asked(data: ciml.Data, root: DataRoot, logs: Path, name: str, ports: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """Yield each way to ask a model, and "yes" or the message that a user gets."""
    model_name = f"m{list(TRIED).index(name)}"
    files: list[Run] = [*sorted(logs.rglob("dstat*.gz"))[:_LOGS]]
    runs = data.runs()["run_id"].to_pylist()[:_LOGS]
    try:
        model = data.model(model_name)
    except CimlError:
        model = data.model(model_name, candidate=True, allow_modules=(_USER,))

    with model:

        def file() -> None:
            assert model.predict(files[0]).class_name

        def folder() -> None:
            assert all(prediction.class_name for prediction in model.each(files))

        def stored() -> None:
            assert all(prediction.class_name for prediction in model.predict(runs))

        def by_server() -> None:
            answers = ciml.Client(f"http://127.0.0.1:{ports[1]}", model_name).predict(files)
            expected = model.predict(files)
            for answer, local in zip(answers, expected, strict=True):
                assert abs((answer.probability or 0) - (local.probability or 1)) < 1e-6

        def stream() -> None:
            source: ModelSource = ServedVersions(root, f"127.0.0.1:{ports[0]}", model_name)
            if model.candidate:
                source = Candidates(root, model_name, (_USER,))
            predictor = Predictor(root, source, PredictPolicy(model_name))
            predicted = predictor.predict(_announcements(root, len(runs))).predictions
            predictor.close()
            by_run = {record["run_id"]: list(record["probabilities"].values()) for record in predicted}
            for run, prediction in zip(runs, model.predict(runs), strict=True):
                assert np.allclose(by_run[str(run)], list(prediction.probabilities.values()), rtol=0, atol=1e-6)

        for way, ask in (
            ("file", file),
            ("folder", folder),
            ("stored run", stored),
            ("model server", by_server),
            ("stream", stream),
        ):
            yield way, _answer(ask)


def _announcements(root: DataRoot, most: int) -> Batch:
    """Return the announcements of stored runs, as ingest publishes them."""
    values = [value for _, delta in ManifestLog(root.raw).since(0) for _, value, _ in render_runs(delta)][:most]
    messages = [Message(offset, value) for offset, value in enumerate(values)]
    return Batch(OffsetRange("runs", "", 0, 0, len(messages)), messages)


def differences(dataset: InMemoryDataset, name: str, tried: Tried) -> tuple[str, str]:
    """Return the largest difference of an export from its estimator, on the stored runs and on random ones."""
    experiment = experiment_of(tried.estimator, tried.keys, "tried")
    allowed = modules_named(experiment)
    resolved = dataset.snapshot.resolved
    normalisation = dataset.normalisation()
    train = dataset.rows.take(dataset.of("train", "dev"))
    fitted = fit(
        experiment,
        inputs_for(experiment, normalisation, train, allowed),
        None,
        len(resolved.classes),
        features=resolved.features,
        allow_modules=allowed,
    )
    normalises = inputs_for(experiment, normalisation, train, allowed) is not train
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(fitted, normalisation.graph if normalises else None, resolved, Path(folder, "m"), name="m")
        except ConversionError:
            return "–", "–"
        exported = load_exported(Path(folder, "m"))
        largest = []
        for inputs, n_windows in ((dataset.rows.inputs, dataset.rows.n_windows), random_runs(dataset, name)):
            expected = fitted.predict(normalisation.apply(inputs) if normalises else inputs, n_windows)
            largest.append(f"{np.abs(exported.predict(inputs, n_windows) - expected).max():.0e}")  # nan shows
    return largest[0], largest[1]


def random_runs(dataset: InMemoryDataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return random runs: values like the recorded ones, none, huge ones, and NaN where the estimator accepts it."""
    rng = np.random.default_rng(0)
    _, windows, features = dataset.rows.inputs.shape
    n_windows = rng.integers(1, windows + 1, RANDOM_RUNS).astype(np.int32)
    inputs = rng.gamma(1.0, 20.0, (RANDOM_RUNS, windows, features)).astype(np.float32)
    kinds = rng.integers(0, 4, RANDOM_RUNS)
    inputs[kinds == 1] *= np.float32(1e9)
    inputs[kinds == 2] = np.round(inputs[kinds == 2])
    if name in _ACCEPT_NAN:
        inputs[rng.random(inputs.shape) < 0.001] = np.nan
    inputs[np.arange(windows) >= n_windows[:, None]] = 0
    return inputs, n_windows


def main(path: str, dataset: str, logs: str) -> None:
    """Print the table, a row for each estimator, then the messages."""
    warnings.simplefilter("ignore")
    root = DataRoot.open(path)
    data = ciml.open(path)
    rows: dict[str, dict[str, str]] = {}
    for name, tried in TRIED.items():
        rows[name] = dict(steps(data, dataset, name, tried))
        print(name, rows[name], file=sys.stderr, flush=True)
    examples = read_dataset(root.dataset(dataset), TrustPolicy.load())
    with tempfile.TemporaryDirectory() as folder:
        config = f"{path}/models/models.config"
        with server_process(config, Path(folder, "log")) as server:
            for name in TRIED:
                rows[name] |= dict(asked(data, root, Path(logs), name, (server.grpc_port, server.rest_port)))
                print(name, rows[name], file=sys.stderr, flush=True)
    for name, tried in TRIED.items():
        rows[name]["stored runs"], rows[name]["random runs"] = differences(examples, name, tried)
        print(name, rows[name], file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

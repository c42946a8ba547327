"""Exports to a real MLflow: once, again, after kills and with moved labels; their records, and what models answer."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.pipelines.mlflow import (
    Exported,
    _one_line_errors,
    candidate_record,
    export_to_mlflow,
    figures,
    metric_name,
    params_of,
    trial_records,
)
from ciml.serving.ledger import rollback
from ciml.serving.registry import Decision, Registry
from ciml.serving.server.model.loaded_model import load_model
from ciml.storage import open_store
from ciml.training.evaluation.metrics import scores
from ciml.training.experiment import Experiment
from tests.durable import Died, Recorder
from tests.pipelines.exports.exporting import RESULT, mlflow_at, push_model, store_trial
from tests.project.test_readme import ROOT, commands
from tests.serving.models_fixture import DEFINITION

RUN = ["create_run", "log_batch", "set_terminated"]  # a run is finished last
#: A version is registered when its model is complete; the tag of the run says that it is.
VERSION = ["log_artifacts", "set_tag", "create_model_version", "set_model_version_tag"]
#: Calls of MLflow that write, of an export of two trials, three candidates and two versions.
STEPS = [
    "create_experiment", *RUN * 5,
    "create_registered_model", *VERSION * 2, "set_registered_model_alias", "set_registered_model_tag",
]  # fmt: skip


@contextlib.contextmanager
def recording(dies_before: str = "") -> Iterator[Recorder]:
    """Record the writing calls of the block, and die before the first one of that name."""
    from mlflow import MlflowClient

    recorder = Recorder()

    def recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **named: Any) -> Any:
            if name == dies_before:
                recorder.before = len(recorder.steps)
            recorder.step(name)
            return call(*arguments, **named)

        return write

    with contextlib.ExitStack() as stack:
        for name in set(STEPS):
            stack.enter_context(patch.object(MlflowClient, name, recorded(name, getattr(MlflowClient, name))))
        stack.enter_context(contextlib.suppress(Died))
        yield recorder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without content: to make one takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    uri = f"sqlite:///{file}"
    MlflowClient(uri, uri).search_experiments()
    return file


@pytest.fixture
def mlflow_uri(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    shutil.copy(empty, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials; a model with three candidates, of which two are pushed."""
    root = tmp_path_factory.mktemp("exports")
    data = DataRoot.open(root / "data")
    store_trial(data, "dnn", "jobs", "a" * 24)
    store_trial(data, "svm", "jobs", "b" * 24, accuracy=0.7, classes=60, parameters=130)
    push_model(data, root, 1)
    push_model(data, root, 2, blessed=False)
    push_model(data, root, 3)
    return root / "data"


@pytest.fixture
def data(made: Path, tmp_path: Path) -> DataRoot:
    shutil.copytree(made, tmp_path / "data")
    return DataRoot.open(tmp_path / "data")


def rows(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the database, but for the address of the artifacts."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {table: sorted(database.execute(f'SELECT * FROM "{table}"').fetchall(), key=repr) for table in tables}


def content(uri: str) -> dict[str, Any]:
    """What a user of MLflow sees, without its ids."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiments = {one.experiment_id: one.name for one in client.search_experiments()}
    runs = client.search_runs(list(experiments))
    keys = {one.info.run_id: one.data.tags["ciml.key"] for one in runs}
    assert len(set(keys.values())) == len(runs)
    return {
        "runs": {
            keys[one.info.run_id]: (
                experiments[one.info.experiment_id], one.info.run_name, one.info.status, one.info.start_time,
                dict(one.data.params), dict(one.data.metrics), dict(one.data.tags),
                {name: len(client.get_metric_history(one.info.run_id, name)) for name in one.data.metrics},
                sorted(file.path for file in client.list_artifacts(one.info.run_id, "model")),
            )
            for one in runs
        },
        "versions": {
            (one.name, one.tags["ciml.version"]): (one.version, one.tags, keys[one.run_id])
            for one in client.search_model_versions()
        },
        "aliases": {
            one.name: dict(client.get_registered_model(one.name).aliases) for one in client.search_registered_models()
        },
    }  # fmt: skip


def withdrawn(uri: str) -> dict[str, str]:
    return {number: tags["ciml.withdrawn"] for (_, number), (_, tags, _) in content(uri)["versions"].items()}


@pytest.mark.whole
def test_all_of_a_data_root_is_there_once(data: DataRoot, mlflow_uri: str, tmp_path: Path) -> None:
    lines: list[str] = []
    done = export_to_mlflow(data, mlflow_uri, lines.append)
    assert done == Exported(5, 5, 2, 2, {"m": {"stable": 2}})
    assert len(lines) == 7
    found = content(mlflow_uri)
    name = f"jobs/svm/{'b' * 24}"
    experiment, run_name, status, _, params, metrics, tags, history, files = found["runs"][name]
    assert files == []
    assert metrics["class/c59/recall.high"] == 0.95  # more than a request holds, of metrics and of parameters
    assert params["parameters.p129"] == "129"
    assert (experiment, run_name, status) == ("jobs", "svm", "FINISHED")
    assert (params["epochs"], metrics["accuracy"], metrics["accuracy.low"], metrics["base_rate"]) == (
        "150", 0.7, 0.8, 0.5,
    )  # fmt: skip
    assert tags["ciml.snapshot"] == "d" * 64
    assert set(history.values()) == {1}
    blessed = sorted(
        tags["ciml.blessed"] for *_, tags, _, _ in found["runs"].values() if tags["ciml.kind"] == "candidate"
    )
    assert blessed == ["false", "true", "true"]
    versions = {key: str(version) for key, (version, *_) in found["versions"].items()}
    assert versions == {("m", "1"): "1", ("m", "2"): "2"}
    assert {tags["ciml.withdrawn"] for _, tags, _ in found["versions"].values()} == {"false"}
    assert [str(version) for version in found["aliases"]["m"].values()] == ["2"]
    assert not list(tmp_path.rglob("*.pkl"))

    before = rows(mlflow_uri)
    again = export_to_mlflow(data, mlflow_uri)
    assert again == Exported(5, 0, 2, 0, {"m": {"stable": 2}})
    assert rows(mlflow_uri) == before

    push_model(data, tmp_path, 4, label="canary")
    assert export_to_mlflow(data, mlflow_uri) == Exported(6, 1, 3, 1, {"m": {"canary": 3, "stable": 2}})
    rollback(data, "m")
    assert export_to_mlflow(data, mlflow_uri) == Exported(6, 0, 3, 0, {"m": {"canary": 3, "stable": 1}})
    aliases = content(mlflow_uri)["aliases"]["m"]
    assert {name: str(version) for name, version in aliases.items()} == {"canary": "3", "stable": "1"}
    assert withdrawn(mlflow_uri) == {"1": "false", "2": "true", "3": "false"}
    rollback(data, "m", 1, label="canary")  # no longer beside stable
    assert export_to_mlflow(data, mlflow_uri).aliases == {"m": {"canary": 1, "stable": 1}}
    rollback(data, "m", 2)  # restores it
    assert export_to_mlflow(data, mlflow_uri).aliases == {"m": {"canary": 1, "stable": 2}}
    assert withdrawn(mlflow_uri) == {"1": "false", "2": "false", "3": "true"}


@pytest.mark.whole
def test_an_export_that_dies_before_each_kind_of_step_is_resumed(
    data: DataRoot, mlflow_uri: str, empty: Path, tmp_path: Path
) -> None:
    for step in dict.fromkeys(STEPS):
        with recording(step) as export:
            export_to_mlflow(data, mlflow_uri)
        assert export.is_dead
    export_to_mlflow(data, mlflow_uri)
    shutil.copy(empty, tmp_path / "whole.db")
    with recording() as export:
        export_to_mlflow(data, f"sqlite:///{tmp_path}/whole.db")
    assert export.steps == STEPS
    assert content(mlflow_uri) == content(f"sqlite:///{tmp_path}/whole.db")


@pytest.mark.whole
def test_a_model_of_mlflow_answers_as_the_model_server(data: DataRoot, mlflow_uri: str, tmp_path: Path) -> None:
    import mlflow

    (line,) = commands((ROOT / "docs/mlflow.md").read_text())
    assert CliRunner().invoke(cli, shlex.split(line)[1:]).exit_code == 0
    with mlflow_at(mlflow_uri):
        model = mlflow.pyfunc.load_model("models:/m@stable")
        other_model = mlflow.pyfunc.load_model("models:/m/1")
    inputs = np.random.default_rng(0).gamma(2.0, 20.0, (300, 5, 3)).astype(np.float32)
    n_windows = np.full(300, 5, np.int32)
    served = load_model(data.models.child("m").child("2"))
    expected = served.predict("", {"inputs": inputs[:256], "n_windows": n_windows[:256]})["probabilities"]
    answer = model.predict({"inputs": inputs, "n_windows": n_windows})["probabilities"]
    np.testing.assert_array_equal(answer[:256], expected)
    assert answer.shape == (300, 4)
    served.close()
    other = other_model.predict({"inputs": inputs[:1], "n_windows": n_windows[:1]})
    assert np.abs(other["probabilities"] - answer[:1]).max() > 1e-3
    assert model.metadata.metadata["classes"] == list(DEFINITION.classes)
    assert [(one.name, one.shape) for one in model.metadata.signature.inputs] == [
        ("inputs", (-1, 5, 3)), ("n_windows", (-1,)),
    ]  # fmt: skip
    with pytest.raises(Exception, match="n_windows"):
        model.predict({"inputs": inputs})
    folder = next(tmp_path.rglob("MLmodel")).parent
    assert "ciml[serve]==" in (folder / "requirements.txt").read_text()


@pytest.mark.whole
def test_an_altered_version_is_not_exported(data: DataRoot, mlflow_uri: str) -> None:
    Path(data.url, "models/m/2/assets/definition.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"assets/definition\.json was altered"):
        export_to_mlflow(data, mlflow_uri)
    found = content(mlflow_uri)
    assert list(found["versions"]) == [("m", "1")]
    assert sum(bool(files) for *_, files in found["runs"].values()) == 1  # none of its files is logged


@pytest.mark.whole
def test_an_absent_server_is_an_error_in_one_line_without_secrets(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(EngineError, match=r"^MLflow at http://127\.0\.0\.1:1: ") as caught:
        export_to_mlflow(data, "http://user:hunter2@127.0.0.1:1")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(CimlError, match=r"^MLflow at gopher://x: "):
        export_to_mlflow(data, "gopher://x")
    with pytest.raises(EngineError) as caught, _one_line_errors("http://user:hunter2@host"):
        raise OSError("no route\nto http://user:hunter2@host/api")
    assert str(caught.value).startswith("MLflow at http://host: no route to http://")
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MLflow's own tracking server, with its artifacts behind it."""
    from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR, app
    from mlflow.server import ARTIFACT_ROOT_ENV_VAR, REGISTRY_STORE_URI_ENV_VAR  # isort: skip
    from werkzeug.serving import make_server

    for name, value in {
        BACKEND_STORE_URI_ENV_VAR: mlflow_uri, REGISTRY_STORE_URI_ENV_VAR: mlflow_uri,
        ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/", SERVE_ARTIFACTS_ENV_VAR: "true",
        ARTIFACTS_DESTINATION_ENV_VAR: str(tmp_path / "artifacts"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    one = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=one.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{one.server_port}"
    one.shutdown()
    thread.join()


@pytest.mark.whole
def test_a_tracking_server_gets_the_same(data: DataRoot, server: str, tmp_path: Path) -> None:
    words = ["export", "mlflow", "--tracking-uri", server, "--data-path", data.url]
    first = CliRunner().invoke(cli, [*words, "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == Exported(5, 5, 2, 2, {"m": {"stable": 2}}).to_json()
    again = CliRunner().invoke(cli, words)
    assert again.stdout == "5 runs, 0 new; 2 versions of models, 0 new\nm: stable = 2\n"
    assert sum(1 for _ in (tmp_path / "artifacts").rglob("saved_model.pb")) == 2


# --- trials and candidates as MLflow's parameters, metrics and tags


def test_figures_have_the_base_rate_and_intervals() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    second = np.clip(labels * 0.6 + random.normal(0.2, 0.2, 60), 0, 1)
    answers = np.stack([1 - second, second], axis=1)
    test = scores(answers, labels, ("a b", "c:d"), labels, resamples=20)
    found = figures(test, {"memory": {"accuracy": {"value": 0.4, "low": 0.3, "high": 0.5}}})
    for name in ("accuracy", "base_rate", "brier"):
        assert [found[f"{name}{end}"] for end in ("", ".low", ".high")] == [
            test[name][end] for end in ("value", "low", "high")
        ]
    assert found["macro_f1"] == test["macro"]["f1"]["value"]
    assert found["class/a b/recall.low"] == test["classes"]["a b"]["recall"]["low"]
    assert found["class/c_d/runs"] == test["classes"]["c:d"]["runs"]
    assert found["calibration_error"] == test["calibration"]["ece"]
    assert (found["baseline/memory/accuracy"], found["baseline/memory/accuracy.high"]) == (0.4, 0.5)
    assert (found["test_runs"], found["trained_on"]) == (60, 60)


def test_undefined_figures_are_left_out() -> None:
    test: dict[str, Any] = {
        "accuracy": {"value": None, "low": 0.0, "high": 1.0},
        "log_loss": float("nan"),
        "runs": True,
    }
    assert figures(test, {"one": 3}) == {"accuracy.low": 0.0, "accuracy.high": 1.0}
    assert figures({}, {}) == {}


def test_parameters_are_one_a_key() -> None:
    experiment = Experiment(name="x", estimator="svm", hidden_layers=(8, 4), parameters={"C": 2.5, "kernel": "rbf"})
    found = params_of(experiment.to_json())
    assert (found["hidden_layers"], found["parameters.C"], found["parameters.kernel"]) == ("[8, 4]", "2.5", "rbf")
    assert (found["estimator"], found["seed"]) == ("svm", "0")
    assert not found.keys() & {"name", "parameters", "steps"}
    assert len(params_of({"a": "x" * 9000})["a"]) == 5000


def test_names_are_those_that_mlflow_accepts() -> None:
    assert metric_name("class/a:b\N{SNOWMAN}[0]/f1") == "class/a_b__0_/f1"
    assert len(metric_name("x" * 300)) == 250


def test_each_stored_trial_is_a_record(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    store_trial(data, "dnn", "jobs", "a" * 24)
    store_trial(data, "dnn", "jobs", "b" * 24, accuracy=0.7)
    store_trial(data, "svm", "other", "c" * 24)
    (tmp_path / "experiments/svm/results/other/killed").mkdir()
    found = list(trial_records(data))
    assert [one.key for one in found] == [f"jobs/dnn/{'a' * 24}", f"jobs/dnn/{'b' * 24}", f"other/svm/{'c' * 24}"]
    assert [(one.experiment, one.name) for one in found] == [("jobs", "dnn"), ("jobs", "dnn"), ("other", "svm")]
    assert [one.metrics["accuracy"] for one in found] == [0.9, 0.7, 0.9]
    assert found[0].tags["ciml.snapshot"] == RESULT["snapshot"]["digest"]
    assert found[0].tags["ciml.spans"] == "[[1, 2]]"
    assert found[0].tags["ciml.data"] == data.url
    assert found[0].time_ms > 1_700_000_000_000
    (tmp_path / f"experiments/dnn/results/jobs/{'a' * 24}/result.json").write_text("[")
    with pytest.raises(IntegrityError, match="is unreadable"):
        list(trial_records(data))


def test_a_candidate_has_the_trainers_figures_and_the_gates_decision(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"x")
    registry = Registry(data, "m")
    facts = {"dataset": "jobs", "snapshot": "s" * 64, "refresh": "r" * 24, "experiment": Experiment().to_json()}
    one = registry.record_candidate(open_store(folder), facts)
    undecided = candidate_record(data, "m", registry.state, one)
    assert (undecided.metrics, "ciml.blessed" in undecided.tags) == ({}, False)
    registry.record_decision(one.id, Decision(False, ("worse", "slow"), {"accuracy": {"value": 0.25}}))
    decided = candidate_record(data, "m", registry.state, one)
    assert (decided.key, decided.experiment, decided.name) == (f"m/{one.id}", "jobs", f"m {one.id}")
    assert (decided.metrics, decided.tags["ciml.blessed"]) == ({"accuracy": 0.25}, "false")
    assert decided.tags["ciml.reasons"] == "worse\nslow"
    assert decided.tags["ciml.snapshot"] == "s" * 64
    data.trainer("m").create(f"metrics/{'r' * 24}.json", json.dumps({"evaluation": RESULT["test"]}).encode())
    assert candidate_record(data, "m", registry.state, one).metrics["accuracy.low"] == 0.8
    assert decided.params["epochs"] == "150"

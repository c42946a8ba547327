"""The calls that an export makes of MLflow: their order, their sizes, and what follows a change of the registry."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.pipelines import mlflow as export_module
from ciml.pipelines.mlflow import RunRecord, _Export, _one_line_errors
from ciml.serving.ledger import rollback
from ciml.serving.push import push
from ciml.serving.registry import Decision
from ciml.storage import open_store


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """A data root with a model whose second version was withdrawn."""
    data = DataRoot.open(tmp_path / "data")
    for number in (1, 2):
        folder = tmp_path / f"model-{number}"
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(b"model %d" % number)
        push(data, "m", open_store(folder), Decision(True), check=False)
    rollback(data, "m")
    return data


def client(**withdrawn: str) -> Mock:
    """Return a client of MLflow with finished runs, and these versions with the tag that says whether they are."""
    mock = Mock()
    mock.search_runs.return_value = [SimpleNamespace(info=SimpleNamespace(run_id="run", status="FINISHED"))]
    mock.search_model_versions.return_value = [
        SimpleNamespace(version=version[1:], tags={"ciml.version": version[1:], "ciml.withdrawn": value})
        for version, value in withdrawn.items()
    ]
    mock.get_run.return_value.data.tags = {}
    mock.create_model_version.side_effect = lambda *_, **__: SimpleNamespace(version="9")
    mock.get_registered_model.return_value = SimpleNamespace(aliases={}, tags={})
    return mock


def export(data: DataRoot, mlflow: Mock) -> list[str]:
    """Export the model; return the names of the calls."""
    _Export(data, mlflow, lambda line: None).export_model("m")
    return [name for name, _, _ in mlflow.method_calls]


def test_a_run_is_finished_when_all_its_parameters_and_metrics_are_logged() -> None:
    params = {f"p{number}": "1" for number in range(130)}
    metrics = {f"m{number}": 1.0 for number in range(250)}
    mlflow = client()
    mlflow.search_runs.return_value = []
    record = RunRecord("key", "jobs", "name", 5, params, metrics, {})
    _Export(Mock(), mlflow, lambda line: None).export_run(record)
    assert [name for name, _, _ in mlflow.method_calls][-4:] == [*3 * ["log_batch"], "set_terminated"]
    sizes = [[len(part) for part in call.args[1:]] for call in mlflow.log_batch.mock_calls]
    assert sizes == [[100, 100], [100, 30], [50, 0]]


def test_a_model_is_verified_and_logged_before_its_run_says_so(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Mock()
    monkeypatch.setattr(export_module, "save_pyfunc", saved)
    mlflow = client()
    steps = [name for name in export(data, mlflow) if name in ("log_artifacts", "set_tag", "create_model_version")]
    assert steps == 2 * ["log_artifacts", "set_tag", "create_model_version"]
    Path(data.url, "models/m/2/saved_model.pb").write_bytes(b"altered")
    mlflow = client(v1="false")
    with pytest.raises(IntegrityError, match=r"saved_model\.pb was altered"):
        export(data, mlflow)
    assert (saved.call_count, mlflow.log_artifacts.called, mlflow.set_tag.called) == (2, False, False)


@pytest.mark.parametrize(("first", "second", "changed"), [("false", "false", ["2"]), ("true", "true", ["1"])])
def test_the_tag_of_a_version_follows_its_withdrawal(
    data: DataRoot, first: str, second: str, changed: list[str]
) -> None:
    mlflow = client(v1=first, v2=second)
    export(data, mlflow)
    values = {call.args[1]: call.args[3] for call in mlflow.set_model_version_tag.mock_calls}
    assert values == {version: {"1": "false", "2": "true"}[version] for version in changed}


def test_an_error_has_one_line_and_no_secret() -> None:
    with pytest.raises(EngineError) as caught, _one_line_errors("http://user:hunter2@host"):
        raise OSError("no route\nto http://user:hunter2@host/api")
    assert str(caught.value).startswith("MLflow at http://host: no route to http://")
    assert "hunter2" not in str(caught.value)

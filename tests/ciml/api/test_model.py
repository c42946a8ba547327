"""A model in Python, on the command line and behind the stream gives the same answers, and only unaltered ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner

import ciml
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.serving.predict.answers import LocalModel
from ciml.serving.predict.predictor import PredictPolicy
from ciml.serving.registry import Decision, Registry
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.ciml.api.made import RUNS, write_log
from tests.pipelines.predict.predicting import batch, server_predictor
from tests.project.test_startup import HEAVY, loaded_by


def streamed(folder: Path) -> dict[str, dict[str, object]]:
    """The predictions of the stream for all stored runs, by run id."""
    root = DataRoot.open(folder / "data")
    announced = []
    for run in latest_runs(*open_raw(root.raw)):
        fields = {"run_id": run.facts.run_id, "build_name": run.facts.build_name, "raw_version": run.version}
        announced.append(json.dumps({**fields, "path": run.file.path, "digest": run.file.digest}).encode())
    options = ServerOptions(root.models.url("models.config"), grpc_port=0, rest_port=0, poll_s=0.1)
    with ModelServer(options) as server:
        predictor = server_predictor(root, f"127.0.0.1:{server.grpc_port}", PredictPolicy("status"))
        done = predictor.predict(batch(announced))
        predictor.close()
    assert done.unpredictable == []
    return {one["run_id"]: one for one in done.predictions}


def test_python_the_command_and_the_stream_agree(served: Path) -> None:
    stream = streamed(served)
    assert len(stream) == RUNS >= 100
    files = [str(served / "logs" / f"unit-{number:03}.csv") for number in range(RUNS)]
    ids = [f"zuul~{number}~1" for number in range(RUNS)]
    model = ciml.open(served / "data").model("status")
    by_file, by_id = model.predict(files), model.predict(ids)
    done = CliRunner().invoke(cli, ["predict", *files, "--model", "status", "--json", "--data-path", f"{served}/data"])
    by_command = [json.loads(line) for line in done.output.splitlines()]
    assert done.exit_code == 0
    for number, run_id in enumerate(ids):
        one, wanted = by_file[number], stream[run_id]
        assert (one.class_name, one.n_windows) == (wanted["class"], wanted["n_windows"])
        assert list(one.probabilities) == list(wanted["probabilities"])  # type: ignore[call-overload]
        assert one.probabilities == pytest.approx(wanted["probabilities"], rel=0, abs=1e-6)
        assert one.probability == max(one.probabilities.values())
        assert (by_id[number].run, by_id[number].probabilities) == (run_id, one.probabilities)
        assert by_command[number] == {
            "file": files[number], "model": "status", "version": 1, "class": one.class_name,
            "probability": one.probability, "probabilities": one.probabilities, "n_windows": one.n_windows,
        }  # fmt: skip
    # And the answers are no constant: they are right for held-out runs.
    assert sum((one.class_name == "failed") == (number % 2 == 1) for number, one in enumerate(by_file)) > 0.9 * RUNS


def test_predictions_import_no_tensorflow_in_this_process(served: Path) -> None:
    code = f"""
import ciml
with ciml.open({str(served / "data")!r}).model("status") as model:
    assert model.predict({str(served / "logs" / "unit-001.csv")!r}).class_name == "failed"
"""
    assert loaded_by(code, (*HEAVY, "scipy", "starlette")) == set()


def test_every_form_of_a_run_has_the_same_answer(served: Path, tmp_path: Path) -> None:
    data = ciml.open(served / "data")
    model = data.model("status")
    path = served / "logs" / "unit-007.csv"
    table = ciml.parse_log(path)
    frame = table.to_pandas()
    wanted = model.predict(path)
    others = [table, frame, frame.set_index("time"), frame.drop(columns="boot"), "zuul~7~1", str(path)]
    assert [one.probabilities for one in map(model.predict, others)] == [wanted.probabilities] * len(others)
    assert [one.run for one in model.predict([path, frame, "zuul~7~1"])] == [str(path), "table 2", "zuul~7~1"]
    assert model.predict([]) == []
    for number, rows in enumerate((1, 5, 600)):
        write_log(tmp_path / f"{number}.csv", number, rows)
    assert [one.n_windows for one in model.predict(sorted(tmp_path.iterdir()))] == [1, 1, 12]  # cut and padded
    data.close()
    with pytest.raises(ciml.CimlError):
        model.predict(path)


def test_an_unusable_run_costs_only_itself(served: Path, tmp_path: Path) -> None:
    model = ciml.open(served / "data").model("status")
    (tmp_path / "text").write_text("no telemetry\n")
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    narrow = ciml.parse_log(served / "logs" / "unit-001.csv").select(["time", "boot", "load avg:1m"])
    runs = [served / "logs" / "unit-001.csv", tmp_path / "text", tmp_path / "cut.gz", tmp_path / "none", tmp_path,
            narrow, "zuul~999~1", "zuul~1~1"]  # fmt: skip
    found = model.predict(runs)
    assert [one.reason for one in found] == [
        "", "not_telemetry", "corrupt_gzip", "log_not_found", "address_not_allowed", "missing_column",
        "unknown_run", "",
    ]  # fmt: skip
    assert found[5].remark == "missing column: total cpu usage:usr"
    assert found[0].probabilities == found[7].probabilities
    assert found[1].to_json() == {"run": str(tmp_path / "text"), "reason": "not_telemetry", "detail": found[1].detail}
    with pytest.raises(ciml.CimlError, match="unit-none: log not found: no such file"):
        model.predict(tmp_path / "unit-none")
    with pytest.raises(ciml.CimlError, match="cannot predict a int"):
        model.predict(7)
    untimed = pd.DataFrame({"time": ["noon"], "total cpu usage:usr": [1.0]})
    with pytest.raises(ciml.UnusableRunError, match="needs a column 'time' of times"):
        model.predict(untimed)
    with pytest.raises(ciml.UnknownRunError, match="zuul~999~1: unknown run"):
        model.predict("zuul~999~1")
    table = ciml.parse_log(runs[0])
    counted = table.set_column(1, "boot", pa.array([0] * table.num_rows))
    mixed = pd.DataFrame({"time": [pd.Timestamp(0)] * 2, "load avg:1m": [1.0, "high"]})
    found = model.predict([table, untimed, counted, mixed])
    assert [one.reason for one in found] == ["", "not_telemetry", "not_telemetry", "not_telemetry"]
    assert found[2].detail == "the column 'boot' must be boolean; it has the type int64"


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({}, [10]),
        ({"_RUNS_PER_CALL": 4}, [4, 4, 2]),
        ({"_BYTES_PER_CALL": 2.5}, [3, 3, 3, 1]),
    ],
)
def test_a_call_of_the_model_has_limited_runs_and_bytes(
    served: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], sizes: list[int]
) -> None:
    table = ciml.parse_log(served / "logs" / "unit-001.csv")
    for name, value in limits.items():
        monkeypatch.setattr(f"ciml.api.predictions.{name}", value * table.nbytes if "BYTES" in name else value)
    calls: list[int] = []
    predict = LocalModel.predict

    def counted(local: LocalModel, tables: Sequence[pa.Table], runs: Any = None) -> Any:
        calls.append(len(tables))
        return predict(local, tables, runs)

    monkeypatch.setattr(LocalModel, "predict", counted)
    found = ciml.open(served / "data").model("status").predict([table] * 10)
    assert calls == sizes
    assert len({one.probability for one in found}) == 1


def test_a_model_that_is_not_blessed_or_not_whole_is_not_loaded(folder: Path) -> None:
    data = ciml.open(folder / "data")
    with pytest.raises(ciml.CimlError, match=r"version 2 was never pushed; pushed versions: \[1\]"):
        data.model("status", version=2)
    with pytest.raises(ciml.CimlError, match=r"no model 'other' in .*; choose from status"):
        data.model("other")
    file = folder / "data" / "models" / "status" / "1" / "assets" / "definition.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ciml.IntegrityError, match=r"assets/definition\.json was altered"):
        data.model("status")
    file.write_bytes(file.read_bytes()[:-1])
    registry = Registry(DataRoot.open(folder / "data"), "status")
    registry.record_decision(registry.state.last_candidate, Decision(False, ("withdrawn",)))
    with pytest.raises(ciml.IntegrityError, match="version 1 is not blessed"):
        data.model("status")

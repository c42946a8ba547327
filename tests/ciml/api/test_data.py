"""A data root in Python: what it lists, builds and trains is what the commands do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ciml
from ciml.cli.main import cli
from ciml.training import trainer
from ciml.training.evaluation import metrics as scoring
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import experiment_of
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult
from tests.ciml.api.conftest import SMALL
from tests.ciml.api.made import RUNS, facts, write_log


def run(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(cli, [*words, "--data-path", str(folder / "data")])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ciml.CimlError, match=r"no data at .*none; correct the path"):
        ciml.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    data = ciml.open(tmp_path / "new" / "data", create=True)
    assert (data.path, data.datasets(), data.models()) == (str(tmp_path / "new" / "data"), [], [])
    assert data.runs().num_rows == 0
    with pytest.raises(ciml.CimlError, match="no data at"):  # nothing has been stored
        ciml.open(tmp_path / "new" / "data")


def test_runs_are_those_of_the_command(made: Path) -> None:
    rows = ciml.open(made / "data").runs().to_pylist()
    listed = [json.loads(line) for line in run(made, "runs", "list", "--last", "1000", "--json").splitlines()][::-1]
    names = ("run_id", "build_name", "outcome", "trusted", "rule", "rows", "path", "digest")
    assert [{name: row[name] for name in names} for row in rows] == [
        {name: one[name] for name in names} for one in listed
    ]
    assert len(rows) == RUNS
    for row, wanted in zip(rows, map(facts, range(RUNS)), strict=True):
        found = [row[name] for name in ("pipeline", "change", "result", "outcome")]
        assert found == [wanted.pipeline, wanted.change, wanted.result, wanted.outcome]
        assert (dict(row["labels"]), row["start_time"].timestamp() * 1e6) == ({"size": "small"}, wanted.start_us)


@pytest.mark.whole
def test_trainings_and_their_comparison_are_those_of_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    data = ciml.open(folder / "data")
    forest = data.train("status", "random_forest", n_estimators=20, seed=3, name="forest")
    again = data.train("status", "random_forest", parameters={"n_estimators": 20}, seed=3)
    assert (forest.new, again.new, again.figures["test"]) == (True, True, forest.figures["test"])
    assert data.train("status", "random_forest", n_estimators=20, seed=3).experiment == again.experiment
    assert again.experiment.startswith("random_forest-")
    words = ["experiment", "train", "--experiment", "forest", "--dataset", "status"]
    assert json.loads(run(folder, *words, "--json")) == forest.figures
    assert run(folder, *words).splitlines()[:-1] == repr(forest).splitlines()
    define = "experiment define by-command --estimator random_forest -p n_estimators=20 --seed 3"
    run(folder, *define.split())
    words[3] = "by-command"
    accuracy = json.loads(run(folder, *words, "--json"))["test"]["accuracy"]
    assert forest.accuracy == tuple(accuracy[bound] for bound in ("value", "low", "high"))
    assert (forest.accuracy.value or 0) > 0.9 > (forest.base_rate.value or 1)
    assert (forest.runs, list(forest.baselines)) == (len(data.dataset("status").facts("test")), ["duration"])
    for wrong, message in [
        ({"estimator": "dn"}, "unknown estimator 'dn'; did you mean dnn?"),
        ({"estimator": "dnn", "epoch": 3}, "epoch: unknown key"),
        ({"estimator": "svm", "CC": 3}, "CC"),
        ({"estimator": "svm", "C": 3.0, "name": "forest"}, "exists with other values"),
    ]:
        with pytest.raises(ciml.CimlError, match=message):
            data.train("status", **wrong)  # type: ignore[arg-type]

    stump = data.train(data.dataset("status"), "random_forest", min_samples_leaf=99, name="stump")
    words = ["experiment", "compare", "--dataset", "status", "--json"]
    rows = data.compare("status", stump, forest).to_pylist()
    assert rows == json.loads(run(folder, *words, "stump", "forest"))
    assert [row["accuracy"] for row in rows] == [stump.accuracy.value, forest.accuracy.value]
    assert [row["difference"] is None for row in rows] == [True, False]
    by_accuracy = data.compare(data.dataset("status")).to_pylist()
    assert by_accuracy == json.loads(run(folder, *words))
    assert by_accuracy[-1]["experiment"] == "stump"


def test_a_cross_validation_is_that_of_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "RESAMPLES", 20)
    data = ciml.open(folder / "data")
    forest: ciml.ExperimentKeys = {"parameters": {"n_estimators": 20}, "seed": 3}
    by_job = data.cross_validate("status", "random_forest", name="forest", folds=2, hold_out="job", **forest)
    words = "experiment train --experiment forest --dataset status --cross-validate 2 --hold-out".split()
    assert json.loads(run(folder, *words, "job", "--json")) == by_job.figures
    assert run(folder, *words, "job").splitlines()[:-1] == repr(by_job).removeprefix("forest on status: ").splitlines()
    assert [fold["held_out"] for fold in by_job.figures["folds"]] in ([["lint"], ["unit"]], [["unit"], ["lint"]])
    assert not data.cross_validate("status", "random_forest", name="forest", folds=2, hold_out="job", **forest).new
    by_change = data.cross_validate(data.dataset("status"), "random_forest", name="forest", folds=3, **forest)
    assert by_change.new
    assert by_change.figures == json.loads(run(folder, *words[:-2], "3", "--hold-out", "change", "--json"))
    assert by_change.runs == len(data.dataset("status").facts("train"))
    assert by_change.accuracy.value == pytest.approx(sum(by_change.fold_accuracies) / 3)
    assert (by_change.accuracy.value or 0) > 0.9 > (by_change.base_rate.value or 1)
    assert by_change.pooled["f1"].low == by_change.figures["pooled"]["macro"]["f1"]["low"]
    printed = repr(by_change)
    for figure in (by_change.accuracy, by_change.f1, by_change.pooled["roc_auc"], *by_change.baselines.values()):
        assert str(figure) in printed
    assert "base rate" in printed
    assert list(by_change.baselines) == ["duration"]
    by_run = data.cross_validate("status", "random_forest", name="forest", folds=3, hold_out=(), **forest)
    assert by_run.figures["by"] == "run"
    with pytest.raises(ciml.CimlError, match="no run of 'status' has the fact 'weather'; hold out another one"):
        data.cross_validate("status", "random_forest", hold_out="weather", **forest)
    with pytest.raises(ciml.CimlError, match="folds: 1 is too few; use at least 2"):
        data.cross_validate("status", "random_forest", folds=1, **forest)


def test_an_exclusion_is_that_of_the_command_and_its_runs_are_in_no_array(folder: Path) -> None:
    data = ciml.open(folder / "data")
    number = data.exclude("a bad mirror", job="lint", since="2026-11-24T00:00:00Z")
    (kept,) = json.loads(run(folder, "exclude", "list", "--json"))
    assert (kept["id"], kept["job"], kept["reason"]) == (number, "lint", "a bad mirror")
    left = data.dataset("status")
    assert set(left.facts()["build_name"].to_pylist()) == {"unit"}
    assert len(left.to_numpy("train")[0]) == len(left.n_windows("train")) == len(left.facts("train"))
    data.revert_exclusion(number)
    assert "no exclusions" in run(folder, "exclude", "list")
    with pytest.raises(ciml.CimlError, match="reverted already"):
        data.revert_exclusion(number)
    with pytest.raises(ciml.CimlError, match="names no runs"):
        data.exclude("everything")


@pytest.mark.whole
def test_a_refresh_in_python_is_that_of_the_command(folder: Path) -> None:
    """One is nothing new after the other: they have the same snapshot and experiment."""
    (folder / "small.toml").write_text("\n".join(f"{name} = {value}" for name, value in SMALL.items()))
    by_command = run(folder, "refresh", "--dataset", "status", "--experiment", str(folder / "small.toml"))
    assert by_command.splitlines()[-2] == "status: nothing to do"
    again = ciml.open(folder / "data").refresh("status", **SMALL)
    assert (again.outcome, repr(again)) == ("nothing_new", "\n".join(by_command.splitlines()[-2:]))
    data = ciml.open(folder / "data")
    assert data.refresh("status").outcome == "nothing_new"  # the network stays, since nothing says otherwise
    assert "status: nothing to do" in run(folder, "refresh", "--dataset", "status")


def test_a_refresh_keeps_the_estimator_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments: list[Experiment | None] = []

    def nothing_new(config: TrainConfig, **_: object) -> TrainResult:
        experiments.append(config.experiment)
        return TrainResult("nothing_new", ())

    monkeypatch.setattr(trainer, "run_once", nothing_new)
    data = ciml.open(folder / "data")
    data.refresh("status")
    data.refresh("status", epochs=61)
    data.refresh("status", estimator="svm")
    data.refresh("status", "new")
    data.refresh("status", "new", seed=3)
    data.refresh("status", "new", epochs=61)
    network = Experiment.from_json({**SMALL, "epochs": 61})
    svm = Experiment(name="dnn", estimator="svm")
    forest = experiment_of("random_forest", {"seed": 3}, "dnn")
    assert experiments == [None, network, svm, None, forest, Experiment(epochs=61)]
    with pytest.raises(ciml.CimlError, match="parameters: not used by estimator dnn"):
        data.refresh("status", parameters={"n_estimators": 5})
    with pytest.raises(ciml.CimlError, match="n_estimators: unknown key"):
        data.refresh("status", n_estimators=5)


def test_a_data_set_is_replaced_only_on_request(folder: Path) -> None:
    data = ciml.open(folder / "data")
    keys = {"sample_interval": "10s", "features_regex": "1m", "max_windows": 6}
    assert data.define_dataset("load", **keys).windows == 6
    assert data.define_dataset("load", **keys).windows == 6
    keys["max_windows"] = 7
    with pytest.raises(ciml.CimlError, match="exists with another max_windows"):
        data.define_dataset("load", **keys)
    with pytest.raises(ciml.CimlError, match="no stored run matches"):
        data.define_dataset("load", replace=True, build_name="typo*")
    assert data.datasets() == ["load", "status"]
    assert data.define_dataset("load", replace=True, **keys).windows == 7
    assert data.datasets() == ["load", "status"]
    with pytest.raises(ciml.CimlError, match="data set: interval: unknown key"):
        data.define_dataset("other", interval="10s")


def test_a_log_is_parsed_or_refused_by_name(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 1)
    table = ciml.parse_log(tmp_path / "log")
    assert table.num_rows == 60
    assert table.schema.metadata[b"recorder"] == b"Dstat 0.7.4"
    (tmp_path / "log").write_text((tmp_path / "log").read_text().replace(" UTC", ""))
    berlin = ciml.parse_log(tmp_path / "log", zone="Europe/Berlin")
    assert (table["time"][0].as_py() - berlin["time"][0].as_py()).total_seconds() == 3600
    by_start = ciml.parse_log(tmp_path / "log", start="2026-11-24T14:00:00+02:00", end="2026-11-24T12:01:00Z")
    assert by_start["time"].equals(table["time"])
    with pytest.raises(ciml.CimlError, match="start: '2026-11-24T12:00:00' has no time zone"):
        ciml.parse_log(tmp_path / "log", start="2026-11-24T12:00:00")
    with pytest.raises(ciml.CimlError, match="none: log_not_found: no such file"):
        ciml.parse_log(tmp_path / "none")

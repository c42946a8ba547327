"""``ciml refresh``: what it says, and its exit codes."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ciml.cli.commands.learn.models import REJECTED, RefreshRunning
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.services.options import TrainerOptions
from ciml.training import trainer
from ciml.training.exclusions import read_state
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import TrainResult
from tests.project.test_readme import ROOT, commands

EVALUATION = {
    "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9, "right": 40, "runs": 50},
    "base_rate": {"value": 0.3},
}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root at the relative path ``data``."""
    monkeypatch.chdir(tmp_path)
    DataRoot.open("data").experiments.create("x", b"")


def run(monkeypatch: pytest.MonkeyPatch, result: TrainResult, *arguments: str) -> tuple[Result, list[TrainConfig]]:
    configs: list[TrainConfig] = []

    def once(config: TrainConfig, **_: Any) -> TrainResult:
        configs.append(config)
        return result

    monkeypatch.setattr(trainer, "run_once", once)
    command = ["refresh", "--dataset", "d", "--data-path", "data", *arguments]
    return CliRunner().invoke(cli, command, standalone_mode=False), configs


def test_a_push_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    excluded, experiment = tmp_path / "excluded", tmp_path / "experiment.toml"
    excluded.write_text("# purged\nzuul~a~1 a leak\n\nzuul~b~1\n")
    experiment.write_text('name = "wide"\nhidden_layers = "100/100"\n')
    result = TrainResult("pushed", ("it is better",), version=3, champion=2, metrics={"evaluation": EVALUATION})
    arguments = ["--exclude", str(excluded), "--experiment", str(experiment), "--min-test-runs", "7", "--model", "m"]
    arguments += ["--data-path", str(tmp_path / "data"), "--accept-baseline", "memory", "--min-decided", "0.1"]
    done, (config,) = run(monkeypatch, result, *arguments)
    assert done.return_value == 0
    assert done.output.splitlines() == [
        "m: pushed version 3",
        "  accuracy 0.800 (0.700 to 0.900) on 50 held-out runs; base rate 0.300",
        "  it is better",
    ]
    kept = read_state(config.data.exclusions).active()
    reasons = {one.exclusion.run_id: one.exclusion.reason for one in kept}
    assert reasons == {"zuul~a~1": "a leak", "zuul~b~1": "excluded"}
    assert config.experiment is not None
    assert config.experiment.hidden_layers == (100, 100)
    assert (config.gate.min_test_runs, config.gate.tolerance) == (7, 0.05)
    assert (config.gate.accept_baselines, config.gate.min_decided) == (("memory",), 0.1)
    assert (config.dataset, config.model, config.label) == ("d", "m", "stable")


def test_warns_of_models_that_learned_excluded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainResult("nothing_new", ("the same runs",), warnings=("model d version 1 learned …",))
    done, _ = run(monkeypatch, result)
    assert done.stderr == "warning: model d version 1 learned …\n"
    done, _ = run(monkeypatch, result, "--json")
    assert json.loads(done.stdout)["warnings"] == ["model d version 1 learned …"]


def test_a_rejection_is_reported_with_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = run(monkeypatch, TrainResult("rejected", ("it may be worse",), champion=2), "--json")
    assert done.return_value == REJECTED
    found = json.loads(done.output)
    assert (found["outcome"], found["reasons"], found["version"]) == ("refused", ["it may be worse"], None)
    done, _ = run(monkeypatch, TrainResult("nothing_new", ("the same runs",)))
    assert (done.return_value, done.output) == (0, "d: nothing to do\n  the same runs\n")


def test_defaults_and_mistakes() -> None:
    config = TrainerOptions(data_path="data", dataset="d").open()
    assert (config.model, config.experiment) == ("d", None)  # None: see tests/training/trainer/test_last_experiment.py
    assert TrainResult("rejected", ("why",)).lines("m") == ["m: not pushed", "  why"]
    for more, message in (
        (["--model", "a/b"], "model name 'a/b'"),
        (["--accept-baseline", "colour"], "accept_baselines: unknown number 'colour'; choose from duration, memory"),
    ):
        done = CliRunner().invoke(cli, ["refresh", "--dataset", "d", "--data-path", "data", *more])
        assert (done.exit_code, message in done.output) == (2, True)


def test_lineage_is_an_option_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    result = TrainResult("nothing_new", ("the same runs",))
    assert [run(monkeypatch, result, *more)[1][0].lineage for more in ((), ("--lineage",))] == [False, True]
    monkeypatch.setenv("CIML_LINEAGE", "1")
    assert [run(monkeypatch, result, *more)[1][0].lineage for more in ((), ("--no-lineage",))] == [True, False]


def test_an_estimator_can_be_named_instead_of_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = TrainResult("nothing_new", ("none",))
    _, (config,) = run(monkeypatch, result, "--estimator", "ExtraTreesClassifier", "--allow-module", "acme.models")
    assert config.experiment is not None
    assert config.experiment.estimator == "sklearn.ensemble:ExtraTreesClassifier"
    assert config.allow_modules == ("acme.models",)
    own = "tests.training.estimators.user_models"
    _, (config,) = run(monkeypatch, result, "--estimator", f"{own}:Shares")
    assert config.allow_modules == (own,)  # who names it here allows it
    experiment = tmp_path / "experiment.toml"
    experiment.write_text('name = "wide"\n')
    done, configs = run(monkeypatch, result, "--experiment", str(experiment), "--estimator", "svm")
    assert (str(done.exception), configs) == ("--experiment and --estimator exclude each other", [])


@pytest.mark.parametrize("watch", [(), ("--watch",)])
def test_a_file_on_the_command_line_allows_its_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, watch: tuple[str, ...]
) -> None:
    own = "tests.training.estimators.user_models"
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(f'name = "mine"\nestimator = "{own}:Shares"\n')
    configs: list[TrainConfig] = []
    monkeypatch.setattr(RefreshRunning, "run", lambda _, service, *__, **___: configs.append(service.config))
    _, once = run(monkeypatch, TrainResult("nothing_new", ("none",)), "--experiment", str(experiment), *watch)
    (config,) = [*once, *configs]
    assert config.allow_modules == (own,)


def test_the_file_of_a_service_allows_no_module(tmp_path: Path) -> None:
    own = "tests.training.estimators.user_models"
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(f'name = "mine"\nestimator = "{own}:Shares"\n')
    options = TrainerOptions(data_path="data", dataset="d", experiment=str(experiment))
    assert options.open().allow_modules == ()
    assert options.service().config.allow_modules == ()
    assert replace(options, allow_modules=(own,)).service().config.allow_modules == (own,)


def test_the_refreshes_of_the_page_on_lineage_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands((ROOT / "docs/lineage.md").read_text()) if "ciml refresh" in line]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line.partition("ciml refresh ")[2])
        done, (config,) = run(monkeypatch, TrainResult("nothing_new", ("the same runs",)), *words)
        assert (done.return_value, config.lineage, config.dataset) == (0, True, "provider"), done.output

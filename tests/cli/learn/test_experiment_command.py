"""``ciml experiment`` and the console scripts of the talk."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ciml.data_root import DataRoot
from cli.commands.learn.experiment.train import train
from cli.main import cli
from cli.talk_scripts import undashed
from tests.training.conftest import made  # noqa: F401  (a fixture)
from training.evaluation import scores as scoring
from training.experiments.trials import load_experiment

SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def data(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setattr(scoring, "RESAMPLES", 5)
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def run(*words: str, data: Path) -> Result:
    return CliRunner().invoke(cli, ["experiment", *words, "--data-path", str(data)])


def test_the_lines_of_the_talk_work_as_pasted(data: Path):
    line = (
        "ciml-setup-experiment —experiment dnn-5x100 —estimator tf.estimator.DNNClassifier "
        "—hidden-layers 100/100/100/100/100 —steps $(( 2000 / 128 * 5 )) —batch-size 128 —epochs 5 —data-path "
    )
    done = subprocess.run(["bash", "-ec", f"{SCRIPTS}/{line}{data}"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dnn-5x100: dnn, stored in ")
    stored = load_experiment(DataRoot.open(data).experiments, "dnn-5x100")
    assert (stored.estimator, stored.hidden_layers) == ("dnn", (100,) * 5)
    assert (stored.steps, stored.epochs, stored.batch_size) == (75, 5, 128)
    assert (stored.optimizer, stored.learning_rate, stored.l2) == ("adagrad", 0.05, 0.0)

    helped = subprocess.run([SCRIPTS / "ciml-train-model", "—help"], capture_output=True, text=True, check=True)
    assert "ciml-train-model --dataset cpu-load-1min-dataset --experiment dnn-5x100" in helped.stdout
    words = undashed(shlex.split(f"—dataset providers —experiment dnn-5x100 —data-path {data}"))
    trained = CliRunner().invoke(train, words)
    assert trained.exit_code == 0, trained.output
    assert trained.output.startswith("dnn-5x100 on providers: ")
    assert " runs, 5 epochs, 5 steps" in trained.output
    assert "base rate" in trained.output
    assert "memory alone: accuracy" in trained.output


def test_define_train_show_and_the_same_again(data: Path):
    define = ["define", "forest", "--estimator", "random_forest", "-p", "n_estimators=20", "-p", "max_depth=none"]
    assert "forest: random_forest, stored in" in run(*define, data=data).output
    assert "forest: random_forest, as it is already in" in run(*define, data=data).output
    other = run(*define, "--seed", "1", data=data)
    assert (other.exit_code, "seed is 0, not 1; choose another name" in other.output) == (2, True)
    shown = run("show", "forest", data=data).output
    assert "parameters      {'max_depth': None, 'n_estimators': 20}" in shown
    assert "not trained yet" in shown

    words = ["train", "--experiment", "forest", "--dataset", "providers"]
    first, again = run(*words, data=data), run(*words, data=data)
    assert first.exit_code == 0, first.output
    assert first.output.splitlines()[:-1] == again.output.splitlines()[:-1]
    assert "  stored in" in first.output.splitlines()[-1]
    assert "  as it is already in" in again.output.splitlines()[-1]
    (result,) = json.loads(run("show", "forest", "--json", data=data).output)["results"]
    assert json.loads(run(*words, "--json", data=data).output) == result
    assert run("show", data=data).output == "forest\n"
    folds = run(*words, "--cross-validate", "3", "--hold-out", "job", data=data)
    assert folds.output.splitlines()[0] == "3 folds by job, test runs unread"
    assert "; held out " in folds.output
    assert "  mean    accuracy 0." in folds.output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--experiment", "none", "--dataset", "providers"], "no experiment 'none'"),
        (["train", "--experiment", "x", "--dataset", "providers", "--hold-out", "job"], "--hold-out: needs"),
        (["train", "--experiment", "x", "--dataset", "providers", "--gpu"], "--gpu: training is on the CPU"),
        (["define", "a/b"], "experiment: name: 'a/b' is not valid"),
        (["define", "a", "--hidden-layers", "100/x"], "experiment: hidden_layers.1: expected int, got str"),
        (
            ["define", "a", "--estimator", "tree"],
            "unknown estimator 'tree'; choose from boosted_summaries",
        ),
        (["define", "a", "--estimator", "svm", "--epochs", "5"], "experiment: epochs: not used by estimator"),
        (["define", "a", "--estimator", "svm", "-p", "C"], "'C' is not NAME=VALUE"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], line: str, tmp_path: Path):
    DataRoot.open(tmp_path).datasets.create("x", b"")
    done = run(*words, data=tmp_path)
    assert done.exit_code == 2
    assert line in done.output.splitlines()[-1]


def test_each_optimizer_of_the_original_is_one(tmp_path: Path):
    DataRoot.open(tmp_path).datasets.create("x", b"")
    wanted = {"Adagrad": "adagrad", "ProximalAdagrad": "adagrad", "Ftrl": "ftrl", "RMSProp": "rmsprop", "SGD": "sgd"}
    for name, want in wanted.items():
        assert run("define", name, "--optimizer", name, data=tmp_path).exit_code == 0
        assert load_experiment(DataRoot.open(tmp_path).experiments, name).optimizer == want

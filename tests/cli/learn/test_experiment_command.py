"""``ciml experiment`` and the console scripts of the talk."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ciml.cli.commands.learn.experiment import define, setup
from ciml.cli.commands.learn.experiment.train import train
from ciml.cli.talk_scripts import undashed
from ciml.data_root import DataRoot
from ciml.pipelines.mlflow import params_of
from ciml.reports.experiments.comparison import comparison_page
from ciml.training.evaluation import metrics as scoring
from ciml.training.experiments.results import experiment_names, load_experiment, stored_trials
from tests.cli.calling import ciml
from tests.training.conftest import made  # noqa: F401  (a fixture)


@pytest.fixture
def data(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setattr(scoring, "RESAMPLES", 5)
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def run(*words: str, data: Path, code: int = 0) -> Result:
    return ciml("experiment", *words, "--data-path", data, code=code)


def test_the_lines_of_the_talk_work_as_pasted(data: Path):
    line = (
        "—experiment dnn-5x100 —estimator tf.estimator.DNNClassifier —hidden-layers 100/100/100/100/100 "
        f"—steps 75 —batch-size 128 —epochs 5 —data-path {data}"
    )
    done = CliRunner().invoke(setup, undashed(line.split()))
    assert done.output.startswith("dnn-5x100: dnn, stored in ")
    stored = load_experiment(DataRoot.open(data).experiments, "dnn-5x100")
    assert (stored.estimator, stored.hidden_layers) == ("dnn", (100,) * 5)
    assert (stored.steps, stored.epochs, stored.batch_size) == (75, 5, 128)
    assert (stored.optimizer, stored.learning_rate, stored.l2) == ("adagrad", 0.05, 0.0)
    words = undashed(f"—dataset providers —experiment dnn-5x100 —data-path {data}".split())
    trained = CliRunner().invoke(train, words)
    assert trained.exit_code == 0, trained.output
    assert trained.output.startswith("dnn-5x100 on providers: ")
    for text in (" runs, 5 epochs, 5 steps", "base rate", "memory alone: accuracy"):
        assert text in trained.output


@pytest.mark.parametrize(
    ("command", "words", "estimator", "optimizer"),
    [
        (define, ("a",), "random_forest", "adam"),
        (define, ("a", "--seed", "3"), "random_forest", "adam"),
        (define, ("a", "--hidden-layers", "8"), "dnn", "adagrad"),  # as in earlier versions
        (define, ("a", "--estimator", "dnn"), "dnn", "adam"),
        (setup, ("--experiment", "a"), "dnn", "adagrad"),  # as in the talk
    ],
)
def test_an_experiment_is_a_forest_unless_it_says_otherwise(
    command: click.Command, words: tuple[str, ...], estimator: str, optimizer: str, tmp_path: Path
) -> None:
    DataRoot.open(tmp_path).datasets.create("x", b"")
    done = CliRunner().invoke(command, [*words, "--data-path", str(tmp_path)])
    assert done.exit_code == 0, done.output
    stored = load_experiment(DataRoot.open(tmp_path).experiments, "a")
    assert (stored.estimator, stored.optimizer) == (estimator, optimizer)


def test_define_train_show_and_the_same_again(data: Path):
    define = ["define", "forest", "--estimator", "random_forest", "-p", "n_estimators=20", "-p", "max_depth=none"]
    assert "forest: random_forest, stored in" in run(*define, data=data).output
    assert "forest: random_forest, as it is already in" in run(*define, data=data).output
    assert "seed is 0, not 1; choose another name" in run(*define, "--seed", "1", data=data, code=2).output
    shown = run("show", "forest", data=data).output
    assert 'parameters      {"max_depth": null, "n_estimators": 20}' in shown
    assert "not trained yet" in shown

    words = ["train", "--experiment", "forest", "--dataset", "providers"]
    first, again = run(*words, data=data), run(*words, data=data)
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
    for hold_out, by in (((), "change"), (("--hold-out", "run"), "run")):
        folds = run(*words, "--cross-validate", "2", *hold_out, data=data)
        assert folds.output.splitlines()[0] == f"2 folds by {by}, test runs unread"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--experiment", "none", "--dataset", "providers"], "no experiment 'none'"),
        (["train", "--experiment", "x", "--dataset", "providers", "--hold-out", "job"], "--hold-out: needs"),
        (["train", "--experiment", "x", "--dataset", "providers", "--gpu"], "--gpu: training is on the CPU"),
        (["define", "a/b"], "experiment: name: 'a/b' is not valid"),
        (["define", "a", "--hidden-layers", "100/x"], "experiment: hidden_layers.1: expected int, got str"),
        (["define", "a", "--estimator", "tree"], "unknown estimator 'tree'; name a classifier of scikit-learn"),
        (["define", "a", "--estimator", "svm", "--epochs", "5"], "experiment: epochs: not used by estimator"),
        (["define", "a", "--estimator", "svm", "-p", "C"], "-p C: want NAME=VALUE"),
    ],
)
def test_a_mistake_is_one_clear_line(words: list[str], line: str, tmp_path: Path):
    DataRoot.open(tmp_path).datasets.create("x", b"")
    assert line in run(*words, data=tmp_path, code=2).output.splitlines()[-1]


def test_any_classifier_is_trained_with_its_parameters_and_a_view(data: Path) -> None:
    words = ["--estimator", "LogisticRegression", "-p", "C=0.1", "-p", "max_iter=300", "--view", "flat"]
    first = run("train", *words, "--dataset", "providers", "--json", data=data)
    experiment = json.loads(first.output)["experiment"]
    assert experiment["estimator"] == "sklearn.linear_model:LogisticRegression"
    assert (experiment["parameters"], experiment["view"]) == ({"C": 0.1, "max_iter": 300}, "flat")
    assert experiment["packages"] == {"scikit-learn": metadata.version("scikit-learn")}
    run("define", "linear", *words, data=data)
    shown = run("show", "linear", data=data).output.splitlines()
    assert "estimator       sklearn.linear_model:LogisticRegression" in shown
    assert "view            flat" in shown

    steps = '[["scale", {"class": "StandardScaler"}], ["model", {"class": "LogisticRegression"}]]'
    scaled = ["--estimator", "Pipeline", "-p", f"steps={steps}", "-p", "model__C=0.1"]
    second = run("train", *scaled, "--dataset", "providers", "--json", data=data)
    assert json.loads(second.output)["test"]["runs"] == json.loads(first.output)["test"]["runs"]
    names = [json.loads(done.output)["experiment"]["name"] for done in (first, second)]
    assert params_of(json.loads(second.output)["experiment"])["parameters.model__C"] == "0.1"
    run("report", *names, "--output", str(data / "report"), data=data)
    page = (data / "report" / "providers" / names[1] / "index.html").read_text()
    assert "sklearn.pipeline:Pipeline" in page
    assert "StandardScaler" in page
    assert "hidden layers" not in page  # of networks alone
    for mistake, line in {
        ("-p", "c=1"): "LogisticRegression has no parameter of this name; did you mean C?",
        ("-p", "memory__x=1"): "no part 'memory'",
    }.items():
        assert line in run("define", "b", "--estimator", "LogisticRegression", *mistake, data=data, code=2).output


def test_a_stored_experiment_imports_a_module_only_if_it_is_allowed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    source = "from sklearn.tree import DecisionTreeClassifier\nclass Tree(DecisionTreeClassifier): pass\n"
    (tmp_path / "command_models.py").write_text(source)
    defined = run("define", "mine", "--estimator", "command_models:Tree", "-p", "max_depth=2", data=data)
    assert "--dataset NAME --allow-module command_models --data-path" in defined.output
    monkeypatch.delitem(sys.modules, "command_models")
    words = ["train", "--experiment", "mine", "--dataset", "providers"]
    rejected = run(*words, data=data, code=2)
    assert "command_models" not in sys.modules
    assert "command_models:Tree: module command_models is not allowed" in rejected.output
    run(*words, "--allow-module", "command_models", data=data)
    assert run("show", "mine", "--json", data=data).output.count('"sha256:') >= 1
    (tmp_path / "command_models.py").write_text(source + "# changed\n")
    changed = run(*words, "--allow-module", "command_models", "--cross-validate", "2", data=data, code=2)
    assert "'mine' was defined with command_models sha256:" in changed.output
    both = run(*words, "-p", "max_depth=3", data=data, code=2)
    assert "-p and --view: an experiment has its own; use them with --estimator" in both.output


@pytest.mark.parametrize("name", ["Adagrad", "ProximalAdagrad", "Ftrl", "RMSProp", "SGD"])
def test_each_optimizer_of_the_original_is_one(name: str, tmp_path: Path):
    DataRoot.open(tmp_path).datasets.create("x", b"")
    run("define", "a", "--optimizer", name, data=tmp_path)
    assert load_experiment(DataRoot.open(tmp_path).experiments, "a").optimizer == name.lower().removeprefix("proximal")


def test_compare_prints_the_numbers_of_the_page(data: Path):
    for name, trees in (("one", "1"), ("many", "50"), ("idle", "2")):
        define = ["define", name, "--estimator", "random_forest", "-p", f"n_estimators={trees}"]
        run(*define, data=data)
        if name != "idle":
            run("train", "--experiment", name, "--dataset", "providers", data=data)
    words = ["compare", "--dataset", "providers"]
    rows = json.loads(run(*words, "--json", data=data).output)
    assert {row["experiment"] for row in rows} == {"one", "many"}

    trials = [(each, each.predictions()) for each in stored_trials(DataRoot.open(data).experiments, ["one", "many"])]
    (tests,) = [each for each in comparison_page(trials, {}).sections if each.title == "providers: the test runs"]
    page = [dict(zip(tests.tables[0].headings, row, strict=True)) for row in tests.tables[0].rows]
    f1_of = [dict(zip(tests.tables[1].headings, row, strict=True)) for row in tests.tables[1].rows]
    assert [row["experiment"] for row in rows] == [row["experiment"] for row in page]
    for row, beside, other in zip(rows, page, f1_of, strict=True):
        assert [f"{row[key]:.3f}" for key in ("accuracy", "base_rate", "baseline_accuracy", "f1", "roc_auc")] == [
            beside["accuracy"], beside["base rate"], beside["memory alone"], other["macro F1"], other["ROC-AUC"],
        ]  # fmt: skip
    best, second = rows
    assert (best["difference"], best["note"]) == (None, "")
    assert f"{second['difference']:+.3f}".replace("+0.000", "0.000") == page[1]["difference"]
    assert f"{second['mcnemar']:.3f}" == page[1]["McNemar p"]
    assert second["difference_low"] < second["difference"] < second["difference_high"]

    table = run(*words, data=data).output
    assert f"{best['accuracy']:.3f}" in table
    assert list(csv.DictReader(run(*words, "--csv", "-", data=data).output.splitlines())) == [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
    ]
    written = run(*words, "--csv", str(data / "rows.csv"), data=data)
    assert (written.output, (data / "rows.csv").read_text().count("\n")) == (table, 3)
    # the first named one is the one that others are compared with
    turned = json.loads(run("compare", second["experiment"], best["experiment"], "--json", data=data).output)
    assert turned[1]["difference"] == -second["difference"]
    assert "give one" in run(*words, "--csv", "-", "--json", data=data, code=2).output
    idle = run("compare", "idle", "--dataset", "providers", data=data, code=2)
    assert "no result of idle on providers" in idle.output


def test_estimators_are_trained_with_their_defaults(data: Path):
    line = ("train", "--estimator", "random_forest", "--estimator", "svm", "--dataset", "providers")
    done = run(*line, data=data)
    root = DataRoot.open(data)
    trials = stored_trials(root.experiments, experiment_names(root.experiments))
    assert sorted(each.experiment.rpartition("-")[0] for each in trials) == ["random_forest", "svm"]
    assert done.output.count("stored in") == 2
    assert run(*line, data=data).output.count("as it is already in") == 2
    assert experiment_names(root.experiments) == sorted(each.experiment for each in trials)
    for words in (("train", "--dataset", "providers"), (*line, "--experiment", "x")):
        assert "give either --experiment NAME, or --estimator NAME" in run(*words, data=data, code=2).output
    misspelt = run(*line[:1], "--estimator", "dn", *line[-2:], data=data, code=2)
    assert "unknown estimator 'dn'; did you mean dnn?" in misspelt.output

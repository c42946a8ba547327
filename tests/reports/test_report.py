"""``ciml experiment report``: stored figures beside their baselines, on self-contained pages."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.stats import binomtest

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.reports.drawing import Estimate
from ciml.reports.experiments import render as render_module
from ciml.reports.experiments.comparison import comparison_page, learning_plot
from ciml.reports.experiments.plots import bars_plot, calibration_plot, slices_plot
from ciml.reports.experiments.render import report_experiments, result_page
from ciml.reports.experiments.views import Bar
from ciml.reports.page import Page, Section, render
from ciml.serving.decimals import shortest_decimals
from ciml.storage import LocalStore
from ciml.training.calibration.calibrators import Temperature
from ciml.training.calibration.sets import make_rules
from ciml.training.data.examples import read_dataset
from ciml.training.evaluation import metrics as scoring
from ciml.training.evaluation.bootstrap import BY_CLASS
from ciml.training.evaluation.candidate import verdict_figures
from ciml.training.evaluation.metrics import calibration_quality, evaluate
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import Predictions, StoredTrial, create_experiment
from ciml.training.experiments.trials import Trial
from ciml.trust import TrustPolicy
from tests.durable import Steps
from tests.reports.test_plot import check_files, self_contained
from tests.reports.test_results import folds, of_b, predicted, stored
from tests.training.calibration.scores import made_up


@pytest.fixture(scope="module")
def hostile(hostile_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data path with two forests that were trained on classes and jobs of hostile names."""
    folder = shutil.copytree(hostile_root, tmp_path_factory.mktemp("hostile") / "data")
    data = DataRoot.open(folder)
    everybody = TrustPolicy.from_json({"rule": [{"name": "everybody", "trusted": True, "source": ["*"]}]})
    material = read_dataset(data.dataset("bad"), everybody)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "RESAMPLES", 5)
        for name, trees in (("one", 1), ("ten", 10)):
            what = Experiment(name=name, estimator="random_forest", parameters={"n_estimators": trees})
            create_experiment(data.experiments, what)
            trial = Trial(data.experiments, what, material)
            trial.run()
            trial.run_on(material)
            trial.cross_validate(2, ("job",))
        create_experiment(data.experiments, Experiment(name="idle"))
    return folder


@pytest.fixture(scope="module")
def reported(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all that is in ``hostile``."""
    folder = tmp_path_factory.mktemp("reported")
    finished: list[tuple[str, int, int]] = []
    with Steps(str(folder)).recording() as steps:
        experiments = DataRoot.open(hostile).experiments
        address = report_experiments(experiments, [], [], folder, progress=lambda *done: finished.append(done))
    assert address == f"{folder}/index.html"
    assert finished == [("pages", 0, 3), ("pages", 1, 3), ("pages", 2, 3), ("pages", 3, 3)]
    pages = [f"replace {name}" for name in ("bad/one/index.html", "bad/ten/index.html", "index.html")]
    assert [step for step in steps.steps if step.endswith(".html")] == pages  # no page leads to one that is not there
    return folder


def section(page: Page, title: str) -> Section:
    (found,) = (each for each in page.sections if each.title == title)
    return found


def test_the_page_of_a_result_shows_the_stored_figures(hostile: Path, reported: Path):
    folder = reported / "bad" / "ten"
    tags = self_contained((folder / "index.html").read_text())
    assert "<script>alert(1)</script>" in tags.text
    assert "_hidden" in tags.text
    (path,) = (hostile / "experiments/ten/results/bad").glob("*/result.json")
    test = json.loads(path.read_text())["test"]
    for figure in (test["accuracy"], test["macro"]["f1"], test["macro"]["pr_auc"]):
        assert f"{figure['value']:.3f}" in tags.text
        assert f"{figure['low']:.3f} to {figure['high']:.3f}" in tags.text
    check_files(folder, "calibration", "confusion", "curves", "elsewhere", "errors", "folds-1", "slices-1")


def test_several_are_compared_and_each_has_a_page(reported: Path):
    pages = {"bad/one/index.html", "bad/ten/index.html"}
    assert {str(path.relative_to(reported)) for path in reported.rglob("*.html")} == {"index.html", *pages}
    tags = self_contained((reported / "index.html").read_text(), *pages)
    assert sorted(value for name, value in tags.attributes if name == "href" and value in pages) == sorted(pages)
    stems = {"bad-standing", "bad-errors", "bad-curves", "bad-validated-1"}
    assert {path.stem for path in reported.glob("*.svg")} == stems


SURE = predicted([0] * 6 + [1] * 4, of_b(*[0.1] * 5, 0.7, *[0.8] * 3, 0.4))
BASELINES = {
    "duration": {
        "what": "seconds",
        **{key: {"value": 0.7, "low": 0.4, "high": 0.9} for key in ("accuracy", "brier")},
        "macro": {name: {"value": 0.65} for name in BY_CLASS},
        "classes": {
            name: {"runs": runs, **{each: {"value": 0.25} for each in BY_CLASS}}
            for name, runs in (("a", 6), ("b", 4))
        },
    }
}  # fmt: skip


def test_each_figure_stands_beside_the_base_rate_and_one_number():
    trial = stored("x", SURE, baselines=BASELINES, slices={"job": ["p"] * 5 + ["q"] * 5})
    page = result_page(trial, SURE)
    assert [(tile.label, tile.value) for tile in page.tiles] == [
        ("accuracy", "0.800"), ("base rate", "0.600"), ("duration alone", "0.700"), ("macro F1", "0.792"),
    ]  # fmt: skip
    (figures,) = section(page, "Figures").tables
    assert figures.headings == ("metric", "value", "95 %", "base rate", "duration alone")
    assert [(row[0], row[1], row[3], row[4]) for row in figures.rows] == [
        ("accuracy", "0.800", "0.600", "0.700"),
        ("macro precision", "0.792", "0.300", "0.650"),
        ("macro recall", "0.792", "0.500", "0.650"),
        ("macro F1", "0.792", "0.375", "0.650"),
        ("macro ROC-AUC", "0.958", "0.500", "0.650"),
        ("macro PR-AUC", "0.963", "0.500", "0.650"),
        ("Brier (less is better)", "0.102", "0.263", "0.700"),
        ("log loss (less is better)", "0.332", "0.727", "–"),
        ("calibration error", "0.240", "0.150", "–"),
    ]
    answered, probable = section(page, "Classes").tables
    assert [row[:5] + row[6:] for row in answered.rows] == [
        ("a", "6", "0.833", "0.833", "0.833", "0.750", "0.250"),
        ("b", "4", "0.750", "0.750", "0.750", "0.000", "0.250"),
    ]
    assert [(row[0], row[1], row[3], row[5], row[6]) for row in probable.rows] == [
        ("a", "0.958", "0.976", "0.600", "0.250"),
        ("b", "0.958", "0.950", "0.400", "0.250"),
    ]
    (jobs,) = section(page, "By job").tables
    assert [row[:3] + row[4:] for row in jobs.rows] == [
        ("p", "5", "1.000", "1.000", "–"),
        ("q", "5", "0.600", "0.800", "–"),
    ]
    titles = {plot.name: plot.title for each in page.sections for plot in each.plots}
    assert titles == {
        "confusion": "Most frequent error: a classified as b, 1 of 6 runs",
        "errors": "b is misclassified most often: 25 % (5 to 70 %) of its 4 test runs",
        "curves": "ROC-AUC 0.96; a random guess has 0.50",
        "calibration": "Confidence matches accuracy: mean confidence 82 %, accuracy 80 %; calibration error 0.24",
        "slices-1": "For 1 of 2 values of job, guessing the most frequent class is better",
    }


def test_a_calibration_and_its_verdicts_stand_beside_the_uncalibrated_answers(tmp_path: Path):
    said, labels, _ = made_up(400, 4.0, seed=1)
    calibrated = Temperature(4.0).apply(said)
    rules = make_rules(calibrated, labels, ["p"] * 400, ("a", "b"), coverage=0.9, calibration={})
    figures = verdict_figures(rules, shortest_decimals(calibrated), labels, ["p"] * 400)
    trial = stored("x", predicted(labels.tolist(), calibrated))
    assert trial.result is not None
    before = calibration_quality(evaluate(said, labels, ("a", "b"), labels))
    known = {"method": "temperature", "temperature": 4.0, "fitted_to": 400, "before": before}
    result = {**trial.result, "calibration": known, "verdicts": figures}
    page = result_page(replace(trial, result=result), predicted(labels.tolist(), calibrated))
    found = section(page, "Calibration")
    assert found.text == (
        "Calibrated by temperature on 400 runs of dev, which the model did not learn. The log loss on the test runs is "
        f"{trial.result['test']['log_loss']:.3f}; without the calibration it is {before['log_loss']:.3f}."
    )
    (drawn,) = found.plots
    errors = trial.result["test"]["calibration"]["ece"], before["calibration"]["ece"]
    assert errors[0] < 0.06 < 0.1 < errors[1]
    assert drawn.title.endswith(f"calibration error {errors[0]:.2f}, {errors[1]:.2f} without calibration")
    figure = Figure(figsize=drawn.size)
    drawn.paint(figure)
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    wanted = [[100 * each["confidence"], 100 * each["accuracy"]] for each in before["calibration"]["bins"]]
    np.testing.assert_allclose(lines["without calibration"], wanted, atol=0.01)
    coverage, causes = section(page, "Verdicts").tables
    assert [row[:3] for row in coverage.rows] == [
        ("all runs", "400", f"{figures['coverage']['value']:.3f}"),
        ("a", f"{(labels == 0).sum()}", f"{figures['coverage']['by_class']['a']['value']:.3f}"),
        ("b", f"{(labels == 1).sum()}", f"{figures['coverage']['by_class']['b']['value']:.3f}"),
        ("unknown", "400", f"{figures['abstained']['value']:.3f}"),
        ("unknown, since unlike the learned runs", "400", "0.000"),
    ]
    assert [row[:3] for row in causes.rows] == [
        (name, f"{one['verdicts']}", f"{one['precision']['value']:.3f}") for name, one in figures["causes"].items()
    ]
    plain = result_page(trial, predicted(labels.tolist(), calibrated))
    assert section(plain, "Calibration").text == ""
    assert "Verdicts" not in [each.title for each in plain.sections]


def test_the_calibration_plot_has_wilsons_95_percent_interval_of_each_bin():
    """The stored bins have no intervals: the plot computes them."""
    counts = [(3, 4), (9, 20), (0, 7), (50, 50)]
    bins = [
        {"low": 0.1 * number, "runs": runs, "confidence": 0.1 * number + 0.05, "accuracy": right / runs}
        for number, (right, runs) in enumerate(counts)
    ]
    drawn = calibration_plot({"ece": 0.1, "bins": bins})
    figure = Figure(figsize=drawn.size)
    drawn.paint(figure)
    (intervals,) = figure.axes[0].collections
    assert isinstance(intervals, LineCollection)
    ends = [segment[:, 1] for segment in intervals.get_segments()]
    expected = [binomtest(right, runs).proportion_ci(0.95, method="wilson") for right, runs in counts]
    np.testing.assert_allclose(ends, [(100 * interval.low, 100 * interval.high) for interval in expected], atol=1e-9)


def test_missing_parts_are_reported():
    passes = {"history": {"loss": [2.0, 1.5], "val_loss": [1.9, 2.1], "accuracy": [0.5, 0.6]}, "best_epoch": 1}
    page = result_page(replace(stored("x", SURE, training=passes), older=2), None)
    assert section(page, "Separation of classes").text == "No curves: the predictions file is missing."
    (learning,) = section(page, "Learning").plots
    assert learning.title == "Over 2 passes the loss goes from 2 to 1.5; the dev loss is lowest, 1.9, after 1"
    assert "kept: pass 1" in learning.svg
    assert section(page, "How it was made").text.endswith("Older stored results on this data set: 2.")
    assert section(result_page(stored("x", SURE), SURE), "Learning").text.startswith("No curve")

    alike = predicted([0, 0], of_b(0.1, 0.2))
    page = result_page(stored("x", alike), alike)
    assert section(page, "Separation of classes").text == "No curves: all test runs are of one class."
    titles = {plot.name: plot.title for each in page.sections for plot in each.plots}
    assert titles["confusion"] == "No run is misclassified"
    assert titles["errors"] == "No run is misclassified"
    render(page)

    nothing = predicted([], np.zeros((0, 2)))
    page = result_page(stored("x", nothing), nothing)
    assert page.lead.endswith("Without test runs there are no figures.")
    assert [each.title for each in page.sections] == ["Learning", "How it was made"]

    page = result_page(StoredTrial("x", "tests", LocalStore("nowhere"), None, (), (folds(6, 8),)), None)
    assert page.lead.startswith("Cross-validated only")
    assert [(tile.label, tile.value) for tile in page.tiles][:2] == [
        ("mean accuracy of the folds", "0.700"),
        ("base rate", "0.450"),
    ]
    (table,) = section(page, "Cross-validation: 2 folds by job").tables
    assert table.headings == ("fold", "job held out", "runs", "accuracy", "95 %", "base rate", "macro F1", "95 %")
    assert table.rows[0] == ("1", "job-0", "10", "0.600", "0.313 to 0.832", "0.500", "0.400", "")
    assert table.rows[2] == ("mean", "", "20", "0.700", "0.100 to 0.900", "0.450", "0.700", "0.100 to 0.900")


def test_the_comparison_shows_differences_and_incomparable_experiments():
    labels = [0] * 12 + [1] * 8
    good = predicted(labels, of_b(*[0.1] * 12, *[0.9] * 6, *[0.1] * 2))
    poor = predicted(labels, of_b(*[0.9] * 9, *[0.1] * 3, *[0.9] * 7, 0.1))
    passes = {"history": {"loss": [2.0, 1.0], "accuracy": [0.5, 0.6]}, "best_epoch": 2}
    trials: list[tuple[StoredTrial, Predictions | None]] = [
        (stored("poor", poor, training=passes, folds=(folds(6, 8),)), poor),
        (stored("good", good, folds=(folds(7, 8),)), good),
        (stored("lucky", SURE, digest="other"), SURE),
        (stored("gone", poor), None),
    ]
    page = comparison_page(trials, {("good", "tests"): "tests/good/index.html"})
    assert [(tile.label, tile.value, tile.note) for tile in page.tiles] == [
        ("experiments", "4", ""), ("data sets", "1", ""),
        ("highest accuracy on tests", "0.900", "good; base rate 0.600"),
    ]  # fmt: skip
    standing = section(page, "tests: the test runs")
    assert standing.text.endswith("Tested on other runs than the rest, so not comparable: lucky.")
    accuracies, others = standing.tables
    assert accuracies.headings[-2:] == ("difference", "McNemar p")
    assert [(row[0], row[3], row[5], row[-2], row[-1]) for row in accuracies.rows] == [
        ("good", "0.900", "0.600", "the best", ""), ("gone", "0.500", "0.600", "–", "–"),
        ("poor", "0.500", "0.600", "-0.400", "0.021"),
        ("lucky", "0.800", "0.600", "–", "–"),
    ]  # fmt: skip
    assert accuracies.links == {(0, 0): "tests/good/index.html"}
    assert [row[1] for row in others.rows] == ["0.890", "0.479", "0.479", "0.792"]
    assert section(page, "tests: missing predictions").text == "No curves for gone."
    (table,) = section(page, "tests: cross-validation, 2 folds by job").tables
    assert [row[:3] for row in table.rows] == [("good", "20", "0.750"), ("poor", "20", "0.700")]
    titles = {plot.name: plot.title for each in page.sections for plot in each.plots}
    assert titles == {
        "tests-standing": "good has the highest accuracy: 90 %",
        "tests-errors": "They differ most in a: good misses 0 % of its runs, poor 75 %",
        "tests-curves": "good has the largest mean PR-AUC of the classes: 0.85; a random guess has 0.50",
        "tests-learning": "Training losses; poor makes the most passes, 2",
        "tests-validated-1": "Held out by job, good has the highest mean accuracy: 75 %",
    }
    assert '<a href="tests/good/index.html">good</a>' in render(page)


@pytest.mark.whole
def test_the_plots_of_thirty_classes_and_experiments_stay_readable():
    rng = np.random.default_rng(3)
    classes = tuple(f"a long name of class {number:02}" for number in range(30))
    labels = rng.integers(30, size=600)
    found = predicted(labels.tolist(), rng.dirichlet(np.ones(30), 600) + np.eye(30)[labels] * 0.2, classes)
    one = stored("x", predicted([0, 1], of_b(0.1, 0.9)))
    test = scoring.scores(found.probabilities, found.labels, classes, labels, resamples=0)
    counts = {role: dict.fromkeys(classes, 20) for role in ("train", "dev", "test")}
    result = {**one.result, "test": test, "snapshot": {**one.result["snapshot"], "counts": counts}}
    page = result_page(replace(one, result=result), found)
    drawn = {plot.name: plot for each in page.sections for plot in each.plots}
    assert "11 others" in drawn["confusion"].svg
    assert drawn["confusion"].caption.endswith("Classes beyond the 19 largest are merged.")
    assert drawn["errors"].caption.endswith("The first 20 of 30 are drawn.")
    assert drawn["curves"].caption.endswith("The 7 largest of 30 classes are drawn.")
    trials = [(replace(one, experiment=f"x{number:02}", result=result), found) for number in range(25)]
    drawn = {plot.name: plot for each in comparison_page(trials, {}).sections for plot in each.plots}
    assert drawn["tests-errors"].caption.endswith(
        "The 8 largest of 30 classes are drawn. The first 20 of 25 are drawn."
    )
    assert "x19" in drawn["tests-errors"].svg
    assert "x20" not in drawn["tests-errors"].svg
    assert drawn["tests-curves"].caption.endswith(
        "The first 7 of 25 experiments are drawn. The 8 largest of 30 classes are drawn."
    )


def test_classes_beyond_a_hundred_are_left_out_of_each_table_by_a_statement():
    classes = tuple(f"class {number:03}" for number in range(120))
    one = stored("x", predicted([0, 1], of_b(0.1, 0.9)))
    labels = np.arange(120)
    test = scoring.scores(np.eye(120), labels, classes, labels, resamples=0)
    counts = {role: dict.fromkeys(classes, number) for number, role in enumerate(("train", "dev", "test"), 2)}
    result = {**one.result, "test": test, "snapshot": {**one.result["snapshot"], "counts": counts}}
    page = result_page(replace(one, result=result), None)
    (answers, probabilities) = section(page, "Classes").tables
    (_, runs) = section(page, "How it was made").tables
    assert [len(table.rows) for table in (answers, probabilities, runs)] == [100, 100, 100]
    assert answers.title == probabilities.title == "the first 100 of 120 classes"
    assert runs.title == "runs by class; the first 100 of 120 classes"
    assert (runs.headings, runs.rows[0]) == (("class", "train", "dev", "test"), ("class 000", "2", "3", "4"))


def test_losses_of_experiments_that_are_not_drawn_are_left_out_by_a_statement():
    passes = {"loss": {"train": np.array([0.9, 0.5])}}
    assert "are drawn" not in learning_plot(dict.fromkeys("abcdefg", passes)).caption
    assert learning_plot(dict.fromkeys("abcdefghi", passes)).caption.endswith("The first 7 of 9 experiments are drawn.")


def report(*words: str, data: Path) -> Result:
    return CliRunner().invoke(cli, ["experiment", "report", *words, "--data-path", str(data)])


def test_a_report_has_the_name_of_its_one_experiment_or_data_set(hostile: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(render_module, "report_experiments", lambda *places, progress: places[-1])
    assert report("one", data=hostile).output == "one-report\n"
    assert report("one", "ten", "--dataset", "bad", data=hostile).output == "bad-report\n"
    assert report("--dataset", "bad", "--dataset", "good", data=hostile).output == "experiments-report\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none"], "ciml: no experiment 'none' in "),
        (["../one"], "ciml: experiment: name: '../one' is not valid"),
        (["one", "idle", "ten"], "ciml: no result of idle in {data}/experiments: {train} idle --dataset NAME"),
        (["one", "--dataset", "other"], "ciml: no result of one on other in {data}/experiments: {train} one --dataset"),
    ],
)
def test_a_mistake_is_one_line(hostile: Path, tmp_path: Path, words: list[str], line: str):
    done = report(*words, "--output", str(tmp_path / "out"), data=hostile)
    assert done.exit_code == 2
    assert done.stderr.startswith(line.format(data=hostile, train="ciml experiment train --experiment"))
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_changed_file_is_reported_and_a_lost_one_leaves_the_rest(hostile: Path, reported: Path, tmp_path: Path):
    shutil.copytree(hostile, tmp_path / "data")
    (path,) = (tmp_path / "data/experiments/one/results/bad").glob("*/predictions-*.parquet")
    path.write_bytes(b"x")
    out = tmp_path / "out"
    done = report("one", "--output", str(out), data=tmp_path / "data")
    assert (done.exit_code, done.stderr.count("was altered: its digest differs")) == (4, 1)
    assert not out.exists()
    path.unlink()
    assert report("one", "--output", str(out), data=tmp_path / "data").output == f"{out}/index.html\n"
    assert "No curves: the predictions file is missing." in (out / "index.html").read_text()
    lost = {each.name for each in (reported / "bad" / "one").iterdir()} - {each.name for each in out.iterdir()}
    assert lost == {"curves.png", "curves.svg"}
    for drawn in out.glob("*g"):  # a plot is the same whatever stands beside it
        assert drawn.read_bytes() == (reported / "bad" / "one" / drawn.name).read_bytes(), drawn.name


@pytest.mark.parametrize(
    ("right", "title"),
    [
        ({"job-a": 19}, "By job, 95 % for job-a"),
        ({"job-a": 19, "job-b": 10}, "By job, from 50 % (job-b) to 95 % (job-a)"),
    ],
)
def test_the_title_of_slices_names_one_value_or_the_ends(right: dict[str, int], title: str):
    bars = [Bar(job, Estimate.of_share(count, 20), 20) for job, count in right.items()]
    assert slices_plot(1, "job", bars).title == title


def test_any_number_of_baselines_is_drawn():
    beside = {"base rate": 0.5, **{f"{name} alone": 0.4 for name in ("duration", "memory", "steps")}}
    drawn = bars_plot("x", "title", "caption", "unit", [("", [Bar("a", Estimate.of_share(3, 4), 4, beside)])])
    assert all(f"{name} alone" in drawn.svg for name in ("duration", "memory", "steps"))

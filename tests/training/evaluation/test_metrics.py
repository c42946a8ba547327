from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics
from sklearn.metrics import log_loss
from sklearn.tree import DecisionTreeClassifier

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.intervals import wilson
from ciml.manifest.log import ManifestLog
from ciml.runs.writer import write_run
from ciml.training.data.snapshot import Role, Snapshot
from ciml.training.evaluation import baselines, bootstrap
from ciml.training.evaluation.baselines import number_of, numbers_for, predict_by, predict_test_runs
from ciml.training.evaluation.bootstrap import BY_CLASS
from ciml.training.evaluation.candidate import _disagreement
from ciml.training.evaluation.metrics import accuracy, evaluate, scores
from ciml.training.evaluation.paired import compare
from ciml.training.evaluation.text import beaten_by, figure_lines
from tests.training.conftest import RUNS
from tests.transforms.direct import read_log
from tests.transforms.samples import corpus


def facts_of(snapshot: Snapshot) -> dict[str, RunFacts]:
    """Return the facts of a snapshot's runs by run id."""
    known = {run.run_id: run for run in corpus(RUNS)[0]}
    return {run.run_id: known[run.run_id] for run in snapshot.runs()}


def test_metrics_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]], np.float32)
    labels = np.array([0, 1, 1, 1])
    found = evaluate(probabilities, labels, ("a", "b"), np.array([0, 0, 1]), {"job": ["x", "x", "y", "y"]})
    assert json.loads(json.dumps(found)) == found
    assert found["accuracy"]["value"] == 0.75
    assert found["base_rate"]["class"] == "a"
    assert found["base_rate"]["value"] == 0.25  # the majority of *training* runs, on the test runs
    assert found["confusion"] == {"classes": ["a", "b"], "rows_are_labels": [[1, 0], [1, 2]]}
    assert found["classes"]["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "runs": 1}
    assert found["classes"]["b"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8, "runs": 3}
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-6)
    assert found["calibration"]["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.45) / 4, abs=1e-6)
    assert [each["runs"] for each in found["calibration"]["bins"]] == [1, 1, 2]
    assert found["slices"]["job"]["x"]["value"] == 0.5
    assert found["slices"]["job"]["y"]["value"] == 1.0
    assert (found["runs"], found["trained_on"], found["finite"]) == (4, 3, True)


def test_a_class_that_never_occurs_and_a_model_that_is_always_sure():
    probabilities = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = evaluate(probabilities, np.array([0, 0]), ("a", "b", "c"), np.array([0]))
    assert found["classes"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "runs": 0}
    assert found["log_loss"] == pytest.approx(-math.log(1e-7) / 2, rel=1e-6)
    assert found["calibration"]["bins"] == [{"low": 0.9, "runs": 2, "confidence": 1.0, "accuracy": 0.5}]


@pytest.mark.parametrize("row", [[np.nan, np.nan], [0.9, np.nan], [0.9, np.inf], [0.9, -np.inf]])
def test_an_unanswered_run_is_wrong_in_every_figure(row: list[float]):
    probabilities = np.array([row, [0.9, 0.1], [0.1, 0.9]])
    found = evaluate(probabilities, np.array([0, 0, 1]), ("a", "b"), np.array([0]))
    json.dumps(found, allow_nan=False)
    assert (found["finite"], found["accuracy"]["right"]) == (False, 2)
    assert found["confusion"]["rows_are_labels"] == [[1, 0], [0, 1]]
    assert found["classes"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "runs": 2}
    assert found["log_loss"] == pytest.approx((-math.log(1e-7) - 2 * math.log(0.9)) / 3)
    assert found["calibration"]["bins"][0] == {"low": 0.0, "runs": 1, "confidence": 0.0, "accuracy": 0.0}
    scored = scores(probabilities, np.array([0, 0, 1]), ("a", "b"), np.array([0]), resamples=0)
    assert scored["classes"]["a"]["recall"]["value"] == 0.5
    assert scored["classes"]["a"]["share"] == pytest.approx(2 / 3)


def test_no_runs_are_no_figures_and_wrong_shapes_an_error():
    found = evaluate(np.zeros((0, 2)), np.zeros(0, np.int64), ("a", "b"), np.zeros(0, np.int64))
    assert found["accuracy"] == {"value": None, "low": 0.0, "high": 1.0, "right": 0, "runs": 0, "independent": 0}
    assert (found["log_loss"], found["calibration"]) == (None, {"ece": None, "chance": None, "bins": []})
    assert found["brier"] is None
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="for 2 runs and 2 classes"):
        evaluate(np.zeros((3, 2)), np.zeros(2, np.int64), ("a", "b"), np.zeros(0, np.int64))


def test_the_one_number_baseline_of_memory_is_the_nearest_neighbour(
    made: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
):
    runs, _, paths = corpus(RUNS)
    logs = {facts.run_id: path for facts, path in zip(runs, paths, strict=True)}
    columns = [f"memory usage:{name}" for name in ("used", "free", "cach")]  # dool has no buff

    def total(run_id: str) -> float:
        return float(read_log(logs[run_id])[columns].iloc[0].sum())

    train = [(total(run.run_id), run.label) for run in snapshot.runs("train", "dev")]
    test = [(total(run.run_id), run.label) for run in snapshot.runs("test")]
    right = [min(train, key=lambda each: abs(each[0] - memory))[1] == label for memory, label in test]
    answers = predict_test_runs("memory", DataRoot.open(made).raw, snapshot, facts_of(snapshot))
    assert answers is not None
    assert (answers.right.tolist(), answers.positions.tolist()) == (right, list(range(len(test))))
    monkeypatch.setattr(baselines, "MAX_MEMORY_RUNS", 3)  # of many runs, some are read
    answers = predict_test_runs("memory", DataRoot.open(made).raw, snapshot, facts_of(snapshot))
    assert answers is not None
    assert answers.positions.tolist() == [0, round((len(test) - 1) / 2), len(test) - 1]
    assert len(answers.right) == 3


def test_the_one_number_baseline_of_duration_is_a_tree(made: Path, snapshot: Snapshot):
    facts = facts_of(snapshot)

    def seconds(*roles: Role) -> tuple[list[list[float]], list[int]]:
        runs = list(snapshot.runs(*roles))
        times = [(facts[run.run_id].start_us or 0, facts[run.run_id].end_us or 0) for run in runs]
        return [[(end - start) / 1e6] for start, end in times], [run.label for run in runs]

    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0).fit(*seconds("train", "dev"))
    test, labels = seconds("test")
    answers = predict_test_runs("duration", DataRoot.open(made).raw, snapshot, facts)
    assert answers is not None
    right = (tree.predict(test) == labels).tolist()
    assert answers.right.tolist() == right
    without = {run.run_id: facts[run.run_id].replace(end_us=None) for run in snapshot.runs("test")}
    first = next(iter(without))
    answers = predict_test_runs("duration", DataRoot.open(made).raw, snapshot, facts | without | {first: facts[first]})
    assert answers is not None  # a run without the number is no wrong answer
    assert (answers.positions.tolist(), answers.right.tolist()) == ([0], right[:1])
    assert predict_test_runs("duration", DataRoot.open(made).raw, snapshot, facts | without) is None


def test_without_columns_of_memory_there_is_no_baseline_and_a_run_that_is_missing_is_reported(
    data: DataRoot, snapshot: Snapshot
):
    for path in data.raw.list("runs"):
        file = Path(data.url, "raw", path)
        file.write_bytes(write_run(pq.read_table(file).drop_columns(["memory usage:used"]), path))
    assert predict_test_runs("memory", data.raw, snapshot, facts_of(snapshot)) is None
    data.raw.delete(ManifestLog(data.raw).path(4))
    with pytest.raises(IntegrityError, match="the raw manifest does not have the run"):
        predict_test_runs("memory", data.raw, snapshot, facts_of(snapshot))


def answers(n: int = 200, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=n)
    raw = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels]
    return raw / raw.sum(axis=1, keepdims=True), labels


def test_scores_have_the_figures_of_slices_and_those_of_evaluate():
    probabilities, labels = answers()
    jobs = np.where(np.arange(200) < 190, "a", "b")
    found = scores(probabilities, labels, ("x", "y", "z"), labels, {"job": jobs.tolist()})
    f1 = metrics.f1_score(labels[:190], probabilities.argmax(axis=1)[:190], average="macro")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["slices"]["job"]["a"]["f1"] == pytest.approx(f1)
    assert "f1" not in found["slices"]["job"]["b"]  # ten runs
    evaluated = evaluate(probabilities, labels, ("x", "y", "z"), labels)
    for key in ("accuracy", "base_rate", "confusion", "calibration"):
        assert found[key] == evaluated[key]


def by_scikit(probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the defined figures of some runs, by ``<label> <name>``, ``macro <name>`` and ``brier``."""
    count = probabilities.shape[1]
    if not len(labels):
        return {}
    by_label = metrics.precision_recall_fscore_support(labels, predicted, labels=range(count), zero_division=0.0)
    out: dict[str, float] = {}
    for label in np.unique(labels).tolist():
        out |= {f"{label} {name}": float(by_label[index][label]) for index, name in enumerate(BY_CLASS[:3])}
        members = labels == label
        if not members.all():
            out[f"{label} roc_auc"] = float(metrics.roc_auc_score(members, probabilities[:, label]))
            out[f"{label} pr_auc"] = float(metrics.average_precision_score(members, probabilities[:, label]))
    for name in BY_CLASS:
        values = [value for key, value in out.items() if key.endswith(f" {name}")]
        if values:
            out[f"macro {name}"] = float(np.mean(values))
    out["brier"] = float(metrics.brier_score_loss(labels, probabilities, labels=list(range(count))))
    return out


@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of resamples without some class
def test_figures_are_scikits_and_their_intervals_hold_the_middle_95_percent_of_the_resamples():
    probabilities, labels = answers(12, 2)
    predicted, rng = probabilities.argmax(axis=1), np.random.default_rng(7)
    rows = [rng.integers(12, size=12) for _ in range(80)]
    resampled = [by_scikit(probabilities[some], predicted[some], labels[some]) for some in rows]
    found = scores(probabilities, labels, ("a", "b"), labels, resamples=80, seed=7)
    whole = by_scikit(probabilities, predicted, labels)
    figures = {f"{label} {key}": found["classes"]["ab"[label]][key] for label in (0, 1) for key in BY_CLASS}
    figures |= {f"macro {key}": found["macro"][key] for key in BY_CLASS} | {"brier": found["brier"]}
    for name, figure in figures.items():
        assert figure["value"] == pytest.approx(whole[name]), name
        values = [each[name] for each in resampled if name in each]  # some resamples have one class alone
        want = [np.quantile(values, 0.025), np.quantile(values, 0.975)]
        assert [figure["low"], figure["high"]] == pytest.approx(want), name
    assert len(np.unique([figure["low"] for figure in figures.values()])) > 5


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (6, 2), (9, 4), (60, 3)])
@pytest.mark.filterwarnings("ignore")  # scikit-learn's, of resamples without some class
def test_the_figures_of_a_resample_are_scikits(n: int, classes: int, monkeypatch: pytest.MonkeyPatch):
    probabilities, labels = answers(n, classes)
    probabilities = np.round(probabilities, 1)  # so that several runs have one score
    predicted = np.where(np.arange(n) % 5 == 4, -1, probabilities.argmax(axis=1))
    monkeypatch.setattr(bootstrap, "_BLOCK_WEIGHTS", 7 * n)  # blocks
    blocks = list(bootstrap.draw_weights(np.arange(n), 40, seed=3))
    assert [len(block) for block in blocks] == [7, 7, 7, 7, 7, 5]
    rng = np.random.default_rng(3)
    for block in blocks:
        figures = bootstrap.resampled_figures(probabilities, predicted, labels, block)
        found = {"brier": figures.brier} | {f"macro {name}": values for name, values in figures.macro.items()}
        for name, values in figures.by_class.items():
            found |= {f"{label} {name}": values[:, label] for label in range(classes)}
        for row, weights in enumerate(block):
            rows = np.repeat(np.arange(n), weights.astype(int))
            np.testing.assert_array_equal(rows, np.sort(rng.integers(n, size=n)))
            want = by_scikit(probabilities[rows], predicted[rows], labels[rows])
            assert {name: values[row] for name, values in found.items() if np.isfinite(values[row])} == {
                name: pytest.approx(value) for name, value in want.items()
            }


def test_two_classes_one_class_and_none():
    probabilities, labels = answers(50, 2)
    found = scores(probabilities, labels, ("passed", "failed"), labels, resamples=20)
    assert found["brier"]["value"] == pytest.approx(metrics.brier_score_loss(labels, probabilities[:, 1]))
    alone = scores(probabilities, np.zeros(50, int), ("passed", "failed"), labels, resamples=20)
    assert alone["classes"]["passed"]["roc_auc"] == {"value": None, "low": None, "high": None}
    assert alone["classes"]["failed"]["f1"]["value"] is None
    assert alone["classes"]["passed"]["recall"]["value"] is not None
    nothing = scores(np.zeros((0, 2)), np.zeros(0, int), ("passed", "failed"), labels)
    assert [nothing["macro"][name]["value"] for name in BY_CLASS] == [None] * 5
    plain = scores(probabilities, labels, ("passed", "failed"), labels, resamples=0)
    assert plain["macro"]["f1"] == {"value": found["macro"]["f1"]["value"], "low": None, "high": None}


def test_figures_of_runs_that_are_all_right_have_the_interval_of_their_number() -> None:
    """Each resample of them is all right, too: an interval from 1 to 1 would claim certainty after ten runs."""
    labels = np.array([0] * 8 + [1] * 2)
    certain = scores(np.eye(2)[labels], labels, ("passed", "failed"), labels, resamples=20)
    for figures, runs in ((certain["macro"], 10), (certain["classes"]["failed"], 2)):
        low, high = wilson(runs, runs)
        assert all(figures[name] == {"value": 1.0, "low": low, "high": high} for name in BY_CLASS)


def test_memory_names_the_nearest_run_and_a_duration_gives_early_failures_and_late_timeouts_away():
    found = predict_by("memory", np.array([1.0, 9.0, np.nan]), np.array([2, 0, 1]), np.array([2.0, 8.0]), 3)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0]])
    durations = np.r_[np.linspace(1, 3, 20), np.linspace(20, 30, 40), np.linspace(90, 95, 20)]
    labels = np.r_[np.ones(20), np.zeros(40), np.ones(20)].astype(int)
    found = predict_by("duration", durations, labels, np.array([2.0, 25.0, 92.0, np.nan]), 2)
    np.testing.assert_array_equal(found, [[0, 1], [1, 0], [0, 1], [np.nan] * 2])
    runs = [RunFacts("a", "a", start_us=1_000_000, end_us=3_500_000), RunFacts("b", "b", end_us=1)]
    np.testing.assert_array_equal(number_of(None, "duration", runs), [2.5, np.nan])  # type: ignore[arg-type]
    assert number_of(None, "duration", runs[1:]) is None  # type: ignore[arg-type]


def test_a_data_set_names_its_own_baseline_or_has_the_usual_one_for_its_label():
    def named(class_label: str, **keys: str) -> tuple[str, ...]:
        return numbers_for(DatasetDefinition.from_json({"name": "one", "class_label": class_label, **keys}))

    assert (named("status"), named("provider"), named("size")) == (("duration",), ("memory",), ("duration", "memory"))
    assert named("size", baseline="memory") == named("status", baseline="memory") == ("memory",)
    assert named("status", baseline="none") == ()
    assert "baseline" not in DatasetDefinition(name="one").to_json()


def share(right: int, runs: int = 50) -> dict[str, Any]:
    return accuracy(np.arange(runs) < right)


def test_a_refresh_prints_both_baselines_abstention_and_coverage_with_intervals() -> None:
    comparison = compare(np.arange(50) < 40, np.arange(50) < 44)
    metrics = {
        "evaluation": {"accuracy": share(40), "base_rate": {"class": "machine", **share(33)}},
        "baselines": {"duration": {"name": "a tree", **share(44), "comparison": comparison}},
        "verdicts": {"runs": 50, "abstained": share(20), "coverage": {"stated": 0.9, **share(46)}},
    }
    low, high = comparison["interval"]
    assert low < -0.08 < high < 0.01
    assert figure_lines(metrics) == [
        "accuracy 0.800 (0.670 to 0.888) on 50 held-out runs; base rate 0.660 (0.522 to 0.776)",
        f"duration alone 0.880 (0.762 to 0.944); the model against it -0.080 ({low:+.3f} to {high:+.3f})",
        "abstention 0.400 (0.276 to 0.538); coverage 0.920 (0.812 to 0.968), stated 0.9",
    ]


def test_the_metrics_of_earlier_versions_are_printed_too() -> None:
    baselines = {"memory": {"name": "memory", **share(44)}}
    metrics = {"evaluation": {"accuracy": share(40), "base_rate": {"value": 0.3}}, "baselines": baselines}
    assert figure_lines(metrics) == [
        "accuracy 0.800 (0.670 to 0.888) on 50 held-out runs; base rate 0.300",
        "memory alone 0.880 (0.762 to 0.944)",
    ]
    assert figure_lines({}) == []


@pytest.mark.parametrize(
    ("accuracies", "baselines"), [({}, {"duration": 0.9}), ({"a": 0.9}, {}), ({"a": 0.9}, {"duration": 0.9})]
)
def test_no_sentence_where_no_number_beats_a_model(accuracies: dict[str, float], baselines: dict[str, float]) -> None:
    assert beaten_by(accuracies, baselines) == ""


@pytest.mark.parametrize(
    ("answers", "largest"),
    [([[0.5, 0.5], [0.9, 0.1]], 0.4), ([[0.5, 0.5], [math.nan, 0.5]], None), ([[math.inf, 0.5]] * 2, None), ([], None)],
)
def test_a_disagreement_is_the_largest_difference_of_finite_probabilities(
    answers: list[list[float]], largest: float | None
) -> None:
    probabilities = np.array(answers, np.float32).reshape(-1, 2)
    halves = np.full((len(answers), 2), 0.5, np.float32)
    for models in ((probabilities, halves), (halves, probabilities)):
        assert _disagreement(*models) == (None if largest is None else pytest.approx(largest))
    assert _disagreement(probabilities, np.zeros((3, 2), np.float32)) is None

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import RunFacts
from ciml.training.evaluation import bootstrap
from ciml.training.evaluation.baselines import number_of, numbers_for, predict_by
from ciml.training.evaluation.bootstrap import BY_CLASS
from ciml.training.evaluation.metrics import evaluate, scores


def answers(n: int = 200, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=n)
    raw = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels]
    return raw / raw.sum(axis=1, keepdims=True), labels


def test_scores_have_the_figures_of_slices_and_those_of_evaluate():
    probabilities, labels = answers()
    jobs = np.where(np.arange(200) < 190, "a", "b")
    found = scores(probabilities, labels, ("x", "y", "z"), labels, {"job": jobs.tolist()})
    predicted = probabilities.argmax(axis=1)

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["slices"]["job"]["a"]["f1"] == pytest.approx(
        metrics.f1_score(labels[:190], predicted[:190], average="macro")
    )
    assert "f1" not in found["slices"]["job"]["b"]  # ten runs
    evaluated = evaluate(probabilities, labels, ("x", "y", "z"), labels)
    assert {key: found[key] for key in ("accuracy", "base_rate", "confusion", "calibration")} == {
        key: evaluated[key] for key in ("accuracy", "base_rate", "confusion", "calibration")
    }


def by_scikit(probabilities: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the defined figures of some runs, by ``<label> <name>``, ``macro <name>`` and ``brier``."""
    from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_fscore_support
    from sklearn.metrics import roc_auc_score as roc_auc

    count = probabilities.shape[1]
    if not len(labels):
        return {}
    by_label = precision_recall_fscore_support(labels, predicted, labels=range(count), zero_division=0.0)
    out: dict[str, float] = {}
    for label in np.unique(labels).tolist():
        out |= {f"{label} {name}": float(by_label[index][label]) for index, name in enumerate(BY_CLASS[:3])}
        members = labels == label
        if not members.all():
            out[f"{label} roc_auc"] = float(roc_auc(members, probabilities[:, label]))
            out[f"{label} pr_auc"] = float(average_precision_score(members, probabilities[:, label]))
    for name in BY_CLASS:
        values = [value for key, value in out.items() if key.endswith(f" {name}")]
        if values:
            out[f"macro {name}"] = float(np.mean(values))
    out["brier"] = float(brier_score_loss(labels, probabilities, labels=list(range(count))))
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
    blocks = list(bootstrap.draw_weights(n, 40, seed=3))
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


def test_a_duration_gives_early_failures_and_late_timeouts_away():
    durations = np.r_[np.linspace(1, 3, 20), np.linspace(20, 30, 40), np.linspace(90, 95, 20)]
    labels = np.r_[np.ones(20), np.zeros(40), np.ones(20)].astype(int)
    found = predict_by("duration", durations, labels, np.array([2.0, 25.0, 92.0, np.nan]), 2)
    np.testing.assert_array_equal(found[:3], [[0, 1], [1, 0], [0, 1]])
    assert np.isnan(found[3]).all()

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


def test_memory_names_the_nearest_run():
    found = predict_by("memory", np.array([1.0, 9.0, np.nan]), np.array([2, 0, 1]), np.array([2.0, 8.0]), 3)
    np.testing.assert_array_equal(found, [[0, 0, 1], [1, 0, 0]])

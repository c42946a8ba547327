from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.tree import DecisionTreeClassifier

from ciml.data_root import DataRoot
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.training.data.snapshot import Snapshot
from ciml.training.evaluation.baselines import predict_test_runs
from ciml.training.evaluation.metrics import accuracy, evaluate, scores
from tests.training.conftest import RUNS
from tests.transforms.direct import read_log
from tests.transforms.samples import corpus


def facts_of(snapshot: Snapshot) -> dict[str, RunFacts]:
    """Return the facts of a snapshot's runs by run id."""
    known = {run.run_id: run for run in corpus(RUNS)[0]}
    return {run.run_id: known[run.run_id] for run in snapshot.runs()}


def test_an_accuracy_of_no_runs_is_undefined():
    assert accuracy([]) == {"value": None, "low": 0.0, "high": 1.0, "right": 0, "runs": 0}


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_wrong_and_reported(bad: float):
    probabilities = np.array([[0.9, bad], [0.1, 0.9]])
    found = evaluate(probabilities, np.array([0, 1]), ("a", "b"), np.array([0]))

    assert found["finite"] is False
    assert found["accuracy"]["right"] == 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("row", [[np.nan, np.nan], [0.9, np.nan], [0.9, np.inf]])
def test_an_unanswered_run_is_wrong_in_every_figure(row: list[float]):
    probabilities = np.array([row, [0.9, 0.1], [0.1, 0.9]])
    found = evaluate(probabilities, np.array([0, 0, 1]), ("a", "b"), np.array([0]))

    assert found["confusion"]["rows_are_labels"] == [[1, 0], [0, 1]]
    assert found["classes"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "runs": 2}
    assert found["log_loss"] == pytest.approx((-math.log(1e-7) - 2 * math.log(0.9)) / 3)
    assert found["calibration"]["bins"][0] == {"low": 0.0, "runs": 1, "confidence": 0.0, "accuracy": 0.0}
    scored = scores(probabilities, np.array([0, 0, 1]), ("a", "b"), np.array([0]), resamples=0)
    assert scored["classes"]["a"]["recall"]["value"] == 0.5
    assert scored["classes"]["a"]["share"] == pytest.approx(2 / 3)


def test_no_runs_are_no_figures_and_wrong_shapes_an_error():
    found = evaluate(np.zeros((0, 2)), np.zeros(0, np.int64), ("a", "b"), np.zeros(0, np.int64))
    assert found["accuracy"]["value"] is None
    assert found["log_loss"] is None
    assert found["calibration"] == {"ece": None, "bins": []}
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="for 2 runs and 2 classes"):
        evaluate(np.zeros((3, 2)), np.zeros(2, np.int64), ("a", "b"), np.zeros(0, np.int64))


def test_the_one_number_baseline_is_a_nearest_neighbour_of_memory(made: Path, snapshot: Snapshot):
    runs, _, paths = corpus(RUNS)
    logs = {facts.run_id: path for facts, path in zip(runs, paths, strict=True)}
    memory = [f"memory usage:{name}" for name in ("used", "free", "cach")]  # dool has no buff

    def total(run_id: str) -> float:
        return float(read_log(logs[run_id])[memory].iloc[0].sum())

    train = [(total(run.run_id), run.label) for run in snapshot.runs("train", "dev")]
    right = 0
    for run in snapshot.runs("test"):
        own = total(run.run_id)
        right += min(train, key=lambda each: abs(each[0] - own))[1] == run.label
    answers = predict_test_runs("memory", DataRoot.open(made).raw, snapshot, facts_of(snapshot))

    assert answers is not None
    tested = len(list(snapshot.runs("test")))
    assert (answers.right.sum(), len(answers.right)) == (right, tested)
    assert answers.positions.tolist() == list(range(tested))


def test_the_one_number_baseline_of_duration_is_a_tree(made: Path, snapshot: Snapshot):
    facts = facts_of(snapshot)

    def seconds(run_id: str) -> float:
        start_us, end_us = facts[run_id].start_us, facts[run_id].end_us
        assert start_us is not None and end_us is not None  # noqa: PT018 (for the type checker)
        return (end_us - start_us) / 1e6

    train, test = list(snapshot.runs("train", "dev")), list(snapshot.runs("test"))
    tree = DecisionTreeClassifier(min_samples_leaf=5, random_state=0)
    tree.fit([[seconds(run.run_id)] for run in train], [run.label for run in train])
    by_tree = tree.predict([[seconds(run.run_id)] for run in test])
    answers = predict_test_runs("duration", DataRoot.open(made).raw, snapshot, facts)
    assert answers is not None
    assert answers.right.tolist() == (by_tree == [run.label for run in test]).tolist()


def test_the_memory_of_some_runs_is_read_where_there_are_many(
    made: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
):
    from ciml.training.evaluation import baselines

    monkeypatch.setattr(baselines, "MAX_MEMORY_RUNS", 3)
    answers = predict_test_runs("memory", DataRoot.open(made).raw, snapshot, facts_of(snapshot))
    assert answers is not None
    last = len(list(snapshot.runs("test"))) - 1
    assert answers.positions.tolist() == [0, round(last / 2), last]
    assert len(answers.right) == 3


def test_no_memory_columns_no_baseline(data: DataRoot, snapshot: Snapshot):
    import pyarrow.parquet as pq

    from ciml.runs.writer import write_run

    for path in data.raw.list("runs"):
        file = Path(data.url, "raw", path)
        table = pq.read_table(file)
        file.write_bytes(write_run(table.drop_columns(["memory usage:used"]), path))
    assert predict_test_runs("memory", data.raw, snapshot, facts_of(snapshot)) is None


def test_a_run_without_a_raw_object_is_reported(data: DataRoot, snapshot: Snapshot):
    from ciml.errors import IntegrityError

    raw = data.raw
    raw.delete(ManifestLog(raw).path(4))
    with pytest.raises(IntegrityError, match="the raw manifest does not have the run"):
        predict_test_runs("memory", data.raw, snapshot, facts_of(snapshot))

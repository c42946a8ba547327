from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow
from ciml.training import train as train_module
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot
from ciml.training.estimators.networks import Trained
from ciml.training.experiment import Experiment
from ciml.training.train import NormalisedRows, predict_in_memory, records, train
from tests.training.conftest import QUICK

TrainBy = Callable[..., Trained]


@pytest.fixture
def train_by(materialised: Materialised, snapshot: Snapshot) -> TrainBy:
    """Train an experiment on the materialised runs; ``counts`` are those that their description claims."""

    def train_by(
        experiment: Experiment, counts: dict[str, int] | None = None, tensorboard: Path | None = None
    ) -> Trained:
        described = replace(materialised, counts={**materialised.counts, **(counts or {})})
        source = NormalisedRows(described, snapshot.resolved)
        fitted = train(experiment, source, snapshot.resolved, tensorboard=tensorboard)
        assert isinstance(fitted, Trained)
        return fitted

    return train_by


def weights(trained: Trained) -> list[np.ndarray]:
    return [np.array(each) for each in trained.model.get_weights()]


def test_it_learns_the_same_with_one_seed_and_reports_its_training(
    materialised: Materialised, trained: Trained, train_by: TrainBy
):
    runs = materialised.counts["train"] + materialised.counts["dev"]
    assert trained.runs == runs  # dev runs taken from train are trained on too
    assert trained.epochs == trained.best_epoch == 60
    assert trained.steps == 60 * -(-runs // 64)
    assert set(trained.history) == {"accuracy", "loss"}
    assert len(trained.history["loss"]) == 60
    assert trained.history["accuracy"][-1] > 0.9
    assert trained.history["loss"][-1] < trained.history["loss"][0] / 2
    again, other = train_by(QUICK), train_by(QUICK.replace(seed=1, epochs=1))
    for one, two in zip(weights(trained), weights(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert again.history == trained.history
    assert other.history["loss"][0] != trained.history["loss"][0]


@pytest.mark.parametrize(("steps", "epochs", "want"), [(3, 10, (2, 3)), (100, 2, (2, 4)), (None, 3, (3, 6))])
def test_it_stops_at_the_first_limit_of_steps_and_epochs(
    train_by: TrainBy, steps: int | None, epochs: int, want: tuple[int, int]
):
    done = train_by(QUICK.replace(steps=steps, epochs=epochs, hidden_layers=()))  # two batches an epoch
    assert (done.epochs, done.steps) == want
    assert len(done.history["loss"]) == want[0]
    assert int(done.model.optimizer.iterations) == want[1]


def test_early_stopping_uses_dev_runs_and_restores_the_best_epoch(
    materialised: Materialised, snapshot: Snapshot, train_by: TrainBy
):
    done = train_by(QUICK.replace(early_stopping=3, epochs=200, learning_rate=0.03, l2=0.0))
    losses = done.history["val_loss"]
    assert done.runs == materialised.counts["train"]
    assert done.epochs < 200
    assert done.best_epoch == done.epochs - 3 == int(np.argmin(losses)) + 1
    probabilities = predict_in_memory(done, NormalisedRows(materialised, snapshot.resolved), "dev")
    labels = [label for _, label in records(materialised, snapshot.resolved, "dev").as_numpy_iterator()]
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert loss == pytest.approx(min(losses), abs=1e-4)


def test_a_file_that_lost_records_ends_training(materialised: Materialised, train_by: TrainBy):
    counts = {"train": materialised.counts["train"] + 1}
    with pytest.raises(load_tensorflow().errors.OpError, match="expected to contain 98 elements but contained only 97"):
        train_by(QUICK, counts)


@pytest.mark.parametrize(
    ("lacking", "experiment", "line"),
    [
        (("train", "dev"), QUICK, "no training runs"),
        (("dev",), QUICK.replace(early_stopping=3), "early stopping needs dev runs"),
    ],
)
def test_no_training_runs_and_no_dev_runs_are_errors(
    train_by: TrainBy, lacking: tuple[str, ...], experiment: Experiment, line: str
):
    with pytest.raises(CimlError, match=line):
        train_by(experiment, dict.fromkeys(lacking, 0))


def test_class_weights_schedule_and_tensorboard(train_by: TrainBy, tmp_path: Path):
    done = train_by(
        QUICK.replace(class_weights="balanced", schedule="cosine", epochs=5), tensorboard=tmp_path / "events"
    )
    plain = train_by(QUICK.replace(epochs=5))
    assert float(done.model.optimizer.learning_rate) == pytest.approx(0.0, abs=1e-9)
    (file,) = (tmp_path / "events").iterdir()
    events = [event for event in load_tensorflow().compat.v1.train.summary_iterator(str(file)) if event.summary.value]
    assert [event.step for event in events] == [0, 1, 2, 3, 4]
    losses = [value.simple_value for event in events for value in event.summary.value if value.tag == "loss"]
    assert losses == pytest.approx(done.history["loss"])
    assert done.history["loss"] != plain.history["loss"]


def test_streamed_runs_are_shuffled_within_the_memory_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tf = load_tensorflow()
    monkeypatch.setattr(train_module, "_MAX_RESIDENT_BYTES", 1000)
    monkeypatch.setattr(train_module, "_MAX_SHUFFLED_RUNS", 20)
    buffers = []
    for windows in (5, 1, 100):
        read = tf.data.Dataset.from_tensors(({"inputs": tf.zeros([windows, 10])}, 0)).repeat(100)
        monkeypatch.setattr(type(read), "shuffle", lambda self, buffer, **_: buffers.append(buffer) or self)
        train_module._streamed(read, 100, QUICK)
    assert buffers == [5, 20, 1]

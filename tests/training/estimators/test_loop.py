"""The compiled loop is a plain loop over the same permutation."""

from __future__ import annotations

import numpy as np
import pytest

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot
from ciml.training.estimators import Rows, fit
from ciml.training.estimators.base import class_weights
from ciml.training.estimators.networks import Resident, Streamed, Trained, fit_network, optimizer_of
from ciml.training.experiment import Experiment
from ciml.training.train import NormalisedRows
from tests.training.networks import build_model

#: The talk's network, smaller and with fewer epochs.
TALK = Experiment(
    estimator="dnn", hidden_layers=(30, 30), optimizer="adagrad", learning_rate=0.05, l2=0.0, batch_size=32, epochs=3
)
RICH = TALK.replace(
    l2=0.01, optimizer="adam", learning_rate=0.002, schedule="cosine", batch_norm=True, class_weights="balanced",
    steps=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(materialised: Materialised, snapshot: Snapshot) -> Rows:
    return NormalisedRows(materialised, snapshot.resolved).rows("train")


def shape(rows: Rows) -> tuple[int, int, int]:
    return rows.inputs.shape[1], rows.inputs.shape[2], 4


def by_hand(experiment: Experiment, rows: Rows) -> list[np.ndarray]:
    """Return the weights after Keras's own step for each batch of the same permutations."""
    model, batches = build_model(experiment, *shape(rows)), Resident(rows, experiment.batch_size, experiment.seed)
    per_epoch = -(-len(rows) // experiment.batch_size)
    steps = min(experiment.steps or 10**9, experiment.epochs * per_epoch)
    model.compile(optimizer=optimizer_of(experiment, steps), loss="sparse_categorical_crossentropy")
    weights = class_weights(np.bincount(rows.labels)) if experiment.class_weights == "balanced" else None
    for step in range(steps):
        epoch, number = divmod(step, per_epoch)
        batch = rows.take(batches.order(epoch)[number * experiment.batch_size :][: experiment.batch_size])
        model.train_on_batch(
            {"inputs": batch.inputs, "n_windows": batch.n_windows},
            batch.labels,
            sample_weight=None if weights is None else weights[batch.labels],
        )
    return [np.array(each) for each in model.get_weights()]


@pytest.mark.parametrize(
    "experiment", [pytest.param(TALK, id="talk"), pytest.param(RICH, id="rich", marks=pytest.mark.whole)]
)
def test_it_is_a_plain_loop_over_the_same_permutation(rows: Rows, experiment: Experiment) -> None:
    assert len(rows) % experiment.batch_size  # so that the last batch of an epoch is a smaller one
    done = fit(experiment, rows, None, 4)
    assert isinstance(done, Trained)
    for one, other in zip(done.model.get_weights(), by_hand(experiment, rows), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    untrained = build_model(experiment, *shape(rows)).get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(done.model.get_weights(), untrained, strict=True)) > 0.01


def test_each_epoch_has_an_order_of_its_own_and_a_seed_gives_it_again(rows: Rows) -> None:
    one, again, other = Resident(rows, 8, 0), Resident(rows, 8, 0), Resident(rows, 8, 1)
    orders = [one.order(0), one.order(1), other.order(0)]
    assert [sorted(order) for order in orders] == [list(range(len(rows)))] * 3
    assert len({order.tobytes() for order in orders}) == 3
    np.testing.assert_array_equal(one.order(1), again.order(1))


def test_dropout_is_new_in_each_step_and_follows_from_the_seed(rows: Rows) -> None:
    one, again, none = (fit(TALK.replace(dropout=dropout), rows, None, 4).to_json() for dropout in (0.5, 0.5, 0.0))
    assert one["history"] == again["history"] != none["history"]


def test_rows_that_are_read_from_disk_are_trained_on_as_those_in_memory(rows: Rows) -> None:
    tf = load_tensorflow()
    experiment = TALK.replace(steps=4, epochs=9)
    resident = Resident(rows, experiment.batch_size, experiment.seed)
    given = rows.take(resident.order(0))
    once = tf.data.Dataset.from_tensor_slices(({"inputs": given.inputs, "n_windows": given.n_windows}, given.labels))
    streamed = Streamed(once, resident.counts, experiment.batch_size)
    one = fit_network(experiment, build_model(experiment, *shape(rows)), streamed, None)
    other = fit_network(experiment, build_model(experiment, *shape(rows)), resident, None)
    assert (one.epochs, one.steps) == (other.epochs, other.steps) == (2, 4)
    assert one.history["loss"][0] == pytest.approx(other.history["loss"][0], abs=1e-5)


def test_one_class_teaches_nothing_and_weights_that_grow_without_bound_end_it(rows: Rows):
    alike = rows.take(np.flatnonzero(rows.labels == rows.labels[0]))
    with pytest.raises(CimlError, match="dnn needs training runs of at least two classes"):
        fit(TALK, alike, None, 4)
    wild = TALK.replace(name="wild", optimizer="sgd", learning_rate=1e30)
    with pytest.raises(CimlError, match="experiment 'wild': the loss is not finite after epoch 1"):
        fit(wild, rows, None, 4)

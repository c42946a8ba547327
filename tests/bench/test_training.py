"""The talk's training against Keras's own ``fit`` on numpy arrays, on the sample runs; printed. Run by `make bench`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ciml.tensorflow import keras
from ciml.training.estimators import fit
from ciml.training.estimators.networks import optimizer_of
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from tests.bench.measuring import real_examples, report_ratio, seconds
from tests.training.networks import build_model

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

RUNS = 2_800
TALK = Experiment(
    estimator="dnn", hidden_layers=(100,) * 5, optimizer="adagrad",
    learning_rate=0.05, l2=0.0, batch_size=128, epochs=500,
)  # fmt: skip


@pytest.mark.parametrize("windows", [10, 92])
def test_the_talks_training_against_fit_on_arrays(windows: int) -> None:
    resolved, examples = real_examples("build_name", windows)
    all_rows = replace(examples, inputs=Normalisation.of(examples.inputs).apply(examples.inputs))
    rows = all_rows.take(np.arange(RUNS) % len(all_rows))  # the runs again and again: only the time counts here

    keras().utils.set_random_seed(0)  # this process is deterministic, and then needs a seed
    model = build_model(TALK, *rows.inputs.shape[1:], len(resolved.classes))
    steps = TALK.epochs * -(-RUNS // TALK.batch_size)
    model.compile(optimizer=optimizer_of(TALK, steps), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    given = {"inputs": rows.inputs, "n_windows": rows.n_windows}
    by_keras = partial(model.fit, given, rows.labels, batch_size=TALK.batch_size, epochs=TALK.epochs, verbose=0)
    pairs = [(seconds(partial(fit, TALK, rows, None, len(resolved.classes))), seconds(by_keras)) for _ in range(2)]
    report_ratio(f"train 5 × 100 units on {windows} windows", pairs, "model.fit on arrays", steps)

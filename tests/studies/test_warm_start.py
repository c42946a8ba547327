"""The study of warm starts: the converted weights are the same function, and each method is tested on the next runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ciml.training.estimators import Rows
from ciml.training.experiment import Experiment
from ciml.training.normalise import Normalisation
from studies import warm_start
from studies.warm_start import COLD, COLD_FEW, NETWORK, WARM, converted, refreshes, table

SMALL = Experiment(hidden_layers=(8,), epochs=3)


def rows(count: int) -> Rows:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    inputs = random.normal(labels[:, None, None] * 2.0 + 50, 1.0, (count, 3, 2)).astype(np.float32)
    return Rows(inputs, np.full(count, 3, np.int32), labels)


def test_converted_weights_are_the_same_function_of_the_recorded_values() -> None:
    runs = rows(60)
    inputs = runs.inputs.copy()
    old, new = Normalisation.of(inputs[:20]), Normalisation.of(inputs * 1.5 - 3)
    model = NETWORK.new_model(SMALL, 3, 2, 2)
    before = np.asarray(model({"inputs": old.apply(inputs), "n_windows": runs.n_windows}))
    model.set_weights(converted(model.get_weights(), old, new))
    after = np.asarray(model({"inputs": new.apply(inputs), "n_windows": runs.n_windows}))
    np.testing.assert_allclose(after, before, atol=1e-5)
    constant = replace(old, width=np.where(np.arange(2) == 0, 0.0, old.width))
    kernel, *_ = converted(model.get_weights(), constant, new)
    assert not kernel[::2].any()  # an element that the champion did not use has no weight
    assert kernel[1::2].any()


def test_each_refresh_but_the_first_is_tested_on_the_runs_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "Experiment", lambda seed: SMALL.replace(seed=seed))
    monkeypatch.setattr(warm_start, "FEW", 1)
    monkeypatch.setattr(warm_start, "REFRESHES", 3)
    fits = refreshes(rows(90), 2, 0)
    assert [fit.method for fit in fits] == [COLD, COLD_FEW, WARM] * 2
    assert [fit.rows.tolist() for fit in fits[::3]] == [[*range(40, 50)], [*range(50, 90)]]
    text = table(fits)
    assert text.count("\n| ") == 3
    assert "50 answers in 2 refreshes" in text

"""On real runs: the stated coverage holds on changes that were held out."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from ciml.datasets.definition import DatasetDefinition, ResolvedDefinition
from ciml.events.outcomes import CAUSE, CAUSES, FAILED
from ciml.serving.decimals import shortest_decimals
from ciml.training.calibration.calibrators import fit_calibrator
from ciml.training.calibration.sets import make_rules
from ciml.training.evaluation.candidate import verdict_figures
from ciml.transforms.examples.prepare import prepare_many
from tests.transforms.samples import corpus

COLUMNS = ("total cpu usage:usr", "total cpu usage:stl", "total cpu usage:wai", "load avg:1m")
SPLITS = 20


@cache
def real(label: str) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Return the features [n, F], labels [n] and changes of the corpus' runs, by status or by cause."""
    runs, tables, _ = corpus()
    resolved = ResolvedDefinition(
        definition=DatasetDefinition(name="real", sample_interval="5s", aggregation_functions=("mean", "max", "last")),
        columns=COLUMNS,
        features=COLUMNS,
        classes=("a", "b"),
        windows=3,
    )
    inputs, n_windows, _ = prepare_many(tables, resolved)
    features = np.concatenate([inputs.reshape(len(runs), -1), n_windows[:, None]], axis=1).astype(np.float32)
    if label == CAUSE:
        kept = [at for at, run in enumerate(runs) if run.outcome in FAILED and CAUSE in run.labels]
        labels = [CAUSES.index(runs[at].labels[CAUSE]) for at in kept]
    else:
        kept = list(range(len(runs)))
        labels = [int(run.outcome in FAILED) for run in runs]
    return features[kept], np.array(labels), [runs[at].change or runs[at].run_id for at in kept]


@pytest.mark.parametrize("label", ["status", CAUSE])
@pytest.mark.parametrize("coverage", [pytest.param(0.8, marks=pytest.mark.whole), 0.9])
def test_the_stated_coverage_holds_on_changes_that_were_held_out(label: str, coverage: float) -> None:
    features, labels, changes = real(label)
    covered, unknown = [], []
    for seed in range(SPLITS):
        names = np.random.default_rng(seed).permutation(sorted(set(changes)))
        parts = {name: part for part, some in enumerate(np.array_split(names, 3)) for name in some}
        learned, dev, test = (np.array([parts[each] == part for each in changes]) for part in range(3))
        model = RandomForestClassifier(20, random_state=seed).fit(features[learned], labels[learned])
        answers = model.predict_proba(features).astype(np.float32)
        calibrated = fit_calibrator(answers[dev], labels[dev]).apply(answers)
        jobs = ["job"] * len(changes)
        rules = make_rules(calibrated[dev], labels[dev], jobs[: dev.sum()], CAUSES, coverage=coverage, calibration={})
        figures = verdict_figures(rules, shortest_decimals(calibrated[test]), labels[test], jobs[: test.sum()])
        covered.append(figures["coverage"]["value"])
        unknown.append(figures["abstained"]["value"])
    assert coverage - 0.03 < np.mean(covered) < coverage + 0.08  # above, since some twenty runs allow few shares
    assert np.mean(unknown) < 0.9

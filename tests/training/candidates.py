"""Candidates of a registry that no trainer has made: estimators that only Python can use, and SavedModels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from ciml.data_root import DataRoot
from ciml.serving.registry import CandidateNotice, Decision, Registry
from ciml.storage import open_store
from ciml.training.estimators.scikit import FittedScikit
from ciml.training.kept import keep
from tests.serving.models_fixture import DEFINITION, C, F, L

#: Names the folder of a candidate at its trainer.
KEY = "0123456789abcdef01234567"


def fitted(model: Any, seed: int = 0) -> FittedScikit:
    """Return an estimator that was fitted on random runs of `DEFINITION`."""
    random = np.random.default_rng(seed)
    inputs = random.gamma(2.0, 20.0, (40, L, F)).astype("f4")
    model.fit(inputs.transpose(0, 2, 1).reshape(40, -1), np.arange(40) % C)
    return FittedScikit(model, "unrolled", (), np.arange(C), C, 40)


def neighbours(seed: int = 0) -> FittedScikit:
    """Return an estimator without a conversion."""
    return fitted(KNeighborsClassifier(3), seed)


def record(data: DataRoot, folder: Path, *reasons: str) -> CandidateNotice:
    """Record a candidate that the gate rejects for these reasons; without any, it has no decision."""
    registry = Registry(data, "m")
    candidate = registry.record_candidate(open_store(folder), {"refresh": KEY})
    if reasons:
        registry.record_decision(candidate.id, Decision(False, reasons))
    return registry.last_candidate()[1]


def record_kept(data: DataRoot, folder: Path, estimator: FittedScikit, *reasons: str) -> CandidateNotice:
    """Write an estimator as a kept model, and record it as a candidate; see `record`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    keep(estimator, DEFINITION, folder)
    return record(data, folder, *reasons)


def expected(estimator: FittedScikit, inputs: np.ndarray) -> np.ndarray:
    """Return the estimator's own ``predict_proba``, as float32, of inputs float32 [n, L, F]."""
    values = inputs.transpose(0, 2, 1).reshape(len(inputs), -1)
    answers: np.ndarray = estimator.model.predict_proba(values).astype(np.float32)
    return answers

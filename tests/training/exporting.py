"""Exports an estimator that was fitted to examples in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.training.estimators import Rows, fit, inputs_for
from ciml.training.experiment import Experiment
from ciml.training.export import export
from ciml.training.normalise import Normalisation


def fit_and_export(
    experiment: Experiment, resolved: ResolvedDefinition, rows: Rows, folder: Path
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fit an estimator, export it to a new folder, and return its own ``predict`` of inputs that are not normalised."""
    normalisation = Normalisation.of(rows.inputs)
    inputs = inputs_for(experiment, normalisation, rows)
    fitted = fit(experiment, inputs, None, len(resolved.classes), features=resolved.features)
    if inputs is rows:
        export(fitted, None, resolved, folder, name="m")
        return fitted.predict
    export(fitted, normalisation.graph, resolved, folder, name="m")
    return lambda inputs, n_windows: fitted.predict(normalisation.apply(inputs), n_windows)

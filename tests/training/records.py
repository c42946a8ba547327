"""Reads TFRecord files without the project's code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Role, Snapshot
from ciml.training.exclusions import Exclusion, Exclusions


def written(made: Materialised, role: Role, snapshot: Snapshot) -> dict[int, tuple[np.ndarray, int, int]]:
    """Return the examples of a role by ordinal: inputs [L, F], n_windows and label."""
    tf = load_tensorflow()
    rows = {}
    for record in tf.data.TFRecordDataset(made.paths(role)).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        inputs = np.array(features["inputs"].float_list.value, np.float32)
        inputs = inputs.reshape(snapshot.resolved.windows, len(snapshot.resolved.features))
        scalars = [features[name].int64_list.value[0] for name in ("ordinal", "n_windows", "label")]
        rows[scalars[0]] = (inputs, scalars[1], scalars[2])
    return rows


def excluding(reasons: Mapping[str, str]) -> Exclusions:
    """Exclusions of single runs: reason by run id."""
    return Exclusions(tuple(Exclusion(reason, run_id) for run_id, reason in reasons.items()))

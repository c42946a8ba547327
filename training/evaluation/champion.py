"""Evaluates the champion, the model served now, on a candidate's test runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.raw.run_log import files_of, find_facts
from ciml.storage.open import Store
from ciml.training.data.examples import Examples
from ciml.training.data.snapshot import SnapshotRun

if TYPE_CHECKING:
    from ciml.training.export import Exported

_BATCH = 500


@dataclass(frozen=True)
class Champion:
    """A served model.

    Attributes:
      folder: its SavedModel, on local disk.
      version: its number, for reports.
    """

    folder: Path
    version: int


def right_answers(
    raw: Store, champion: Champion, resolved: ResolvedDefinition, runs: Sequence[SnapshotRun], examples: Examples
) -> np.ndarray:
    """Return whether the champion predicts each run's class, bool [n], by its own model and definition.

    For a model with another definition (other columns, interval or classes), the runs are prepared from the raw store
    by that definition; the class names are compared. A run that cannot be prepared counts as wrong.

    Args:
      raw: the raw store of the runs.
      champion: the model to evaluate.
      resolved: the definition of ``examples``.
      runs: n runs.
      examples: the same runs, not normalised.

    Raises:
      IntegrityError: if the champion cannot be loaded or fails.
    """
    from ciml.training.export import load_exported
    from ciml.training.runtime import tensorflow

    model = load_exported(champion.folder)
    try:
        if model.definition == resolved:
            answers, given = model.predict(examples.inputs, examples.n_windows), np.ones(len(runs), bool)
        else:
            answers, given = _prepared(raw, model, runs)
    except tensorflow().errors.OpError as error:
        raise IntegrityError(f"{champion.folder} fails to predict: {str(error).splitlines()[0]}") from None
    names = np.array(model.definition.classes)[np.nan_to_num(answers).argmax(axis=1)]
    wanted = np.array([resolved.classes[run.label] for run in runs])
    right: np.ndarray = (names == wanted) & given & np.isfinite(answers).all(axis=1)
    return right


def _prepared(raw: Store, model: Exported, runs: Sequence[SnapshotRun]) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions float32 [n, C] of runs prepared by the model's definition, and which are valid, bool [n]."""
    from ciml.telemetry import OWN_COLUMNS
    from ciml.transforms.examples.prepare import prepare_many
    from ciml.transforms.raw.reader import read_runs

    log, run_ids = ManifestLog(raw), [run.run_id for run in runs]
    files = files_of(log, run_ids)
    facts = find_facts(log, run_ids) if model.definition.definition.context else None
    answers, given = [], []
    for start in range(0, len(runs), _BATCH):
        some = [files[run.run_id] for run in runs[start : start + _BATCH]]
        tables = read_runs(raw, some, columns=[*OWN_COLUMNS, *model.definition.columns])
        known = None if facts is None else [facts[run.run_id] for run in runs[start : start + _BATCH]]
        inputs, n_windows, rejected = prepare_many(tables, model.definition, known)
        answers.append(model.predict(inputs, n_windows))
        usable = np.ones(len(some), bool)
        usable[[row for row, _ in rejected]] = False
        given.append(usable & (n_windows > 0))
    return np.concatenate(answers), np.concatenate(given)

"""Kept models: estimators without a conversion to TensorFlow operations, in a form that Python alone can use.

A kept model has the layout of an exported one, without a graph: in ``assets/``, ``definition.json``, the fitted
estimator as `ciml.training.estimators.stored` writes it, and ``kept.json``, which says how it is called. It predicts on
the command line, by the Python API and in the stream. No server can load it, so it is never pushed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciml.datasets.definition import ResolvedDefinition
from ciml.digest import canonical_json
from ciml.errors import CimlError, IntegrityError
from ciml.training.calibration.calibrators import Calibrator, calibrator_of
from ciml.training.estimators.base import Fitted
from ciml.training.estimators.scikit import FittedScikit
from ciml.training.export import DEFINITION_ASSET, Timed

#: The file that makes a folder a kept model.
KEPT_ASSET = "assets/kept.json"
_FORMAT = 1


@dataclass(frozen=True)
class KeptModel(Timed):
    """A kept model, as `ciml.training.export.Exported`."""

    folder: Path
    definition: ResolvedDefinition
    fitted: Fitted
    calibrator: Calibrator | None

    def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        """Predict probabilities float32 [n, C] of inputs float32 [n, L, F], not normalised, and n_windows int32 [n]."""
        answers = self.fitted.predict(inputs, n_windows).astype(np.float32)
        return answers if self.calibrator is None else self.calibrator.apply(answers)


def keep(
    fitted: Fitted,
    resolved: ResolvedDefinition,
    folder: Path,
    *,
    calibrator: Calibrator | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a kept model; the arguments are those of `ciml.training.export.export`.

    Raises:
      CimlError: skops cannot write the estimator.
    """
    from ciml.training.estimators.stored import save

    if not isinstance(fitted, FittedScikit):
        raise CimlError(f"{type(fitted).__name__} cannot be kept for Python")
    staging = folder.with_name(f"{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "assets").mkdir(parents=True)
    (staging / DEFINITION_ASSET).write_bytes(resolved.to_asset())
    for name, content in (assets or {}).items():
        (staging / "assets" / name).write_bytes(content)
    save(fitted.model, staging / "assets")
    call = {
        "format": _FORMAT,
        "view": fitted.view,
        "names": list(fitted.names),
        "present": fitted.present.tolist(),
        "runs": fitted.runs,
        "calibrator": None if calibrator is None else calibrator.to_asset(),
    }
    (staging / KEPT_ASSET).write_bytes(canonical_json(call) + b"\n")
    os.rename(staging, folder)
    return folder


def load_kept(folder: Path | str, allow_modules: Collection[str] = ()) -> KeptModel:
    """Load a kept model from local disk.

    Args:
      folder: its folder, whose files have been verified.
      allow_modules: see `ciml.training.estimators.estimator_of`.

    Raises:
      IntegrityError: there is none, or a file is malformed.
      CimlError: the estimator has a class of a module that is not allowed.
    """
    from ciml.training.estimators.stored import load

    folder = Path(folder)
    try:
        call = json.loads((folder / KEPT_ASSET).read_bytes())
        definition = ResolvedDefinition.from_json(json.loads((folder / DEFINITION_ASSET).read_bytes()))
        if call["format"] != _FORMAT:
            raise CimlError(f"format {call['format']!r:.20} is unknown")
        present = np.array(call["present"], np.int64)
        classes = len(definition.classes)
        if not len(present) or not np.isin(present, np.arange(classes)).all():
            raise CimlError("present: not classes of the definition")
        calibrator = None if call["calibrator"] is None else calibrator_of(call["calibrator"])
        arguments: tuple[Any, ...] = (call["view"], tuple(call["names"]), present, classes, int(call["runs"]))
    except (OSError, ValueError, KeyError, TypeError, CimlError) as error:
        raise IntegrityError(f"{folder} is not a kept model: {str(error).splitlines()[0]}") from None
    return KeptModel(folder, definition, FittedScikit(load(folder / "assets", allow_modules), *arguments), calibrator)

"""Predictions by a candidate that is not served: `CandidateModel`.

Its files are the trainer's, verified by the digests of the registry. It is a SavedModel, or an estimator that only
Python can use (`ciml.training.kept`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.serving.model_files import LAST_FILE, check_digests, copy_model
from ciml.serving.predict.answers import Loaded, ModelInProcess
from ciml.serving.predict.assets import assets_of
from ciml.serving.registries import known_registries
from ciml.serving.server.model.loaded_model import load_model
from ciml.storage import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ciml.training.kept import KeptModel


class CandidateModel(ModelInProcess):
    """The last candidate of a model, whatever the gate decided. Every answer carries its `candidate`.

    Args:
      data: the data root.
      model: the model's name.
      allow_modules: modules that a kept estimator may import, besides those of its library.

    Raises:
      UnknownModelError: there is no such model, or it has no candidate.
      CimlError: the candidate's files are on another machine, or it has a class of a module that is not allowed.
      IntegrityError: a file differs from its digest in the registry.
    """

    def __init__(self, data: DataRoot, model: str, allow_modules: Collection[str] = ()) -> None:
        registry = known_registries(data, model)[model]
        candidate, notice = registry.last_candidate()
        folder = registry.candidate_folder(candidate)
        assets = assets_of(folder, candidate.files, f"model {model}, candidate {candidate.id}: ")
        super().__init__(data, model, None, assets, partial(load_candidate, folder, candidate.files, allow_modules))
        self.candidate = notice


def load_candidate(folder: Store, files: Mapping[str, str], allow_modules: Collection[str]) -> Loaded:
    """Load a candidate from a private copy whose files have the recorded digests.

    Args:
      folder: its folder.
      files: hex sha256 by relative path, from the registry.
      allow_modules: modules that a kept estimator may import, besides those of its library.

    Raises:
      FileNotFoundError: a file was removed meanwhile.
      CimlError: it has a class of a module that is not allowed.
      IntegrityError: a file differs from its digest, or is malformed.
      EngineError: loading takes too long.
    """
    if LAST_FILE in files:
        return load_model(folder, partial(check_digests, folder.root, expected=files))
    from ciml.training.kept import load_kept

    with tempfile.TemporaryDirectory(prefix="ciml-candidate-") as temporary:
        copy = Path(temporary, "model")
        check_digests(folder.root, copy_model(folder, copy), files)
        return _Estimator(load_kept(copy, allow_modules))


class _Estimator:
    """An estimator in this process."""

    signatures: Collection[str] = ()
    ended = False

    def __init__(self, kept: KeptModel) -> None:
        self._kept = kept

    def predict(
        self, signature_name: str, inputs: Mapping[str, NDArray[Any]], *, timeout_s: float | None = None
    ) -> Mapping[str, NDArray[Any]]:
        if signature_name:
            raise IntegrityError(f"a kept estimator has no signature {signature_name!r}")
        return {"probabilities": self._kept.predict(inputs["inputs"], inputs["n_windows"])}

    def close(self) -> None:
        """Nothing is to be freed."""

"""The candidates of a model as a source of predictions in the stream: `Candidates`, which needs no model server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError, UnknownModelError
from ciml.http.intake import RequestError
from ciml.serving.client import FailedCallError, NotServedError
from ciml.serving.predict.answers import Loaded, RunningModel
from ciml.serving.predict.assets import ModelAssets, assets_of, snapshot_in
from ciml.serving.predict.sources import Answers, ModelSource, SourceModel
from ciml.serving.registry import Candidate, CandidateNotice, Registry, read_asset
from ciml.training.candidate_model import load_candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ciml.storage import Store

#: After a load that failed, the same candidate is tried again this many seconds later: its files may take long to read.
_RETRY_S = 30.0


class Candidates(ModelSource):
    """The last candidate of a model, whatever the gate decided. The next refresh replaces it.

    What keeps a candidate from predicting is a `NotServedError`, whose text names the remedy: the source waits for it,
    or for the next candidate.

    Args:
      data: the data root.
      model: the model's name.
      allow_modules: modules that a kept estimator may import, besides those of its library.
      clock: monotonic seconds.
    """

    def __init__(
        self,
        data: DataRoot,
        model: str,
        allow_modules: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = Registry(data, model)
        self._allow_modules = tuple(allow_modules)
        self._clock = clock
        self._loaded: LoadedCandidate | None = None
        self._failed: tuple[str, float, str] = ("", 0.0, "")  # the candidate, when to retry it, and why
        self._lock = threading.Lock()

    def ready(self) -> str:
        with self._lock:
            candidate, notice = self._last()
            self._folder_of(candidate)
            return str(notice)

    def current(self) -> SourceModel:
        with self._lock:
            candidate, notice = self._last()
            if self._loaded is None or self._loaded.key != candidate.id:
                loaded = self._load(candidate)
                self._close()  # a call that it still answers is repeated by its successor
                self._loaded = loaded
            self._loaded.notice = notice
            return self._loaded

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _last(self) -> tuple[Candidate, CandidateNotice]:
        """Return the last candidate. Raises `NotServedError` without one."""
        try:
            return self._registry.last_candidate()
        except UnknownModelError as error:
            raise NotServedError(str(error)) from None

    def _folder_of(self, candidate: Candidate) -> Store:
        """Return the folder of a candidate. Raises `NotServedError` if it is not here, or may not be loaded."""
        try:
            folder = self._registry.candidate_folder(candidate)
            self._check_modules(candidate, folder)
        except CimlError as error:
            _raise_not_served(error)
        return folder

    def _check_modules(self, candidate: Candidate, folder: Store) -> None:
        """Raise `CimlError` if the estimator of a candidate has a class of a module that is not allowed."""
        from ciml.training.estimators.stored import DESCRIPTION, check_modules

        if f"assets/{DESCRIPTION}" in candidate.files:
            description = json.loads(read_asset(folder, candidate.files, DESCRIPTION))
            check_modules(description, self._allow_modules, f"model {self._registry.model}, candidate {candidate.id}")

    def _load(self, candidate: Candidate) -> LoadedCandidate:
        """Load a candidate. Raises `NotServedError` if that is impossible now, and for a while after a failure."""
        failed_id, retry_s, why = self._failed
        if failed_id == candidate.id and self._clock() < retry_s:
            raise NotServedError(why)
        folder = self._folder_of(candidate)
        where = f"model {self._registry.model}, candidate {candidate.id}"
        try:
            assets = replace(assets_of(folder, candidate.files, f"{where}: "), snapshot=snapshot_in(candidate))
            return LoadedCandidate(candidate.id, assets, lambda: self._load_files(candidate, where))
        except NotServedError as error:
            self._failed = (candidate.id, self._clock() + _RETRY_S, str(error))
            raise
        except CimlError as error:
            _raise_not_served(error)

    def _load_files(self, candidate: Candidate, where: str) -> Loaded:
        """Load the files of a candidate. Raises `NotServedError` if that fails; the next candidate may succeed."""
        try:
            return load_candidate(self._folder_of(candidate), candidate.files, self._allow_modules)
        except NotServedError:
            raise
        except (CimlError, OSError) as error:
            raise NotServedError(f"{where} cannot be loaded: {error}") from error


def _raise_not_served(error: CimlError) -> NoReturn:
    """Raise `NotServedError` for an error about a candidate's files; that of a store which does not answer stays."""
    if isinstance(error, EngineError):
        raise error
    raise NotServedError(str(error)) from error


class LoadedCandidate(SourceModel):
    """A candidate in this process. It is loaded again if its process has ended.

    Args:
      name: the candidate's id.
      assets: its assets.
      load: loads its files.

    Attributes:
      notice: the gate's present decision on it.
    """

    def __init__(self, name: str, assets: ModelAssets, load: Callable[[], Loaded]) -> None:
        self.key = name
        self.assets = assets
        self.notice = CandidateNotice(name, False, ())
        self._model = RunningModel(load)

    def __str__(self) -> str:
        return f"candidate {self.key}"

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"version": None, "candidate": self.notice.to_json()}

    def predict(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], timeout_s: float | None = None
    ) -> Answers:
        if self._model.closed:
            raise self._replaced()
        loaded = self._model.loaded()
        started_s = time.perf_counter()
        try:
            outputs = loaded.predict("", {"inputs": inputs, "n_windows": n_windows}, timeout_s=timeout_s)
        except Exception as error:  # noqa: BLE001 - an estimator may raise anything
            if self._model.closed:
                raise self._replaced() from None
            name = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
            raise FailedCallError(f"{name}{error}") from None
        return Answers(outputs["probabilities"], time.perf_counter() - started_s)

    def _replaced(self) -> NotServedError:
        return NotServedError(f"candidate {self.key} was replaced by a new one")

    def close(self) -> None:
        """Free its memory. A call that runs now raises `NotServedError`."""
        self._model.close()

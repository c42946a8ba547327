"""Where a `Predictor` gets its model from: the versions of a model server (`ServedVersions`), or the candidates of a
trainer (`ciml.training.candidate_source`). The predictor treats both alike.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ciml.data_root import DataRoot
from ciml.serving.client import ClientPolicy, ModelClient
from ciml.serving.predict.assets import ModelAssets, read_assets
from ciml.serving.registry import SHADOW, STABLE, Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Answers(NamedTuple):
    """The answer of a model to a call.

    Attributes:
      probabilities: float32 [rows, classes].
      seconds: duration of the call.
    """

    probabilities: NDArray[np.float32]
    seconds: float


class SourceModel(ABC):
    """The model that a source had at one moment; its text names it for people.

    Attributes:
      key: what tells it from the other models of its source; a part of the id of a prediction.
      assets: its assets, verified against the registry.
    """

    key: int | str
    assets: ModelAssets

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Any]:
        """The fields of a record that name it, as JSON."""

    @abstractmethod
    def predict(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], timeout_s: float | None = None
    ) -> Answers:
        """Return the probabilities of runs.

        Args:
          inputs: float32 [rows, L, features], not normalised.
          n_windows: int32 [rows].
          timeout_s: limit of the call, which is then attempted once; by default the source's own.

        Raises:
          NotServedError: the source has replaced the model.
          FailedCallError: the model fails for these runs, or takes too long.
          EngineError: the model cannot be queried.
        """


class ModelSource(ABC):
    """Supplies the model that predicts now. Thread-safe; used only after a fork."""

    @abstractmethod
    def ready(self) -> str:
        """Return what would predict now, for people, without loading it. Raises `NotServedError` if nothing would."""

    @abstractmethod
    def current(self) -> SourceModel:
        """Return the model that predicts now.

        Raises:
          NotServedError: there is none at present.
          EngineError: a server or a store does not answer.
          IntegrityError: its files, or the registry, are damaged.
        """

    @abstractmethod
    def close(self) -> None:
        """Free memory and connections."""


class ServedVersion(SourceModel):
    """A version on a model server. A shadow's predictions have ids of their own, and say what they are."""

    def __init__(self, client: ModelClient, version: int, assets: ModelAssets, *, is_shadow: bool = False) -> None:
        self._client = client
        self._version = version
        self._is_shadow = is_shadow
        self.key = f"{SHADOW} {version}" if is_shadow else version
        self.assets = assets

    def __str__(self) -> str:
        return f"version {self._version}"

    @property
    def fields(self) -> Mapping[str, Any]:
        return {"version": self._version, **({"shadow": True} if self._is_shadow else {})}

    def predict(
        self, inputs: NDArray[np.float32], n_windows: NDArray[np.int32], timeout_s: float | None = None
    ) -> Answers:
        answer = self._client.predict(inputs, n_windows, version=self._version, timeout_s=timeout_s)
        return Answers(answer.probabilities, answer.seconds)


class ServedVersions(ModelSource):
    """The versions of a model on a model server.

    Args:
      data: the data root, whose registry verifies the assets.
      address: ``host:port`` of the server's gRPC.
      model: the model's name.
      label: version label to query.
      policy: timeouts and retries of the client.
    """

    def __init__(
        self, data: DataRoot, address: str, model: str, label: str = STABLE, policy: ClientPolicy | None = None
    ) -> None:
        self._registry = Registry(data, model)
        self._label = label
        self._assets: dict[int, ModelAssets] = {}
        self._lock = threading.Lock()
        self.client = ModelClient(address, model, policy)

    def ready(self) -> str:
        return f"version {self.client.served_version(self._label)}"

    def current(self) -> SourceModel:
        version = self.client.served_version(self._label)
        with self._lock:
            if version not in self._assets:
                self._assets[version] = read_assets(self._registry, version)
            return ServedVersion(self.client, version, self._assets[version], is_shadow=self._label == SHADOW)

    def close(self) -> None:
        self.client.close()

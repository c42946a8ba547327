"""The folders below a data path: the only module that knows their layout.

raw/                        the raw store: manifest, runs, packs
datasets/<data set>/        manifest, spans of examples
experiments/<experiment>/   definition, results
sweeps/<sweep>/             file, trials
exclusions/                 manifest of the runs that no model may learn from
trainer/<model>/            snapshots, analyses, metrics
registry/<model>/           manifest of candidates, versions and labels
models/<model>/<version>/   served models; beside them the server's configuration
predictions/                manifest of predictions; evidence/, the pictures of verdicts
feedback/                   manifest of messages on changes; corrections by reviewers
lineage/                    OpenLineage events
tables/                     Delta tables of runs and dead letters, for other engines
demo/                       result and report of `ciml demo`
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError
from ciml.manifest.log import ManifestLog, catch_up
from ciml.storage import Store, open_store


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """A data set below a data root, whether it exists or not.

    Attributes:
      name: of the data set.
      store: its folder.
      root: its data root, whose raw store it reads unless its manifest names another one.
    """

    name: str
    store: Store
    root: DataRoot

    @property
    def log(self) -> ManifestLog:
        """Its manifest."""
        return ManifestLog(self.store)

    def state(self) -> DatasetState:
        """Return its present state. Raises `CimlError` if there is no data set of this name."""
        state = DatasetState()
        catch_up(self.log, state)
        if state.definition is None:
            folder = self.store.root.removesuffix(f"/{self.name}")
            raise CimlError(f"no data set {self.name!r} in {folder}; create it with ciml dataset create")
        return state

    def raw(self, state: DatasetState | None = None) -> Store:
        """Return the raw store that it reads.

        Args:
          state: its present state; read by default.

        Raises:
          CimlError: it was built directly from logs.
        """
        state = state or self.state()
        if state.listing is not None:
            raise CimlError(
                f"data set {self.name!r} was built from the logs of {state.listing['url']}; build it from a raw store "
                "first (ciml-cache-data, then ciml-build-dataset)"
            )
        return self.root.raw if state.source is None else DataRoot.open(state.source).raw

    def exclusion_stores(self, state: DatasetState) -> list[Store]:
        """Return the folders of exclusions that count for its runs: of its data root, and of that of its raw store.

        Args:
          state: its present state.
        """
        roots = [self.root] if state.source is None else [self.root, DataRoot.open(state.source)]
        return [root.exclusions for root in dict.fromkeys(roots)]


@dataclass(frozen=True, slots=True)
class DataRoot:
    """The folders below a data path. Functions that need one folder of it take that folder's store.

    Attributes:
      store: the store at the data path.
    """

    store: Store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DataRoot:
        """Open a local folder or an ``s3://bucket/prefix``. Raises `CimlError` for any other scheme."""
        return cls(open_store(path))

    @property
    def url(self) -> str:
        """The data path, as `open` takes it."""
        return self.store.root

    def exists(self) -> bool:
        """Return whether anything is stored here: an empty folder or prefix is not a data root."""
        return next(iter(self.store.entries()), None) is not None

    @property
    def raw(self) -> Store:
        """The raw store."""
        return self.store.child("raw")

    @property
    def datasets(self) -> Store:
        """The folder of all data sets."""
        return self.store.child("datasets")

    def dataset(self, name: str) -> StoredDataset:
        """Return a data set. The name is validated, since it may come from a user."""
        DatasetDefinition.from_json({"name": name}, "data set")
        return StoredDataset(name, self.datasets.child(name), self)

    def dataset_names(self) -> list[str]:
        """Return the names of all data sets, sorted."""
        first = f"/{ManifestLog(self.datasets).path(1)}"
        return [path.removesuffix(first) for path in self.datasets.list() if path.endswith(first)]

    @property
    def experiments(self) -> Store:
        """The experiments: `ciml.training.experiments.trials`."""
        return self.store.child("experiments")

    @property
    def sweeps(self) -> Store:
        """The sweeps: `ciml.training.sweeps.study`."""
        return self.store.child("sweeps")

    @property
    def exclusions(self) -> Store:
        """The runs that no model may learn from: `ciml.training.exclusions`."""
        return self.store.child("exclusions")

    @property
    def trainers(self) -> Store:
        """A folder for the trainer of each model."""
        return self.store.child("trainer")

    def trainer(self, model: str) -> Store:
        """Return the trainer's folder of a model: `ciml.training.refresh`."""
        return self.trainers.child(model)

    @property
    def registry(self) -> Store:
        """The manifests of all registries: `ciml.serving.registry`."""
        return self.store.child("registry")

    def candidates(self, model: str) -> str:
        """Return the address that names the candidates of a model in lineage; nothing is stored there."""
        return self.registry.child(model).url("candidates")

    @property
    def models(self) -> Store:
        """The served models and the model server's configuration: `ciml.serving.push`."""
        return self.store.child("models")

    @property
    def predictions(self) -> Store:
        """The predictions: `ciml.serving.predict.log`."""
        return self.store.child("predictions")

    @property
    def feedback(self) -> Store:
        """The messages on changes, and what reviewers say of them: `ciml.verdicts.feedback`."""
        return self.store.child("feedback")

    @property
    def evidence(self) -> Store:
        """The pictures of verdicts, beside the predictions: `ciml.verdicts.evidence`."""
        return self.predictions.child("evidence")

    @property
    def lineage(self) -> Store:
        """OpenLineage events, an object each: `ciml.lineage.openlineage`."""
        return self.store.child("lineage")

    @property
    def tables(self) -> Store:
        """Delta tables with a folder of their own: `ciml.runs.tables`. Others are where their files are."""
        return self.store.child("tables")

    @property
    def demo(self) -> Store:
        """The result and report of `ciml demo`."""
        return self.store.child("demo")

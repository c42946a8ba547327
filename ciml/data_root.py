"""The layout of a data path: `DataRoot` has its folders, which no other module of the core names.

raw/                        the raw store: manifest, runs, packs
datasets/<data set>/        manifest, spans of examples
experiments/<experiment>/   definition, results
sweeps/<sweep>/             file, trials
exclusions/                 manifest of the runs that no model may learn from
trust/                      manifest of trust policies
erasures/                   manifest of receipts of erasures; the plan of one that is under way
trainer/<model>/            snapshots, analyses, metrics
registry/<model>/           manifest of candidates, versions and labels
models/<model>/<version>/   served models; next to them the server's configuration
predictions/                manifest of predictions; evidence/ with the images of verdicts
feedback/                   manifest of messages on changes; reviewers' corrections
failures/                   signatures of failed runs, and manifest of operators' notes on them
lineage/                    OpenLineage events
tables/                     Delta tables of runs and dead letters, for other engines
demo/                       result and report of `ciml demo`
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, UnknownDatasetError
from ciml.manifest.log import ManifestLog, catch_up
from ciml.storage import Store, open_store


class Folder:
    """A descriptor: an attribute of `DataRoot` that returns the store of a folder.

    Args:
      path: of the folder, relative to the data path.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, root: DataRoot, owner: type[DataRoot]) -> Store:
        return root.store.child(self._path)


@dataclass(frozen=True, slots=True)
class DataRoot:
    """The folders in a data path. A function that needs one of them takes the store of that folder.

    Attributes:
      store: the store at the data path.
      raw: the raw store: `ciml.runs`.
      datasets: the data sets; `dataset` returns one of them.
      experiments: `ciml.training.experiments.results`.
      sweeps: `ciml.training.sweeps.study`.
      exclusions: the runs that no model may learn from: `ciml.training.exclusions`.
      trust: the trust policies: `ciml.stored_trust`.
      erasures: the receipts of erasures: `ciml.services.stored.erase`.
      trainers: the folders of the models' trainers; `trainer` returns one of them.
      registry: the manifests of all registries: `ciml.serving.registry`.
      models: the served models and the model server's configuration: `ciml.serving.push`.
      predictions: `ciml.serving.predict.log`.
      evidence: the images of verdicts, in the folder of the predictions: `ciml.verdicts.evidence`.
      feedback: the messages on changes, and the reviewers' corrections: `ciml.verdicts.feedback`.
      failures: the signatures of failed runs, and the operators' notes on them: `ciml.verdicts.signatures`.
      lineage: OpenLineage events, one object each: `ciml.lineage.openlineage`.
      tables: the Delta tables that have a folder of their own: `ciml.runs.tables`. Others are next to their files.
      demo: the result and report of `ciml demo`.
    """

    store: Store
    raw: ClassVar[Folder] = Folder("raw")
    datasets: ClassVar[Folder] = Folder("datasets")
    experiments: ClassVar[Folder] = Folder("experiments")
    sweeps: ClassVar[Folder] = Folder("sweeps")
    exclusions: ClassVar[Folder] = Folder("exclusions")
    trust: ClassVar[Folder] = Folder("trust")
    erasures: ClassVar[Folder] = Folder("erasures")
    trainers: ClassVar[Folder] = Folder("trainer")
    registry: ClassVar[Folder] = Folder("registry")
    models: ClassVar[Folder] = Folder("models")
    predictions: ClassVar[Folder] = Folder("predictions")
    evidence: ClassVar[Folder] = Folder("predictions/evidence")
    feedback: ClassVar[Folder] = Folder("feedback")
    failures: ClassVar[Folder] = Folder("failures")
    lineage: ClassVar[Folder] = Folder("lineage")
    tables: ClassVar[Folder] = Folder("tables")
    demo: ClassVar[Folder] = Folder("demo")

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

    def dataset(self, name: str) -> StoredDataset:
        """Return a data set. The name is validated, since it may come from a user."""
        DatasetDefinition.from_json({"name": name}, "data set")
        return StoredDataset(name, self.datasets.child(name), self)

    def dataset_names(self) -> list[str]:
        """Return the names of all data sets, sorted."""
        first_delta = f"/{ManifestLog(self.datasets).path(1)}"  # every data set has one
        return [path.removesuffix(first_delta) for path in self.datasets.list() if path.endswith(first_delta)]

    def trainer(self, model: str) -> Store:
        """Return the trainer's folder of a model: `ciml.training.refresh`."""
        return self.trainers.child(model)

    def candidates(self, model: str) -> str:
        """Return the address that names the candidates of a model in lineage; nothing is stored there."""
        return self.registry.child(model).url("candidates")


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """A data set in a data root; it may not exist yet.

    Attributes:
      name: name of the data set.
      store: its folder.
      root: its data root. The data set reads the raw store of this root, unless its manifest names another one.
    """

    name: str
    store: Store
    root: DataRoot

    @property
    def log(self) -> ManifestLog:
        """Its manifest."""
        return ManifestLog(self.store)

    def state(self) -> DatasetState:
        """Return its present state. Raises `UnknownDatasetError` if no data set has this name."""
        state = catch_up(self.log, DatasetState())
        if state.definition is None:
            folder = self.store.root.removesuffix(f"/{self.name}")
            names = self.root.dataset_names()
            choices = f"choose from {', '.join(names[:40])}, or create it" if names else "create it"
            raise UnknownDatasetError(f"no data set {self.name!r} in {folder}; {choices} with ciml dataset create")
        return state

    def raw(self, state: DatasetState | None = None) -> Store:
        """Return the raw store that it reads.

        Args:
          state: its present state; read by default.

        Raises:
          CimlError: the data set was built directly from logs.
        """
        state = state or self.state()
        if state.listing is not None:
            raise CimlError(
                f"data set {self.name!r} was built from the logs of {state.listing['url']}; build it from a raw store "
                "first (ciml-cache-data, then ciml-build-dataset)"
            )
        return self.root.raw if state.source is None else DataRoot.open(state.source).raw

    def exclusion_stores(self, state: DatasetState) -> list[Store]:
        """Return the folders of exclusions for its runs: of its data root, and of the root of its raw store.

        Args:
          state: its present state.
        """
        roots = [self.root] if state.source is None else [self.root, DataRoot.open(state.source)]
        return [root.exclusions for root in dict.fromkeys(roots)]

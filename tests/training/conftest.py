"""A small data set of real runs for the tests of training, built once per session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training.data.examples import InMemoryDataset, read_dataset
from ciml.training.data.materialise import Materialised, materialise
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.estimators.networks import Trained
from ciml.training.experiment import Experiment
from ciml.training.train import NormalisedRows, train
from ciml.trust import TrustPolicy
from tests.runs.scenes import RawStore
from tests.shared import shared
from tests.transforms.samples import RECORDINGS, by_recording, corpus

RUNS = 160


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the data set ``providers``, three spans; each seventh run is untrusted, most are of Ann."""
    return shared(tmp_path_factory, "training", make_providers)


def make_providers(folder: Path) -> None:
    """Write the data root of `made`."""
    data = DataRoot.open(folder)
    runs = []
    for number, (run, table) in enumerate(zip(*corpus(RUNS)[:2], strict=True)):
        pipeline = "check" if number % 7 == 3 else "gate"
        origin = {"source": "zuul", "event": "", "pipeline": pipeline, "project": "", "change": f"change-{number // 2}"}
        owner = "ann" if number % 3 else ""
        runs.append((by_recording(run).replace(**origin, owner=owner), table))
    raw = RawStore(data)
    for start in range(0, RUNS, 40):
        raw.add(runs[start : start + 40])
    definition = DatasetDefinition(
        name="providers",
        sample_interval="1s",
        class_label="provider",
        classes=RECORDINGS,
        aggregation_functions=("mean", "std", "min", "max"),
        span_runs=60,
    )
    create_dataset(data, definition)
    update_dataset(data.dataset("providers"), seal=True)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> DataRoot:
    """Copy that data path for one test."""
    shutil.copytree(made, tmp_path / "data")
    return DataRoot.open(tmp_path / "data")


#: A data root that version 0.1.0 wrote.
GOLDEN = Path(__file__).parents[1] / "golden" / "data_root" / "data"


@pytest.fixture
def golden(tmp_path: Path) -> DataRoot:
    """Copy a data root of an older version, whose model ``provider`` has one version that learned from its runs."""
    return DataRoot.open(shutil.copytree(GOLDEN, tmp_path / "golden" / "data"))


@pytest.fixture(scope="session")
def snapshot(made: Path) -> Snapshot:
    return make_snapshot(DataRoot.open(made).dataset("providers"), TrustPolicy.load())


@pytest.fixture(scope="session")
def materialised(made: Path, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Materialised:
    dataset = DataRoot.open(made).dataset("providers").store
    folder = shared(tmp_path_factory, "materialised", lambda folder: materialise(dataset, snapshot, folder))
    return Materialised(folder=folder, **json.loads((folder / "materialised.json").read_text()))


@pytest.fixture(scope="session")
def dataset(made: Path) -> InMemoryDataset:
    return read_dataset(DataRoot.open(made).dataset("providers"), TrustPolicy.load())


@pytest.fixture(scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ciml.training.evaluation.metrics.RESAMPLES", 5)
        yield


#: Small and fast, and accurate enough to beat the base rate.
QUICK = Experiment(hidden_layers=(32,), epochs=60, learning_rate=0.005)


@pytest.fixture(scope="session")
def trained(materialised: Materialised, snapshot: Snapshot) -> Trained:
    return train(
        QUICK,
        NormalisedRows(materialised, snapshot.resolved),
        snapshot.resolved,
        dev_from_train=snapshot.dev_from_train,
    )

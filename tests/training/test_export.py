from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorflow_serving.apis import prediction_log_pb2

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.runs.reader import read_runs
from ciml.runs.run_log import files_of
from ciml.serving.contract import check_candidate
from ciml.serving.server.model.loaded_model import load_model
from ciml.storage import LocalStore
from ciml.tensorflow import load_tensorflow
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot
from ciml.training.export import export, load_exported
from ciml.training.train import Trained, predict_in_memory
from ciml.transforms.examples.prepare import prepare_many
from tests.durable import Steps
from tests.training.data.test_materialise import directly, of_split


@pytest.fixture(scope="module")
def folder(
    trained: Trained, materialised: Materialised, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    where = tmp_path_factory.mktemp("export") / "model"
    return export(trained.model, materialised.transform_folder, snapshot.resolved, where, name="providers")


def test_the_served_signature_gives_what_the_trainers_model_gives(
    folder: Path, made: Path, snapshot: Snapshot, materialised: Materialised, trained: Trained
):
    _, test = read_snapshot_examples(DataRoot.open(made).dataset("providers").store, snapshot, "test")
    in_memory = predict_in_memory(trained.model, materialised, snapshot.resolved, "test")
    exported = load_exported(folder).predict(test.inputs, test.n_windows)

    assert exported.shape == (len(test), 2)
    assert exported.dtype == np.float32
    assert np.abs(exported - in_memory).max() <= 1e-5
    assert np.abs(exported.sum(axis=1) - 1).max() <= 1e-5


def test_the_exported_normalisation_is_that_of_the_training_data(
    folder: Path, made: Path, snapshot: Snapshot, trained: Trained
):
    """The model in memory, on inputs normalised by numpy, predicts the same as the exported one on raw inputs."""
    data = DataRoot.open(made)
    train, test = of_split(data, snapshot, "train"), of_split(data, snapshot, "test")
    inputs = directly(train.inputs, test.inputs).astype(np.float32)
    want = np.asarray(trained.model({"inputs": inputs, "n_windows": test.n_windows}, training=False))
    served = load_exported(folder).predict(test.inputs, test.n_windows)
    assert np.abs(served - want).max() <= 1e-5


def test_a_run_straight_from_the_raw_store_is_answered_the_same(folder: Path, made: Path, snapshot: Snapshot):
    data, model = DataRoot.open(made), load_exported(folder)
    runs, test = read_snapshot_examples(data.dataset("providers").store, snapshot, "test")
    files = files_of(ManifestLog(data.raw), [run.run_id for run in runs])
    tables = read_runs(data.raw, [files[run.run_id] for run in runs])
    inputs, n_windows, rejected = prepare_many(tables, model.definition)

    assert rejected == []
    np.testing.assert_array_equal(inputs, test.inputs)
    np.testing.assert_array_equal(model.predict(inputs, n_windows), model.predict(test.inputs, test.n_windows))


def test_both_signatures_agree(folder: Path, made: Path, snapshot: Snapshot):
    tf = load_tensorflow()
    _, test = read_snapshot_examples(DataRoot.open(made).dataset("providers").store, snapshot, "test")
    model = load_exported(folder)
    serialized = []
    for row in range(len(test)):
        example = tf.train.Example()
        for number, name in enumerate(snapshot.resolved.features):
            example.features.feature[name].float_list.value.extend(test.inputs[row, :, number].tolist())
        example.features.feature["n_windows"].int64_list.value.append(int(test.n_windows[row]))
        serialized.append(example.SerializeToString())
    answers = model.signatures["examples"](examples=tf.constant(serialized))["probabilities"].numpy()
    np.testing.assert_allclose(answers, model.predict(test.inputs, test.n_windows), rtol=0, atol=1e-6)


def test_the_model_server_takes_it(folder: Path, made: Path, snapshot: Snapshot):
    _, test = read_snapshot_examples(DataRoot.open(made).dataset("providers").store, snapshot, "test")
    assert check_candidate(LocalStore(folder)) == snapshot.resolved
    served = load_model(LocalStore(folder))
    try:
        answers = served.predict("", {"inputs": test.inputs, "n_windows": test.n_windows})["probabilities"]
    finally:
        served.close()
    np.testing.assert_allclose(answers, load_exported(folder).predict(test.inputs, test.n_windows), rtol=0, atol=1e-5)


def test_the_files_of_an_export(folder: Path, snapshot: Snapshot):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets/definition.json",
        "assets.extra/tf_serving_warmup_requests",
    }
    asset = json.loads((folder / "assets/definition.json").read_bytes())
    assert ResolvedDefinition.from_json(asset) == snapshot.resolved
    assert not folder.with_name("model.staging").exists()


def test_an_export_that_dies_leaves_no_model_and_is_repeated(
    trained: Trained, materialised: Materialised, snapshot: Snapshot, tmp_path: Path
):
    def again(before: int | None) -> list[str]:
        with Steps(str(tmp_path), before).recording() as steps:
            export(trained.model, materialised.transform_folder, snapshot.resolved, tmp_path / "model", name="m")
        return steps.steps

    assert again(before=1) == ["delete model.staging/"]
    with pytest.raises(IntegrityError, match="is not an exported model"):
        load_exported(tmp_path / "model")
    assert again(before=None) == ["delete model.staging/", "rename model.staging to model"]
    assert load_exported(tmp_path / "model").definition == snapshot.resolved


def test_warm_up_requests_are_those_of_a_server(folder: Path, snapshot: Snapshot):
    tf = load_tensorflow()
    path = str(folder / "assets.extra/tf_serving_warmup_requests")
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator()
    ]
    requests = [log.predict_log.request for log in logs]
    shape = [snapshot.resolved.windows, len(snapshot.resolved.features)]

    assert [request.model_spec.name for request in requests] == ["providers"] * 2
    assert [tf.make_ndarray(request.inputs["inputs"]).shape for request in requests] == [(1, *shape), (32, *shape)]
    assert [tf.make_ndarray(request.inputs["n_windows"]).dtype for request in requests] == [np.int32] * 2


def test_it_needs_nothing_of_the_trainer(folder: Path, made: Path, snapshot: Snapshot, tmp_path: Path):
    """A copy predicts the same without the transform's folder and the trainer's variables."""
    shutil.copytree(folder, tmp_path / "elsewhere")
    _, test = read_snapshot_examples(DataRoot.open(made).dataset("providers").store, snapshot, "test")
    one, two = load_exported(folder), load_exported(tmp_path / "elsewhere")
    np.testing.assert_array_equal(one.predict(test.inputs, test.n_windows), two.predict(test.inputs, test.n_windows))
    assert one.predict(test.inputs[:0], test.n_windows[:0]).shape == (0, 2)
    assert 0 < one.latency_ms(test.inputs, test.n_windows, calls=5) < 1000


@pytest.mark.parametrize("damage", ["none", "pb", "asset"])
def test_a_folder_without_an_exported_model_is_reported(folder: Path, tmp_path: Path, damage: str):
    where = tmp_path / "copy"
    if damage != "none":
        shutil.copytree(folder, where)
        (where / {"pb": "saved_model.pb", "asset": "assets/definition.json"}[damage]).write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=f"{where} is not an exported model"):
        load_exported(where)

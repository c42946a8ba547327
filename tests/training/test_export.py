from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.runs.reader import read_runs
from ciml.runs.run_log import stored_rows
from ciml.serving.contract import check_candidate
from ciml.storage import LocalStore
from ciml.tensorflow import load_tensorflow
from ciml.training.data.examples import Examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot
from ciml.training.estimators.networks import Trained
from ciml.training.export import UnservedError, export, load_exported, load_served, transform_of
from ciml.training.train import NormalisedRows, predict_in_memory
from ciml.transforms.examples.prepare import prepare_many
from tests.durable import Steps
from tests.serving.models_fixture import DEFINITION, save_model
from tests.training.data.test_materialise import directly, of_split

FILES = {
    "saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001",
    "assets/definition.json", "assets.extra/tf_serving_warmup_requests",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(
    trained: Trained, materialised: Materialised, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    where = tmp_path_factory.mktemp("export") / "model"
    return export(trained, transform_of(materialised.transform_folder), snapshot.resolved, where, name="providers")


@pytest.fixture(scope="module")
def tested(made: Path, snapshot: Snapshot) -> Examples:
    return of_split(DataRoot.open(made), snapshot, "test")


def test_the_model_in_memory_both_signatures_and_the_model_server_answer_the_same(
    folder: Path, tested: Examples, made: Path, snapshot: Snapshot, materialised: Materialised, trained: Trained
):
    tf, model = load_tensorflow(), load_exported(folder)
    answers = model.predict(tested.inputs, tested.n_windows)
    assert (answers.shape, answers.dtype) == ((len(tested), 2), np.float32)
    assert np.abs(answers.sum(axis=1) - 1).max() <= 1e-5
    in_memory = predict_in_memory(trained, NormalisedRows(materialised, snapshot.resolved), "test")
    inputs = directly(of_split(DataRoot.open(made), snapshot, "train").inputs, tested.inputs).astype(np.float32)
    by_numpy = np.asarray(trained.model({"inputs": inputs, "n_windows": tested.n_windows}, training=False))
    serialized = []
    for row in range(len(tested)):
        example = tf.train.Example()
        for number, name in enumerate(snapshot.resolved.features):
            example.features.feature[name].float_list.value.extend(tested.inputs[row, :, number].tolist())
        example.features.feature["n_windows"].int64_list.value.append(int(tested.n_windows[row]))
        serialized.append(example.SerializeToString())
    of_examples = model.signatures["examples"](examples=tf.constant(serialized))["probabilities"].numpy()
    assert check_candidate(LocalStore(folder)) == snapshot.resolved
    with load_served(folder) as served:
        by_server = served.predict(tested.inputs, tested.n_windows)
        assert served.predict(tested.inputs[:0], tested.n_windows[:0]).shape == (0, 2)
        assert served.latency_ms(tested.inputs, tested.n_windows, calls=3) > 0
    for others in (in_memory, by_numpy, of_examples, by_server):
        np.testing.assert_allclose(others, answers, rtol=0, atol=1e-5)


def test_the_signatures_name_the_classes_and_describe_the_model(folder: Path, tested: Examples, snapshot: Snapshot):
    tf, resolved, signatures = load_tensorflow(), snapshot.resolved, load_exported(folder).signatures
    answers = load_exported(folder).predict(tested.inputs, tested.n_windows)
    named = signatures["classify"](inputs=tf.constant(tested.inputs), n_windows=tf.constant(tested.n_windows))
    np.testing.assert_allclose(named["probabilities"].numpy(), answers, rtol=0, atol=1e-6)
    assert named["classes"].numpy().tolist() == [[name.encode() for name in resolved.classes]] * len(tested)
    assert [name.decode() for name in named["class"].numpy()] == [resolved.classes[row.argmax()] for row in answers]

    described = signatures["describe"](row=tf.constant([7, 8]))
    rows = [{name: plain(values[row].numpy()) for name, values in described.items()} for row in (0, 1)]
    assert rows[0] == rows[1]
    units = dict(zip(rows[0].pop("columns"), rows[0].pop("units"), strict=True))
    assert tuple(units) == resolved.features
    assert (units["usr"], units["1m"], units["used"]) == ("% of the time", "processes", "B")
    assert ResolvedDefinition.from_json(json.loads(rows[0].pop("definition"))) == resolved
    assert rows[0] == {
        "classes": list(resolved.classes),
        "log_columns": list(resolved.columns),
        "window_seconds": 1.0,
        "windows": 4,
        "functions": ["mean", "std", "min", "max"],
        "statistic": "mean",
        "label": "provider",
        "model": "providers",
    }


def plain(value: object) -> object:
    """Return a value of a signature with its bytes as text."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()] if value.ndim else plain(value.item())
    return value.decode() if isinstance(value, bytes) else value


def test_a_run_straight_from_the_raw_store_is_answered_the_same(
    folder: Path, tested: Examples, made: Path, snapshot: Snapshot
):
    data, model = DataRoot.open(made), load_exported(folder)
    run_ids = [run.run_id for run in snapshot.runs("test")]
    rows = stored_rows(ManifestLog(data.raw), run_ids)
    inputs, n_windows, rejected = prepare_many(
        read_runs(data.raw, [rows[run_id].file for run_id in run_ids]), model.definition
    )
    assert rejected == []
    np.testing.assert_array_equal(inputs, tested.inputs)
    np.testing.assert_array_equal(model.predict(inputs, n_windows), model.predict(tested.inputs, tested.n_windows))


def test_an_export_is_complete_and_needs_nothing_of_the_trainer(
    folder: Path, tested: Examples, snapshot: Snapshot, tmp_path: Path
):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == FILES
    assert ResolvedDefinition.from_json(json.loads((folder / "assets/definition.json").read_bytes())) == (
        snapshot.resolved
    )
    one, two = load_exported(folder), load_exported(Path(shutil.copytree(folder, tmp_path / "elsewhere")))
    np.testing.assert_array_equal(
        one.predict(tested.inputs, tested.n_windows), two.predict(tested.inputs, tested.n_windows)
    )
    assert one.predict(tested.inputs[:0], tested.n_windows[:0]).shape == (0, 2)
    assert one.latency_ms(tested.inputs, tested.n_windows, calls=5) > 0


def test_an_export_that_dies_leaves_no_model_and_is_repeated(
    trained: Trained, materialised: Materialised, snapshot: Snapshot, tmp_path: Path
):
    def again(before: int | None) -> list[str]:
        with Steps(str(tmp_path), before).recording() as steps:
            export(
                trained, transform_of(materialised.transform_folder), snapshot.resolved, tmp_path / "model", name="m"
            )
        return steps.steps

    assert again(before=1) == ["delete model.staging/"]
    with pytest.raises(IntegrityError, match="is not an exported model"):
        load_exported(tmp_path / "model")
    assert again(before=None) == ["delete model.staging/", "rename model.staging to model"]
    assert load_exported(tmp_path / "model").definition == snapshot.resolved
    for name in ("saved_model.pb", "assets/definition.json"):
        (tmp_path / "model" / name).write_bytes(b"{}")
        with pytest.raises(IntegrityError, match=f"{tmp_path}/model is not an exported model"):
            load_exported(tmp_path / "model")


def test_warm_up_requests_are_those_of_a_server(folder: Path, snapshot: Snapshot):
    tf = load_tensorflow()
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests")).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    shape = [snapshot.resolved.windows, len(snapshot.resolved.features)]
    assert [request.model_spec.name for request in requests] == ["providers"] * 3
    calls = [(request.model_spec.signature_name, request.inputs["inputs"]) for request in requests]
    assert [(name, tf.make_ndarray(inputs).shape) for name, inputs in calls] == [
        ("serving_default", (1, *shape)),
        ("serving_default", (32, *shape)),
        ("classify", (1, *shape)),
    ]
    assert [tf.make_ndarray(request.inputs["n_windows"]).dtype for request in requests] == [np.int32] * 3


def test_a_model_that_hangs_is_killed_and_one_that_reads_files_is_not_loaded(tmp_path: Path) -> None:
    windows, features = DEFINITION.windows, len(DEFINITION.features)
    large = np.full((1, windows, features), 2e6, np.float32), np.ones(1, np.int32)
    with (
        load_served(save_model(tmp_path / "hang", spoil="hang"), call_s=0.5) as served,
        pytest.raises(UnservedError, match=r"the exported model does not answer: .* takes longer than"),
    ):
        served.predict(*large)
    with (
        pytest.raises(UnservedError, match="the exported model cannot be loaded: "),
        load_served(save_model(tmp_path / "read", spoil="read")),
    ):
        pass

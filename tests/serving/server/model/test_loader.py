"""Loading: the predictions equal TensorFlow's, and forbidden models are rejected before they run."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from ciml.errors import CimlError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving.contract import check_candidate
from ciml.serving.model_files import file_digests, list_versions, model_digest
from ciml.serving.server.model.loaded_model import load_model
from ciml.serving.server.model.process import prepare
from ciml.storage import open_store
from tests.serving.models_fixture import DEFINITION, L, direct, runs, save_model, write_warmup


def test_answers_equal_tensorflow(good: dict[int, Path]) -> None:
    inputs, n_windows = runs(7)
    model = load_model(open_store(good[1]))
    answers = model.predict("", {"inputs": inputs, "n_windows": n_windows})
    assert list(answers) == ["probabilities"]
    np.testing.assert_allclose(answers["probabilities"], direct(good[1], inputs, n_windows), atol=1e-6)
    model.close()


def test_candidate_keeps_the_contract(good: dict[int, Path]) -> None:
    assert check_candidate(open_store(good[1])) == DEFINITION


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Missing but required: {inputs,n_windows}"),
        ({"inputs": np.zeros((1, 5, 3), "f4")}, "Missing but required: {n_windows}"),
        ({"inputs": np.zeros((1, 5, 3)), "n_windows": np.ones(1, "i4")}, "expects float32 but float64 is provided"),
        ({"inputs": np.zeros((1, 5, 2), "f4"), "n_windows": np.ones(1, "i4")}, "[1, 5, 2], expects [-1, 5, 3]"),
        ({"inputs": np.zeros((2, 5, 3), "f4"), "n_windows": np.ones(1, "i4")}, "different numbers of rows"),
        ({"inputs": np.zeros((5000, 5, 3), "f4"), "n_windows": np.ones(5000, "i4")}, "batch of 5000 rows exceeds 1024"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(good: dict[int, Path], inputs: dict[str, np.ndarray], message: str) -> None:
    model = load_model(open_store(good[1]))
    with pytest.raises(RequestError) as error:
        model.predict("", inputs)
    assert error.value.code == "INVALID_ARGUMENT"
    assert message in error.value.message
    model.close()


@pytest.mark.parametrize(
    ("spoil", "operation"), [("read", "ReadFile"), ("write", "WriteFile"), ("python", "EagerPyFunc")]
)
def test_operations_that_reach_out_are_rejected(tmp_path: Path, spoil: str, operation: str) -> None:
    folder = save_model(tmp_path / "m", spoil=spoil)
    with pytest.raises(IntegrityError, match=f"operation {operation} is not allowed"):
        load_model(open_store(folder))
    assert os.listdir(tmp_path) == ["m"]


def test_saving_is_rejected_where_serving_reaches_it(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", spoil="save")
    with pytest.raises(IntegrityError, match="operation SaveV2 is not allowed for serving a model"):
        load_model(open_store(folder))
    assert os.listdir(tmp_path) == ["m"]


def test_restore_must_not_save(good: dict[int, Path], tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    saver = saved.meta_graphs[0].saver_def
    saver.restore_op_name = saver.save_tensor_name.split(":")[0]
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(IntegrityError, match="is not allowed for restoring a model"):
        load_model(open_store(folder))


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_damaged_models_are_rejected(good: dict[int, Path], tmp_path: Path, file: str, how: str) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    if how == "missing":
        (folder / file).unlink()
    else:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match=str(tmp_path)):
        load_model(open_store(folder))


def test_links_and_strange_files_are_rejected(good: dict[int, Path], tmp_path: Path) -> None:
    linked = Path(shutil.copytree(good[1], tmp_path / "linked"))
    (linked / "assets" / "secret").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="symbolic link"):
        load_model(open_store(linked))
    (tmp_path / "whole").symlink_to(good[1])
    with pytest.raises(IntegrityError, match="symbolic link"):
        load_model(open_store(tmp_path / "whole"))
    pickled = Path(shutil.copytree(good[1], tmp_path / "pickled"))
    (pickled / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(IntegrityError, match="is not part of a SavedModel"):
        load_model(open_store(pickled))
    fifo = Path(shutil.copytree(good[1], tmp_path / "fifo"))
    os.mkfifo(fifo / "assets" / "pipe")
    with pytest.raises(IntegrityError, match="is not a regular file"):
        load_model(open_store(fifo))


def test_versions_are_real_folders_with_whole_numbers(tmp_path: Path) -> None:
    for name in ("1", "12", "007", "staging-3-ab", "-4", "1.5", "٣", "0x1"):
        (tmp_path / name).mkdir()
    (tmp_path / "13").symlink_to(tmp_path / "12")
    (tmp_path / "14").write_text("a file")
    assert list_versions(open_store(tmp_path)) == [1, 12]
    assert list_versions(open_store(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("records", "shape", "message"),
    [
        (1001, (1, L, 3), "tf_serving_warmup_requests: more than 1000 records"),
        (1, (1, L, 2), "warm-up request 0: input 'inputs'"),
    ],
)
def test_warmup_that_fails_fails_the_load(tmp_path: Path, records: int, shape: tuple[int, ...], message: str) -> None:
    folder = save_model(tmp_path / "m")
    write_warmup(folder, records, shape)
    with pytest.raises(IntegrityError, match=message):
        load_model(open_store(folder))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("nan", "not finite"), ("logits", "not probabilities"), ("signature", "no signature 'examples'")],
)
def test_unsound_candidates_are_rejected(tmp_path: Path, spoil: str, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        check_candidate(open_store(save_model(tmp_path / "m", spoil=spoil)))


def test_candidate_without_a_definition_or_with_another_is_rejected(good: dict[int, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    other = DEFINITION.replace(windows=L + 1)
    (folder / "assets" / "definition.json").write_bytes(other.to_asset())
    with pytest.raises(IntegrityError, match="by its definition"):
        check_candidate(open_store(folder))
    (folder / "assets" / "definition.json").unlink()
    with pytest.raises(IntegrityError, match=r"has no assets/definition\.json"):
        check_candidate(open_store(folder))


def test_digest_sees_every_byte(good: dict[int, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    before = file_digests(open_store(folder))
    assert set(before) >= {"saved_model.pb", "variables/variables.index", "assets/definition.json"}
    file = folder / "variables" / "variables.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    after = file_digests(open_store(folder))
    assert {path for path in before if before[path] != after[path]} == {"variables/variables.data-00000-of-00001"}
    assert model_digest(before) != model_digest(after)
    with pytest.raises((CimlError, FileNotFoundError)):
        file_digests(open_store(tmp_path / "none"))


def test_model_is_closed_after_its_last_request(good: dict[int, Path]) -> None:
    inputs, n_windows = runs(2)
    model = load_model(open_store(good[1]))
    assert model.acquire()
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(0.3)
    assert closing.is_alive()
    assert not model.acquire()  # no new request is accepted
    assert model.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"].shape == (2, 4)
    model.release()
    closing.join(10)
    assert not closing.is_alive()
    assert model.signatures == {}


def test_a_model_whose_forker_was_killed_says_so(good: dict[int, Path]) -> None:
    process = load_model(open_store(good[1])).process
    os.kill(prepare()._process.pid, signal.SIGKILL)
    assert [process.end(), process.end()] == ["ended with the process that forked it"] * 2
    load_model(open_store(good[1])).close()  # by a new one

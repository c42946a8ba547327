"""Loading: the predictions equal TensorFlow's, and forbidden models are rejected before they run."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.http.intake import RequestError
from ciml.serving import contract, model_files
from ciml.serving.contract import check_candidate
from ciml.serving.model_files import file_digests, list_versions, model_digest
from ciml.serving.server.model import loaded_model, worker
from ciml.serving.server.model import process as process_module
from ciml.serving.server.model.loaded_model import LoadedModel, load_model
from ciml.serving.server.model.process import ModelProcess, _Forker, prepare
from ciml.storage import open_store
from tests.serving.models_fixture import DEFINITION, L, direct, runs, save_model
from tests.serving.server.model.test_allowed_ops import altered


@pytest.fixture(scope="module")
def model(good: dict[int, Path]) -> Iterator[LoadedModel]:
    loaded = load_model(open_store(good[1]), max_rows=7)
    yield loaded
    loaded.close()


def test_answers_equal_tensorflow(good: dict[int, Path], model: LoadedModel) -> None:
    inputs, n_windows = runs(7)
    answers = model.predict("", {"inputs": inputs, "n_windows": n_windows})
    assert list(answers) == ["probabilities"]
    np.testing.assert_allclose(answers["probabilities"], direct(good[1], inputs, n_windows), atol=1e-6)


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
        ({"inputs": np.zeros((8, 5, 3), "f4"), "n_windows": np.ones(8, "i4")}, "batch of 8 rows exceeds 7"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(model: LoadedModel, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RequestError) as error:
        model.predict("", inputs)
    assert error.value.code == "INVALID_ARGUMENT"
    assert message in error.value.message


@pytest.mark.parametrize(
    ("spoil", "operation"),
    [("read", "ReadFile"), ("write", "WriteFile"), ("python", "EagerPyFunc"), ("save", "SaveV2")],
)
def test_operations_that_reach_out_are_rejected(tmp_path: Path, spoil: str, operation: str) -> None:
    folder = save_model(tmp_path / "m", spoil=spoil)
    allowed = " for serving a model" if spoil == "save" else ""  # a model may save while it is trained
    with pytest.raises(IntegrityError, match=f"operation {operation} is not allowed{allowed}"):
        load_model(open_store(folder))
    assert os.listdir(tmp_path) == ["m"]


def test_restore_must_not_save(good: dict[int, Path], tmp_path: Path) -> None:
    def alter(graph: Any) -> None:
        graph.saver_def.restore_op_name = graph.saver_def.save_tensor_name.split(":")[0]

    folder = altered(good[1], tmp_path / "m", alter)
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


def test_files_are_limited_in_number_and_in_size_together(
    good: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_store(good[1])
    files = dict(model_files.read_files(folder))
    for limit, most in (("MAX_MODEL_FILES", len(files)), ("MAX_MODEL_BYTES", sum(map(len, files.values())))):
        with monkeypatch.context() as patch:
            patch.setattr(model_files, limit, most)
            assert dict(model_files.read_files(folder)) == files
            patch.setattr(model_files, limit, most - 1)
            with pytest.raises(IntegrityError, match=rf"holds more than {most - 1} files|at most {most - 1}"):
                list(model_files.read_files(folder))


def test_a_model_is_verified_before_it_is_read_as_one(tmp_path: Path) -> None:
    def verify(digests: Mapping[str, str]) -> None:
        raise IntegrityError(f"{len(digests)} files are not those of a pushed version")

    folder = save_model(tmp_path / "m", spoil="read")
    with pytest.raises(IntegrityError, match="files are not those of a pushed version"):
        load_model(open_store(folder), verify)


def test_inputs_are_limited_in_size_together(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    arrays = {"x": np.zeros((3, 2), "f4"), "s": np.array([b"a", b"bc", b""], object)}
    protos = {name: tf.make_tensor_proto(array) for name, array in arrays.items()}
    size = arrays["x"].nbytes + 3 * 8 + 3  # a text takes a pointer and its bytes
    monkeypatch.setattr(loaded_model, "MAX_TENSOR_BYTES", size)
    assert model.unpack("several", protos)["s"].tolist() == [b"a", b"bc", b""]
    monkeypatch.setattr(loaded_model, "MAX_TENSOR_BYTES", size - 1)
    with pytest.raises(RequestError, match=f"{size} bytes unpacked exceed"):
        model.unpack("several", protos)


def test_a_patient_client_does_not_extend_a_call(tmp_path: Path) -> None:
    model = load_model(open_store(save_model(tmp_path / "m", spoil="hang")), call_s=3.0)
    inputs, n_windows = runs(1)
    with pytest.raises(RequestError, match=r"takes longer than 3 s for one call"):
        model.predict("", {"inputs": inputs + 2e6, "n_windows": n_windows}, timeout_s=60.0)
    assert not model.ended  # TensorFlow cancelled the call; the process was not killed
    model.close()


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda folder: (folder / "assets" / "secret").symlink_to("/etc/hostname"), "symbolic link"),
        (lambda folder: folder.symlink_to(folder.rename(folder.with_name("a"))), "symbolic link"),
        (lambda folder: (folder / "model.pkl").write_bytes(b"\x80\x04."), "is not part of a SavedModel"),
        (lambda folder: os.mkfifo(folder / "assets" / "pipe"), "is not a regular file"),
    ],
    ids=["link", "folder", "pickle", "pipe"],
)
def test_links_and_strange_files_are_rejected(
    good: dict[int, Path], tmp_path: Path, add: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    add(folder)
    with pytest.raises(IntegrityError, match=message):
        load_model(open_store(folder))


def test_versions_are_real_folders_with_whole_numbers(tmp_path: Path) -> None:
    for name in ("1", "12", "007", "staging-3-ab", "-4", "1.5", "٣", "0x1"):
        (tmp_path / name).mkdir()
    (tmp_path / "13").symlink_to(tmp_path / "12")
    (tmp_path / "14").write_text("a file")
    assert list_versions(open_store(tmp_path)) == [1, 12]
    assert list_versions(open_store(tmp_path / "none")) == []


def spoilt(*changes: tuple[int, int, float]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that adds to some of the probabilities: (row, class, summand)."""

    def spoil(answers: np.ndarray) -> np.ndarray:
        answers = answers.copy()
        for row, number, summand in changes:
            answers[row, number] += summand
        return answers

    return spoil


EVERY = ("", "examples")


@pytest.mark.parametrize(
    ("signatures", "spoil", "message"),
    [
        (EVERY, spoilt((3, 0, np.nan)), "not finite"),
        (EVERY, spoilt((3, 0, np.inf)), "not finite"),
        (EVERY, spoilt((2, 1, -1.0), (2, 0, 1.0)), "not probabilities"),  # the sum is 1
        (EVERY, spoilt((1, 0, 0.01), (2, 0, -0.01)), "not probabilities"),  # the mean of the sums is 1
        (["examples"], spoilt((1, 0, 0.01)), "'examples' give different answers"),
        (["examples"], spoilt((3, 1, -0.01)), "'examples' give different answers"),
        (["examples"], spoilt((3, 1, np.nan)), "'examples' give different answers"),
    ],
)
def test_unsound_answers_are_rejected(
    good: dict[int, Path],
    monkeypatch: pytest.MonkeyPatch,
    signatures: Sequence[str],
    spoil: Callable[[np.ndarray], np.ndarray],
    message: str,
) -> None:
    predict = LoadedModel.predict

    def answer(self: LoadedModel, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        answers = predict(self, name, inputs)
        return {key: spoil(value) for key, value in answers.items()} if name in signatures else answers

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModel, "predict", answer)
        patch.setattr(loaded_model, "warm_up", lambda *_: None)
        with pytest.raises(IntegrityError, match=message):
            check_candidate(open_store(good[2]))


def test_a_candidate_that_is_slow_or_lacks_a_signature_is_rejected(
    good: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IntegrityError, match="no signature 'examples'"):
        check_candidate(open_store(save_model(tmp_path / "m", spoil="signature")))
    monkeypatch.setattr(contract, "MAX_CALL_S", 0.0)
    with pytest.raises(IntegrityError, match=r"takes longer than 0\.0 s for one run"):
        check_candidate(open_store(good[1]))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (DEFINITION, ""),
        (DEFINITION.replace(definition=DEFINITION.definition.replace(salt="key")), ""),  # the key is not published
        (DEFINITION.replace(classes=("a", "b", "d", "c")), "'serving_default' and 'classify' give different answers"),
        (DEFINITION.replace(features=("usr", "sys", "5m")), "describes another definition"),
        (DEFINITION.replace(definition=DEFINITION.definition.replace(sample_interval="1s")), "another definition"),
    ],
)
def test_a_candidate_that_describes_another_model_is_rejected(
    tmp_path: Path, described: ResolvedDefinition, message: str
) -> None:
    folder = open_store(save_model(tmp_path / "m", described=described))
    if message:
        with pytest.raises(IntegrityError, match=message):
            check_candidate(folder)
    else:
        assert check_candidate(folder) == DEFINITION


@pytest.mark.parametrize(
    ("asset", "data", "message"),
    [
        ("definition.json", DEFINITION.replace(windows=L + 1).to_asset(), "by its definition"),
        ("definition.json", DEFINITION.replace(classes=("a", "b")).to_asset(), "by its definition"),
        ("definition.json", b"{}", "is not a data set definition"),
        ("definition.json", None, r"has no assets/definition\.json"),
        ("verdicts.json", b"{}", r"assets/verdicts\.json"),
    ],
)
def test_a_candidate_whose_assets_do_not_fit_is_rejected(
    good: dict[int, Path], tmp_path: Path, asset: str, data: bytes | None, message: str
) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    (folder / "assets" / asset).write_bytes(data or b"")
    if data is None:
        (folder / "assets" / asset).unlink()
    with pytest.raises(IntegrityError, match=message):
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
    swapped = dict(zip(before, reversed(before.values()), strict=True))
    assert model_digest(before) != model_digest(swapped)  # the same contents under other names
    with pytest.raises((CimlError, FileNotFoundError)):
        file_digests(open_store(tmp_path / "none"))


def test_model_is_closed_after_its_last_request(good: dict[int, Path]) -> None:
    inputs, n_windows = runs(2)
    model = load_model(open_store(good[1]))
    model.acquire()
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(0.3)
    assert closing.is_alive()
    with pytest.raises(RequestError, match="the version is being unloaded"):
        model.acquire()
    assert model.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"].shape == (2, 4)
    model.release()
    closing.join(10)
    assert not closing.is_alive()
    assert model.signatures == {}


def test_a_model_whose_forker_was_killed_says_so(good: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_forker", None)  # the models of other tests live as long as theirs
    process = load_model(open_store(good[1])).process
    os.kill(prepare()._process.pid, signal.SIGKILL)
    assert [process.end(), process.end()] == ["ended with the process that forked it"] * 2
    load_model(open_store(good[1])).close()  # by a new one


def test_a_fork_that_fails_ends_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configure_logging", "declare_own_process", "load_tensorflow", "gc"):
        monkeypatch.setattr(worker, name, Mock())
    monkeypatch.setattr(os, "fork", Mock(side_effect=BlockingIOError(errno.EAGAIN, "")))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forker = object.__new__(_Forker)
    forker.owner, forker._control, forker._lock = os.getpid(), ours, threading.Lock()
    monkeypatch.setattr(process_module, "_forker", forker)
    thread = threading.Thread(target=worker.main, args=(theirs.detach(),))
    thread.start()
    with ours:
        for _ in range(2):
            with pytest.raises(EngineError, match="cannot start the process of a model: Resource temporarily"):
                ModelProcess(1.0, 1.0)
    thread.join(30)
    assert not thread.is_alive()


def test_a_call_waits_for_others_no_longer_than_its_client(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, n_windows = runs(2)
    monkeypatch.setattr(model.process, "_idle", queue.LifoQueue())  # all connections are in use
    with pytest.raises(RequestError, match=r"4 other calls have run for 0\.01 s") as late:
        model.predict("", {"inputs": inputs, "n_windows": n_windows}, timeout_s=0.01)
    assert late.value.code == "DEADLINE_EXCEEDED"

"""Versions change under load: each request is answered, always by a blessed version."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from ciml.data_root import DataRoot
from ciml.http.intake import RequestError
from ciml.serving import push as push_module
from ciml.serving.client import ClientPolicy, ModelClient
from ciml.serving.model_files import ModelEntry, render_config
from ciml.serving.push import push, rollback
from ciml.serving.registry import Decision, Registry
from ciml.serving.server.manager import ModelManager
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from tests.serving.models_fixture import direct, runs, save_model

BLESSED = Decision(True)


class Probe:
    """Sends requests continuously from its own thread, without retries."""

    def __init__(self, port: int, every_s: float = 0.02) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.rows: dict[int, np.ndarray] = {}
        self._client = ModelClient(f"127.0.0.1:{port}", "m", ClientPolicy(timeout_s=5, budget_s=0))
        self._every_s, self._stop = every_s, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        inputs, n_windows = runs(3, seed=11)
        labels = ["stable", ""]
        while not self._stop.wait(self._every_s):
            try:
                labels.reverse()
                answer = self._client.predict(inputs, n_windows, label=labels[0])
            except Exception as error:  # noqa: BLE001
                self.failures.append(str(error))
            else:
                self.answers[answer.version] += 1
                self.rows.setdefault(answer.version, answer.probabilities)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def options(data: DataRoot, **changes: Any) -> ServerOptions:
    return ServerOptions(data.models.url("models.config"), **{"grpc_port": 0, "rest_port": 0, "poll_s": 0.05} | changes)


@pytest.fixture
def server(data: DataRoot, good: dict[int, Path]) -> Iterator[ModelServer]:
    push(data, "m", open_store(good[1]), BLESSED, check=False)
    with ModelServer(options(data)) as running:
        yield running


def until(true: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def stable(server: ModelServer) -> int | None:
    return server.manager.labels("m").get("stable")


def test_swaps_and_rollbacks_under_load(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    with Probe(server.grpc_port) as probe:
        for seed in (2, 3):
            version = push(data, "m", open_store(good[seed]), BLESSED, check=False).version
            until(lambda version=version: stable(server) == version)  # type: ignore[misc]
            time.sleep(0.2)
        rollback(data, "m")
        until(lambda: stable(server) == 2 and 3 not in server.manager.available("m"))
        time.sleep(0.2)
        rollback(data, "m", 3)
        until(lambda: stable(server) == 3)
        time.sleep(0.2)
    assert probe.failures == []
    assert set(probe.answers) == {1, 2, 3}
    assert sum(probe.answers.values()) > 20
    inputs, n_windows = runs(3, seed=11)
    for version, seed in ((1, 1), (2, 2), (3, 3)):
        np.testing.assert_allclose(probe.rows[version], direct(good[seed], inputs, n_windows), atol=1e-6)


@pytest.mark.whole
def test_many_swaps_give_memory_back(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    process = psutil.Process()
    sizes: list[float] = []
    with Probe(server.grpc_port, every_s=0.005) as probe:
        push(data, "m", open_store(good[2]), BLESSED, check=False)
        for turn in range(60):
            rollback(data, "m", 1 + turn % 2)
            server.poll()
            assert stable(server) == 1 + turn % 2
            if turn >= 19 and turn % 10 == 9:
                sizes.append(process.memory_info().rss / 2**20)
    assert probe.failures == []
    assert set(probe.answers) == {1, 2}
    assert sizes[-1] - sizes[0] < 20, sizes


def damage(folder: Path, how: str) -> None:
    """Damage a pushed version's folder, as a bad disk or an intruder would."""
    if how == "flipped byte":
        file = folder / "variables" / "variables.data-00000-of-00001"
        data = bytearray(file.read_bytes())
        data[7] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file = folder / "saved_model.pb"
        file.write_bytes(file.read_bytes()[:-9])
    elif how == "missing":
        shutil.rmtree(folder)
    elif how == "link":
        real = folder.with_name("elsewhere")
        folder.rename(real)
        folder.symlink_to(real)
    elif how == "pickle":
        (folder / "assets" / "x.pkl").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize("how", ["flipped byte", "cut", "missing", "link", "pickle"])
def test_spoilt_version_leaves_the_old_one_also_after_a_restart(
    data: DataRoot, good: dict[int, Path], monkeypatch: pytest.MonkeyPatch, server: ModelServer, how: str
) -> None:
    real = push_module.write_config

    def spoils_first(data: DataRoot) -> bool:
        folder = Path(data.url, "models", "m", "2")
        if folder.exists():
            damage(folder, how)
        return real(data)

    monkeypatch.setattr(push_module, "write_config", spoils_first)
    with Probe(server.grpc_port) as probe:
        push(data, "m", open_store(good[2]), BLESSED, check=False)
        until(lambda: any(one.version == 2 and one.state == "END" for one in server.manager.status("m")))
        time.sleep(0.2)
    assert (probe.failures, set(probe.answers)) == ([], {1})
    (bad,) = [one for one in server.manager.status("m") if one.version == 2]
    assert bad.code in ("DATA_LOSS", "NOT_FOUND")
    assert bad.message
    assert stable(server) == 1
    with ModelServer(options(data)) as again, Probe(again.grpc_port) as probe:
        time.sleep(0.3)
    assert (probe.failures, set(probe.answers)) == ([], {1})


@pytest.mark.parametrize("spoil", ["python", "read", "write"])
def test_forbidden_operations_never_serve_even_when_blessed(
    data: DataRoot, server: ModelServer, tmp_path: Path, spoil: str
) -> None:
    folder = save_model(tmp_path / "bad", spoil=spoil)
    push(data, "m", open_store(folder), BLESSED, check=False)  # a wrong decision of the gate
    until(lambda: any(one.version == 2 and one.state == "END" for one in server.manager.status("m")))
    assert stable(server) == 1
    assert "is not allowed in a model" in server.manager.status("m", 2)[0].message
    assert not Path(f"{folder}.written").exists()


def test_strangers_are_never_served(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    base = Path(data.url, "models", "m")
    shutil.copytree(good[2], base / "5")
    shutil.copytree(good[2], base / "staging-6-aa")
    time.sleep(0.3)
    assert list(server.manager.available("m")) == [1]
    entry = Registry(data, "m").entry()
    assert entry is not None
    forged = ModelEntry("m", entry.base_path, versions=(1, 5), labels={"stable": 5})
    data.models.replace("models.config", render_config([forged]).encode())
    until(lambda: any(one.version == 5 and one.state == "END" for one in server.manager.status("m")))
    assert "version 5 was never pushed" in server.manager.status("m", 5)[0].message
    assert (list(server.manager.available("m")), stable(server)) == ([1], 1)


TWICE = "model_config_list { config { name: 'm' base_path: '/x' } config { name: 'm' base_path: '/y' } }"


@pytest.mark.parametrize("text", ["", "garbage {", "model_config_list { config { name: 'm' } }", TWICE])
def test_broken_configuration_changes_nothing(data: DataRoot, server: ModelServer, text: str) -> None:
    good_text = data.models.read("models.config")
    data.models.replace("models.config", text.encode())
    time.sleep(0.3)
    assert stable(server) == 1
    assert b"ciml_model_config_errors_total 1.0" in server.metrics.text()
    data.models.delete("models.config")
    time.sleep(0.2)
    assert stable(server) == 1
    data.models.replace("models.config", good_text)


def test_models_that_the_configuration_lacks_are_dropped(data: DataRoot, good: dict[int, Path]) -> None:
    for name in ("m", "n"):
        push(data, name, open_store(good[1]), BLESSED, check=False)
    with ModelServer(options(data)) as server:
        assert server.manager.names() == ["m", "n"]
        entry = Registry(data, "n").entry()
        assert entry is not None
        data.models.replace("models.config", render_config([entry]).encode())
        until(lambda: server.manager.names() == ["n"])
        with pytest.raises(RequestError, match="Could not find any versions of model m"):
            server.manager.status("m")


def test_first_push_is_served_without_a_restart(data: DataRoot, good: dict[int, Path]) -> None:
    with ModelServer(options(data)) as server:
        assert httpx.get(f"http://127.0.0.1:{server.rest_port}/v1/models/m", trust_env=False).status_code == 404
        push(data, "m", open_store(good[1]), BLESSED, check=False)
        until(lambda: stable(server) == 1)


@pytest.mark.engines
def test_models_on_s3(s3: Any, good: dict[int, Path]) -> None:
    data = DataRoot.open(s3.bucket() + "/data")
    push(data, "m", open_store(good[1]), BLESSED, check=False)
    with ModelServer(options(data)) as server, Probe(server.grpc_port) as probe:
        push(data, "m", open_store(good[2]), BLESSED, check=False)
        until(lambda: stable(server) == 2)
        time.sleep(0.3)
    assert (probe.failures, set(probe.answers)) == ([], {1, 2})


def test_latest_and_all_as_in_tensorflow_serving(good: dict[int, Path], tmp_path: Path) -> None:
    for version, seed in ((1, 1), (2, 2), (11, 3)):
        shutil.copytree(good[seed], tmp_path / str(version))
    manager = ModelManager()
    for entry, versions in (
        (ModelEntry("m", str(tmp_path), "latest", latest=1), [11]),
        (ModelEntry("m", str(tmp_path), "latest", latest=2), [2, 11]),
        (ModelEntry("m", str(tmp_path), "all"), [1, 2, 11]),
        (ModelEntry("m", str(tmp_path), versions=(2,)), [2]),
    ):
        manager.apply([entry])
        manager.step()
        assert list(manager.available("m")) == versions
    manager.close()
    assert manager.names() == []


@pytest.mark.engines
def test_server_as_a_process_comes_back_with_the_blessed_version(
    data: DataRoot, good: dict[int, Path], tmp_path: Path
) -> None:
    push(data, "m", open_store(good[1]), BLESSED, check=False)
    command = [sys.executable, "-m", "ciml.cli.main", "serve", "--config", data.models.url("models.config")]
    command += ["--grpc-port", "0", "--rest-port", "0"]
    for ending in (signal.SIGKILL, signal.SIGTERM):
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            ports = json.loads(process.stdout.readline())
            with ModelClient(f"127.0.0.1:{ports['grpc']}", "m") as client:
                assert client.predict(*runs(2)).version == 1
            assert httpx.get(f"http://127.0.0.1:{ports['rest']}/readyz", trust_env=False).status_code == 200
            os.kill(process.pid, ending)
            assert process.wait(20) == (-9 if ending == signal.SIGKILL else 0)
        finally:
            process.kill()
            process.wait()
    other = subprocess.run([*command[:4], "--config", "x.config"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "cannot derive the registry from" in other.stderr


def test_bad_folder_of_one_model_leaves_the_others_alone(
    good: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "m"
    shutil.copytree(good[1], base / "1")
    bad = {"b": "gs://x", "c": "s3://", "d": f"{tmp_path}/{'x' * 300}", "e": f"{tmp_path}/a\0b"}
    now = [0.0]
    manager = ModelManager(clock=lambda: now[0])
    manager.apply(
        [
            ModelEntry("a", str(base), "latest"),
            *(ModelEntry(name, path, "latest") for name, path in bad.items()),
            ModelEntry("f", "gs://x", "specific", (4, 7)),
            ModelEntry("z", str(base), "latest"),
        ]
    )
    for _ in range(3):
        manager.step()
    assert {name: list(manager.available(name)) for name in manager.names()} == {
        "a": [1], "b": [], "c": [], "d": [], "e": [], "f": [], "z": [1],
    }  # fmt: skip
    assert not manager.ready
    with pytest.raises(RequestError, match=r"Could not find any versions of model b: .*gs://x"):
        manager.status("b")
    assert [(one.version, one.state, one.code) for one in manager.status("f")] == [
        (7, "END", "INVALID_ARGUMENT"),
        (4, "END", "INVALID_ARGUMENT"),
    ]
    assert "gs://x" in manager.status("f")[0].message
    # An error is reported once.
    assert [record.message for record in caplog.records].count(f"model b: {manager.status('f')[0].message}") == 1

    # A repaired folder is served; a newly broken one leaves the loaded versions.
    manager.apply([ModelEntry("a", "gs://x", "latest"), ModelEntry("b", str(base), "latest")])
    manager.step()
    assert {name: list(manager.available(name)) for name in manager.names()} == {"a": [1], "b": [1]}
    assert manager.find("a")[0] == 1
    manager.close()

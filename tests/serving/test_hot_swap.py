"""Versions change under load: each request is answered, always by a blessed version."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from ciml.http.intake import RequestError
from ciml.serving import push as push_module
from ciml.serving.client import ClientPolicy, ModelClient
from ciml.serving.ledger import hold, release, rollback, withdraw
from ciml.serving.model_files import ModelEntry, render_config
from ciml.serving.push import HeldError, write_config
from ciml.serving.registry import Registry, Signature
from ciml.serving.server import server as server_module
from ciml.serving.server.manager import ModelChoice
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.serving.models_fixture import direct, push_models, runs, save_model
from tests.serving.process import server_process
from tests.serving.server.test_manager import Loaded


class Probe:
    """Sends requests continuously from its own thread, without retries."""

    def __init__(self, port: int, model: str, every_s: float = 0.02) -> None:
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self.rows: dict[int, np.ndarray] = {}
        self._client = ModelClient(f"127.0.0.1:{port}", model, ClientPolicy(timeout_s=30, budget_s=0))
        self._every_s = every_s
        self._stop = threading.Event()
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

    def wait_for(self, version: int) -> None:
        """Wait until requests with and without a label are answered by a version."""
        before = self.answers[version]
        until(lambda: self.answers[version] > before + 2 or bool(self.failures))

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def options(data: DataRoot) -> ServerOptions:
    return ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0, poll_s=0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server without models; each test has one of its own name."""
    with ModelServer(options(DataRoot.open(tmp_path_factory.mktemp("data")))) as running:
        yield running


@pytest.fixture
def data(server: ModelServer) -> DataRoot:
    return DataRoot.open(Path(server.options.config).parents[1])


def stable(server: ModelServer, model: str) -> int | None:
    return server.manager.labels(model).get("stable")


def ended(server: ModelServer, model: str, version: int) -> str:
    """Return why a version is not served; "" while it is not known to be so."""
    status = {one.version: one for one in server.manager.status(ModelChoice(model))}.get(version)
    return f"{status.code}: {status.message}" if status is not None and status.state == "END" else ""


def test_swaps_and_rollbacks_under_load(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    assert stable(server, "swapped") is None
    push_models(data, good[1], model="swapped")
    until(lambda: stable(server, "swapped") == 1)  # without a restart
    with Probe(server.grpc_port, "swapped") as probe:
        probe.wait_for(1)
        for seed in (2, 3):
            probe.wait_for(push_models(data, good[seed], model="swapped"))
        rollback(data, "swapped")
        until(lambda: stable(server, "swapped") == 2 and 3 not in server.manager.available("swapped"))
        probe.wait_for(2)
        rollback(data, "swapped", 3)
        probe.wait_for(3)
    assert probe.failures == []
    assert set(probe.answers) == {1, 2, 3}
    inputs, n_windows = runs(3, seed=11)
    for version in (1, 2, 3):
        np.testing.assert_allclose(probe.rows[version], direct(good[version], inputs, n_windows), atol=1e-6)


@pytest.mark.whole
def test_many_swaps_give_memory_back(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    process = psutil.Process()
    sizes: list[float] = []
    push_models(data, good[1], model="often")
    until(lambda: stable(server, "often") == 1)
    with Probe(server.grpc_port, "often", every_s=0.005) as probe:
        push_models(data, good[2], model="often")
        for turn in range(40):
            rollback(data, "often", 1 + turn % 2)
            server.poll()
            assert stable(server, "often") == 1 + turn % 2
            if turn < 2:
                probe.wait_for(1 + turn % 2)
            if turn >= 19 and turn % 10 == 9:
                sizes.append(process.memory_info().rss / 2**20)
    assert probe.failures == []
    assert set(probe.answers) == {1, 2}
    assert sizes[-1] - sizes[0] < 20, sizes


def other(model: Path, folder: Path, number: int) -> Path:
    """Return a copy of a model that is another one to the registry."""
    shutil.copytree(model, folder)
    (folder / "assets" / "number.txt").write_text(str(number))
    return folder


@pytest.mark.interop
@pytest.mark.timeout(1800)
def test_two_hundred_pushes_with_holds_and_rollbacks(
    data: DataRoot, good: dict[int, Path], server: ModelServer, tmp_path: Path
) -> None:
    """At 50 predictions a second; every fourth push meets a hold first, and every fifth is rolled back."""
    sizes: list[float] = []
    registry = Registry(data, "busy")
    push_models(data, good[1], model="busy")
    until(lambda: stable(server, "busy") == 1)
    with Probe(server.grpc_port, "busy") as probe:
        for turn in range(200):
            model = other(good[1 + turn % 3], tmp_path / str(turn), turn)
            if turn % 4 == 0:
                hold(registry, Signature("ann", "release week"))
                with pytest.raises(HeldError):
                    push_models(data, model, model="busy")
                release(registry, Signature("ann", "it is out"))
            version = push_models(data, model, model="busy")
            if turn % 5 == 0:
                version = rollback(data, "busy").version
            server.poll()
            assert stable(server, "busy") == version, turn
            if turn >= 79 and turn % 20 == 19:
                sizes.append(resident_mib())
            shutil.rmtree(model)
    print(f"{sum(probe.answers.values())} answers by {len(probe.answers)} versions; {sizes} MiB")
    assert probe.failures == []
    assert sum(probe.answers.values()) > 1_000
    assert max(sizes) < sizes[0] + 40, sizes


def resident_mib() -> float:
    """Return the memory of this process and the processes of its models."""
    process = psutil.Process()
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def flip(folder: Path) -> None:
    file = folder / "variables" / "variables.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)


def replace_by_link(folder: Path) -> None:
    folder.symlink_to(folder.rename(folder.with_name("elsewhere")))


#: What a bad disk or an intruder does to a pushed version, and how its load ends.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "DATA_LOSS: "),
    "cut": (lambda folder: (folder / "saved_model.pb").write_bytes(b"\x08"), "DATA_LOSS: "),
    "missing": (shutil.rmtree, "NOT_FOUND: "),
    "link": (replace_by_link, "DATA_LOSS: "),
    "pickle": (lambda folder: (folder / "assets" / "x.pkl").write_bytes(b"\x80\x04."), "DATA_LOSS: "),
}


def test_a_spoilt_version_leaves_the_old_one_also_after_a_restart(
    data: DataRoot, good: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ModelServer
) -> None:
    real = push_module.write_config
    forbidden = save_model(tmp_path / "writes", spoil="write")
    for how in (*DAMAGE, "forbidden"):
        push_models(data, good[1], model=how)
    with Probe(server.grpc_port, "flipped") as probe:
        until(lambda: all(stable(server, how) == 1 for how in (*DAMAGE, "forbidden")))
        probe.failures.clear()
        for how, (damage, _) in DAMAGE.items():

            def damage_first(root: DataRoot, how: str = how, damage: Callable[[Path], object] = damage) -> bool:
                if Path(root.url, "models", how, "2").is_dir():
                    damage(Path(root.url, "models", how, "2"))
                return real(root)

            monkeypatch.setattr(push_module, "write_config", damage_first)
            push_models(data, good[2], model=how)
        monkeypatch.undo()
        push_models(data, forbidden, model="forbidden")  # a wrong decision of the gate
        for how, reason in {**{how: reason for how, (_, reason) in DAMAGE.items()}, "forbidden": "DATA_LOSS: "}.items():
            until(lambda how=how: ended(server, how, 2) != "")  # type: ignore[misc]
            assert ended(server, how, 2).startswith(reason), how
            assert stable(server, how) == 1
        probe.wait_for(1)
    assert (probe.failures, set(probe.answers)) == ([], {1})
    assert "is not allowed in a model" in ended(server, "forbidden", 2)
    assert not Path(f"{forbidden}.written").exists()
    with ModelServer(options(data)) as again, Probe(again.grpc_port, "flipped") as probe:
        until(lambda: all(stable(again, how) == 1 for how in (*DAMAGE, "forbidden")))
        probe.failures.clear()
        probe.wait_for(1)
    assert (probe.failures, set(probe.answers)) == ([], {1})


def test_strangers_are_never_served_and_models_that_the_configuration_lacks_are_dropped(
    data: DataRoot, good: dict[int, Path], server: ModelServer
) -> None:
    for name in ("m", "n"):
        push_models(data, good[1], model=name)
    until(lambda: stable(server, "m") == stable(server, "n") == 1)
    base = Path(data.url, "models", "m")
    shutil.copytree(good[2], base / "5")
    shutil.copytree(good[2], base / "staging-6-aa")
    server.poll()
    assert list(server.manager.available("m")) == [1]
    entry = Registry(data, "m").entry()
    assert entry is not None
    forged = ModelEntry("m", entry.base_path, versions=(1, 5), labels={"stable": 5})
    data.models.replace("models.config", render_config([forged]).encode())
    until(lambda: ended(server, "m", 5) != "" and server.manager.names() == ["m"])
    assert "version 5 was never pushed" in ended(server, "m", 5)
    assert (list(server.manager.available("m")), stable(server, "m")) == ([1], 1)
    with pytest.raises(RequestError, match="Could not find any versions of model n"):
        server.manager.status(ModelChoice("n"))
    write_config(data)


def test_a_version_leaves_service_although_its_withdrawal_died_before_it_wrote_the_configuration(
    data: DataRoot, good: dict[int, Path], server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_REGISTRY_S", 0.1)
    for name, folders in (("purged", (good[1], good[2])), ("emptied", (good[1],))):
        push_models(data, *folders, model=name)
    until(lambda: stable(server, "purged") == 2 and stable(server, "emptied") == 1)
    with monkeypatch.context() as patch:
        patch.setattr("ciml.serving.ledger.write_config", lambda root: False)
        withdraw(Registry(data, "purged"), [2], Signature("ann", "forged results"))
        withdraw(Registry(data, "emptied"), [1], Signature("ann", "forged results"))
    until(lambda: list(server.manager.available("purged")) == [1] and "emptied" not in server.manager.names())
    assert stable(server, "purged") == 1
    with ModelServer(options(data)) as again:
        assert (list(again.manager.available("purged")), again.manager.available("emptied")) == ([1], {})
    write_config(data)


@pytest.mark.parametrize(
    "policy", [{}, {"latest": {"num_versions": 2}}, {"all": {}}, {"specific": {"versions": [1, 2]}}], ids=str
)
def test_a_withdrawn_version_leaves_service_after_a_reload_too(
    tmp_path: Path, folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    from google.protobuf import json_format
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    monkeypatch.setattr(server_module, "load_model", lambda folder, verify, **_: Loaded(folder.root))
    monkeypatch.setattr(server_module, "_REGISTRY_S", 0.1)
    data = DataRoot.open(tmp_path)
    push_models(data, folders[1], folders[2])
    config = {"name": "m", "base_path": data.models.url("m"), "model_version_policy": policy}
    reload = json_format.ParseDict(
        {"config": {"model_config_list": {"config": [config]}}}, model_management_pb2.ReloadConfigRequest()
    )
    with ModelServer(dataclasses.replace(options(data), allow_reload=True, host="::1")) as server:
        channel = grpc.insecure_channel(f"[::1]:{server.grpc_port}")
        service = model_service_pb2_grpc.ModelServiceStub(channel)
        assert stable(server, "m") == 2
        service.HandleReloadConfigRequest(reload, timeout=60)
        assert (stable(server, "m"), max(server.manager.available("m"))) == (None, 2)
        with monkeypatch.context() as patch:
            patch.setattr("ciml.serving.ledger.write_config", lambda root: False)
            withdraw(Registry(data, "m"), [2], Signature("ann", "forged results"))
        until(lambda: list(server.manager.available("m")) == [1])
        push_models(data, folders[3])
        service.HandleReloadConfigRequest(reload, timeout=60)
        assert 2 not in server.manager.available("m")
        channel.close()


TWICE = b"model_config_list { config { name: 'm' base_path: '/x' } config { name: 'm' base_path: '/y' } }"


def test_broken_configuration_changes_nothing(data: DataRoot, good: dict[int, Path], server: ModelServer) -> None:
    push_models(data, good[1], model="kept")
    until(lambda: stable(server, "kept") == 1)
    broken = (b"", b"garbage {", b"model_config_list { config { name: 'm' } }", TWICE)
    for errors, text in enumerate(broken, 1):
        data.models.replace("models.config", text)
        until(lambda errors=errors: f"config_errors_total {errors}.0".encode() in server.metrics.text())  # type: ignore[misc]
        for _ in range(2):
            server.poll()  # the same text is counted once
        assert f"config_errors_total {errors}.0".encode() in server.metrics.text()
        assert stable(server, "kept") == 1
    data.models.delete("models.config")
    server.poll()
    assert stable(server, "kept") == 1
    write_config(data)


@pytest.mark.engines
def test_models_on_s3(s3: Any, good: dict[int, Path]) -> None:
    data = DataRoot.open(s3.bucket() + "/data")
    push_models(data, good[1], model="m")
    with ModelServer(options(data)) as server, Probe(server.grpc_port, "m") as probe:
        probe.wait_for(1)
        push_models(data, good[2], model="m")
        probe.wait_for(2)
    assert (probe.failures, set(probe.answers)) == ([], {1, 2})


@pytest.mark.engines
def test_server_as_a_process_comes_back_with_the_blessed_version(good: dict[int, Path], tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    push_models(data, good[1], model="m")
    for ending, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        with server_process(data.models.url("models.config"), tmp_path / "log") as server:
            with ModelClient(f"127.0.0.1:{server.grpc_port}", "m") as client:
                assert client.predict(*runs(2)).version == 1
            assert httpx.get(f"http://127.0.0.1:{server.rest_port}/readyz", trust_env=False).status_code == 200
            os.kill(server.pid, ending)
            assert server.process.wait(20) == code


def test_a_registry_that_cannot_be_derived_is_an_error() -> None:
    with pytest.raises(CimlError, match="cannot derive the registry from"):
        ServerOptions("x.config").registry_root()

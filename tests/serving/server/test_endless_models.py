"""A model that never finishes loading or answering affects only itself: its process is killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from ciml.errors import EngineError
from ciml.http.intake import RequestError
from ciml.serving.model_files import ModelEntry, render_config
from ciml.serving.server import server as server_module
from ciml.serving.server.manager import ModelManager
from ciml.serving.server.model.loaded_model import LoadedModel, load_model
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import Store, open_store
from tests.serving.endless import Kind, save_endless
from tests.serving.models_fixture import runs

pytestmark = pytest.mark.whole

CALL_S = 0.5


def load_soon(folder: Store, verify: object = None) -> LoadedModel:
    """Load with time limits that a sound model keeps."""
    return load_model(folder, None, call_s=CALL_S)


def until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    root = tmp_path_factory.mktemp("endless")
    kinds: tuple[Kind, ...] = ("folding", "chain", "operation", "crash")
    return {kind: save_endless(root / kind / "1", kind) for kind in kinds}


@pytest.mark.parametrize("kind", ["folding", "chain"])
def test_a_model_whose_constants_fold_endlessly_is_not_loaded(endless: dict[Kind, Path], kind: Kind) -> None:
    with pytest.raises(EngineError, match=r"'serving_default' takes longer than 0\.5 s for one call"):
        load_soon(open_store(endless[kind]))


def test_a_model_that_is_not_restored_in_time_is_not_loaded(good: dict[int, Path]) -> None:
    with pytest.raises(EngineError, match=r"loading takes longer than 0\.0001 s \(MAX_MODEL_LOAD_S\)"):
        load_model(open_store(good[1]), load_s=0.0001)


def test_a_call_that_does_not_end_ends_only_its_own_model(endless: dict[Kind, Path], good: dict[int, Path]) -> None:
    model, other = load_soon(open_store(endless["operation"])), load_model(open_store(good[1]))
    np.testing.assert_array_equal(model.predict("", {"x": np.zeros(2, "f4")})["y"], [0, 0])
    with pytest.raises(RequestError, match=r"takes longer than 0\.5 s for one call") as slow:
        model.predict("", {"x": np.full(2, 5, "f4")})
    assert slow.value.code == "DEADLINE_EXCEEDED"
    assert model.ended
    with pytest.raises(RequestError, match="process has ended; it is loaded again") as later:
        model.predict("", {"x": np.zeros(2, "f4")})
    assert later.value.code == "UNAVAILABLE"
    inputs, n_windows = runs(3)
    assert other.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"].shape == (3, 4)
    for one in (model, other):
        one.close()


def test_a_call_that_takes_all_memory_fails_alone(endless: dict[Kind, Path]) -> None:
    model = load_model(open_store(endless["crash"]))
    with pytest.raises(RequestError) as failure:
        model.predict("", {"x": np.full(2, 5, "f4")})
    assert failure.value.code in ("RESOURCE_EXHAUSTED", "INTERNAL")
    model.close()


def test_a_model_whose_process_ended_is_loaded_again(endless: dict[Kind, Path]) -> None:
    manager = ModelManager(load=load_soon)
    manager.apply([ModelEntry("m", str(endless["operation"].parent), "latest")])
    manager.step()
    _, model = manager.find("m")
    with pytest.raises(RequestError):
        model.predict("", {"x": np.full(2, 5, "f4")})
    manager.step()
    _, again = manager.find("m")
    assert again is not model
    np.testing.assert_array_equal(again.predict("", {"x": np.zeros(2, "f4")})["y"], [0, 0])
    manager.close()


@pytest.fixture
def server(
    endless: dict[Kind, Path], good: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelServer]:
    """Start a server with a sound and an endless model; do not wait for either."""
    monkeypatch.setattr(server_module, "MAX_MODEL_CALL_S", 3.0)
    shutil.copytree(good[1], tmp_path / "good" / "1")
    entries = [
        ModelEntry("endless", str(endless["folding"].parent), "specific", (1,)),
        ModelEntry("good", str(tmp_path / "good"), "specific", (1,)),
    ]
    config = tmp_path / "models.config"
    config.write_text(render_config(entries))
    running = ModelServer(ServerOptions(str(config), verify=False, grpc_port=0, rest_port=0, poll_s=0.05))
    running.start()
    yield running
    running.stop()


def ask(server: ModelServer, path: str) -> tuple[int, dict[str, object]]:
    answer = httpx.get(f"http://127.0.0.1:{server.rest_port}{path}", trust_env=False)
    return answer.status_code, answer.json()


def test_ports_open_before_models_load_and_other_models_are_served_meanwhile(server: ModelServer) -> None:
    assert ask(server, "/healthz")[0] == 200
    assert ask(server, "/readyz") in (
        (503, {"ready": False, "loading": ["endless", "good"]}),
        (503, {"ready": False, "loading": ["endless"]}),
    )
    until(lambda: "AVAILABLE" in str(ask(server, "/v1/models/good")))
    status = ask(server, "/v1/models/endless")[1]["model_version_status"]
    assert [version["state"] for version in status] == ["LOADING"]  # type: ignore[index,attr-defined]
    inputs, n_windows = runs(2)
    body = {"inputs": {"inputs": inputs.tolist(), "n_windows": n_windows.tolist()}}
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/good:predict"
    assert len(httpx.post(url, json=body, trust_env=False).json()["outputs"]) == 2
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/endless:predict"
    answer = httpx.post(url, json={"inputs": [0.0]}, trust_env=False)
    assert (answer.status_code, answer.json()) == (503, {"error": "model endless is being loaded"})
    by_label = ask(server, "/v1/models/endless/labels/stable")  # as a client asks which version is served
    assert by_label == (503, {"error": "model endless is being loaded"})
    until(lambda: "END" in str(ask(server, "/v1/models/endless")))
    (status,) = ask(server, "/v1/models/endless")[1]["model_version_status"]  # type: ignore[misc]
    assert (status["state"], status["status"]["error_code"]) == ("END", "UNAVAILABLE")  # type: ignore[index]
    assert "takes longer than 3 s for one call" in status["status"]["error_message"]  # type: ignore[index]


def test_a_served_version_stays_while_a_new_one_loads_endlessly(
    endless: dict[Kind, Path], good: dict[int, Path], tmp_path: Path
) -> None:
    base = tmp_path / "m"
    shutil.copytree(good[1], base / "1")
    manager = ModelManager(load=load_soon)
    manager.apply([ModelEntry("m", str(base), "latest")])
    manager.step()
    shutil.copytree(endless["folding"], base / "2")
    manager.step(wait=False)
    until(lambda: any(status.state == "LOADING" for status in manager.status("m")))
    inputs, n_windows = runs(1)
    number, model = manager.find("m")
    assert number == 1
    assert model.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"].shape == (1, 4)
    manager.step()
    assert [(status.version, status.state) for status in manager.status("m")] == [(2, "END"), (1, "AVAILABLE")]
    assert manager.find("m")[0] == 1
    manager.close()


def test_the_processes_of_models_end_with_a_killed_server(endless: dict[Kind, Path]) -> None:
    """Even where one of them runs an operation that does not end."""
    script = f"""
import os, signal, sys, threading
import numpy as np, psutil
from ciml.storage import LocalStore
from ciml.serving.server.model.loaded_model import load_model
model = load_model(LocalStore({str(endless["operation"])!r}))
threading.Thread(target=model.predict, args=("", {{"x": np.full(2, 5, "f4")}}), daemon=True).start()
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    children = [int(pid) for pid in ended.stdout.split()]
    assert len(children) == 2, ended.stderr
    until(lambda: not any(is_running(pid) for pid in children))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""A model that never finishes loading or answering affects only itself: its process is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import psutil
import pytest

from ciml.errors import EngineError
from ciml.http.intake import RequestError
from ciml.serving.model_files import ModelEntry, render_config
from ciml.serving.predict.answers import RunningModel
from ciml.serving.server import server as server_module
from ciml.serving.server.model.loaded_model import load_model
from ciml.serving.server.server import ModelServer, ServerOptions
from ciml.storage import open_store
from tests.serving.endless import Kind, save_endless
from tests.serving.models_fixture import columns, runs
from tests.serving.test_hot_swap import until

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    root = tmp_path_factory.mktemp("endless")
    return {kind: save_endless(root / kind / "1", kind) for kind in get_args(Kind)}


def test_a_model_that_is_not_restored_in_time_is_not_loaded(good: dict[int, Path]) -> None:
    with pytest.raises(EngineError, match=r"loading takes longer than 0\.0001 s \(MAX_MODEL_LOAD_S\)"):
        load_model(open_store(good[1]), load_s=0.0001)


def test_a_call_that_does_not_end_ends_only_its_own_model(endless: dict[Kind, Path], good: dict[int, Path]) -> None:
    model = load_model(open_store(endless["operation"]))
    other = load_model(open_store(good[1]))
    np.testing.assert_array_equal(model.predict("", {"x": np.zeros(2, "f4")})["y"], [0, 0])
    model.process._call_s = 0.5  # the good call may take longer
    with pytest.raises(RequestError, match=r"takes longer than 0\.5 s for one call") as slow:
        model.predict("", {"x": np.full(2, 5, "f4")})
    assert slow.value.code == "DEADLINE_EXCEEDED"
    assert model.ended
    with pytest.raises(RequestError, match="process has ended; it is loaded again") as later:
        model.predict("", {"x": np.zeros(2, "f4")})
    assert later.value.code == "UNAVAILABLE"
    inputs, n_windows = runs(3)
    assert other.predict("", {"inputs": inputs, "n_windows": n_windows})["probabilities"].shape == (3, 4)
    for loaded in (model, other):
        loaded.close()


def test_a_call_that_takes_all_memory_fails_alone(endless: dict[Kind, Path]) -> None:
    model = load_model(open_store(endless["crash"]))
    with pytest.raises(RequestError) as failure:
        model.predict("", {"x": np.full(2, 5, "f4")})
    assert failure.value.code == "INTERNAL"  # not RESOURCE_EXHAUSTED, which a client may take for a busy server
    model.close()


def test_a_process_that_was_killed_before_a_call_is_no_failure_of_the_model(good: dict[int, Path]) -> None:
    """As Linux kills it first when memory runs out. A client may try again: the model is loaded again."""
    server = psutil.Process()
    others = set(server.children(recursive=True))
    running = RunningModel(lambda: load_model(open_store(good[1])))
    model = running.loaded()
    (process,) = (child for child in set(server.children(recursive=True)) - others if not child.children())
    process.kill()
    # Its other threads close its end of the connections after the first one has ended.
    until(lambda: not is_running(process.pid) and len(os.listdir(f"/proc/{process.pid}/task")) == 1)
    assert model.ended
    inputs, n_windows = runs(3)
    named = {"inputs": inputs, "n_windows": n_windows}
    with pytest.raises(RequestError) as failure:
        model.predict("", named)
    assert failure.value.code == "UNAVAILABLE"
    assert len(running.loaded().predict("", named)["probabilities"]) == 3
    running.close()


@contextmanager
def serving(config: Path, *models: Path) -> Iterator[httpx.Client]:
    """A client of a server with version 1 of models, for none of which it waits."""
    config.write_text(render_config([ModelEntry(path.name, str(path), "specific", (1,)) for path in models]))
    options = ServerOptions(str(config), verify=False, grpc_port=0, rest_port=0, poll_s=0.05)
    server = ModelServer(options)
    server.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False, timeout=60) as rest:
            yield rest
    finally:
        server.stop()


def test_ports_open_before_models_load_and_other_models_are_served_meanwhile(
    endless: dict[Kind, Path], good: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(good[1], tmp_path / "good" / "1")
    with serving(tmp_path / "models.config", endless["folding"].parent, tmp_path / "good") as rest:

        def ask(path: str) -> tuple[int, Any]:
            answer = rest.get(path)
            return answer.status_code, answer.json()

        def post(model: str, body: Any) -> tuple[int, Any]:
            answer = rest.post(f"/v1/models/{model}:predict", json=body)
            return answer.status_code, answer.json()

        assert ask("/healthz")[0] == 200
        code, state = ask("/readyz")
        assert (code, state["ready"]) == (503, False)
        assert "folding" in state["loading"]
        until(lambda: "AVAILABLE" in str(ask("/v1/models/good")))
        (status,) = ask("/v1/models/folding")[1]["model_version_status"]
        assert status["state"] == "LOADING"
        assert len(post("good", columns(2))[1]["outputs"]) == 2
        loading = (503, {"error": "model folding is being loaded"})
        assert post("folding", {"inputs": [0.0]}) == loading
        assert ask("/v1/models/folding/labels/stable") == loading  # as a client asks which version is served


def test_a_model_whose_first_call_does_not_end_is_not_served(
    endless: dict[Kind, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_MODEL_CALL_S", 1.0)
    with serving(tmp_path / "models.config", endless["folding"].parent) as rest:
        until(lambda: "END" in rest.get("/v1/models/folding").text)
        (status,) = rest.get("/v1/models/folding").json()["model_version_status"]
        assert (status["state"], status["status"]["error_code"]) == ("END", "UNAVAILABLE")
        assert "takes longer than 1 s for one call" in status["status"]["error_message"]


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

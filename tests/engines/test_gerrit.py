"""mosquitto and Gerrit as engines: what is published and what is pushed survives a kill of each."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt import publish
from paho.mqtt.enums import CallbackAPIVersion

from ciml import engines
from ciml.engines import processes
from ciml.engines.jars import NoJava
from ciml.engines.servers import GERRIT_ADMIN, find_mosquitto
from ciml.errors import EngineError


def _ask(url: str, method: str, path: str, body: Any = None) -> Any:
    proof = base64.b64encode(":".join(GERRIT_ADMIN).encode()).decode()
    headers = {"Authorization": f"Basic {proof}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/a{path}", data, headers, method=method)) as answer:
        return json.loads(answer.read()[5:] or b"null")


@pytest.mark.interop
@pytest.mark.engines
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.environ.get("CIML_NO_JAVA", "") not in ("", "0"), reason="CIML_NO_JAVA is set")
def test_a_change_survives_a_kill_of_gerrit(tmp_path: Path) -> None:
    with engines.start(["gerrit"], tmp_path, engines.Settings(tied=True)) as running:
        url = running.gerrit
        _ask(url, "PUT", "/projects/demo", {"create_empty_commit": True, "branches": ["master"]})
        _ask(url, "POST", "/changes/", {"project": "demo", "branch": "master", "subject": "A change"})
        state = running.states["gerrit"]
        assert state.pid is not None
        os.kill(state.pid, signal.SIGKILL)
        while processes.find(state.process) is not None:
            time.sleep(0.01)
        with engines.start(["gerrit"], tmp_path, engines.Settings(tied=True)) as again:
            assert again.gerrit == url
            assert [one["subject"] for one in _ask(url, "GET", "/changes/?q=project:demo")] == ["A change"]


@pytest.mark.engines
@pytest.mark.timeout(120)
def test_mosquitto_keeps_a_session_over_a_restart(tmp_path: Path) -> None:
    with engines.start(["mosquitto"], tmp_path, engines.Settings(tied=True)) as running:
        host, port = running.mosquitto.removeprefix("mqtt://").split(":")
        reader = mqtt.Client(CallbackAPIVersion.VERSION2, "reader", clean_session=False)
        subscribed = threading.Event()
        reader.on_subscribe = lambda *_: subscribed.set()
        reader.connect(host, int(port))
        reader.subscribe("zuul/#", 1)
        reader.loop_start()
        assert subscribed.wait(30)
        publish.single("zuul/first", b"1", 1, hostname=host, port=int(port))
        reader.disconnect()
        reader.loop_stop()
        publish.single("zuul/second", b"2", 1, hostname=host, port=int(port))
        running.stop()
        with engines.start(["mosquitto"], tmp_path, engines.Settings(tied=True, ports={"mosquitto": int(port)})):
            found: list[bytes] = []
            reader.on_message = lambda _client, _data, message: found.append(message.payload)
            reader.connect(host, int(port))
            while b"2" not in found:
                reader.loop(1.0)
            reader.disconnect()


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_arguments, **_options: None)
    for name in ("JAVA_HOME", "CIML_NO_JAVA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError, match="apt-get install mosquitto"):
        find_mosquitto()
    with pytest.raises(NoJava, match="no Java in PATH"):
        engines.start(["gerrit"], tmp_path)

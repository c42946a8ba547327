"""mosquitto and Gerrit as engines: what is published and what is pushed survives a restart of each."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from paho.mqtt import client as mqtt
from paho.mqtt import publish
from paho.mqtt.enums import CallbackAPIVersion

from ciml import engines
from ciml.engines.jars import NoJava
from ciml.engines.servers import GERRIT_ADMIN, find_mosquitto
from ciml.errors import EngineError
from tests.engines.test_engines import kill

TIED = engines.Settings(tied=True)


def ask(url: str, method: str, path: str, body: Any = None) -> str:
    answer = httpx.request(method, f"{url}/a{path}", json=body, auth=GERRIT_ADMIN, timeout=60, trust_env=False)
    return answer.raise_for_status().text


@pytest.mark.interop
@pytest.mark.engines
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.environ.get("CIML_NO_JAVA", "") not in ("", "0"), reason="CIML_NO_JAVA is set")
def test_a_change_survives_a_kill_of_gerrit(tmp_path: Path) -> None:
    with engines.start(["gerrit"], tmp_path, TIED) as running:
        url = running.gerrit
        ask(url, "PUT", "/projects/demo", {"create_empty_commit": True, "branches": ["master"]})
        ask(url, "POST", "/changes/", {"project": "demo", "branch": "master", "subject": "A change"})
        kill(running.states["gerrit"])
        with engines.start(["gerrit"], tmp_path, TIED) as again:
            assert again.gerrit == url
            assert '"subject":"A change"' in ask(url, "GET", "/changes/?q=project:demo")


@pytest.mark.engines
@pytest.mark.timeout(120)
def test_mosquitto_keeps_a_session_over_a_restart(tmp_path: Path) -> None:
    with engines.start(["mosquitto"], tmp_path, TIED) as running:
        port = int(running.mosquitto.rpartition(":")[2])
        reader = mqtt.Client(CallbackAPIVersion.VERSION2, "reader", clean_session=False)
        subscribed = threading.Event()
        reader.on_subscribe = lambda *_: subscribed.set()
        reader.connect("127.0.0.1", port)
        reader.subscribe("zuul/#", 1)
        reader.loop_start()
        assert subscribed.wait(30)
        reader.disconnect()
        reader.loop_stop()
        publish.single("zuul/event", b"1", 1, hostname="127.0.0.1", port=port)
        running.stop()
        with engines.start(["mosquitto"], tmp_path, engines.Settings(tied=True, ports={"mosquitto": port})):
            payloads: list[bytes] = []
            reader.on_message = lambda _client, _data, message: payloads.append(message.payload)
            reader.connect("127.0.0.1", port)
            while not payloads:
                reader.loop(1.0)
            reader.disconnect()
    assert payloads == [b"1"]


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_arguments, **_options: None)
    for name in ("JAVA_HOME", "CIML_NO_JAVA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EngineError, match="apt-get install mosquitto"):
        find_mosquitto()
    with pytest.raises(NoJava, match="no Java in PATH"):
        engines.start(["gerrit"], tmp_path)

"""The proof of a message is that of the verified connection to its broker, and no setting alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.integrations.config import MqttSource, load_receivers
from ciml.integrations.mqtt import MqttSession
from tests.integrations.mqtt.mosquitto import Certificates

_USER = {"user": "ciml", "secret_file": "password"}


@pytest.mark.parametrize(
    ("broker", "has_user", "has_certificate", "proof"),
    [
        ("mqtt://b", False, False, ""),
        ("mqtt://b", True, False, ""),
        ("mqtts://b", False, False, ""),
        ("mqtts://b", True, False, "mqtt-user"),
        ("mqtts://b", False, True, "mqtt-certificate"),
        ("mqtts://b", True, True, "mqtt-certificate"),
    ],
)
def test_a_message_is_proved_by_tls_with_a_user_or_a_certificate(
    tmp_path: Path, certificates: Certificates, broker: str, has_user: bool, has_certificate: bool, proof: str
) -> None:
    (tmp_path / "password").write_text("a-password-of-enough-bytes")
    keys = {"receiver": "mqtt", "name": "zuul", "adapter": "zuul", "broker": broker, "topics": ["zuul/#"]}
    if has_user:
        keys |= _USER
    if has_certificate:
        folder = certificates.folder
        keys |= {"certificate_file": str(folder / "client.pem"), "key_file": str(folder / "client.key")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    (tmp_path / "receivers.toml").write_text("\n".join(["[[source]]", *lines]))
    receivers = load_receivers(tmp_path / "receivers.toml")
    assert MqttSession(receivers, receivers.of(MqttSource)[0]).auth == proof

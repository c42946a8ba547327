"""The proof of a message is that of the verified connection to its broker, and no setting alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.mqtt.mosquitto import Certificates, session_of


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
    settings: dict[str, object] = {"broker": broker}
    if has_user:
        settings |= {"user": "ciml", "secret_file": "password"}
    if has_certificate:
        folder = certificates.folder
        settings |= {"certificate_file": str(folder / "client.pem"), "key_file": str(folder / "client.key")}
    assert session_of(tmp_path, **settings).auth == proof

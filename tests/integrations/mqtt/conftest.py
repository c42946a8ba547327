"""Fixtures of the receiver of MQTT messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.mqtt.mosquitto import Certificates, Mosquitto
from tests.integrations.receivers.conftest import probe

__all__ = ["probe"]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of a broker, of a client, and of their authority."""
    return Certificates.made(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def mosquitto(tmp_path: Path, certificates: Certificates) -> Iterator[Mosquitto]:
    """A running broker with TLS, users and an access list."""
    broker = Mosquitto(tmp_path / "mosquitto", certificates)
    broker.start()
    yield broker
    broker.kill()

"""What was acknowledged is in the topic and once in the raw store, whatever is killed: a part of `receivers_chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.broker import own_broker
from tests.integrations.receivers.conftest import probe
from tests.services.receivers_chaos import gerrit_trial, mqtt_trial

__all__ = ["probe"]

pytestmark = [pytest.mark.engines, pytest.mark.interop, pytest.mark.timeout(1800), pytest.mark.usefixtures("probe")]


def test_2000_mqtt_messages_while_receiver_mosquitto_and_kafka_are_killed(tmp_path: Path) -> None:
    mqtt_trial(tmp_path / "trial", own_broker(tmp_path), 2000, 10, 100.0, seed=1)


def test_60_events_of_gerrit_while_it_and_receiver_and_kafka_are_killed(tmp_path: Path) -> None:
    gerrit_trial(tmp_path / "trial", own_broker(tmp_path), 60, 4, seed=2)

"""What was acknowledged is in the topic, and each event once in the raw store, whatever is killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integrations.webhooks.killing import deliver_and_ingest, receiving_webhooks
from tests.pipelines.ingest.ingesting import need_real

pytestmark = [pytest.mark.engines, pytest.mark.timeout(280)]


def test_a_killed_receiver_loses_nothing_that_it_acknowledged(
    kafka: str, topic: Callable[..., str], tmp_path: Path, probe: Path
) -> None:
    need_real(kafka)
    receiver = receiving_webhooks(tmp_path / "hooks", kafka, topic(2), probe)
    try:
        counts = deliver_and_ingest(receiver, tmp_path / "data", 300, 3, lambda _: receiver.kill(), seed=1)
    finally:
        receiver.program.kill()
    assert counts["run", ""] == 300


@pytest.mark.interop
@pytest.mark.timeout(1800)
def test_2000_deliveries_while_receiver_and_broker_are_killed(tmp_path: Path, probe: Path) -> None:
    from ciml import engines
    from tests.faults.broker import own_broker

    broker = own_broker(tmp_path)
    engines.create_topics(broker.address, {"hooked": 2})
    receiver = receiving_webhooks(tmp_path / "hooks", broker.address, "hooked", probe)
    killed = Counter[str]()

    def kill(chance: random.Random) -> None:
        victim = chance.choice(["broker", "frozen broker", "receiver", "receiver", "receiver"])
        killed[victim] += 1
        if victim == "broker":
            broker.kill()
            broker.start()
        elif victim == "frozen broker":  # for longer than a delivery waits
            broker.freeze()
            time.sleep(chance.uniform(1.0, 9.0))
            broker.thaw()
        else:
            receiver.kill()

    try:
        counts = deliver_and_ingest(receiver, tmp_path / "data", 2000, 20, kill, seed=2)
    finally:
        receiver.program.kill()
        broker.kill()
    print(f"2,000 deliveries, {dict(killed)}: {dict(counts)}")
    assert counts["run", ""] == 2000

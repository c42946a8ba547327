"""What was acknowledged is in the topic, and each event once in the raw store, whatever is killed."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

from ciml import engines
from tests.faults.broker import own_broker
from tests.integrations.webhooks.hooking import Hooks
from tests.integrations.webhooks.killing import ingest_and_compare, receiving_webhooks, run_bodies, send_until_accepted

pytestmark = [pytest.mark.engines, pytest.mark.interop, pytest.mark.timeout(1800)]


def test_2000_deliveries_while_receiver_and_broker_are_killed(tmp_path: Path, probe: Path) -> None:
    chance = random.Random(2)
    broker = own_broker(tmp_path)
    engines.create_topics(broker.address, {"hooked": 2})
    receiver = receiving_webhooks(tmp_path / "hooks", broker.address, "hooked", probe)
    hooks = Hooks(receiver.port, broker.address, "hooked")
    kills = set(chance.sample(range(1, 1980), 20))

    def kill() -> None:
        victim = chance.choice(["broker", "frozen broker", "receiver", "receiver", "receiver"])
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
        with ThreadPoolExecutor(16) as pool:
            sending = [pool.submit(send_until_accepted, hooks, body) for body in run_bodies(2000)]
            for number, sent in enumerate(as_completed(sending)):
                sent.result()
                if number in kills:
                    kill()  # in this thread, with which the kernel ends what it has started
        counts = ingest_and_compare(broker.address, "hooked", tmp_path / "data", 2000, "hub")
    finally:
        receiver.program.kill()
        broker.kill()
    assert counts["run", ""] == 2000

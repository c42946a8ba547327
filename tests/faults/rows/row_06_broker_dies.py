"""Row 6: the broker is killed, or frozen for a while."""

from __future__ import annotations

import time

from tests.faults.broker import own_broker
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 6
TITLE = "broker killed or frozen"
INJECTED = (
    "SIGKILL by pid and a start on the same data after 0 to 5 s; or SIGSTOP for 5 to 15 s (every fifth trial 30 s); "
    "while events come and ingest runs"
)
EXPECTED = "source and producer recover"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches", "flink")


def trial(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.served.parent)
    story = Story(scene, seed, broker=broker.address)
    story.produce(story.planner.mixed(300), rate=50)
    story.poll()
    story.ingest()
    story.commits(1)
    story.sleep(story.random.uniform(0.0, 1.0))
    story.verdict.count("kills")
    if seed % 2:
        broker.kill()
        story.sleep(story.random.uniform(0.0, 5.0))
        broker.start()
    else:
        broker.freeze()
        story.sleep(30.0 if seed % 10 == 4 else story.random.uniform(5.0, 15.0))
        broker.thaw()
    version, at = story.ledger.version, time.monotonic()
    story.fault_over()
    story.next_commit(version, at, "back_s")
    return story.conclude()

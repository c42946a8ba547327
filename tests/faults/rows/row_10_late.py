"""Row 10: events that are late and out of order, and a partition in which nothing happens."""

from __future__ import annotations

from dataclasses import replace

from tests.faults.plan import Mix, Send
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 10
TITLE = "late, out of order, an idle partition"
INJECTED = (
    "a third of the events with times up to 30 days back or an hour ahead, in a random order; of four partitions one "
    "is silent until the end and one for ever"
)
EXPECTED = "late rows are kept, nothing waits for the silent partitions"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches", "flink")


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed, partitions=4)
    planner, chance = story.planner, story.random
    planner.partitions = 2
    sends = planner.mixed(250, Mix(late=0.1)).sends

    def displaced(send: Send) -> Send:
        if chance.random() < 0.67:
            return send
        return replace(send, timestamp_s=chance.choice((3600.0, -60.0, -3600.0, -86_400.0, -2_592_000.0)))

    sends[:] = [displaced(send) for send in sends]
    chance.shuffle(sends)
    story.poll()
    story.ingest()
    story.produce(planner.plan, rate=100)
    story.settle()
    # the partition that was silent speaks, of long ago
    sends = planner.mixed_again(40).sends
    sends[:] = [replace(send, partition=2, timestamp_s=-86_400.0 * 365) for send in sends]
    story.produce(planner.plan)
    story.fault_over()
    return story.conclude()

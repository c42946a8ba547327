"""Row 2: the TaskManager is killed once, then twice."""

from __future__ import annotations

import time

from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 2
TITLE = "TaskManager killed once, then twice"
INJECTED = (
    "SIGKILL by the pid that the cluster recorded; in every second trial again, before or soon after the job is back; "
    "the watchdog restarts it"
)
EXPECTED = "back from a checkpoint"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 10
ENGINES = ("flink",)


def trial(seed: int, scene: Scene) -> Verdict:
    story, cluster = Story.on_cluster(scene, seed)
    story.produce(story.planner.mixed(400), rate=25)
    if story.commits(story.random.choice((1, 2, 3))):
        story.sleep(story.random.uniform(0.0, 3.0))
        for again in range(1 + (seed + 1) % 2):
            if again:
                story.sleep(story.random.uniform(2.0, 15.0))
                if not (cluster.parts("taskmanager")):
                    break
            cluster.kill(story.random.choice(cluster.parts("taskmanager")))
            story.verdict.count("kills")
        story.tick()
        version, at = story.ledger.version, time.monotonic()
        story.next_commit(version, at)
    story.fault_over()
    return story.conclude()

"""Row 1: a Python worker is killed at a random moment."""

from __future__ import annotations

import signal
import time

from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 1
TITLE = "Python worker killed at a random moment"
INJECTED = (
    "SIGKILL by pid, 3 to 5 times a trial: at start-up, within a batch, around a commit; started again at once; "
    "every fourth trial, also frozen, replaced and woken. On Flink: the "
    "workers of the pool, once or twice"
)
EXPECTED = "what was under way is done again"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches", "flink")


def trial(seed: int, scene: Scene) -> Verdict:
    if scene.engine == "flink":
        return _on_flink(seed, scene)
    story = Story(scene, seed, cold=seed % 10 == 0)
    story.produce(story.planner.mixed(400), rate=80)
    story.poll()
    story.ingest()
    for number in range(story.random.choice((3, 4, 5))):
        if number % 3 == 1:  # while it starts
            story.sleep(story.random.uniform(0.0, 1.0))
        elif story.commits(story.random.choice((1, 2, 3))):
            story.sleep(story.random.uniform(0.0, 0.6))
        if story.is_settled() or story.verdict.failures:
            break
        version, at = story.kill(), time.monotonic()
        story.ingest()
        if number % 3 != 0 and not story.next_commit(version, at):
            break
    if seed % 4 == 3 and not story.verdict.failures:
        _given_up(story)
    story.fault_over()
    return story.conclude()


def _on_flink(seed: int, scene: Scene) -> Verdict:
    """The workers that a pool started for the job; Flink comes back from its checkpoint."""
    story = Story(scene, seed)
    story.poll()
    story.warm_up()
    story.produce(story.planner.mixed(400), rate=30)
    for _ in range(story.random.choice((1, 2))):
        if not story.commits(story.random.choice((1, 2))) or story.is_settled():
            break
        story.sleep(story.random.uniform(0.0, 3.0))
        version, at = story.kill(), time.monotonic()
        if not story.next_commit(version, at):
            break
    story.fault_over()
    return story.conclude()


def _given_up(story: Story) -> None:
    """The worker freezes and is given up for dead; when it wakes, another does its work."""
    story.produce(story.planner.mixed_again(200), rate=100)
    story.commits(1)
    frozen = story.ingests[-1]
    frozen.send(signal.SIGSTOP)
    version, at = story.ledger.version, time.monotonic()
    story.ingest()
    story.next_commit(version, at)
    frozen.send(signal.SIGCONT)
    story.verdict.count("woken")
    story.sleep(2.0)
    story.verdict.expect(frozen.stop() in (0, None), "trial: the woken one did not end")

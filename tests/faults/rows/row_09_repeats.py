"""Row 9: every event comes three times, also after a restart."""

from __future__ import annotations

from dataclasses import asdict, replace

from tests.faults.plan import Claim, Mix, Send
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 9
TITLE = "each event three times, also after a restart"
INJECTED = "the producer sends everything again in another order, and a third time after ingest was stopped or killed"
EXPECTED = "repeats, each counted"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6")
TRIALS = 20
ENGINES = ("micro-batches", "flink")


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed)
    plan = story.planner.mixed(150, Mix(repeats=0, several=0.04))
    story.poll()
    story.ingest()
    story.produce(plan)
    story.commits(1)
    again = [_again(send) for send in plan.sends]
    story.random.shuffle(again)
    story.produce(again)
    if story.settle():
        if seed % 2:
            story.stop_ingest()
        else:
            story.kill()
        story.ingest()
        story.random.shuffle(again)
        story.produce(again)
        story.settle()
    story.stop_ingest()
    return story.finish()


def _again(send: Send) -> Send:
    """The same message. What had an event's id is a repeat; what had none is the same dead letter once more."""
    claims = tuple(
        claim if not claim.run_id else Claim(**{**asdict(claim), "kind": "repeat", "reason": "event"})
        for claim in send.claims
    )
    return replace(send, claims=claims, timestamp_s=None)

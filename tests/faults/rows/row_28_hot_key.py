"""Row 28: one key has 90 % of the events, and there are ten times as many of them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tests.faults.plan import Mix
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 28
TITLE = "one key with 90 % of the events; a burst of 10 times"
INJECTED = (
    "the same few events a second to three partitions throughout; then, beside them, nine times as many of one key "
    "to a fourth, together half of what this machine was seen to settle a moment before"
)
EXPECTED = "the others' p99 from acknowledgement to commit at most doubles (a ratio within each trial)"
INVARIANTS = ("I1", "I2", "I4", "I6", "I7", "p99")
TRIALS = 20
ENGINES = ("micro-batches",)
ALONE = True

_PHASE_S = 10.0
_MOST = 2.0


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed, partitions=4, cycle=2000)
    planner = story.planner
    story.poll()
    story.ingest()
    story.produce(planner.mixed(20, Mix(late_logs=0)))
    story.settle()
    rate = _capacity(story) / 20  # of the others
    quiet = _others(story, rate, hot=0)
    loud = _others(story, rate, hot=9)
    story.fault_over()
    story.settle()
    story.stop_ingest()
    latency = _latencies(story)
    before, after = (_p99(latency[place] for place in places if place in latency) for places in (quiet, loud))
    verdict = story.finish()
    for name, value in (("rate", rate * 10), ("quiet_p99_s", before), ("loud_p99_s", after), ("ratio", after / before)):
        verdict.measure(name, value)
    ratio = f"{after:.2f} s for {before:.2f} s"
    verdict.expect(after <= _MOST * before, f"p99: the others wait {after / before:.1f} times as long ({ratio})")
    return verdict


def _capacity(story: Story) -> float:
    """Events a second that are settled when there are many."""
    plan = story.planner.mixed_again(400, Mix(bad=0, late_logs=0))
    began = time.monotonic()
    story.produce(plan)
    story.settle()
    story.verdict.measures["lag_s"].clear()
    return len(plan.sends) / (time.monotonic() - began)


def _others(story: Story, rate: float, hot: int) -> set[tuple[int, int]]:
    """A phase: the places of the others' events."""
    planner = story.planner
    planner.plan.sends = []
    for _ in range(max(round(rate * _PHASE_S), 20)):
        planner.partitions = 4
        others = planner.plain()
        send = planner.plan.sends[-1]
        planner.plan.sends[-1] = type(send)(**{**send.__dict__, "partition": 1 + hash_of(others.native) % 3})
        for _ in range(hot):
            planner.plain()
            send = planner.plan.sends[-1]
            planner.plan.sends[-1] = type(send)(**{**send.__dict__, "partition": 0, "key": "hot"})
    first = len(story.sends)
    story.produce(list(planner.plan.sends), rate=rate * (1 + hot))
    story.wait(story.all_sent, 300)
    if hot == 0:
        story.wait(story.is_settled, what="the end of the quiet phase")
    return {(part, offset) for number, part, offset, _ in story.acks() if number >= first and part != 0}


def hash_of(text: str) -> int:
    return sum(text.encode())


def _latencies(story: Story) -> dict[tuple[int, int], float]:
    """Seconds from each event's acknowledgement until the delta that settles it was seen."""
    seen = dict(story.ledger.seen)
    shift = time.time() - time.monotonic()
    versions = {(key[1], key[2]): entry.version for key, entries in story.ledger.entries.items() for entry in entries}
    return {
        (part, offset): seen[versions[part, offset]] + shift - at
        for _, part, offset, at in story.acks()
        if (part, offset) in versions
    }


def _p99(values: Iterable[float]) -> float:
    found = sorted(values)
    return found[min(int(0.99 * len(found)), len(found) - 1)]

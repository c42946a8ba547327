"""Row 4: stopped with a savepoint, resumed, with another parallelism."""

from __future__ import annotations

import time

from tests.faults.cluster import Supervised
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 4
TITLE = "stop with savepoint, resume, other parallelism"
INJECTED = (
    "`ciml service stop --savepoint` at a random moment while events come, `resume` with parallelism 2 after 1 (even "
    "seeds: then stopped and resumed again with 1)"
)
EXPECTED = "the savepoint is used; no gap, no second read"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 10
ENGINES = ("flink",)


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed)
    verdict = story.verdict
    story.poll()
    story.warm_up()
    story.produce(story.planner.mixed(400), rate=25)
    job = story.ingest()
    assert isinstance(job, Supervised)
    for parallelism in (2,) if seed % 2 else (2, 1):
        if not story.commits(story.random.choice((1, 2, 3))):
            break
        story.sleep(story.random.uniform(0.0, 3.0))
        began = time.monotonic()
        code = job.stop(savepoint=True)
        verdict.measure("stop_s", time.monotonic() - began)
        verdict.expect(code == 0, f"savepoint: stop ended with {code}: {job.said()[-300:]}")
        story.tick()
        version = story.ledger.version
        story.sleep(1.0)
        verdict.expect(story.ledger.version == version, "savepoint: it went on committing after its stop")
        version, at = story.ledger.version, time.monotonic()
        code = job.resume(parallelism)
        verdict.expect(code == 0, f"savepoint: resume ended with {code}: {job.said()[-300:]}")
        if not story.next_commit(version, at):
            break
        story.wait(lambda: bool((job.status().get("savepoint") or {}).get("use")), 60, what="a word on the savepoint")
        kept = job.status().get("savepoint") or {}
        verdict.expect(kept.get("use") == "resumed", f"savepoint: it was {kept.get('use')!r}: {kept.get('why')}")
        verdict.count("savepoints")
    story.fault_over()
    return story.conclude()

"""Row 18: New Year, 29 February, both clock changes, a clock that is set back."""

from __future__ import annotations

from tests.faults import golden
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict
from tests.golden import make_logs

ROW = 18
TITLE = "New Year, 29 February, both clock changes, clock set back"
INJECTED = (
    "logs whose samples are known, written by each recorder's rules over these moments in twelve zones and thirty "
    "years, at 1, 10 and 600 s; beside the golden logs of tests/golden"
)
EXPECTED = "the right UTC, to the sample; a dead letter only where a local time comes twice"
INVARIANTS = ("I1", "I2", "I4", "golden")
TRIALS = 20
ENGINES = ("micro-batches",)


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed)
    planner, wanted = story.planner, {}
    for kind in ("new year", "leap day", "clock change", "clock change", "set back") * 24:
        number = len(planner.plan.sends)
        log, zone = golden.of_time(kind, story.random, number)
        run, refused = golden.send_golden(planner, log, f"time-{number}.csv")
        story.verdict.count("logs")
        if refused is None:
            wanted[run.run_id] = log
            continue
        story.verdict.count("dead letters")
        clear = refused.reason != "ambiguous_time" or not golden.is_open(log, zone)
        story.verdict.expect(not clear, f"golden: {log.name} was refused: {refused}")
    for make in make_logs.SMALL:
        log = make()
        run, refused = golden.send_golden(planner, log, f"golden-{log.name}.csv")
        story.verdict.expect(refused is None, f"golden: {log.name} was refused: {refused}")
        wanted[run.run_id] = log
    story.random.shuffle(planner.plan.sends)
    story.poll()
    story.ingest()
    story.produce(planner.plan)
    story.settle()
    story.stop_ingest()
    verdict = story.finish(odd=True)
    verdict.fail(*golden.check(story.ledger.raw, story.ledger, wanted)[:20])
    return verdict

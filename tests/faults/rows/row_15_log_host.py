"""Row 15: the log host answers 404, 500, stalls, resets and cuts; a log comes later than its event."""

from __future__ import annotations

from dataclasses import replace

from tests.corpus import CORPUS
from tests.faults.broker import lasting_ports
from tests.faults.children import Program, python
from tests.faults.plan import Mix, Planner, Run, envelope
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 15
TITLE = "log host 404, 500, stall, reset, cut; log not uploaded yet"
INJECTED = (
    "a log server of our own: each of these always, or for the first one to three times; logs that are uploaded after "
    "their event; and a server killed for 2 s"
)
EXPECTED = "bounded retries; then a dead letter with its reason, or the row"
INVARIANTS = ("I1", "I2", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches",)

_POLICY = "read_s = 1.0\nconnect_s = 1.0\ntotal_s = 3.0\nbatch_s = 30.0\n"
#: What is always so, and the reason that the dead letter has.
_ALWAYS = {
    "missing": "log_not_found", "forbidden": "log_forbidden", "broken": "log_unavailable", "busy": "log_unavailable",
    "stall": "log_timeout", "reset": "log_unavailable|log_cut", "cut": "log_cut", "hangup": "log_unavailable",
}  # fmt: skip


def trial(seed: int, scene: Scene) -> Verdict:
    policy = scene.folder / "fetch.toml"
    policy.write_text(_POLICY)
    port, slow, other = lasting_ports(3)
    delays = ("500ms", "1s", "2s", "3s")
    # hosts that stall are others than those that do not, as a slow host is asked for no more logs of a batch
    options = ["--fetch-policy", str(policy)]
    for at in (port, slow, other):
        options += ["--allow-host", f"http://127.0.0.1:{at}"]
    story = Story(scene, seed, delays=delays, options=options)
    planner, chance = story.planner, story.random

    def serve(at: int, name: str) -> Program:
        return python("tests.faults.bad_logs", str(CORPUS), str(at), log=scene.folder / "logs" / f"{name}.log")

    servers = [serve(port, "bad"), serve(slow, "slow"), serve(other, "dies")]
    try:
        for number in range(60):
            word, times = chance.choice(sorted(_ALWAYS)), chance.choice((0, 0, 1, 2, 3))
            _bad(planner, f"http://127.0.0.1:{slow if word == 'stall' else port}", word, times, number)
        for _ in range(60):
            _run(planner, f"http://127.0.0.1:{other}/plain")
        planner.mixed(80, Mix(late_logs=0.1, bad=0.1))
        chance.shuffle(planner.plan.sends)
        story.poll()
        story.ingest()
        story.produce(planner.plan, rate=60)
        story.commits(1)
        story.sleep(chance.uniform(0, 1))
        servers[2].kill()
        story.verdict.count("kills")
        story.sleep(2.0)
        servers[2] = serve(other, "again")
        story.fault_over()
        story.settle()
        story.stop_ingest()
        verdict = story.finish()
        _bounded(story, len(delays))
        return verdict
    finally:
        for server in servers:
            server.kill()


def _run(planner: Planner, root: str) -> Run:
    run = planner.run()
    path = run.url.partition("/corpus/")[2]
    run = replace(run, url=f"{root}/logs/{path}?{run.native}")
    planner.send(run.native, envelope(f"e-{run.native}", run.body()), run.claim("run"))
    return run


def _bad(planner: Planner, host: str, word: str, times: int, number: int) -> None:
    run = planner.run()
    path = run.url.partition("/corpus/")[2]
    # an address of its own for each, so that the server counts its requests
    run = replace(run, url=f"{host}/{word}.{times}/logs/{path}?{number}")
    claim = run.claim("run") if times else run.claim("dead_letter", _ALWAYS[word])
    planner.send(run.native, envelope(f"e-{run.native}", run.body()), claim)


def _bounded(story: Story, delays: int) -> None:
    """No run is tried more often than the policy says."""
    most = max(
        (entry.record.get("attempts", 1) for entries in story.ledger.entries.values() for entry in entries), default=1
    )
    story.verdict.measure("attempts", most)
    story.verdict.expect(most <= delays + 1, f"I6: a log was tried {most} times, with {delays} delays")

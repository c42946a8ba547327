"""Row 16: gzip bombs, nested and behind redirects; logs that are endless or drip."""

from __future__ import annotations

from dataclasses import replace

from tests.corpus import CORPUS
from tests.faults.broker import lasting_ports
from tests.faults.children import python
from tests.faults.plan import envelope
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 16
TITLE = "gzip bombs, nested and in redirects; endless and dripping logs"
INJECTED = (
    "a log server of our own: bombs of 1 GiB (plain, in gzip in gzip, deeper, behind one to five redirects), endless "
    "bodies plain and compressed, dripping bodies and headers, endless headers, 1 TiB announced, 100,000 empty "
    "members, redirects in a circle and to a metadata address, noise, a line of 40 MB, 300,000 columns; among good logs"
)
EXPECTED = "refused in time, memory bounded, the good logs unharmed"
INVARIANTS = ("I1", "I2", "I4", "I6")
TRIALS = 20
ENGINES = ("micro-batches",)

_POLICY = """
read_s = 1.0
connect_s = 1.0
total_s = 5.0
batch_s = 30.0
max_wire_bytes = 4194304
max_bytes = 16777216
max_batch_bytes = 134217728
"""
#: I6 here: what an ingest has at rest, 16 threads with a log of at most 16 MiB each, and what parsing takes.
_MOST_RSS_MB = 700.0
#: Two reasons where making so much takes the server long enough on a busy machine.
_BAD = {
    "bomb.1024/x": "log_too_large", "nested.1024/x": "log_too_large", "deep.1024/x": "corrupt_gzip",
    "around.1/bomb.1024/x": "log_too_large", "around.5/bomb.1024/x": "log_too_large",
    "around.3/nested.1024/x": "log_too_large", "around.6/bomb.1024/x": "too_many_redirects",
    "circle/x": "too_many_redirects", "away/x": "address_not_allowed", "around.2/away/x": "address_not_allowed",
    "endless/x": "log_too_large|log_timeout", "zeros/x": "log_too_large|log_timeout", 
    "drip/x": "log_timeout", "driphead/x": "log_timeout",
    "widehead/x": "log_unavailable|log_timeout", "announced/x": "log_too_large",
    "members/x": "corrupt_gzip|log_timeout",
    "noise/x": "log_unavailable", "long/x": "log_too_large|log_timeout",
    "wide/x": "not_telemetry|log_too_wide|log_timeout",
}  # fmt: skip


def trial(seed: int, scene: Scene) -> Verdict:
    policy = scene.folder / "fetch.toml"
    policy.write_text(_POLICY)
    fast, slow, heavy = ports = lasting_ports(3)
    options = ["--fetch-policy", str(policy)]
    for port in ports:
        options += ["--allow-host", f"http://127.0.0.1:{port}"]
    story = Story(scene, seed, delays=("300ms",), options=options, cycle=2000)
    planner, chance = story.planner, story.random
    servers = [
        python("tests.faults.bad_logs", str(CORPUS), str(port), log=scene.folder / "logs" / f"bad-{port}.log")
        for port in ports
    ]
    try:
        for path, reason in [*_BAD.items(), *chance.choices(sorted(_BAD.items()), k=30)]:
            run = planner.run()
            # a host with timeouts in a row is asked for no more logs of the batch
            port = slow if "drip" in path else heavy if "log_timeout" in reason else fast
            run = replace(run, url=f"http://127.0.0.1:{port}/{path}?{run.native}")
            event = envelope(f"e-{run.native}", run.body())
            planner.send(run.native, event, run.claim("dead_letter", reason))
        planner.mixed(80)
        chance.shuffle(planner.plan.sends)
        story.poll()
        story.ingest()
        story.produce(planner.plan)
        story.settle()
        story.stop_ingest()
        verdict = story.finish()
        rss = max(verdict.measures["rss_mb"])
        verdict.expect(rss <= _MOST_RSS_MB, f"I6: ingest had {rss:.0f} MiB, more than {_MOST_RSS_MB:.0f}")
        return verdict
    finally:
        for server in servers:
            server.kill()

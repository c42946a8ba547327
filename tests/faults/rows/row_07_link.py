"""Row 7: the link to the broker is reset, slow, or cut."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.faults.broker import own_broker
from tests.faults.proxy import Missing, Proxy
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 7
TITLE = "Kafka link reset, slow, cut"
INJECTED = (
    "toxiproxy between ingest and the broker (whose second listener announces the proxy's port): three a trial of "
    "connections reset, 0.3 to 1.5 s latency, 20 to 100 KB/s, cut after some bytes, sliced into crumbs, silent, "
    "refused; 1 to 5 s each"
)
EXPECTED = "the source recovers"
INVARIANTS = ("I1", "I2", "I3", "I4", "I6", "I7")
TRIALS = 20
ENGINES = ("micro-batches",)


def _toxics(proxy: Proxy, chance: random.Random) -> list[Callable[[], None]]:
    both = ("downstream", "upstream")
    return [
        lambda: proxy.add("reset_peer", timeout=chance.randrange(0, 500)),
        lambda: proxy.add("latency", latency=chance.randrange(300, 1500), jitter=200),
        lambda: proxy.add("bandwidth", rate=chance.randrange(20, 100)),
        lambda: proxy.add("limit_data", chance.choice(both), bytes=chance.randrange(100, 20_000)),
        lambda: proxy.add("slicer", average_size=50, size_variation=30, delay=500),
        lambda: proxy.add("timeout", chance.choice(both), timeout=0),  # all is swallowed, the connection stays
        lambda: proxy.enable(False),
    ]


def trial(seed: int, scene: Scene) -> Verdict:
    broker = own_broker(scene.served.parent)
    try:
        proxy = Proxy(scene.folder / "logs", broker.proxied, broker.behind)
    except Missing as reason:
        return Verdict(skipped=str(reason))
    try:
        story = Story(scene, seed, broker=broker.address, through=f"127.0.0.1:{broker.proxied}")
        story.produce(story.planner.mixed(300), rate=40)
        story.poll()
        story.ingest()
        story.commits(1)
        for toxic in story.random.sample(_toxics(proxy, story.random), 3):
            toxic()
            story.verdict.count("faults")
            story.sleep(story.random.uniform(1.0, 5.0))
            proxy.mend()
            story.sleep(story.random.uniform(0.0, 1.5))
        story.fault_over()
        return story.conclude()
    finally:
        proxy.close()

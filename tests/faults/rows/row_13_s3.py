"""Row 13: S3 answers 500 and 503, is slow, resets connections, and loses answers, on every verb."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

from ciml.engines import s3_environment
from tests.faults import holding
from tests.faults.offline import Worker, offline_trial, prepared
from tests.faults.own_s3 import own_s3
from tests.faults.s3_shim import Shim, Weather
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

ROW = 13
TITLE = "S3 500, 503, slow, reset on each verb"
INJECTED = (
    "a server before moto lets 3 to 20 % of all requests fail: 500, 503 or a reset connection, before the request took "
    "effect or after it (its answer is lost); slow answers; bodies cut short; every fourth trial also an outage of "
    "20 s. Two processes ingest, checkpoint, compact and make data sets through it"
)
EXPECTED = "retries within a budget; nothing lost, nothing twice"
INVARIANTS = ("I1", "I2", "I3", "I4")
TRIALS = 20
ENGINES = ("micro-batches",)
_MOST_S = 420.0


@offline_trial
def trial(seed: int, scene: Scene, verdict: Verdict) -> None:
    rng = random.Random(seed)
    endpoint = own_s3(scene.served.parent)
    root = f"{endpoint.bucket()}/data"
    job, topic = prepared(seed, scene, root, runs=40, share=0.2)
    shim = Shim(endpoint.url, seed, Weather(rng.choice((0.03, 0.08, 0.2))))
    try:
        environment = {**job.environment, **s3_environment(shim.url)}
        workers = [
            Worker(
                replace(job, seed=seed * 10 + number, most=rng.choice((3, 5, 9)), tidy=number == 0,
                        patience_s=180.0, environment=environment, folder=f"{job.folder}-{number}"),
                scene.folder / "logs" / f"{number}.log",
            )
            for number in range(2)
        ]  # fmt: skip
        over = threading.Event()
        polls = threading.Thread(target=_poll, args=(root, over, verdict))
        polls.start()
        if seed % 4 == 0:
            time.sleep(rng.uniform(0.5, 3))
            shim.weather.down = True
            time.sleep(20)
            shim.weather.down = False
            verdict.count("outages")
        began = time.monotonic()
        for worker in workers:
            code = worker.wait(max(1.0, _MOST_S - (time.monotonic() - began)))
            if code != 0:
                verdict.fail(f"trial: a process ended with {code}: {worker.said()[-300:]}")
                worker.kill()
            verdict.measure("work_s", time.monotonic() - worker.began)
        over.set()
        polls.join(60)
    finally:
        shim.close()
    for (verb, _), times in shim.met.items():
        verdict.count(verb, times)
    verdict.count("faults", sum(shim.met.values()))
    verdict.fail(*holding.sound(root))
    last = Worker(job, scene.folder / "logs" / "last.log")
    if (code := last.wait(120)) != 0:
        verdict.fail(f"trial: the last process ended with {code}: {last.said()[-300:]}")
    verdict.fail(*holding.exact(root, topic.deliveries), *holding.leftovers(root))
    verdict.count("events", len(topic.deliveries))
    verdict.count("rows", len(holding.read(root).rows))


def _poll(root: str, over: threading.Event, verdict: Verdict) -> None:
    """I3 and I4 while it goes on, read past the shim."""
    before = holding.read(root)
    while not over.wait(0.5):
        verdict.fail(*holding.sound(root, before))
        verdict.count("polls")
        before = holding.read(root)

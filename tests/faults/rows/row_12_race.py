"""Row 12: committers race on one manifest; one is frozen, and wakes when the others have gone on."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import replace

from tests.faults import holding
from tests.faults.offline import GRACE_S, Job, Worker, offline_trial, prepared
from tests.faults.own_s3 import own_s3
from tests.faults.points import DELTA, Stop
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

ROW = 12
TITLE = "two committers race; a frozen one wakes"
INJECTED = (
    "two or four processes ingest the same topic into one store at once; in two of three trials one of them stops "
    "itself (SIGSTOP) right before or after it creates a delta, and gets SIGCONT when the others are done, in half of "
    "these also when the deltas in its place were put into a segment and removed; odd seeds in a folder, even on S3"
)
EXPECTED = "one wins, the others compute again; who wakes up late changes nothing"
INVARIANTS = ("I1", "I2", "I3", "I4")
TRIALS = 20
ENGINES = ("micro-batches",)
_MOST_S = 240.0


@offline_trial
def trial(seed: int, scene: Scene, verdict: Verdict) -> None:
    rng = random.Random(seed)
    root = f"{own_s3(scene.served.parent).bucket()}/data" if seed % 2 == 0 else str(scene.folder / "data")
    job, topic = prepared(seed, scene, root, runs=60, share=0.2)
    before = holding.read(root)
    count = 2 if seed % 4 < 2 else 4
    frozen = seed % 3 != 0
    stop = Stop(rng.randint(1, 4), f"{rng.choice(('before', 'after'))} {_creation(root)}", signal.SIGSTOP)
    racing = replace(job, share=0.9, patience_s=60.0)
    jobs = [
        replace(
            racing, seed=seed * 10 + number, most=rng.choice((2, 3, 5, 9)), tidy=number == 1,
            folder=f"{job.folder}-{number}", stop=stop if frozen and number == 0 else Stop(),
        )
        for number in range(count)
    ]  # fmt: skip
    workers = [Worker(each, scene.folder / "logs" / f"{number}.log") for number, each in enumerate(jobs)]
    verdict.count("processes", count)
    _finish(workers[1:], verdict)
    sleeper = workers[0]
    while not sleeper.is_stopped() and sleeper.poll() is None:
        time.sleep(0.02)
    if sleeper.is_stopped():
        verdict.count("frozen")
        verdict.fail(*holding.sound(root, before))
        if seed % 2 == (seed // 2) % 2:
            _prune(root, job, scene, verdict)
        before = holding.read(root)
        sleeper.send(signal.SIGCONT)
    _finish([sleeper], verdict)
    verdict.fail(*holding.sound(root, before), *holding.leftovers(root))
    _last(root, job, scene, verdict)
    verdict.fail(*holding.exact(root, topic.deliveries))
    ledger = holding.read(root)
    for name, value in (("events", len(topic.deliveries)), ("rows", len(ledger.rows)), ("versions", ledger.version)):
        verdict.count(name, value)


def _creation(root: str) -> str:
    """The label of the creation of a raw delta."""
    return f"PutObject data/{DELTA}" if root.startswith("s3://") else f"link {DELTA}"


def _finish(workers: list[Worker], verdict: Verdict) -> None:
    for worker in workers:
        code = worker.wait(_MOST_S)
        if code != 0:
            verdict.fail(f"trial: a committer ended with {code}: {worker.said()[-300:]}")
            worker.kill()


def _prune(root: str, job: Job, scene: Scene, verdict: Verdict) -> None:
    """More comes, and everything that checkpoints passed a grace ago is removed, the frozen one's place with it."""
    time.sleep(GRACE_S + 0.2)
    _finish([Worker(replace(job, tidy=False), scene.folder / "logs" / "more.log")], verdict)
    removed = f"_manifest/{1:012d}.json" not in holding.open_objects(f"{root}/raw").names("_manifest")
    verdict.expect(removed, "trial: nothing was removed")
    verdict.count("removed", int(removed))


def _last(root: str, job: Job, scene: Scene, verdict: Verdict) -> None:
    """The rest comes, and then there is nothing left to do."""
    _finish([Worker(replace(job, tidy=False), scene.folder / "logs" / "rest.log")], verdict)
    version = holding.read(root).version
    _finish([Worker(job, scene.folder / "logs" / "last.log")], verdict)
    after = holding.read(root).version
    verdict.expect(after == version, f"I1: there was something left to commit: version {after} after {version}")

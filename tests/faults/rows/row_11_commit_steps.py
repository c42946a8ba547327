"""Row 11: a process is killed at each step of a commit, of a checkpoint, of compaction, of a data set."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.faults import holding
from tests.faults.offline import GRACE_S, Job, Worker, offline_trial, prepared, work
from tests.faults.own_s3 import own_s3
from tests.faults.points import Stop
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

ROW = 11
TITLE = "crash at every step of a commit"
INJECTED = (
    "a child sends itself SIGKILL before or after a call that changes the store (link, unlink, fsync, mkdir …; PUT and "
    "DELETE on S3): at each of the some hundred points of commits, segments, checkpoints, the id index, removal, packs "
    "and data sets, dealt out among the trials; odd seeds in a folder, even ones on S3"
)
EXPECTED = "old or new manifest, never a mix; whoever goes on makes it exact"
INVARIANTS = ("I1", "I2", "I3", "I4")
TRIALS = 20
ENGINES = ("micro-batches",)

#: How many points of a trial are died at: enough that twenty trials deal out all of them.
_KILLS = 12


@offline_trial
def trial(seed: int, scene: Scene, verdict: Verdict) -> None:
    base, copy = _place(seed, scene)
    job, topic = prepared(seed, scene, base, runs=26, share=0.6)
    before = holding.read(base)
    count = _count(job, scene, copy)
    verdict.count("points", count)
    step = max(1, count // _KILLS)
    numbers = range(1 + (seed // 2) % step, count + 1, step)
    roots = {number: copy(f"{number}") for number in numbers}
    time.sleep(GRACE_S + 0.2)  # so that what is replaced by now may be removed
    for number, root in roots.items():
        mine = replace(job, data=root, stop=Stop(number, how=signal.SIGKILL))
        code = Worker(mine, scene.folder / "logs" / f"{number}.log").wait(120)
        if code == -signal.SIGKILL:
            verdict.count("kills")
        elif code != 0:
            said = (scene.folder / "logs" / f"{number}.log").read_text()[-300:]
            verdict.fail(f"trial: point {number}: the process ended with {code}: {said}")
            continue
        wrong = holding.sound(root, before)
        began = time.monotonic()
        work(replace(job, data=root))
        verdict.measure("recovery_s", time.monotonic() - began)
        wrong += holding.sound(root, before) + holding.exact(root, topic.deliveries) + holding.leftovers(root)
        verdict.fail(*(f"{line} (killed at point {number})" for line in wrong))
    verdict.count("events", len(topic.deliveries))
    verdict.count("rows", len(holding.read(next(iter(roots.values()))).rows))


def _place(seed: int, scene: Scene) -> tuple[str, Callable[[str], str]]:
    """Where the trial's store is, and what copies it under another name."""
    if seed % 2:
        base = str(scene.folder / "data")

        def copy(name: str) -> str:
            target = str(scene.folder / f"data-{name}")
            shutil.copytree(base, target)  # with the times of its files
            return target

        return base, copy
    endpoint = own_s3(scene.served.parent)
    bucket = endpoint.bucket()

    def copy_s3(name: str) -> str:
        endpoint.copy(f"{bucket}/data", f"{bucket}/data-{name}")
        return f"{bucket}/data-{name}"

    return f"{bucket}/data", copy_s3


def _count(job: Job, scene: Scene, copy: Callable[[str], str]) -> int:
    """How many points the job has, when nothing stops it."""
    points = scene.folder / "points.txt"
    mine = replace(job, data=copy("dry"), points=str(points))
    time.sleep(GRACE_S + 0.2)
    worker = Worker(mine, scene.folder / "logs" / "dry.log")
    if (code := worker.wait(120)) != 0:
        raise RuntimeError(f"without a fault the work ends with {code}: {worker.said()}")
    return len(Path(points).read_text().splitlines())

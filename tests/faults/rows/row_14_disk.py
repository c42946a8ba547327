"""Row 14: the disk is full, a call of the file system fails, the disk turns read-only."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.faults import holding
from tests.faults.children import Program
from tests.faults.disk import Disk, disk, failing
from tests.faults.judge import Delivery
from tests.faults.offline import Job, Worker, offline_trial, prepared
from tests.faults.points import Stop
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

ROW = 14
TITLE = "disk full, I/O error, read-only"
INJECTED = (
    "by turns: a real ingest on a small tmpfs that fills up for some seconds; a process that is frozen at a random "
    "change, with the disk filled (0 to 40 KB left) or remounted read-only before it goes on; EIO from fsync, link, "
    "unlink, mkdir or write by strace's injection, once or from some call on"
)
EXPECTED = "stops (or waits) with no bad manifest and one clear line; exact when there is space again"
INVARIANTS = ("I1", "I2", "I3", "I4")
TRIALS = 24
ENGINES = ("micro-batches",)


@offline_trial
def trial(seed: int, scene: Scene, verdict: Verdict) -> None:
    (_ingest_waits, _full, _read_only, _io_error)[seed % 4](seed, scene, verdict)


def _ingest_waits(seed: int, scene: Scene, verdict: Verdict) -> None:
    """A real ingest: it waits for space, and says so in one line."""
    with disk(scene.folder / "disk", 64) as small:
        if small is None:
            verdict.skipped = "a tmpfs cannot be mounted here"
            return
        story = Story(scene, seed, data=str(small.folder / "data"))
        story.produce(story.planner.mixed(150), rate=60)
        story.poll()
        story.ingest()
        story.commits(1 + seed // 4 % 3)
        small.fill(story.random.choice((0, 0, 4096, 30_000)))
        story.verdict.count("faults")
        story.sleep(story.random.uniform(3, 8))
        code = story.ingests[-1].poll()
        story.verdict.expect(code is None, f"ingest ended with {code}: {story.ingests[-1].said()[-300:]}")
        small.free()
        story.fault_over()
        if code is not None:
            story.ingest()
        story.settle()
        said = story.ingests[0].said()
        story.verdict.expect("Traceback" not in said, f"trial: a traceback: {said[-600:]}")
        story.stop_ingest()
        verdict.merge(story.finish())


def _full(seed: int, scene: Scene, verdict: Verdict) -> None:
    with disk(scene.folder / "disk", 24) as small:
        if small is None:
            verdict.skipped = "a tmpfs cannot be mounted here"
            return
        left = random.Random(seed).choice((0, 0, 4096, 12_288, 40_960))
        _break(seed, scene, verdict, small, lambda: small.fill(left), small.free, "No space left on device")


def _read_only(seed: int, scene: Scene, verdict: Verdict) -> None:
    with disk(scene.folder / "disk", 24) as small:
        if small is None:
            verdict.skipped = "a tmpfs cannot be mounted here"
            return
        _break(
            seed, scene, verdict, small, lambda: small.read_only(True), lambda: small.read_only(False),
            "Read-only file system",
        )  # fmt: skip


def _break(
    seed: int, scene: Scene, verdict: Verdict, small: Disk, harm: Callable[[], None], mend: Callable[[], None],
    says: str,
) -> None:  # fmt: skip
    root = str(small.folder / "data")
    job, topic = prepared(seed, scene, root, runs=30, share=0.4)
    before = holding.read(root)
    # before a staged file is opened: one that is open for writing keeps the disk from turning read-only
    at = random.Random(seed).randint(1, 30)
    worker = Worker(
        replace(job, stop=Stop(at, "after link", signal.SIGSTOP)), scene.folder / "logs" / "work.log"
    )  # fmt: skip
    while not worker.is_stopped() and worker.poll() is None:
        time.sleep(0.01)
    if worker.poll() is not None:  # it has fewer points: broken from the beginning then
        harm()
        worker = Worker(replace(job, share=1.0), scene.folder / "logs" / "late.log")
    else:
        harm()
        worker.send(signal.SIGCONT)
    verdict.count("faults")
    _ends_clearly(worker.wait(120), worker.log, says, verdict)
    verdict.fail(*holding.sound(root, before))
    mend()
    _recovers(job, root, scene, verdict, topic.deliveries)


def _io_error(seed: int, scene: Scene, verdict: Verdict) -> None:
    rng = random.Random(seed)
    calls = rng.choice((("fsync",), ("link", "linkat"), ("unlink", "unlinkat"), ("mkdir", "mkdirat"), ("write",)))
    when = f"{rng.randint(1, 30)}{rng.choice(('', '+'))}"
    tracer = failing(calls, "EIO", when)
    if tracer is None:
        verdict.skipped = "processes cannot be traced here"
        return
    root = str(scene.folder / "data")
    job, topic = prepared(seed, scene, root, runs=30, share=0.4)
    before = holding.read(root)
    file, log = scene.folder / "job.json", scene.folder / "logs" / "traced.log"
    file.write_text(json.dumps(asdict(job)))
    command = [*tracer, sys.executable, "-m", "tests.faults.offline", str(file), str(log)]
    traced = Program(command, log, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    code = traced.wait(240)
    verdict.count("faults")
    verdict.count(f"{calls[0]} {'from then on' if when.endswith('+') else 'once'}")
    if code != 0 and not (calls[0] == "write" and when.endswith("+")):  # who cannot write can say nothing either
        _ends_clearly(code, log, "Input/output error", verdict)
    traced.kill()
    verdict.fail(*holding.sound(root, before))
    _recovers(job, root, scene, verdict, topic.deliveries)


def _ends_clearly(code: int | None, log: Path, says: str, verdict: Verdict) -> None:
    """With exit code 3 and one line that says what it was; or it was done before the fault came."""
    said = log.read_text() if log.exists() else ""
    if code == 0 and not said:
        verdict.count("done before")
        return
    lines = [line for line in said.splitlines() if line.strip()]
    verdict.expect(code == 3, f"trial: the process ended with {code}: {said[-500:]}")
    verdict.expect(len(lines) == 1 and says in said, f"trial: it says {said[-500:]!r}, not one line with {says!r}")


def _recovers(job: Job, root: str, scene: Scene, verdict: Verdict, sent: Sequence[Delivery]) -> None:
    began = time.monotonic()
    worker = Worker(job, scene.folder / "logs" / "again.log")
    if (code := worker.wait(120)) != 0:
        verdict.fail(f"trial: it does not go on: {code} {worker.said()[-400:]}")
    verdict.measure("recovery_s", time.monotonic() - began)
    verdict.fail(*holding.sound(root), *holding.exact(root, sent), *holding.leftovers(root))
    verdict.count("events", len(sent))
    verdict.count("rows", len(holding.read(root).rows))

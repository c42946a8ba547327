"""Rows 11 to 14: processes die between the steps of a commit, race, and meet an S3 and a disk that fail."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ciml.engines import s3_environment
from tests.faults import offline
from tests.faults.children import Child
from tests.faults.offline import GRACE_S, Job, Stop, exact, finish, offline_trial, prepared, sound
from tests.faults.oracle import open_objects
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.s3_shim import Shim, Weather
from tests.faults.scene import Scene
from tests.faults.story import Story

#: How many steps of a trial are died at: enough that twenty trials deal out all of them.
_KILLS = 12


@row(11, "crash at every step of a commit")
@offline_trial
def commit_steps(seed: int, scene: Scene, verdict: Verdict) -> None:
    base, copy = _place(seed, scene)
    job, sent = prepared(seed, scene, base, runs=26, share=0.6)
    before = offline.read(base)
    dry = replace(job, data=copy("dry"), steps=str(scene.folder / "steps.txt"))
    time.sleep(GRACE_S + 0.2)  # so that what is replaced by now may be removed
    finish(offline.start(dry, scene.log("dry")), verdict)
    count = int(Path(dry.steps).read_text())
    verdict.count("points", count)
    step = max(1, count // _KILLS)
    numbers = range(1 + (seed // 2) % step, count + 1, step)
    roots = {number: copy(f"{number}") for number in numbers}
    time.sleep(GRACE_S + 0.2)
    for number, root in roots.items():
        child = offline.start(replace(job, data=root, stop=Stop(number)), scene.log(f"{number}"))
        code = child.wait(120)
        verdict.count("kills", int(code == -signal.SIGKILL))
        if code not in (0, -signal.SIGKILL):
            verdict.fail(f"trial: step {number}: the process ended with {code}: {child.said()[-300:]}")
            continue
        verdict.fail(*(f"{line} (killed at step {number})" for line in sound(root, before)))
        began = time.monotonic()
        offline.work(replace(job, data=root))
        verdict.measure("recovery_s", time.monotonic() - began)
        verdict.fail(*(f"{line} (killed at step {number})" for line in sound(root, before)))
        exact(root, sent, verdict)


def _place(seed: int, scene: Scene) -> tuple[str, Callable[[str], str]]:
    """Return the trial's store, and what copies it under another name."""
    if seed % 2:
        base = str(scene.folder / "data")
        return base, lambda name: str(shutil.copytree(base, f"{base}-{name}"))  # with the times of its files
    bucket = scene.bucket()

    def copy(name: str) -> str:
        import boto3

        client, root = boto3.client("s3"), bucket.removeprefix("s3://")
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=root, Prefix="data/"):
            for key in (item["Key"] for item in page.get("Contents", ())):
                target = f"data-{name}/{key.removeprefix('data/')}"
                client.copy_object(Bucket=root, Key=target, CopySource=f"{root}/{key}")
        return f"{bucket}/data-{name}"

    return f"{bucket}/data", copy


@row(12, "two committers race; a frozen one wakes")
@offline_trial
def race(seed: int, scene: Scene, verdict: Verdict) -> None:
    rng = random.Random(seed)
    root = f"{scene.bucket()}/data" if seed % 2 == 0 else str(scene.folder / "data")
    job, sent = prepared(seed, scene, root, runs=60, share=0.2)
    before = offline.read(root)
    racing = replace(job, share=0.9, patience_s=60.0)
    stop = Stop(rng.randint(1, 4), "append raw", signal.SIGSTOP) if seed % 3 else Stop()
    workers = [
        offline.start(
            replace(
                racing, seed=seed * 10 + number, most=rng.choice((2, 3, 5, 9)), tidy=number == 1,
                stop=Stop() if number else stop,
            ),
            scene.log(f"{number}"),
        )
        for number in range(2 if seed % 4 < 2 else 4)
    ]  # fmt: skip
    verdict.count("processes", len(workers))
    for worker in workers[1:]:
        finish(worker, verdict)
    sleeper = workers[0]
    if sleeper.freezes():
        verdict.count("frozen")
        verdict.fail(*sound(root, before))
        if seed % 2 == (seed // 2) % 2:
            _prune(root, job, scene, verdict)
        before = offline.read(root)
        sleeper.send(signal.SIGCONT)
    finish(sleeper, verdict)
    verdict.fail(*sound(root, before))
    finish(offline.start(replace(job, tidy=False), scene.log("rest")), verdict)
    version = offline.read(root).version
    finish(offline.start(job, scene.log("last")), verdict)
    after = offline.read(root).version
    verdict.expect(after == version, f"I1: there was something left to commit: version {after} after {version}")
    exact(root, sent, verdict)


def _prune(root: str, job: Job, scene: Scene, verdict: Verdict) -> None:
    """Commit more, so that all that checkpoints passed a grace ago is removed, the frozen one's place with it."""
    time.sleep(GRACE_S + 0.2)
    finish(offline.start(replace(job, tidy=False), scene.log("more")), verdict)
    removed = f"_manifest/{1:012d}.json" not in open_objects(f"{root}/raw").names("_manifest")
    verdict.expect(removed, "trial: nothing was removed")
    verdict.count("removed", int(removed))


@row(13, "S3 500, 503, slow, reset on each verb")
@offline_trial
def s3_fails(seed: int, scene: Scene, verdict: Verdict) -> None:
    rng = random.Random(seed)
    root = f"{scene.bucket()}/data"
    job, sent = prepared(seed, scene, root, runs=40, share=0.2)
    shim = Shim(scene.stage.s3, seed, Weather(rng.choice((0.03, 0.08, 0.2))))
    over = threading.Event()
    polls = threading.Thread(target=_poll, args=(root, over, verdict))
    try:
        workers = [
            offline.start(
                replace(job, seed=seed * 10 + number, most=rng.choice((3, 5, 9)), tidy=number == 0, patience_s=180.0),
                scene.log(f"{number}"), **s3_environment(shim.url),
            )
            for number in range(2)
        ]  # fmt: skip
        polls.start()
        if seed % 4 == 0:
            time.sleep(rng.uniform(0.5, 3))
            shim.weather.down = True
            time.sleep(20)
            shim.weather.down = False
            verdict.count("outages")
        for worker in workers:
            finish(worker, verdict, 420.0)
            verdict.measure("work_s", time.monotonic() - worker.began)
    finally:
        over.set()
        shim.close()
    polls.join(60)
    verdict.count("faults", sum(shim.met.values()))
    verdict.fail(*sound(root))
    finish(offline.start(job, scene.log("last")), verdict)
    exact(root, sent, verdict)


def _poll(root: str, over: threading.Event, verdict: Verdict) -> None:
    """Check I3 and I4 meanwhile, past the shim."""
    before = offline.read(root)
    while not over.wait(0.5):
        verdict.fail(*sound(root, before))
        verdict.count("polls")
        before = offline.read(root)


@row(14, "disk full, I/O error, read-only", trials=24)
def disk_fails(seed: int, scene: Scene) -> Verdict:
    if seed % 4 == 3:
        return _io_error(seed, scene)
    with disk(scene.folder / "disk", 24 if seed % 4 else 64) as small:
        if small is None:
            return Verdict(skipped="a tmpfs cannot be mounted here")
        return (_ingest_waits, _full, _read_only)[seed % 4](seed, scene, small)


class Disk:
    """A tmpfs at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int = 0) -> None:
        """Take all space but ``left`` bytes."""
        with self._ballast.open("wb") as out:
            for _ in range(max(0, shutil.disk_usage(self.folder).free - left) // 4096):
                out.write(b"\0" * 4096)

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def remount(self, mode: str) -> None:
        """Remount it as ``ro`` or ``rw``. It turns read-only when no file is open for writing."""
        deadline = time.monotonic() + 30.0
        while (done := _run("mount", "-o", f"remount,{mode}", str(self.folder))).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"cannot remount: {done.stderr}")
            time.sleep(0.005)


@contextmanager
def disk(folder: Path, size_mb: int) -> Iterator[Disk | None]:
    """Mount a disk and unmount it; None if that is not allowed here."""
    folder.mkdir(parents=True)
    if _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(folder)).returncode:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        if _run("umount", str(folder)).returncode:
            _run("umount", "--lazy", str(folder))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _ingest_waits(seed: int, scene: Scene, small: Disk) -> Verdict:
    """A real ingest waits for space, and reports it in one line."""
    story = Story(scene, seed, data=str(small.folder / "data"))
    story.produce(story.planner.mixed(150), rate=60)
    story.ingest()
    story.commits(1 + seed // 4 % 3)
    small.fill(story.random.choice((0, 0, 4096, 30_000)))
    story.verdict.count("faults")
    story.sleep(3, 8)
    code = story.ingests[-1].poll()
    story.verdict.expect(code is None, f"ingest ended with {code}: {story.ingests[-1].said()[-300:]}")
    small.free()
    said = story.ingests[-1].said()
    story.verdict.expect("Traceback" not in said, f"trial: a traceback: {said[-600:]}")
    if code is not None:
        story.ingest()
    return story.conclude()


def _full(seed: int, scene: Scene, small: Disk) -> Verdict:
    left = random.Random(seed).choice((0, 0, 4096, 12_288, 40_960))
    return _broken(seed, scene, str(small.folder / "data"), "No space left", lambda: small.fill(left), small.free)


def _read_only(seed: int, scene: Scene, small: Disk) -> Verdict:
    broken, mended = (lambda mode=mode: small.remount(mode) for mode in ("ro", "rw"))
    return _broken(seed, scene, str(small.folder / "data"), "Read-only file system", broken, mended)


def _io_error(seed: int, scene: Scene) -> Verdict:
    rng = random.Random(seed)
    stop = Stop(rng.randint(1, 30), rng.choice(("sync", "")), -errno.EIO, rng.random() < 0.5)
    return _broken(seed, scene, str(scene.folder / "data"), "Input/output error", stop=stop)


def _broken(
    seed: int, scene: Scene, root: str, message: str, harm: Callable[[], None] = lambda: None,
    mend: Callable[[], None] = lambda: None, stop: Stop | None = None,
) -> Verdict:  # fmt: skip
    """A process meets a fault of the disk: it ends with exit code 3 and one line; then another makes all exact."""

    def trial(seed: int, scene: Scene, verdict: Verdict) -> None:
        job, sent = prepared(seed, scene, root, runs=30, share=0.4)
        before = offline.read(root)
        frozen = Stop(random.Random(seed).randint(1, 6), "append raw", signal.SIGSTOP)  # no file is open for writing
        child = offline.start(replace(job, stop=stop or frozen), scene.log("work"))
        if child.freezes():
            harm()
            child.send(signal.SIGCONT)
        elif stop is None:  # it has fewer commits: broken from the beginning then
            harm()
            child = offline.start(job, scene.log("late"))
        verdict.count("faults")
        _ends_clearly(child, message, verdict)
        verdict.fail(*sound(root, before))
        mend()
        finish(offline.start(job, scene.log("again")), verdict)
        exact(root, sent, verdict)

    return offline_trial(trial)(seed, scene)


def _ends_clearly(child: Child, message: str, verdict: Verdict) -> None:
    code, said = child.wait(120), child.said()
    if code == 0 and not said:
        verdict.count("done before")
        return
    lines = [line for line in said.splitlines() if line.strip()]
    verdict.expect(code == 3, f"trial: the process ended with {code}: {said[-500:]}")
    clear = len(lines) == 1 and message in said
    verdict.expect(clear, f"trial: it reports {said[-500:]!r}, not one line with {message!r}")

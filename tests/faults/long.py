"""Long runs: very many events while everything that can die is killed at random; and a soak, in which nothing grows."""

from __future__ import annotations

import csv
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ciml import engines
from tests.faults.broker import Broker
from tests.faults.plan import Mix
from tests.faults.results import Verdict
from tests.faults.scene import Scene, Stage, stage
from tests.faults.story import Story

#: Few late logs: each has to be waited for.
MIX = Mix(late_logs=0.002)
_MESSAGES_PER_RUN = 1 / 0.905
_BETWEEN_S = 40.0  # from one kill to the next, about; the producer goes on for as long as there are kills
_EVERY_S = 10.0  # between two looks of a soak
_PLAN_S = 300.0  # a soak plans the events of so many seconds together


@contextmanager
def place_for(kind: str) -> Iterator[tuple[Stage, str]]:
    """The stage of a big run of a kind (``flink``, ``s3``, ``micro-batches``) and the data root on it, "" for a folder.

    On S3 the data, checkpoints and savepoints are there; the endpoint is a process of its own that nobody kills, since
    its objects are in its memory.
    """
    if kind != "s3":
        with stage(flink=kind == "flink", task_managers=2) as place:
            yield place, ""
        return
    import boto3

    home = tempfile.mkdtemp(prefix="ciml-faults-s3-")
    with engines.start(["s3"], home=home, settings=engines.Settings(tied=True)) as running:
        before = dict(os.environ)
        os.environ.update(engines.s3_environment(running.s3))
        try:
            for bucket in ("ciml-faults", "ciml-flink"):
                boto3.client("s3").create_bucket(Bucket=bucket)
            with stage(flink=True, task_managers=2, state="s3://ciml-flink/state") as place:
                yield place, "s3://ciml-faults/data"
        finally:
            os.environ.clear()
            os.environ.update(before)


def big(scene: Scene, seed: int, events: int, kills: int, data: str = "", rate: float = 0.0) -> Verdict:
    """Send ``events`` messages while processes die, and judge.

    Args:
      scene: whose engine ingests; its cluster is this run's alone.
      seed: of the events, of what is killed and when.
      events: about how many messages.
      kills: the least number of kills: processes die for as long as messages are sent.
      data: the data root; a folder by default.
      rate: messages a second; by default so that there is time for the kills.
    """
    broker = Broker(scene.folder / "broker")
    try:
        story = Story(scene, seed, partitions=4, broker=broker.address, data=data, cycle=500)
        chance = random.Random(seed)
        story.warm_up()
        plan = story.planner.mixed(round(events / _MESSAGES_PER_RUN), MIX)
        story.produce(plan, rate or max(events / (kills * _BETWEEN_S), 20.0))
        for kind in _victims(scene, chance):
            if story.all_sent() or story.verdict.failures:
                break
            story.sleep(1.0, 8.0)
            _kill(kind, story, broker, chance)
            story.verdict.count(f"kills of {kind}")
            story.next_commit()
            at, took = time.monotonic() - story.began, story.verdict.measures["commit_s"][-1:]
            print(f"{at:7.1f} s, {len(story.acks())} sent, {story.lag()} to go: {kind} killed, {took} s", flush=True)
        verdict = story.conclude()
        done = verdict.counts["kills"]
        verdict.expect(done >= kills, f"trial: {done} kills, not {kills}: all was sent before")
        return verdict
    finally:
        broker.kill()


def _victims(scene: Scene, chance: random.Random) -> Iterator[str]:
    """Yield what dies, without end: every kind about as often."""
    kinds = ["taskmanager", "workers", "jobmanager", "broker", "taskmanager", "workers", "pool"]
    if scene.engine != "flink":
        kinds = ["process", "process", "process", "broker"]
    while True:
        chance.shuffle(kinds)
        yield from kinds


def _kill(kind: str, story: Story, broker: Broker, chance: random.Random) -> None:
    cluster = story.scene.stage.cluster
    if kind in ("process", "workers"):
        story.kill()
        story.ingest()
        return
    story.struck()
    if kind == "broker":
        broker.kill()
        story.sleep(0.0, 3.0)
        broker.start()
    elif cluster is not None and (names := cluster.parts({"pool": "workers"}.get(kind, kind))):
        cluster.kill(chance.choice(names))


@dataclass
class Look:
    """One look at a soak. ``latency_s`` is the median from acknowledgement to commit since the last look."""

    at_s: float
    rss_mb: float
    open_files: int
    checkpoint_mb: float
    latency_s: float
    commits: int
    events: int
    lag: int


def soak(scene: Scene, seed: int, seconds: float, rate: float, out: Path) -> Verdict:
    """Ingest for so many seconds, at ``rate`` events a second; write the figures to ``out`` (CSV, next to it PNG)."""
    story = Story(scene, seed, partitions=2, cold=True, cycle=2000)
    story.warm_up()
    looks: list[Look] = []
    began, planned = time.monotonic(), 0.0
    while (now := time.monotonic() - began) < seconds and not story.verdict.failures:
        if now >= planned:
            length = min(_PLAN_S, seconds - planned)
            story.produce(story.planner.mixed(round(rate * length / _MESSAGES_PER_RUN), MIX), rate)
            planned += length
        story.sleep(max(_EVERY_S * (len(looks) + 1) - now, 0.1))
        looks.append(_look(story, time.monotonic() - began, looks))
        if len(looks) % 6 == 0:
            print(looks[-1], flush=True)
    write(looks, out)
    verdict = story.conclude()
    judge_growth(looks, verdict)
    return verdict


def _look(story: Story, at_s: float, looks: list[Look]) -> Look:
    rss_mb, open_files = story.ingests[-1].usage() or (0.0, 0)
    before = sum(look.commits for look in looks)
    latest = list(story.latencies().values())[-500:]
    cluster = story.scene.stage.cluster
    checkpoint = cluster.checkpoint_bytes() if cluster is not None else 0
    return Look(
        round(at_s, 1), round(rss_mb, 1), open_files, round(checkpoint / 1e6, 4),
        round(statistics.median(latest), 3) if latest else 0.0, story.ledger.version - before, len(story.acks()),
        story.lag(),
    )  # fmt: skip


def write(looks: list[Look], out: Path) -> None:
    """Write the figures as CSV, and a picture of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(looks[0])))
        writer.writeheader()
        writer.writerows(asdict(look) for look in looks)
    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True)
    words = (("rss_mb", "memory, MiB"), ("open_files", "open files"), ("checkpoint_mb", "checkpoint, MB"),
             ("latency_s", "event to commit, s"))  # fmt: skip
    for axis, (name, word) in zip(axes, words, strict=True):
        axis.plot([look.at_s / 60 for look in looks], [getattr(look, name) for look in looks], linewidth=1)
        axis.set(ylabel=word, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(out.with_suffix(".png"), dpi=90)
    plt.close(figure)


def judge_growth(looks: list[Look], verdict: Verdict) -> None:
    """Check I6 over time, after the first third, in which things may still grow.

    The growth of a straight line (Theil and Sen's) through the later looks may be noise: at most a tenth, plus 20 MiB,
    10 files, 0.5 s. A checkpoint grows with every rest of a source until the job is renewed (docs/kafka.md), so its
    line rises between two renewals: there the peak of the last third may be a tenth and 0.5 MB above the second's.
    """
    from scipy.stats import theilslopes

    later = [look for look in looks if look.at_s >= looks[-1].at_s / 3]
    length = later[-1].at_s - later[0].at_s
    for name, room in (("rss_mb", 20.0), ("open_files", 10.0), ("latency_s", 0.5)):
        values = [float(getattr(look, name)) for look in later]
        grown = float(theilslopes(values, [look.at_s for look in later])[0]) * length
        middle = statistics.median(values)
        verdict.measure(f"{name} grown", grown)
        verdict.measure(f"{name} median", middle)
        verdict.measure(f"{name} most", max(values))
        allowed = 0.1 * middle + room
        verdict.expect(grown <= allowed, f"I6: {name} grew by {grown:.1f} in {length:.0f} s (median {middle:.1f})")
    half = later[0].at_s + length / 2
    before = max(look.checkpoint_mb for look in later if look.at_s <= half)
    after = max(look.checkpoint_mb for look in later if look.at_s > half)
    verdict.expect(after <= 1.1 * before + 0.5, f"I6: the checkpoint's peak grew from {before:.1f} to {after:.1f} MB")
    verdict.count("looks", len(looks))

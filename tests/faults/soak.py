"""A soak: hours or half of one with 5 % bad input, looked at every ten seconds; what grows shows."""

from __future__ import annotations

import csv
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.big import MIX
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict

_EVERY_S = 10.0
_PLAN_S = 300.0  # the events of so many seconds are planned at once
_SETTLES = 1 / 3  # of the time, at the beginning, in which things may still grow


@dataclass
class Look:
    """One look. ``latency_s`` is the median from acknowledgement to commit since the last look."""

    at_s: float
    rss_mb: float
    open_files: int
    checkpoint_mb: float
    latency_s: float
    commits: int
    events: int
    lag: int


def run(scene: Scene, seed: int, seconds: float, rate: float, out: Path) -> Verdict:
    """Ingests for some time.

    Args:
      scene: on what.
      seed: of the events.
      seconds: how long.
      rate: events a second.
      out: where the figures go (CSV); beside it the picture (PNG).
    """
    story = Story(scene, seed, partitions=2, cold=True, cycle=2000)
    story.poll()
    story.warm_up()
    looks: list[Look] = []
    began = time.monotonic()
    planned = 0.0
    while (now := time.monotonic() - began) < seconds and not story.verdict.failures:
        if now >= planned:
            length = min(_PLAN_S, seconds - planned)
            story.produce(story.planner.mixed_again(round(rate * length * 0.905), MIX), rate)
            planned += length
        story.sleep(max(_EVERY_S * (len(looks) + 1) - now, 0.1))
        looks.append(_look(story, time.monotonic() - began, looks))
        if len(looks) % 6 == 0:
            print(looks[-1], flush=True)
    write(looks, out)
    story.fault_over()
    story.settle()
    story.stop_ingest()
    verdict = story.finish()
    judge(looks, verdict)
    return verdict


def _look(story: Story, at_s: float, looks: list[Look]) -> Look:
    usage = story.ingests[-1].usage() or (0.0, 0)
    before = sum(look.commits for look in looks)
    seen = dict(story.ledger.seen)
    shift = time.time() - time.monotonic()
    acked = {(part, offset): at for _, part, offset, at in story.acks()[-2000:]}
    latest = [
        seen[entries[-1].version] + shift - acked[key[1], key[2]]
        for key, entries in list(story.ledger.entries.items())[-500:]
        if entries and (key[1], key[2]) in acked and entries[-1].version in seen
    ]
    checkpoint = story.scene.cluster.checkpoint_bytes() if story.scene.cluster is not None else 0
    return Look(
        round(at_s, 1), round(usage[0], 1), usage[1], round(checkpoint / 1e6, 4),
        round(statistics.median(latest), 3) if latest else 0.0, story.ledger.version - before, len(story.acks()),
        story.lag(),
    )  # fmt: skip


def write(looks: list[Look], out: Path) -> None:
    """The figures as CSV, and a picture of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(looks[0])))
        writer.writeheader()
        writer.writerows(asdict(look) for look in looks)
    figure, axes = plt.subplots(4, 1, figsize=(8, 9), sharex=True)
    minutes = [look.at_s / 60 for look in looks]
    words = (("rss_mb", "memory, MiB"), ("open_files", "open files"), ("checkpoint_mb", "checkpoint, MB"),
             ("latency_s", "event to commit, s"))  # fmt: skip
    for axis, (name, word) in zip(axes, words, strict=True):
        axis.plot(minutes, [getattr(look, name) for look in looks], linewidth=1)
        axis.set_ylabel(word)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(out.with_suffix(".png"), dpi=90)
    plt.close(figure)


def judge(looks: list[Look], verdict: Verdict) -> None:
    """I6 over time, after the first third, in which things may still grow.

    What a straight line (Theil and Sen's) through the later looks gains may be noise, and no more: a tenth, and beside
    it 20 MiB, 10 files, 0.5 s. A checkpoint grows with every rest of a source until the job is renewed (docs/kafka.md),
    so its line rises between two renewals: there the peak of the last third may be a tenth and 0.5 MB above that of
    the second.
    """
    from scipy.stats import theilslopes

    later = [look for look in looks if look.at_s >= looks[-1].at_s * _SETTLES]
    length = later[-1].at_s - later[0].at_s
    for name, room in (("rss_mb", 20.0), ("open_files", 10.0), ("latency_s", 0.5)):
        values = [float(getattr(look, name)) for look in later]
        slope = float(theilslopes(values, [look.at_s for look in later])[0])
        grown, middle = slope * length, statistics.median(values)
        verdict.measure(f"{name} grown", grown)
        verdict.measure(f"{name} median", middle)
        verdict.measure(f"{name} most", max(values))
        allowed = 0.1 * middle + room
        verdict.expect(grown <= allowed, f"I6: {name} grew by {grown:.1f} in {length:.0f} s (median {middle:.1f})")
    half = later[0].at_s + length / 2
    before = max(look.checkpoint_mb for look in later if look.at_s <= half)
    after = max(look.checkpoint_mb for look in later if look.at_s > half)
    verdict.measure("checkpoint_mb most, second third", before)
    verdict.measure("checkpoint_mb most, last third", after)
    verdict.expect(after <= 1.1 * before + 0.5, f"I6: the checkpoint's peak grew from {before:.1f} to {after:.1f} MB")
    verdict.count("looks", len(looks))

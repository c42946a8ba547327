"""The big runs: very many events while everything that can die is killed at random, and a soak."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ciml import engines
from tests.faults.broker import Broker
from tests.faults.plan import Mix
from tests.faults.scene import Scene
from tests.faults.stage import Stage, stage
from tests.faults.story import Story
from tests.faults.verdict import Verdict

#: Few late logs: each has to be waited for.
MIX = Mix(late_logs=0.002)
_BETWEEN_S = 40.0  # from one kill to the next, about; the producer goes on for as long as there are kills
Kill = Callable[[], object]


@contextmanager
def place_for(kind: str) -> Iterator[tuple[Stage, str]]:
    """The stage of a big run of a kind (``flink``, ``s3``, ``micro-batches``) and the data root on it, "" for a folder.

    On S3 the data, checkpoints and savepoints are there; the endpoint is a process of its own that nobody kills, for
    its objects are in its memory.
    """
    if kind != "s3":
        with stage(flink=kind == "flink", task_managers=2) as place:
            yield place, ""
        return
    import boto3

    with engines.start(["s3"], home=_folder(), settings=engines.Settings(tied=True)) as running:
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


def _folder() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="ciml-faults-s3-"))


def run(scene: Scene, seed: int, events: int, kills: int, data: str = "", rate: float = 0.0) -> Verdict:
    """Sends ``events`` messages while ``kills`` processes die, and judges.

    Args:
      scene: whose engine ingests; its cluster is this run's alone.
      seed: of the events, of what is killed and when.
      events: about how many messages.
      kills: how many processes are killed at least: they die for as long as messages are sent.
      data: the data root; a folder by default.
      rate: messages a second; by default so that there is time for the kills.
    """
    broker = Broker(scene.folder / "broker")
    try:
        story = Story(scene, seed, partitions=4, broker=broker.address, data=data, cycle=500)
        chance = random.Random(seed)
        story.poll()
        story.warm_up()
        plan = story.planner.mixed_again(round(events * 0.905), MIX)
        story.produce(plan, rate or max(events / (kills * _BETWEEN_S), 20.0))
        for kind in _victims(scene, chance):
            if story.all_sent() or story.verdict.failures:
                break
            story.sleep(chance.uniform(1.0, 8.0))
            story.tick()
            version, at = story.ledger.version, time.monotonic()
            _kill(kind, story, broker, chance)
            story.verdict.count("kills")
            story.verdict.count(f"kills of {kind}")
            story.next_commit(version, at, f"{kind}_s")
            took = story.verdict.measures[f"{kind}_s"]
            story.verdict.measures["commit_s"] += took[-1:]
            _say(story, f"{kind} killed, next commit after {took[-1] if took else 0:.1f} s")
        story.fault_over()
        _say(story, "settled" if story.settle() else "NOT settled")
        story.stop_ingest()
        verdict = story.finish()
        done = verdict.counts["kills"]
        verdict.expect(done >= kills, f"trial: {done} kills, not {kills}: all was sent before")
        return verdict
    finally:
        broker.kill()


def _say(story: Story, text: str) -> None:
    at = time.monotonic() - story.began
    told = f"version {story.ledger.version}, {len(story.acks())} acknowledged, {story.lag()} to go"
    print(f"{at:7.1f} s  {told}: {text}", flush=True)


def _victims(scene: Scene, chance: random.Random) -> Iterator[str]:
    """What dies, without end: every kind about as often."""
    kinds = ["taskmanager", "workers", "jobmanager", "broker", "taskmanager", "workers", "pool"]
    if scene.engine != "flink":
        kinds = ["process", "process", "process", "broker"]
    while True:
        chance.shuffle(kinds)
        yield from kinds


def _kill(kind: str, story: Story, broker: Broker, chance: random.Random) -> None:
    cluster = story.scene.cluster
    if kind == "broker":
        broker.kill()
        story.sleep(chance.uniform(0.0, 3.0))
        broker.start()
    elif kind == "process":
        story.ingests[-1].kill()
        story.ingest()
    elif cluster is None:
        raise RuntimeError(f"{kind} without a cluster")
    elif kind == "workers":
        story.ingests[-1].crash()
    else:
        names = cluster.parts({"pool": "workers"}.get(kind, kind))
        if names:
            cluster.kill(chance.choice(names))

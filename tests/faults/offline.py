"""Ingest without a broker: ciml's own stages and commits over a topic that is a file, in processes that fork fast.

What a commit survives does not depend on the broker, and without one a trial has time for hundreds of deaths.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Message, OffsetRange
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import Committer
from ciml.pipelines.kafka.broker import Listing
from ciml.pipelines.kafka.plan import PartitionRead, is_older, plan
from ciml.runs.compact import compact
from ciml.storage import Store, open_store
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import TrustPolicy
from tests.faults import datasets
from tests.faults.children import Child
from tests.faults.judge import Delivery
from tests.faults.plan import Mix, Send
from tests.faults.points import Points, Stop
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

TOPIC, TOPIC_ID = "events", "offline"
#: How long what is replaced is kept here. Half of it has to be longer than a listing takes on a busy machine.
GRACE_S = 3.0
LIMITS = Limits(deltas=3)
#: Those of `tests.faults.datasets` that the few runs of a trial are enough for.
DATASETS = ("all-status",)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Topic:
    """Messages of a plan, as a broker would hold them."""

    deliveries: tuple[Delivery, ...]

    @classmethod
    def of(cls, sends: Iterable[Send]) -> Topic:
        ends: dict[int, int] = {}
        found = []
        for send in sends:
            offset = ends.get(send.partition, 0)
            ends[send.partition] = offset + 1
            found.append(Delivery(send.partition, offset, send))
        return cls(tuple(found))

    def listing(self, share: float = 1.0) -> Listing:
        """The topic as a broker tells it, when a share of it was sent."""
        sent = self.sent(share)
        parts = sorted({one.partition for one in sent})
        return Listing(TOPIC, TOPIC_ID, {part: (0, sum(one.partition == part for one in sent)) for part in parts})

    def sent(self, share: float) -> tuple[Delivery, ...]:
        return self.deliveries[: round(len(self.deliveries) * share)]

    def batches(self, read: PartitionRead, size: int) -> Iterator[Batch]:
        """The messages of a read that are not covered."""
        covered = [number for start, end in read.covered for number in range(start, end)]
        assert read.end is not None
        for start in range(read.start, read.end, size):
            end = min(start + size, read.end)
            messages = [
                Message(one.offset, one.send.value, one.send.headers)
                for one in self.deliveries
                if one.partition == read.partition and start <= one.offset < end and one.offset not in covered
            ]
            yield Batch(OffsetRange(TOPIC, TOPIC_ID, read.partition, start, end), messages=messages)


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    Attributes:
      data: the data root.
      topic: a file that holds a pickled `Topic`.
      hosts: of the logs.
      folder: for whatever else it writes.
      share: how much of the topic was sent.
      most: offsets of a partition that it commits together at most.
      seed: of the order in which it commits.
      tidy: whether it also compacts, and brings data sets up to date.
      stop: where it dies or freezes.
      points: a file for the labels of all points; "" for none.
      patience_s: how long it goes on trying when the store does not answer.
      environment: more variables.
    """

    data: str
    topic: str
    hosts: tuple[str, ...]
    folder: str
    share: float = 1.0
    most: int = 6
    seed: int = 0
    tidy: bool = True
    stop: Stop = field(default_factory=Stop)
    points: str = ""
    patience_s: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)


def work(job: Job) -> None:
    """Ingests what of the topic is not covered, with checkpoints between commits; then compacts, and makes data sets.

    Raises:
      CimlError: as ciml's own commands do.
    """
    began = time.monotonic()
    while True:
        try:
            _work(job)
            return
        except EngineError:
            if time.monotonic() - began > job.patience_s:
                raise
            time.sleep(0.1)


def _work(job: Job) -> None:
    topic: Topic = pickle.loads(Path(job.topic).read_bytes())
    data = open_store(job.data)
    raw, rng = data.child("raw"), random.Random(job.seed)
    committing = Committer(raw, limits=LIMITS)
    policy, trust = FetchPolicy(hosts=job.hosts), TrustPolicy.load()
    while True:
        with committing.state() as state:
            shown = topic.listing(job.share)
            now = topic.listing() if is_older(shown, state) else shown
            reads = plan(state, now, bounded=True, most=job.most, until=shown)
        if not reads:
            break
        batches = [batch for read in reads for batch in topic.batches(read, max(2, job.most // 2))]
        settled = settle([decode(batch) for batch in batches], trust, policy, raw)
        rng.shuffle(settled)
        while settled:
            size = rng.randint(1, len(settled))
            committing.commit(settled[:size])
            del settled[:size]
        maintain(committing)
    maintain(committing)
    if job.tidy:
        tidy(data, Path(job.folder))


def maintain(committing: Committer) -> None:
    """All that there is to do."""
    while committing.maintain(budget_s=60):
        pass


def tidy(data: Store, folder: Path) -> None:
    """Compaction, and all data sets."""
    raw = data.child("raw")
    with contextlib.suppress(FileNotFoundError):
        done = compact(raw, older_than_s=0, grace_s=GRACE_S, pack_bytes=60_000)
        if faults := done.packing.faults + done.swept.faults:
            raise AssertionError(faults[0])
    folder.mkdir(parents=True, exist_ok=True)
    if wrong := datasets.update(data.root, folder, DATASETS):
        raise EngineError(wrong[0])


def prepared(seed: int, scene: Scene, data: str, *, runs: int, share: float) -> tuple[Job, Topic]:
    """A store with a share of a topic in it, a checkpoint, packs and data sets; and the job that goes on with it."""
    mix = Mix(late_logs=0, bad=0.15, repeats=0.1, corrections=0.1)
    topic = Topic.of(scene.planner(seed).mixed(runs, mix).sends)
    file = scene.folder / "topic.pickle"
    file.write_bytes(pickle.dumps(topic))
    job = Job(data, str(file), (scene.logs_url,), str(scene.folder / "work"), share, most=5, seed=seed)
    work(job)
    return replace(job, share=1.0, environment=dict(os.environ)), topic


@contextlib.contextmanager
def short_grace() -> Iterator[None]:
    """Within it, what is replaced is kept for `GRACE_S` by every manifest."""
    known = ManifestLog.__init__.__kwdefaults__
    ManifestLog.__init__.__kwdefaults__ = {**known, "grace_s": GRACE_S}
    try:
        yield
    finally:
        ManifestLog.__init__.__kwdefaults__ = known


def offline_trial(trial: Callable[[int, Scene, Verdict], None]) -> Callable[[int, Scene], Verdict]:
    """A row's trial, from what it does to a verdict: within the short grace, which its processes inherit."""

    @wraps(trial)
    def judged(seed: int, scene: Scene) -> Verdict:
        verdict = Verdict()
        with short_grace():
            trial(seed, scene, verdict)
        return verdict

    return judged


def _become(job: Job, log: str) -> None:
    """The process of a job: it ends as a command of ciml would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(job.environment)
    Points(job.data, job.stop, Path(job.points) if job.points else None).install()
    try:
        with short_grace():
            work(job)
    except CimlError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(error.exit_code)
    sys.stdout.flush()
    os._exit(0)


_forks = get_context("forkserver")


class Worker(Child):
    """A process that does a job, forked from one that has imported everything."""

    def __init__(self, job: Job, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        _forks.set_forkserver_preload(["tests.faults.offline"])
        self._process: Any = _forks.Process(target=_become, args=(job, str(log)), daemon=True)
        self._process.start()
        super().__init__(self._process.pid, log)

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def is_stopped(self) -> bool:
        """Whether it is frozen."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False


def main(arguments: list[str]) -> None:
    """``python -m tests.faults.offline JOB``: a job (as JSON) in a process of its own from the very beginning."""
    job = json.loads(Path(arguments[0]).read_text())
    _become(Job(**{**job, "hosts": tuple(job["hosts"]), "stop": Stop(**job["stop"])}), arguments[1])


if __name__ == "__main__":
    main(sys.argv[1:])

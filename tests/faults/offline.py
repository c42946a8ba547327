"""Ingest without a broker: ciml's own stages and commits over a topic that is a file, in processes that fork fast.

What a commit survives does not depend on the broker, and without one a trial has time for hundreds of deaths.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from ciml.data_root import DataRoot
from ciml.errors import CimlError, EngineError
from ciml.events.records import Batch, Message, OffsetRange, RawFile
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import Committer
from ciml.pipelines.kafka.broker import Listing
from ciml.pipelines.kafka.plan import PartitionRead, is_older, plan
from ciml.runs.compact import compact
from ciml.runs.reader import read_run, verify_runs
from ciml.runs.state import open_raw
from ciml.storage import open_store
from ciml.transforms.examples.spans import verify_span
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.ingest.run_stages import settle
from ciml.trust import TrustPolicy
from tests.durable import Disk, Recorder, Steps
from tests.faults import datasets
from tests.faults.children import Child, Fork
from tests.faults.oracle import Delivery, Ledger, Objects, accepted, judge, open_objects
from tests.faults.plan import Mix
from tests.faults.results import Verdict
from tests.faults.scene import Scene

TOPIC, TOPIC_ID = "events", "offline"
#: How long replaced objects are kept here. Half of it has to be longer than a listing takes on a busy machine.
GRACE_S = 3.0
#: Those of `tests.faults.datasets` for which the few runs of a trial are enough.
DATASETS = ("all-status",)


@dataclass(frozen=True)
class Stop:
    """Where a process stops: at a durable step (`tests.durable`).

    Attributes:
      at: the number of the step, from 1; 0 for none.
      of: counts only steps whose text begins with this: ``append`` are those of the store, others those of the disk.
      how: SIGKILL or SIGSTOP, or a negative error number that the step fails with.
      lasts: whether all later steps fail too.
    """

    at: int = 0
    of: str = ""
    how: int = signal.SIGKILL
    lasts: bool = False


@dataclass(frozen=True)
class Job:
    """The task of a process.

    Attributes:
      data: the data root.
      topic: a file with the pickled deliveries of a topic.
      hosts: of the logs.
      share: how much of the topic was sent.
      most: offsets of a partition that it commits together at most.
      seed: of the order in which it commits.
      tidy: whether it also compacts, and updates data sets.
      stop: where it dies or freezes.
      steps: a file for the number of all steps; "" for none.
      patience_s: how long it goes on trying if the store does not answer.
    """

    data: str
    topic: str
    hosts: tuple[str, ...]
    share: float = 1.0
    most: int = 6
    seed: int = 0
    tidy: bool = True
    stop: Stop = field(default_factory=Stop)
    steps: str = ""
    patience_s: float = 0.0


def work(job: Job) -> None:
    """Ingest what of the topic is not covered, with checkpoints between commits; then compact, and make data sets.

    Raises:
      CimlError: as ciml's own commands do.
    """
    began = time.monotonic()
    while True:
        try:
            _ingest(job)
            return
        except EngineError:
            if time.monotonic() - began > job.patience_s:
                raise
            time.sleep(0.1)


def _ingest(job: Job) -> None:
    sent: list[Delivery] = pickle.loads(Path(job.topic).read_bytes())
    raw, rng = open_store(job.data).child("raw"), random.Random(job.seed)
    committing = Committer(raw, limits=Limits(deltas=3))
    policy, trust = FetchPolicy(hosts=job.hosts), TrustPolicy.load()
    while True:
        with committing.state() as state:
            shown = _listing(sent[: round(len(sent) * job.share)])
            now = _listing(sent) if is_older(shown, state) else shown
            reads = plan(state, now, bounded=True, most=job.most, until=shown)
        if not reads:
            break
        batches = [batch for read in reads for batch in _batches(sent, read, max(2, job.most // 2))]
        settled = settle([decode(batch) for batch in batches], trust, policy, raw)
        rng.shuffle(settled)
        while settled:
            size = rng.randint(1, len(settled))
            committing.commit(settled[:size])
            del settled[:size]
        _maintain(committing)
    _maintain(committing)
    if job.tidy:
        with contextlib.suppress(FileNotFoundError):
            done = compact(raw, older_than_s=0, grace_s=GRACE_S, pack_bytes=60_000)
            if faults := done.packing.faults + done.swept.faults:
                raise AssertionError(faults[0])
        if wrong := datasets.update(job.data, DATASETS):
            raise EngineError(wrong[0])


def _maintain(committing: Committer) -> None:
    while committing.maintain(budget_s=60):
        pass


def _listing(sent: list[Delivery]) -> Listing:
    """Return the topic as a broker lists it."""
    parts = sorted({one.partition for one in sent})
    return Listing(TOPIC, TOPIC_ID, {part: (0, sum(one.partition == part for one in sent)) for part in parts})


def _batches(sent: list[Delivery], read: PartitionRead, size: int) -> Iterator[Batch]:
    """Yield the messages of a read that are not covered."""
    covered = {number for start, end in read.covered for number in range(start, end)}
    assert read.end is not None
    for start in range(read.start, read.end, size):
        end = min(start + size, read.end)
        messages = [
            Message(one.offset, one.send.value, one.send.headers)
            for one in sent
            if one.partition == read.partition and start <= one.offset < end and one.offset not in covered
        ]
        yield Batch(OffsetRange(TOPIC, TOPIC_ID, read.partition, start, end), messages=messages)


def prepared(seed: int, scene: Scene, data: str, *, runs: int, share: float) -> tuple[Job, list[Delivery]]:
    """Return a job whose store holds a share of a topic, a checkpoint, packs and data sets; and the whole topic."""
    ends: dict[int, int] = {}
    sent = []
    for send in scene.planner(seed).mixed(runs, Mix(late_logs=0, bad=0.15, repeats=0.1, corrections=0.1)).sends:
        offset = ends.get(send.partition, 0)
        ends[send.partition] = offset + 1
        sent.append(Delivery(send.partition, offset, send))
    file = scene.folder / "topic.pickle"
    file.write_bytes(pickle.dumps(sent))
    job = Job(data, str(file), (scene.stage.logs_url,), share, most=5, seed=seed)
    work(job)
    return replace(job, share=1.0), sent


@contextlib.contextmanager
def short_grace() -> Iterator[None]:
    """Within it, every manifest keeps what is replaced for `GRACE_S`."""
    known = ManifestLog.__init__.__kwdefaults__
    ManifestLog.__init__.__kwdefaults__ = {**(known or {}), "grace_s": GRACE_S}
    try:
        yield
    finally:
        ManifestLog.__init__.__kwdefaults__ = known


def offline_trial(trial: Callable[[int, Scene, Verdict], None]) -> Callable[[int, Scene], Verdict]:
    """Make a row's trial of a function that fills a verdict, within the short grace."""

    def judged(seed: int, scene: Scene) -> Verdict:
        verdict = Verdict()
        with short_grace():
            trial(seed, scene, verdict)
        return verdict

    return judged


def start(job: Job, log: Path, **environment: str) -> Child:
    """Start a process that does a job, and ends as a command of ciml would."""
    return Fork(_work, job, log=log, environment=environment)


def finish(child: Child, verdict: Verdict, most_s: float = 240.0) -> None:
    """Wait until a process has done its job."""
    if (code := child.wait(most_s)) != 0:
        verdict.fail(f"trial: a process ended with {code}: {child.said()[-300:]}")
        child.kill()


def _work(job: Job) -> None:
    by_store = job.data.startswith("s3://") or job.stop.of.startswith("append")
    recorder = Steps(job.data) if by_store else Disk(Path(job.data))
    steps = stop_at(recorder, job.stop)
    try:
        with short_grace(), recorder.recording():
            work(job)
    except CimlError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(error.exit_code)
    if job.steps:
        Path(job.steps).write_text(str(steps()))


def stop_at(recorder: Recorder, stop: Stop) -> Callable[[], int]:
    """Let this process stop at a step; return what counts those that happened."""
    lock, seen = threading.Lock(), 0

    def step(text: str) -> None:
        nonlocal seen
        with lock:
            if not text.startswith(stop.of):
                return
            seen += 1
            if seen == stop.at or (stop.lasts and seen > stop.at):
                if stop.how < 0:
                    raise OSError(-stop.how, os.strerror(-stop.how))
                os.kill(os.getpid(), stop.how)

    recorder.step = step  # type: ignore[method-assign]
    return lambda: seen


class Packed(Objects):
    """Objects of a raw store, where a run that moved into a pack is read from there."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._objects, self._store = open_objects(root), open_store(root)

    def read(self, path: str) -> bytes | None:
        data = self._objects.read(path)
        if data is not None or not path.startswith("runs/"):
            return data
        out = io.BytesIO()
        with contextlib.suppress(CimlError):
            pq.write_table(read_run(self._store, path), out)
        return out.getvalue() or None

    def names(self, folder: str) -> list[str]:
        return self._objects.names(folder)


def read(data: str) -> Ledger:
    """Return all deltas there are."""
    ledger = Ledger(Packed(f"{data}/raw"))
    ledger.poll()
    return ledger


def sound(data: str, before: Ledger | None = None) -> list[str]:
    """Check I3 and I4 at any time: the manifests can be read, what they name exists and is whole, nothing old changed.

    Args:
      data: the data root.
      before: as it was read earlier: the present has to begin with it.
    """
    try:
        ledger = read(data)
    except (ValueError, KeyError) as error:
        return [f"I3: a delta is half written: {error}"]
    wrong = list(ledger.faults)
    if before is not None:
        if ledger.version < before.version:
            wrong.append(f"I4: version {ledger.version} after {before.version}")
        now = {run: entries[0].record for run, entries in ledger.rows.items()}
        wrong += [f"I4: the row of {run} is gone, or another" for run, (old, *_) in before.rows.items()
                  if now.get(run) != old.record]  # fmt: skip
    try:
        root, least = DataRoot.open(data), ledger.version
        _, state = open_raw(root.raw)
        ledger.poll()  # others may be at work
        if not least <= state.version <= ledger.version:
            wrong.append(f"I3: ciml reads up to version {state.version}, and there are {least} to {ledger.version}")
        files = [(run_id, RawFile.from_json(entries[0].record["file"])) for run_id, entries in ledger.rows.items()]
        wrong += [f"I3: {line}" for line in verify_runs(root.raw, files) if line]
        for name in root.dataset_names():
            dataset = root.dataset(name)
            selected = dataset.state()
            if selected.resolved is not None:
                spans = [verify_span(dataset.store, span, selected.resolved) for span in selected.latest()]
                wrong += [f"I3: {line}" for lines in spans for line in lines]
    except CimlError as error:
        wrong.append(f"I3: {error}")
    return wrong


def exact(data: str, sent: list[Delivery], verdict: Verdict) -> None:
    """Check I1 to I4 when everything is done: the accounting, each row and each example; no left-over deltas."""
    ledger = read(data)
    runs = accepted(sent)
    verdict.fail(*sound(data), *judge(TOPIC, sent, ledger))
    verdict.fail(*datasets.check(open_objects(data), runs, ledger.outcome, odd=True, names=DATASETS))
    objects = open_objects(f"{data}/raw")
    for name in objects.names("_manifest"):  # a writer that woke up late has to have removed its delta
        stem = Path(name).stem
        archived = ledger.archived(int(stem)) if name.count("/") == 1 and stem.isdigit() else None
        if archived is not None and json.loads(objects.read(name) or b"{}") != archived:
            verdict.fail(f"I4: delta {stem} is not what its segment holds")
    verdict.counts.update(events=len(sent), rows=len(ledger.rows))

"""The processes of a simulated world: ciml's own code, wired as its runners wire it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, EngineError, LogUnavailableError, NoTrainingDataError, RejectedInput
from ciml.events.records import Batch
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.pipelines.ingest.committer import Committer, seal, unseal
from ciml.pipelines.ingest.pipeline import batches_to_retry
from ciml.pipelines.kafka.plan import PartitionRead, expired_offsets, is_older, plan
from ciml.runs.compact import compact
from ciml.runs.writer import store
from ciml.transforms.fetch.fetch import Fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.parse.logs import parse
from ciml.trust import TrustPolicy, evaluate, evaluate_batch
from tests.simulation.broker import Partition, find_partitions, read_bounded, read_slice
from tests.simulation.scenes import Address, ScheduledMessage, log, read_event
from tests.simulation.scheduler import Violation
from tests.simulation.world import START_US, Process

POLICY = TrustPolicy.load()
DATASETS = (
    {"name": "all", "span_runs": 3, "max_windows": 4},
    {"name": "unit", "span_runs": 2, "max_windows": 3, "build_name": "unit", "features_regex": "usr|1m"},
)


class LogHost(Fetcher):
    """The real fetcher, with a log host that answers at once: with the log, 404 or 503."""

    def __init__(self, process: Process) -> None:
        self.policy = FetchPolicy(hosts=("logs.example.org",))
        self._process = process

    def _run(self, jobs: Iterable[Any], *limits: object) -> None:
        process, world = self._process, self._process.world
        for job in jobs:
            world.scheduler.step()
            path = job.address.path
            where = Address.parse(path)
            flaky = world.chaos.on and where.from_us == 0 and world.random.random() < 0.05
            if flaky and world.flaws[path] < 2:
                world.flaws[path] += 1
                job.failure = LogUnavailableError("log_unavailable", "status 503")
            elif process.now_us() - START_US < where.from_us:
                job.failure = LogUnavailableError("log_not_found", "status 404")
            elif where.content < 0:
                job.failure = RejectedInput("corrupt_gzip", "cut short")
            else:
                job.log = log(where.content)
            world.scheduler.trace(f"log {path} -> {job.failure or 'there'}")


class Stages:
    """An ingest process: its committer and its stages."""

    def __init__(self, process: Process) -> None:
        self.process, self.world = process, process.world
        self.raw = process.data.raw
        self.committing = Committer(self.raw)
        self._host = LogHost(process)

    def settle(self, batch: Batch) -> bytes:
        """Run all stages; return the sealed batch."""
        batch = self._host.fetch(evaluate_batch(decode(batch, read_event=read_event), POLICY), self.process.now_us())
        sealed = seal(store(parse(batch), self.raw))
        self.world.sealed.append(sealed)
        return sealed

    def commit(self, sealed: list[bytes]) -> None:
        """Commit as the commit stage does."""
        self._commit([unseal(each) for each in sealed])

    def _commit(self, batches: list[Batch]) -> None:
        version = self.committing.commit(batches, partial(evaluate, POLICY))
        self.world.scheduler.trace(f"commits {len(batches)} batches as {version}")
        self.world.check_durable(self.process.actor.name, version, [batch.covers for batch in batches if batch.covers])

    def plan(self, *, bounded: bool, most: int | None = None) -> list[PartitionRead]:
        """Return the reads to do, after committing the offsets that expired before the first read."""
        listing = self.process.client.list_topic()
        while True:
            with self.committing.state() as state:
                if is_older(listing, state):
                    listing = self.process.client.list_topic()
                if not expired_offsets(state, listing):
                    return plan(state, listing, bounded=bounded, most=most)
            self.committing.append(
                lambda state, listing=listing: self.committing.delta(state, map(Batch, expired_offsets(state, listing)))
            )

    def due(self) -> list[bytes]:
        """Settle the deferred runs that are due."""
        with self.committing.state() as state:
            due = state.due(self.process.now_us())
        return [self.settle(batch) for batch in batches_to_retry(due, 3)]


def micro_batches(process: Process) -> None:
    """Ingest by micro-batches, as `ciml.services.driver.drive` does it."""
    stages, rng = Stages(process), process.world.random

    def work() -> bool:
        reads = stages.plan(bounded=True, most=1 if process.world.small else rng.choice((2, 5, 100)))
        sealed = [stages.settle(batch) for read in rng.sample(reads, len(reads)) for batch in read_bounded(read)]
        sealed += stages.due()
        rng.shuffle(sealed)
        while sealed:
            size = 1 if process.world.small else rng.choice((1, 3, 100))
            stages.commit(sealed[:size])
            del sealed[:size]
        return bool(reads)

    process.cycle(work)


def stream(process: Process) -> None:
    """Ingest by one job. When it dies, it restarts at its last checkpoint, which may be older than its commits."""
    stages, world, rng = Stages(process), process.world, process.world.random
    reads: list[PartitionRead] = []
    positions: dict[int, int] = {}
    waiting: list[bytes] = []

    def restart() -> None:
        kept = world.checkpoints.get(process.role) if rng.random() < 0.7 else None
        reads[:], restored, waiting[:] = kept or ([], {}, [])
        positions.clear()
        positions.update(restored)

    def attempt() -> bool:
        try:
            return work()
        except EngineError:  # the job loses its pending batches
            restart()
            raise

    def work() -> bool:
        found = False
        if not reads or rng.random() < 0.1:  # a new job, without pending batches
            reads[:] = stages.plan(bounded=False)
            waiting.clear()
            positions.clear()
            positions.update({read.partition: read.start for read in reads})
        elif rng.random() < 0.3:
            later = find_partitions(reads[0].topic_id, len(reads))
            reads.extend(later)
            positions.update({read.partition: read.start for read in later})
        for read in rng.sample(reads, len(reads)):
            batches, positions[read.partition] = read_slice(read, positions[read.partition])
            found = found or bool(batches)
            waiting.extend(map(stages.settle, batches))
        waiting.extend(stages.due())
        if rng.random() < 0.3 and not process.superseded:
            world.checkpoints[process.role] = (list(reads), dict(positions), list(waiting))
            world.scheduler.trace(f"checkpoint {positions}")
        if waiting and (rng.random() < 0.6 or not found):
            stages.commit(waiting)
            waiting.clear()
        return found

    restart()
    process.cycle(attempt)


def ghost(process: Process) -> None:
    """Deliver earlier batches again, at any later time."""
    stages, world = Stages(process), process.world

    def work() -> bool:
        if world.sealed and world.chaos.on:
            stages.commit([world.random.choice(world.sealed) for _ in range(world.random.randint(1, 4))])
        return False

    process.cycle(work, once_s=5.0)


def maintainer(process: Process) -> None:
    """Make checkpoints, and remove the objects that they replace."""
    committing = Committer(process.data.raw)

    def work() -> bool:
        committing.maintain(budget_s=process.world.random.choice((0.0, 0.01, 10.0)))
        return False

    process.cycle(work, once_s=2.0)


def compactor(process: Process) -> None:
    """Pack the runs of past days, and remove objects that are no longer needed."""
    grace_s, rng = max(3600.0, process.world.chaos.grace_s), process.world.random

    def work() -> bool:
        done = compact(
            process.data.raw, grace_s=grace_s, aside_s=30 * grace_s, min_runs=rng.choice((1, 2)),
            pack_bytes=rng.choice((1, 3000, 32 << 20)), window_runs=rng.choice((2, 100)), clock=process.clock,
            everything=rng.random() < 0.3,
        )  # fmt: skip
        faults = done.packing.faults + done.swept.faults
        if faults:
            raise Violation(faults[0])
        return done.packing.packs > 0

    process.cycle(work, once_s=20.0)


def updater(process: Process) -> None:
    """Create and update data sets."""

    wanted = [DatasetDefinition.from_json(each) for each in DATASETS[: process.world.datasets]]
    made: set[str] = set()

    def work() -> bool:
        sealed = 0
        for definition in wanted:
            if definition.name not in made:
                create_dataset(process.data, definition, now_us=process.now_us())
                made.add(definition.name)
            seal = process.world.chaos.on and process.world.random.random() < 0.03
            try:
                sealed += len(update_dataset(process.data.dataset(definition.name), now_us=process.now_us(), seal=seal
                ).sealed)  # fmt: skip
            except CimlError as error:
                # A user error: nothing to seal yet. Or a run was erased since it was selected.
                is_gone = process.world.disk.rewrites and "does not exist" in str(error)
                if type(error) not in (CimlError, NoTrainingDataError) and not is_gone:
                    raise
        return sealed > 0

    process.cycle(work, once_s=6.0)


def producer(process: Process, messages: list[ScheduledMessage]) -> None:
    """Send messages; repeat one whose acknowledgement was lost."""
    world, rng = process.world, process.world.random
    for scheduled in messages:
        process.world.scheduler.pause(scheduled.pause_s)
        acknowledged = False
        while not acknowledged:
            world.scheduler.step()
            fault = world.chaos.fault()
            if fault == "before":
                continue
            number = rng.randrange(len(world.broker.partitions))
            offset = world.broker.append(number, scheduled.message, rng.choice((0, 0, 0, 0, 1, 2)))
            world.sent[world.broker.topic_id, number, offset] = scheduled.expected
            acknowledged = fault not in ("after", "lost")
            lost = "" if acknowledged else "(unacknowledged) "
            world.scheduler.trace(f"sends {number} {offset} {lost}{scheduled.expected}")
    world.sending -= 1
    process.cycle(lambda: False, once_s=30.0)


def operator(process: Process) -> None:
    """Change the topic by the world's fate."""
    world = process.world
    world.scheduler.pause(world.random.uniform(1, 40))
    broker, covered = world.broker, world.model.covered
    match world.fate:
        case "more partitions":
            broker.partitions.append(Partition())
            world.fated = True
        case "recreated":
            world.fated = bool(covered)
            if world.fated:
                broker.recreate(len(broker.partitions))
                # Running reads may take messages of the new topic for the old one: clients cannot distinguish them.
                world.model.disabled = True
        case "retention" | "retention too early" as fate:
            lost = False
            for number, partition in enumerate(broker.partitions):
                mine = covered.get(number, set())
                first = next(offset for offset in range(partition.end + 1) if offset not in mine)
                if not mine:
                    first = world.random.randint(0, partition.end)
                    world.model.expired |= {(broker.topic_id, number, offset) for offset in range(first)}
                elif fate == "retention too early":
                    lost = lost or any(offset >= first for offset in partition.messages)
                    first = partition.end
                broker.forget(number, first)
            world.fated, world.fate = True, fate if lost else "retention"
    world.scheduler.trace(f"* {world.fate}: {[(part.first, part.end) for part in broker.partitions]}")
    process.cycle(lambda: False, once_s=30.0)

"""A simulated world: its actors, and the checks during the run."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import OffsetRange, rows_of
from ciml.manifest.checkpoints import Limits
from tests.durable import Died
from tests.simulation.broker import Broker, Client
from tests.simulation.fakes import Disk, SimStore
from tests.simulation.model import Position, ReferenceModel
from tests.simulation.scenes import ExpectedRun, scene
from tests.simulation.scheduler import Actor, Chaos, Scheduler, Violation

START_US = 1_795_737_600_000_000  # days after the runs of the scene
#: The roles that read the topic.
INGEST = ("micro-1", "micro-2", "stream")
_CHECKPOINT = re.compile(r"raw/_manifest/checkpoints/([0-9]{12})\.json")
_DELTA = re.compile(r"(raw|datasets/[^/]+)/_manifest/([0-9]{12})\.json")
_MOST_STEPS = 60_000
#: Changes of the topic. After the last two, ingest must stop by itself.
_FATES = ("none",) * 6 + ("more partitions",) * 2 + ("retention",) * 2 + ("retention too early", "recreated")


class World:
    """The state that all processes of a simulation share, and that none of them can read, before its first step.

    Attributes:
      seed: determines the whole run.
      fate: the change of the topic; fated: whether it has happened.
      sent: the expected results of each message.
      sealed: all batches ever sealed for a committer: any may be delivered again.
      checkpoints: of streaming jobs, by name.
      verified: the bytes of objects that were read and are intact.
      stale_writes: the last version that a process created where another's removed delta had been.
      small: whether there is a commit for every message.
      alarms: the errors that stopped processes, by role.
      flaws: number of failures of a log host, by address.
      stops: how often a role has stopped by itself.
      replaced: names of processes that were replaced by another.
      copies: copies of the data root that were made while others wrote to it.
      erased: ids of runs that are erased, or are about to be.
    """

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.random = rng = random.Random(f"world {seed}")
        self.scheduler = Scheduler(seed, start_us=START_US, most_steps=_MOST_STEPS, keep_trace=keep_trace)
        self.scheduler.before_step = self.before_step
        self.chaos, self.disk, self.messages = Chaos.of(seed), Disk(), scene(seed)
        self.disk.created, self.disk.froze = self.check_delta, self.replace_frozen
        self.sent: dict[Position, tuple[ExpectedRun, ...]] = {}
        self.model = ReferenceModel(self.sent)
        self.fate = rng.choice(_FATES)
        self.broker = Broker(self.scheduler, rng.randint(1, 3))
        self.small = rng.random() < 0.3
        self.limits = Limits(deltas=rng.choice((2, 3, 5, 9)))
        if self.small:  # many commits, checkpoints and removals; committers are often frozen before a commit
            self.limits, self.chaos.grace_s = Limits(deltas=2), 20.0
            self.chaos.stalls, self.chaos.leaps = 0.2, max(self.chaos.leaps, 0.006)
        self.datasets = rng.randint(1, 2)
        self.calm_after = rng.randint(60, 900) + 300 * self.small
        self.fated = self.ending = False
        self.sending = self.born = 0
        self.sealed: list[bytes] = []
        self.checkpoints: dict[str, Any] = {}
        self.alarms: dict[str, str] = {}
        self.flaws, self.stops = Counter[str](), Counter[str]()
        self.stale_writes: dict[str, int] = {}
        self.verified: dict[str, bytes | None] = {}
        self.replaced: set[str] = set()
        self.copies: list[Disk] = []
        self.erased: set[str] = set()
        self.processes: dict[str, Process] = {}
        self.roles: dict[str, Callable[[Process], None]] = {}

    @property
    def fatal(self) -> bool:
        """Whether ingest must stop by itself: offsets are lost, or the topic was recreated."""
        return self.fated and (self.fate == "recreated" or bool(self.lost()))

    def lost(self) -> list[tuple[int, int]]:
        """Return the uncommitted offsets that the broker no longer has, in partitions with covered offsets."""
        return [
            (number, offset)
            for number, covered in self.model.covered.items()
            if covered and self.broker.topic_id == self.model.topic_id
            for offset in range(self.broker.partitions[number].first)
            if offset not in covered
        ]

    def before_step(self) -> None:
        """Inject faults, end them, or end the run."""
        self.chaos.strike(self.scheduler, self.replace_frozen)
        if self.scheduler.steps % 25:
            return
        if self.chaos.on and self.scheduler.steps >= self.calm_after and not self.sending:
            self.chaos.on = False
            self.scheduler.trace("* faults end")
            for actor in self.scheduler.actors:
                actor.idle, actor.frozen = 0, min(actor.frozen, 300)
        if not self.chaos.on and any(actor.frozen for actor in self.scheduler.actors):
            self.scheduler.now_us += round(self.chaos.grace_s * 0.3e6)  # much time has passed when an actor wakes
        if self.alarms and not self.fatal:  # nothing was lost: an operator restarts ingest
            for role in sorted(self.alarms):
                del self.alarms[role]
                self.start(role, self.roles[role])
        waits = "deferred" in self.model.open.values() and not self.fatal
        if not (self.chaos.on or self.ending or waits) and all(actor.idle >= 2 for actor in self.scheduler.actors):
            self.ending = True
            self.scheduler.trace("* all actors are idle")

    def start(self, role: str, body: Callable[[Process], None], *, frail: bool = True, delay_s: float = 0.0) -> None:
        """Start a process of a role. When it is killed, another replaces it."""
        self.roles[role] = body
        self.born += 1
        name = f"{role}#{self.born}"

        def again(actor: Actor) -> None:
            if name not in self.replaced and not self.ending:
                self.replaced.add(name)
                self.start(role, body, frail=frail, delay_s=self.random.choice((0.0, 1.0, 20.0)))

        def live(actor: Actor) -> None:
            process = Process(self, actor, role, self.chaos if frail else None)
            self.processes[name] = process
            try:
                body(process)
            except IntegrityError as error:
                self._stopped(role, name, error, again)

        self.scheduler.spawn(name, live, frail=frail, delay_s=delay_s, died=again)

    def _stopped(self, role: str, name: str, error: IntegrityError, again: Callable[[Actor], None]) -> None:
        """Handle a process that stopped by itself. Its plan may only be stale, so two more processes are started."""
        self.scheduler.trace(f"! stops: {error}")
        if not (self.fated and self.fate in ("retention", "retention too early", "recreated") and role in INGEST):
            raise Violation(f"{name} stopped: {error}") from error
        self.stops[role] += 1
        self.checkpoints.pop(role, None)
        if self.stops[role] <= 2 or not self.fatal:
            again(self.scheduler.actors[0])
        else:
            self.alarms[role] = str(error)

    def replace_frozen(self, actor: Actor) -> None:
        """Sometimes replace a frozen process by another. The frozen one wakes up later."""
        role = actor.name.partition("#")[0]
        if actor.name not in self.replaced and self.random.random() < 0.7:
            self.replaced.add(actor.name)
            self.start(role, self.roles[role], delay_s=self.random.choice((0.0, 5.0)))

    def check_delta(self, path: str, data: bytes) -> None:
        """Check the invariants of each commit when it is made."""
        match = _DELTA.fullmatch(path)
        if match is None:
            return
        for actor in self.scheduler.actors:
            actor.idle = 0
        try:
            delta = json.loads(data)
            if match[1] == "raw":
                if int(match[2]) <= max(self.checkpoints_there(), default=0):
                    # The version was removed: no reader may read this delta, and its writer must not rely on it.
                    self.stale_writes[self.scheduler.current.name if self.scheduler.current else ""] = int(match[2])
                    return
                self.model.add(int(match[2]), delta)
                named = [f"raw/{each['file']['path']}" for each in rows_of(delta)]
            else:
                files = [file for span in delta.get("spans", ()) for part in span["files"].values() for file in part]
                named = [f"{match[1]}/{file['path']}" for file in files]
            missing = [each for each in named if not self._is_there(each)]
            if missing:
                raise Violation(f"{path} names {missing[0]}, which does not exist")
        except Violation as violation:
            self.scheduler.fail(violation)
            raise Died from violation

    def check_durable(self, name: str, version: int | None, ranges: list[OffsetRange]) -> None:
        """Check that a reported commit is durable."""
        if version is not None and self.stale_writes.get(name) == version:
            raise Violation(f"{name}: its commit returned version {version}, which is another writer's delta")
        for covers in ranges:
            missing = set(range(covers.start, covers.end)) - self.model.covered.get(covers.partition, set())
            if missing and not self.model.disabled:
                raise Violation(f"partition {covers.partition}: {sorted(missing)} were not committed, but reported so")

    def checkpoints_there(self) -> list[int]:
        """Return the versions of the raw manifest's checkpoints."""
        found = [_CHECKPOINT.fullmatch(path) for path in self.disk.objects]
        return [int(match[1]) for match in found if match]

    def _is_there(self, path: str) -> bool:
        """Return whether a file can be read. The poller checks files in packs."""
        swept = path.replace("raw/", "raw/swept/", 1)
        return path in self.disk.objects or swept in self.disk.objects or "compactor" in self.roles


class Process:
    """The view of one process: its store, its broker client and its clock."""

    def __init__(self, world: World, actor: Actor, role: str, chaos: Chaos | None) -> None:
        self.world, self.actor, self.role = world, actor, role
        self.data = DataRoot(SimStore(f"sim://{world.seed}/{actor.name}", world.disk, world.scheduler, chaos))
        self.client = Client(world.broker, chaos)

    @property
    def superseded(self) -> bool:
        """Whether another process replaced this one while it was frozen. It may finish its current work."""
        return self.actor.name in self.world.replaced

    def clock(self) -> float:
        return self.world.scheduler.now_us / 1e6

    def now_us(self) -> int:
        return self.world.scheduler.now_us

    def cycle(self, work: Callable[[], bool], *, once_s: float = 1.0) -> None:
        """Repeat ``work`` until the end; it returns whether it did anything. After an `EngineError` it is retried."""
        world = self.world
        while not (world.ending or self.superseded):
            try:
                self.actor.idle = 0 if work() else self.actor.idle + 1
            except EngineError as error:
                world.scheduler.trace(f"waits: {error}")
            still = world.chaos.on or any(actor.frozen for actor in world.scheduler.actors)
            longest = 4.0 if still else 2.0 ** min(self.actor.idle, 10)
            world.scheduler.pause(once_s * world.random.uniform(0.2, 1.0) * longest)

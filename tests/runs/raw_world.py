"""A raw store in a folder with a test clock, with calls that can be made to fail, and deliveries to commit."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ciml.events.records import Batch, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.manifest.log import ManifestLog, StaleWriterError, catch_up, commit
from ciml.runs.accounting import reconcile
from ciml.runs.state import RAW, RawState
from ciml.storage import LocalStore

HOUR_S = 3600.0
LIMITS = Limits(deltas=7, records=60)


class Clock:
    """A clock that a test sets, seconds."""

    def __init__(self, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class TimedStore(LocalStore):
    """A folder with a test clock. ``before`` is called with each verb and path."""

    def __init__(self, root: Any, clock: Clock) -> None:
        super().__init__(root)
        self.clock = clock
        self.before: Callable[[str, str], None] = lambda verb, path: None

    def create(self, path: str, data: bytes) -> bool:
        self.before("create", path)
        made = super().create(path, data)
        if made:
            os.utime(self._file(path), (self.clock(), self.clock()))
        return made

    def delete(self, path: str) -> None:
        self.before("delete", path)
        super().delete(path)

    def read(self, path: str) -> bytes:
        self.before("read", path)
        return super().read(path)

    def list(self, prefix: str = "", after: str = "") -> list[str]:
        self.before("list", prefix)
        return super().list(prefix, after)


def deliveries(seed: int, count: int) -> Iterator[list[Batch]]:
    """Yield batches of a topic with three partitions: runs, repeats, corrections, dead letters, deferred logs."""
    rng = random.Random(seed)
    ends = [0, 0, 0]
    open_: list[Outcome] = []
    for number in range(count):
        batches = []
        for partition in rng.sample(range(3), rng.randint(1, 3)):
            start = ends[partition]
            settled = [_outcome(rng, partition, start + one) for one in range(rng.randint(1, 4))]
            ends[partition] += len(settled)
            batches.append(Batch(OffsetRange("t", "T", partition, start, ends[partition]), settled=settled))
            open_ += [one for one in settled if one.kind in ("deferred", "dead_letter") and one.mention]
        if open_ and rng.random() < 0.5:
            again = open_.pop(rng.randrange(len(open_)))
            kind = rng.choice(["run", "dead_letter", "deferred"])
            file = RawFile(f"runs/{again.run_id}", f"{again.run_id}d", 1, 1) if kind == "run" else None
            batches.append(
                Batch(None, settled=[Outcome(kind, again.origin, again.event_key, again.mention, "later",  # type: ignore[arg-type]
                                             trust=Trust(True, "r", "p"), file=file, attempts=2 + number)])
            )  # fmt: skip
        yield batches


def _outcome(rng: random.Random, partition: int, offset: int) -> Outcome:
    kind = rng.choice(["run", "run", "run", "ignored", "dead_letter", "deferred", "broken"])
    origin, key = Origin("t", partition, offset), f"s {rng.randrange(200)}"
    if kind == "broken":
        return Outcome("dead_letter", origin, reason="broken_json", payload={"value": "eA==", "headers": []})
    run = f"zuul~{rng.randrange(120)}~1"
    word: Any = rng.choice(["success", "failure", None])
    facts = RunFacts(run_id=run, build_uuid=run, build_name="job", outcome=word)
    digest = rng.choice([f"{rng.getrandbits(256):064x}", f"{run}d"])
    file = RawFile(f"runs/{run}.{digest}", digest, 3, 99) if kind == "run" else None
    trust = Trust(rng.random() < 0.5, "gated", "p")
    return Outcome(kind, origin, key, facts, "" if kind == "run" else "why", trust=trust, file=file)  # type: ignore[arg-type]


class World:
    """A raw store, its clock, and its committers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, Clock()

    def store(self) -> TimedStore:
        return TimedStore(self.folder, self.clock)

    def actor(self, store: TimedStore | None = None, clock: Callable[[], float] | None = None) -> Actor:
        return Actor(ManifestLog(store or self.store(), clock=clock or self.clock))


class Actor:
    """A process with a raw manifest: its state, and its checkpoints."""

    def __init__(self, log: ManifestLog) -> None:
        self.log = log
        self.checkpoints = Checkpoints(log, RAW, LIMITS)
        self.state: RawState = self.checkpoints.open()
        catch_up(log, self.state)

    def commit(self, batches: list[Batch]) -> int | None:
        try:
            return commit(self.log, self.state, lambda: reconcile(self.state, batches, int(self.log.clock() * 1e6)))
        except StaleWriterError:
            self.reopen()
            return self.commit(batches)

    def maintain(self) -> None:
        while self.checkpoints.maintain():
            pass

    def reopen(self) -> None:
        self.state = self.checkpoints.open()
        catch_up(self.log, self.state)


def content_of(state: RawState) -> dict[str, Any]:
    """Return the content of a state, with a sample of its event ids."""
    dead_letters = sorted((str(origin), run_id, *each) for (origin, run_id), each in state.index.dead_letters())
    names = [f"zuul~{number}~1" for number in range(120)]
    pairs = [(f"s {number}", name) for number in range(200) for name in names[::7]]
    state.index.prefetch(events=pairs, runs=names)
    runs = {name: state.index.run(name) for name in names}
    events = {pair for pair in pairs if state.index.has_event(*pair)}
    assert state.totals()["dead_letter"] == len(dead_letters)
    return {"version": state.version, **state.snapshot(), "letters": dead_letters, "known": runs, "events": events}

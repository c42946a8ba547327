"""Runs simulated worlds, and reports their results."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

from ciml.manifest import rewrite
from ciml.transforms.parse import logs as parsing
from ciml.transforms.parse.logs import Log, parse_logs
from tests.simulation.actors import compactor, ghost, maintainer, micro_batches, operator, producer, stream, updater
from tests.simulation.audit import auditor, poller
from tests.simulation.backup import backup, check_copy
from tests.simulation.broker import reading_by
from tests.simulation.eraser import audit, eraser
from tests.simulation.fakes import replaced
from tests.simulation.scheduler import Violation
from tests.simulation.world import Process, World


@dataclass(frozen=True)
class Result:
    """The result of a world: ``wrong`` is "" if no check failed. Equal digests mean identical runs."""

    seed: int
    wrong: str
    steps: int
    commits: int
    digest: str
    trace: tuple[str, ...] = ()
    copies: int = 0
    erased: int = 0


def simulate(seed: int, *, keep_trace: bool = False, with_backup: bool = False, with_erasures: bool = False) -> Result:
    """Run the world of a seed, from its first event to its audit.

    Args:
      seed: of the world.
      keep_trace: whether the result holds every step.
      with_backup: whether the data root is copied meanwhile, and the copies are checked. It is another world.
      with_erasures: whether runs are erased meanwhile. Nothing is compared with the model then.
    """
    world = World(seed, keep_trace=keep_trace)
    if with_erasures:
        world.fate = "none"  # a topic that is recreated or expires stops ingest, with or without erasures
    scheduler = world.scheduler
    wrong = ""
    try:
        with (
            replaced(scheduler, seed, world.chaos.grace_s, world.limits),
            reading_by(lambda: _current(world).client),
            _parsed_once(),
            patch.object(rewrite, "WAIT_S", 0.0),
        ):
            _populate(world, with_erasures=with_erasures)
            if with_backup:
                world.start("backup", backup, frail=False)
            if with_erasures:
                world.model.disabled = True
                world.disk.rewrites = True
                scheduler.most_steps *= 5
                world.start("eraser", eraser)
            scheduler.run()
            world.chaos.on = False
            world.start("auditor", audit if with_erasures else auditor, frail=False)
            scheduler.run()
            for copied in world.copies:
                world.start("restorer", partial(check_copy, copied=copied), frail=False)
                scheduler.run()
    except Violation as violation:
        wrong = str(violation)
    except Exception as error:  # noqa: BLE001  # no process of ciml may end with one
        wrong = "".join(traceback.format_exception(error)) if keep_trace else f"{type(error).__name__}: {error}"
    trace = tuple(scheduler.kept or ())
    counts = (len(world.copies), len(world.erased))
    return Result(seed, wrong, scheduler.steps, world.model.version, scheduler.digest(), trace, *counts)


def _current(world: World) -> Process:
    if world.scheduler.current is None:
        raise Violation("no actor is running")
    return world.processes[world.scheduler.current.name]


def _populate(world: World, *, with_erasures: bool) -> None:
    rng = world.random
    parts = rng.randint(1, 2)
    for number in range(parts):
        messages = world.messages[number::parts]
        world.sending += 1
        world.start(f"producer-{number + 1}", partial(producer, messages=messages), frail=False)
    world.start("micro-1", micro_batches)
    if rng.random() < 0.5:
        world.start("micro-2", micro_batches)
    if rng.random() < 0.5:
        world.start("stream", stream)
    if rng.random() < 0.5:
        world.start("ghost", ghost)
    world.start("updater-1", updater)
    if rng.random() < 0.5:
        world.start("updater-2", updater)
    for number in range(2 if world.small else rng.choice((0, 1, 1, 2))):
        if not with_erasures:
            world.start(f"maintainer-{number + 1}", maintainer)
    if rng.random() < 0.4 and not with_erasures:
        world.start("compactor", compactor)
    if not with_erasures:
        world.start("poller", poller, frail=False)
    if world.fate != "none":
        world.start("operator", operator, frail=False)


@lru_cache(maxsize=64)
def _parse_one(log: Log) -> Any:
    return parse_logs([log])[0]


def _parsed_once() -> Any:
    """Parse each log once within the context: the parser is pure, and not under test here."""
    return patch.object(parsing, "parse_logs", lambda logs, *_: [_parse_one(log) for log in logs])


def simulate_all(seeds: Sequence[int], workers: int = 2) -> list[Result]:
    """Run many worlds, in several processes; a few in this one, as each process imports for seconds."""
    if len(seeds) < 200:
        return [simulate(seed) for seed in seeds]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(simulate, seeds, chunksize=25))


def replay(seed: int) -> str:
    """Return the command that runs the world of a seed again, with its trace."""
    return f"python -m tests.simulation --seed {seed} --trace"

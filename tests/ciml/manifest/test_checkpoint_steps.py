"""The order of the steps of maintenance: whatever dies between two of them, the state is the sum of the deltas."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import pytest

from ciml.errors import EngineError
from ciml.manifest import id_index
from ciml.manifest.log import GRACE_S, ManifestLog, StaleWriterError
from tests.ciml.manifest.test_checkpoints import copied, more, names, passed, plain, run, run_on, singles, world
from tests.durable import Steps
from tests.raw_manifest import verify_manifest
from tests.runs.raw_world import HOUR_S, Actor, World, content_of

__all__ = ["world"]


def grow_old(world: World, actor: Actor) -> None:
    """Make checkpoints, let the grace pass, and remove old objects."""
    actor.maintain()
    passed(world)
    more(actor, 9)
    world.clock.now_s += HOUR_S + 1
    actor.maintain()


#: Steps of `grow_old` after 20 deltas. A checkpoint follows all that it names. Of what it replaces, the oldest goes
#: first, so that a reader finds no gap; a part goes last, when no checkpoint names it.
STEPS = [
    *("create segments/7.jsonl.zst", *4 * ["create index/*.arrow"], "create checkpoints/7.json"),
    *("create segments/14.jsonl.zst", *6 * ["create index/*.arrow"], "create checkpoints/14.json"),
    "create 21.json",
    *("create segments/21.jsonl.zst", *3 * ["create index/*.arrow"], "create checkpoints/21.json"),
    *(f"delete {version}.json" for version in range(1, 15)),
    "delete checkpoints/7.json",
    *6 * ["delete index/*.arrow"],
]
#: Steps before which maintenance stops: the first two of those that differ in their numbers alone.
BEFORE = [
    at for at, step in enumerate(STEPS) if at < 2 or re.sub("[0-9]", "", step) != re.sub("[0-9]", "", STEPS[at - 2])
]


def brief(step: str) -> str:
    return re.sub(r"_manifest/|000000/|0{8,}", "", step)


@pytest.fixture
def grown(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with 20 deltas and no checkpoint. Runs are merged early, so that parts are replaced."""
    monkeypatch.setattr(id_index, "TIER", 2)
    run(world, world.actor(), count=20, maintain=False)
    return world


def test_order_of_the_steps_of_maintenance(grown: World) -> None:
    with Steps(grown.store().root).recording() as steps:
        grow_old(grown, grown.actor())
    assert [*map(brief, steps.steps)] == STEPS


def test_each_checkpoint_that_stays_keeps_its_parts_and_only_old_leftovers_go(grown: World) -> None:
    actor = grown.actor()
    actor.maintain()
    passed(grown)
    more(actor, 9, count=8)  # two checkpoints, the second of which replaces parts of the oldest
    leftovers = [grown.folder / "_manifest" / folder / ".staging-x" for folder in (".", "index", "checkpoints")]
    for number, path in enumerate(leftovers):
        path.write_bytes(b"half")
        os.utime(path, 2 * (grown.clock.now_s - (GRACE_S + 2 if number else 0),))
    grown.clock.now_s += HOUR_S + 1
    actor.maintain()
    assert ([path.exists() for path in leftovers], singles(grown)[0]) == ([True, False, False], 15)
    assert [int(name) for name in names(grown, "checkpoints")] == [14, 21, 28]
    assert list(verify_manifest(grown.store())) == []


@pytest.mark.parametrize("error", [None, EngineError("no space left")])
def test_maintenance_stopped_before_each_step_is_completed_later(grown: World, error: EngineError | None) -> None:
    deltas = dict(ManifestLog(grown.store()).since(0))
    want = content_of(plain(grown, deltas))

    def fail() -> None:
        assert error is not None
        raise error

    for index in BEFORE if error is None else BEFORE[::4]:
        world = copied(grown, f"before {index}")
        actor = world.actor()
        with suppress(EngineError), Steps(world.store().root, index, fail if error else None).recording():
            grow_old(world, actor)
        numbers = singles(world)
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), index  # no gap
        assert list(verify_manifest(world.store())) == [], index
        other = world.actor() if error is None else actor  # the same process continues after an error
        other.maintain()
        passed(world)
        more(other, 10, by=2000)
        world.clock.now_s += HOUR_S + 1
        other.maintain()
        assert list(verify_manifest(world.store())) == [], index
        after = {version: delta for version, delta in ManifestLog(world.store()).since(0) if version <= 20}
        assert (after, content_of(plain(world, after))) == (deltas, want)
        assert not list(world.folder.rglob(".staging-*"))


def test_a_rebuild_that_dies_before_any_step_leaves_only_checkpoints_with_all_parts(grown: World) -> None:
    grown.actor().maintain()
    want = content_of(grown.actor().state)
    deletes = ["delete checkpoints/14.json", "delete checkpoints/7.json"]
    deletes += len(names(grown, "index")) * ["delete index/*.arrow"]
    made = STEPS[1:6] + STEPS[7:14]  # the segments exist
    for index in (0, 1, 2, 3, len(deletes), len(deletes) + 1, len(deletes + made)):
        world = copied(grown, f"before {index}")
        with Steps(world.store().root, index).recording() as steps:
            world.actor().checkpoints.rebuild()
        kept = [step for step in map(brief, steps.steps) if "segments" not in step]
        assert kept == [*deletes, *made][: len(kept)]
        assert list(verify_manifest(world.store())) == []
        assert content_of(world.actor().state) == want
        world.actor().maintain()
        assert names(world, "checkpoints") == names(grown, "checkpoints")


def test_a_stale_writer_killed_before_it_removes_its_delta_does_no_harm(world: World) -> None:
    first = world.actor()
    run(world, first, count=8)
    now_s = world.clock.now_s
    zombie = world.actor(clock=lambda: now_s)
    run_on(world, first)
    before = dict(ManifestLog(world.store()).since(0))
    with Steps(world.store().root, 1).recording() as steps:
        more(zombie, 5, by=7000)
    assert ([*map(brief, steps.steps)], steps.is_dead) == (["create 9.json"], True)
    assert singles(world)[0] == 9  # left behind, at a version that is in a segment
    assert dict(ManifestLog(world.store()).since(0)) == before
    assert [fault for fault in verify_manifest(world.store()) if "differs from its segment" not in fault] == []
    old = ManifestLog(world.store(), clock=world.clock)
    assert dict(old.since(8)) == {version: delta for version, delta in before.items() if version > 8}
    again = world.actor()
    more(again, 6, by=9000)
    world.clock.now_s += HOUR_S + 1
    again.maintain()
    assert singles(world)[0] > 9
    assert list(verify_manifest(world.store())) == []
    with pytest.raises(StaleWriterError, match="reload the state and retry"):
        zombie.log.try_append(9, {})
    assert zombie.log.recent_checkpoint() == again.log.newest_checkpoint()  # though the clock of the zombie has stopped

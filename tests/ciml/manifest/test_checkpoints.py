"""Checkpoints: with any number of writers, killed or suspended at any step, the state is the sum of the deltas."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from ciml.digest import canonical_json
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import LISTS, Batch
from ciml.manifest import id_index
from ciml.manifest.checkpoints import Checkpoint, Checkpoints, Limits
from ciml.manifest.log import GRACE_S, Delta, ManifestLog, catch_up
from ciml.manifest.replica import LogReplica
from ciml.manifest.segments import Segment
from ciml.manifest.verify import seal_older, verify_log
from ciml.runs.accounting import reconcile
from ciml.runs.state import RAW, RawState, open_raw
from ciml.storage import LocalStore
from ciml.storage.json_files import seal
from tests.raw_manifest import verify_manifest
from tests.runs.raw_world import HOUR_S, LIMITS, Actor, World, content_of, deliveries
from tests.tier import tries


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "raw")


def plain(world: World, deltas: dict[int, Delta]) -> RawState:
    """Return the sum of deltas, in memory."""
    state = RawState()
    for version, delta in sorted(deltas.items()):
        state.apply(version, delta)
    return state


def singles(world: World) -> list[int]:
    return sorted(int(path.stem) for path in (world.folder / "_manifest").glob("*.json"))


def names(world: World, folder: str) -> list[str]:
    top = world.folder / "_manifest" / folder
    return sorted(str(path.relative_to(top)).split(".")[0] for path in top.rglob("*") if path.is_file())


def copied(world: World, name: str) -> World:
    """Return a copy of a world, at the same time."""
    copy = World(world.folder.parent / name)
    shutil.copytree(world.folder, copy.folder)
    return copy


def run(world: World, actor: Actor, seed: int = 1, count: int = 40, maintain: bool = True) -> dict[int, Delta]:
    """Commit deliveries, and maintain from time to time. Return all deltas as they were committed."""
    for number, batches in enumerate(deliveries(seed, count)):
        actor.commit(batches)
        world.clock.now_s += 10
        if maintain and number % 5 == 0:
            actor.maintain()
    return {
        version: ManifestLog(LocalStore(world.folder)).read(version) for version in range(1, actor.state.version + 1)
    }


def actor_of_20(world: World, maintain: bool = True) -> Actor:
    """Return an actor that has committed 20 deltas."""
    actor = world.actor()
    run(world, actor, count=20, maintain=maintain)
    return actor


def test_a_state_from_a_checkpoint_is_the_sum_of_all_deltas(world: World) -> None:
    actor = world.actor()
    deltas = run(world, actor)
    assert len(deltas) == 40
    want = content_of(plain(world, deltas))
    assert content_of(actor.state) == want
    actor.reopen()
    assert (content_of(actor.state), actor.state.restored) == (want, 35)
    assert content_of(open_raw(world.store())[1]) == want
    assert names(world, "checkpoints") == [f"{version:012d}" for version in (7, 14, 21, 28, 35)]
    assert names(world, "segments") == [f"000000/{version:012d}" for version in (7, 14, 21, 28, 35)]
    assert list(verify_manifest(world.store())) == []
    log = ManifestLog(world.store())
    assert dict(log.since(0)) == deltas
    assert dict(log.since(20)) == {version: delta for version, delta in deltas.items() if version > 20}
    assert [log.read(version) for version in (1, 7, 8, 40)] == [deltas[version] for version in (1, 7, 8, 40)]
    assert (log.end(), log.end(38)) == (40, 40)
    with pytest.raises(FileNotFoundError):
        log.read(41)


@pytest.mark.parametrize("limit", ["deltas", "records", "size"])
def test_the_delta_that_reaches_a_limit_is_the_last_of_its_checkpoint(world: World, limit: str) -> None:
    for batches in deliveries(3, 6):
        world.actor().commit(batches)
    log = ManifestLog(world.store())
    deltas = [delta for _, delta in log.since(0)]
    sizes = [len(data) for _, data in log.raw_since(0)]
    records = [sum(len(delta.get(name, ())) for name in LISTS.values()) for delta in deltas]
    reached = {"deltas": 3, "records": sum(records[:3]), "size": sum(sizes[:3])}[limit]
    for beyond in (0, 1):
        log = ManifestLog(copied(world, f"beyond {beyond}").store())
        checkpoints = Checkpoints(log, RAW, Limits(**{"size": 1 << 30, limit: reached + beyond}))
        while checkpoints.maintain():
            pass
        assert log.checkpoints()[0] == 3 + beyond


def test_replaced_objects_are_removed_after_the_grace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "TIER", 2)
    actor = world.actor()
    deltas = run(world, actor)
    for hours in (-10, 1):  # before the grace; after it, by the clock alone: the store's own time counts too
        world.clock.now_s += GRACE_S if hours < 0 else 0
        world.clock.now_s += hours * HOUR_S
        actor.maintain()
        assert singles(world) == list(range(1, 41))
    world.clock.now_s += 10 * HOUR_S
    more(actor, 1)
    world.clock.now_s += HOUR_S + 1
    actor.maintain()
    assert singles(world) == list(range(36, 42))
    newest = actor.checkpoints.newest()
    assert newest is not None
    assert (names(world, "checkpoints"), len(names(world, "segments"))) == ([f"{35:012d}"], 5)
    assert names(world, "index") == sorted(Path(path).stem for path in newest.paths())
    log = ManifestLog(world.store())
    assert {version: delta for version, delta in log.since(0) if version <= 40} == deltas
    assert log.read(3) == deltas[3]
    assert list(verify_manifest(world.store())) == []


def test_a_clock_that_is_ahead_removes_nothing(world: World) -> None:
    actor = world.actor()
    run(world, actor)
    ahead = world.actor(clock=lambda: world.clock.now_s + 10 * GRACE_S)
    ahead.maintain()
    assert singles(world) == list(range(1, 41))
    assert len(names(world, "checkpoints")) == 5


@pytest.mark.parametrize("seed", range(tries(12)))
def test_several_that_maintain_and_commit_at_once(world: World, seed: int) -> None:
    rng = random.Random(seed)
    actors = [world.actor() for _ in range(3)]
    work = [list(deliveries(seed, 40)) for _ in actors]  # the same for all: each batch is committed by one
    while any(work):
        at = rng.randrange(3)
        actor = actors[at]
        if work[at] and rng.random() < 0.3:
            actor.commit(work[at].pop(0))
        elif rng.random() < 0.05:
            actor.reopen()
        else:
            actor.checkpoints.maintain(budget_s=0)  # one step
        world.clock.now_s += rng.choice([0, 1, 1, HOUR_S, 9 * HOUR_S])
    deltas = dict(ManifestLog(world.store()).since(0))
    want = content_of(plain(world, deltas))
    for actor in actors:
        catch_up(actor.log, actor.state)
        assert content_of(actor.state) == want
        actor.reopen()
        assert content_of(actor.state) == want
    single = World(world.folder.parent / "single").actor()
    for batches in deliveries(seed, 40):
        single.commit(batches)
    assert content_of(single.state)["covered"] == want["covered"]
    assert list(verify_manifest(world.store())) == []


def more(actor: Actor, seed: int, by: int = 1000, count: int = 1) -> None:
    """Commit new batches."""
    for number, batches in enumerate(deliveries(seed, count)):
        actor.commit([_moved(batch, by + number) for batch in batches if batch.covers])


def _moved(batch: Batch, by: int) -> Batch:
    """Return a batch at later offsets of its partition."""
    assert batch.covers is not None
    covers = replace(batch.covers, start=batch.covers.start + by, end=batch.covers.end + by)
    settled = [
        one.replace(origin=one.origin.replace(offset=one.origin.offset + by), event_key=f"{one.event_key}+{by}")
        for one in batch.settled
    ]
    return Batch(covers, settled=settled)


def passed(world: World) -> None:
    """Let the grace pass."""
    world.clock.now_s += GRACE_S + 1


@pytest.mark.parametrize("stuck", [False, True])
def test_a_frozen_committer_makes_no_second_history(world: World, stuck: bool) -> None:
    """Its version was removed. With ``stuck``, its clock has stopped."""
    first = world.actor()
    run(world, first, count=10)
    now_s = world.clock.now_s
    zombie = world.actor(clock=(lambda: now_s) if stuck else None)
    run_on(world, first)
    assert zombie.state.version + 1 not in singles(world)
    before = dict(ManifestLog(world.store()).since(0))
    end = max(before)
    more(zombie, 5, by=5000, count=3)
    after = dict(ManifestLog(world.store()).since(0))
    assert {version: delta for version, delta in after.items() if version <= end} == before
    assert zombie.state.version == max(after) > end
    assert min(singles(world)) > 10
    assert content_of(zombie.state) == content_of(plain(world, after))
    assert list(verify_manifest(world.store())) == []


def test_a_frozen_replica_commits_after_all_others(world: World) -> None:
    first = world.actor()
    run(world, first, count=10)
    now_s = world.clock.now_s
    frozen = LogReplica(ManifestLog(world.store(), clock=lambda: now_s), RAW, LIMITS)
    with frozen.state():
        pass
    run_on(world, first)
    batches = [_moved(batch, 9000) for batch in next(deliveries(9, 1)) if batch.covers]
    assert frozen.append(lambda state: reconcile(state, batches, 1)) == first.state.version + 1


def test_a_delta_without_a_digest_after_segments_is_sealed(world: World) -> None:
    actor = actor_of_20(world)
    log = actor.log
    older = canonical_json({**log.read(20), "version": 21})
    log.store.replace(log.path(21), older)
    assert seal_older(ManifestLog(world.store())) == 1
    assert [version for version, _ in ManifestLog(world.store()).since(19)] == [20, 21]


def run_on(world: World, actor: Actor) -> None:
    """Commit, make checkpoints, and remove the replaced objects after the grace."""
    more(actor, 7, by=300, count=20)
    actor.maintain()
    passed(world)
    more(actor, 8, by=2000)
    world.clock.now_s += HOUR_S + 1
    actor.maintain()


def test_a_reader_that_freezes_between_asking_and_reading_sees_no_false_end(world: World) -> None:
    first = actor_of_20(world, maintain=False)
    store = world.store()
    log = ManifestLog(store, clock=world.clock)
    found = dict(zip(range(4), log.since(0), strict=False))
    frozen = []

    def freezes(verb: str, path: str) -> None:
        if verb == "read" and path == log.path(5) and not frozen:
            frozen.append(path)
            run_on(world, first)

    store.before = freezes
    rest = dict(log.since(4))
    assert frozen
    assert len(found) == 4
    assert sorted(rest) == list(range(5, first.state.version + 1))


def test_segments_are_listed_again_after_half_the_grace(world: World) -> None:
    first = actor_of_20(world, maintain=False)
    log = ManifestLog(world.store(), clock=world.clock)
    newest = []
    for passed_s in (0, GRACE_S / 2 - 1, 1):
        world.clock.now_s += passed_s
        newest.append(log.recent_checkpoint())
        first.maintain()
    assert newest == [0, 0, 14]


def test_garbage_is_collected_once_an_hour_and_when_the_clock_goes_back(world: World) -> None:
    store = world.store()
    requests: list[str] = []
    store.before = lambda verb, path: requests.append(path)
    checkpoints = Checkpoints(ManifestLog(store, clock=world.clock), RAW, LIMITS)
    collects = []
    for passed_s in (0, HOUR_S - 1, 1, -5):
        world.clock.now_s += passed_s
        requests.clear()
        checkpoints.maintain(due=False)
        collects.append(requests != [])
    assert collects == [True, False, True, True]


def test_a_checkpoint_removed_while_it_is_opened_is_replaced_by_a_newer_one(world: World) -> None:
    first = actor_of_20(world)
    store = world.store()
    seen = []

    def goes(verb: str, path: str) -> None:
        if verb == "read" and "checkpoints" in path and not seen:
            seen.append(path)
            run_on(world, first)

    store.before = goes
    assert Checkpoints(ManifestLog(store, clock=world.clock), RAW, LIMITS).open().version > 20
    assert seen


def ask_much(state: RawState) -> None:
    for number in range(400):
        state.index.has_event(f"x {number}", "")


def test_a_lost_part_is_an_error_and_a_replaced_one_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "TIER", 2)
    first = actor_of_20(world)
    slow = world.actor()
    assert slow.checkpoints.maintain(budget_s=0)  # one step towards the next checkpoint
    run_on(world, first)
    with pytest.raises(EngineError, match="missing"):
        ask_much(slow.state)
    slow.maintain()  # begins again, at the newest
    slow.reopen()
    ask_much(slow.state)
    newest = first.checkpoints.newest()
    assert newest is not None
    for path in newest.paths():
        world.store().delete(path)
    assert [fault for fault in verify_manifest(world.store()) if "is missing" in fault]
    with pytest.raises(EngineError, match="missing"):
        world.actor()


def test_a_replica_on_a_replaced_checkpoint_starts_over_though_its_clock_has_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_index, "TIER", 2)
    first = actor_of_20(world)
    now_s = world.clock.now_s
    replica = LogReplica(ManifestLog(world.store(), clock=lambda: now_s), RAW, LIMITS)
    with replica.state():
        run_on(world, first)
    with pytest.raises(EngineError, match="missing"), replica.state() as state:
        ask_much(state)
    with replica.state() as state:
        ask_much(state)
        assert state.version == first.state.version


def test_a_replica_looks_for_checkpoints_of_others_once_a_minute_or_every_hundred_commits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_of_20(world, maintain=False)
    replica = LogReplica(ManifestLog(world.store(), clock=lambda: world.clock.now_s), RAW, LIMITS)
    looks = Mock(wraps=replica.log.newest_checkpoint)
    monkeypatch.setattr(replica.log, "newest_checkpoint", looks)
    counts = []
    for wait_s in (0, 59, 1, 59, 1):
        world.clock.now_s += wait_s
        with replica.state():
            counts.append(looks.call_count)
    assert counts == [1, 1, 2, 2, 3]
    for batches in list(deliveries(1, 120))[20:]:
        assert looks.call_count == 3
        replica.append(lambda state, batches=batches: reconcile(state, batches, 0))  # type: ignore[misc]
    with replica.state():
        assert looks.call_count == 4


def test_lost_checkpoints_are_rebuilt_from_segments(world: World) -> None:
    first = actor_of_20(world)
    run_on(world, first)
    store = first.log.store
    deltas = dict(first.log.since(0))
    lost = [path for folder in ("checkpoints", "index") for path in store.list(f"_manifest/{folder}")]
    before = {path: store.read(path) for path in lost}
    for path in lost:
        store.delete(path)
    other = world.actor()
    assert (content_of(other.state), other.state.restored) == (content_of(plain(world, deltas)), 0)
    while other.checkpoints.maintain(budget_s=0):
        assert dict(ManifestLog(world.store()).since(0)) == deltas
        assert content_of(world.actor().state) == content_of(other.state)
    more(other, 11, by=9000)
    assert other.state.version == max(deltas) + 1
    assert {path: store.read(path) for path in lost} == before
    assert list(verify_manifest(world.store())) == []


def test_a_history_that_was_lost_is_not_begun_again(world: World) -> None:
    first = actor_of_20(world)
    run_on(world, first)
    for path in first.log.store.list("_manifest"):
        if path.count("/") > 1:
            first.log.store.delete(path)
    with pytest.raises(IntegrityError, match=r"000000000001\.json is missing"):
        world.actor()


@pytest.mark.parametrize(("what", "kind"), [("segments", "segment"), ("checkpoints", "checkpoint"), ("index", "index")])
def test_damage_is_found(world: World, what: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actor_of_20(world)
    assert list(verify_manifest(world.store())) == []
    for path in (world.folder / "_manifest" / what).rglob("*.*"):
        if path.is_file():
            data = path.read_bytes()
            path.write_bytes(data[:-40] + bytes(byte ^ 1 for byte in data[-40:]))
    checkpoints = ManifestLog.checkpoints
    monkeypatch.setattr(ManifestLog, "checkpoints", lambda log: [1, *checkpoints(log)])  # 1 is removed meanwhile
    assert {fault.kind for fault in verify_log(ManifestLog(world.store()), RAW)} == {kind}


@pytest.mark.parametrize("version", [8, 14])
def test_an_unreadable_delta_of_an_undamaged_segment_is_found(world: World, version: int) -> None:
    log = actor_of_20(world).log
    segment = log.archive.read(14)
    lines = [b"{}" if number == version else line for number, line in enumerate(segment.lines, segment.first)]
    log.store.replace(log.archive.path(14), Segment(8, 14, segment.previous, tuple(lines)).encode())
    [fault] = verify_log(ManifestLog(world.store()), RAW)
    assert fault.kind == "segment"
    assert fault.text.startswith(log.store.url(log.archive.path(14)))


def test_a_delta_that_is_archived_during_a_verification_is_no_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_of_20(world)
    listed = ManifestLog.single_deltas
    monkeypatch.setattr(ManifestLog, "single_deltas", lambda log: {*listed(log), 21})
    assert list(verify_manifest(world.store())) == []


def test_another_state_another_history_and_a_gap_are_found(world: World) -> None:
    first = actor_of_20(world)
    log, checkpoint = first.log, first.checkpoints.newest()

    def faults() -> list[str]:
        found = verify_log(ManifestLog(world.store()), RAW)
        return [f"{fault.kind}: {fault.text.rsplit('/', 1)[-1].rpartition(': ')[2]}" for fault in found]

    assert checkpoint is not None
    state = {**checkpoint.state, "runs": checkpoint.state["runs"] + 1}
    tables = {**checkpoint.tables, "events": checkpoint.tables["events"][1:]}
    log.store.replace(log.checkpoint_path(14), checkpoint.replace(state=state, tables=tables).encode())
    assert faults() == [
        "checkpoint: runs differs from the sum of the deltas",
        "index: the index of events differs from that of the deltas",
    ]
    log.store.replace(log.checkpoint_path(14), checkpoint.encode())
    data = log.store.read(log.path(15))  # the first one after the last segment
    log.store.replace(log.path(15), seal(canonical_json(log.read(15)), "0" * 64))
    assert faults() == ["delta: 000000000015.json does not follow from the delta before it; restore a backup"]
    log.store.replace(log.path(15), data)
    segment = log.archive.read(14)
    log.store.replace(log.archive.path(14), replace(segment, previous="0" * 64).encode())
    assert faults() == [
        "segment: 000000000014.jsonl.zst does not follow from the previous segment",
        "checkpoint: 000000000014.json was made from different deltas",
    ]
    log.store.replace(log.archive.path(14), segment.encode())
    last = log.read(20)
    log.store.delete(log.path(20))
    assert ManifestLog(world.store()).try_append(20, {**last, "closes": [[["ci-events", 0, 999_999], "x"]]})
    assert faults() == ["delta: ci-events[0] 999999 x is closed but was not open"]
    log.store.delete(log.path(20))
    assert ManifestLog(world.store()).try_append(20, last)
    delta = log.read(3)
    log.store.replace(log.path(3), log.store.read(log.path(3)).replace(b'"time_us":', b'"time_us":1'))
    assert faults() == ["delta: 000000000003.json differs from its segment"]
    assert ManifestLog(world.store()).read(3) == delta
    log.store.delete(log.path(3))
    log.store.delete(log.path(17))
    assert faults() == ["delta: 000000000018.json exists, but version 17 is missing"]
    log.store.delete(log.archive.path(7))
    lost = "segment: 000000000014.jsonl.zst begins with version 8, but version 1 is in no segment"
    assert faults() == [lost, "delta: 000000000004.json exists, but version 3 is missing"]


def test_broken_checkpoints_and_segments_are_errors() -> None:
    segment = Segment(5, 7, "p", (b'{"a":1}', b"{}", b'{"b":"\xc3\xa4"}'))
    data = segment.encode()
    assert Segment.decode(data, "x") == segment
    assert segment.digest != Segment(5, 7, "q", segment.lines).digest
    broken = [b"", data[:-5], data[:20] + data[21:], Segment(5, 8, "p", segment.lines).encode()]
    decodings = [(Segment.decode, text) for text in broken]
    decodings += [(Checkpoint.decode, text) for text in (b"", b"{}", b"[]", b"x", b'{"format":9,"sha256":""}')]
    for decode, text in decodings:
        with pytest.raises(IntegrityError, match="somewhere"):
            decode(text, "somewhere")


def test_a_lost_answer_is_not_another_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = world.actor()
    create = LocalStore.create
    # The answer of the first try is lost, and the client retries.
    monkeypatch.setattr(LocalStore, "create", lambda *request: create(*request) and create(*request))
    assert actor.commit(next(deliveries(1, 1))) == 1

"""The committer: from checkpoint to checkpoint, with several processes, in a folder and on S3."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.payloads import INLINE_BYTES, message_of, payload_of, read_payload
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, RunFacts
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import Committer, seal, unseal
from ciml.runs.state import RawState
from ciml.serving.predict.log import Predicted, PredictionState
from ciml.storage import LocalStore, Store, open_store
from tests.pipelines.predict.committing import Predictions
from tests.raw_manifest import verify_manifest
from tests.runs.raw_world import LIMITS, Clock, TimedStore, content_of, deliveries


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.engines)])
def raw(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        yield open_store(tmp_path / "raw")
    else:
        s3: Any = request.getfixturevalue("s3")
        yield open_store(f"{s3.bucket()}/data/raw")


def replayed(raw: Store) -> RawState:
    state = RawState()
    for version, delta in ManifestLog(raw).since(0):
        state.apply(version, delta)
    return state


def test_committers_that_maintain_say_what_the_deltas_say(raw: Store) -> None:
    one, two = Committer(raw, limits=LIMITS), Committer(raw, limits=LIMITS)
    for number, batches in enumerate(deliveries(4, 30)):
        (one, two)[number % 2].commit(batches)
        while one.maintain():
            pass
    with one.state() as state:
        assert (state.version, state.restored) == (30, 28)
        want = content_of(state)
    with two.state() as state:
        assert content_of(state) == want
    assert content_of(replayed(raw)) == want
    with Committer(raw, limits=LIMITS).state() as state:
        assert (content_of(state), state.restored) == (want, 28)
    assert list(verify_manifest(raw)) == []


def test_memory_does_not_grow_with_the_manifest_in_any_process(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    clock = Clock()
    idle, busy = (Committer(raw, clock, Limits(deltas=50)) for _ in range(2))
    most = 0
    for number, batches in enumerate(deliveries(4, 400)):
        idle.commit(batches)  # never maintains
        with idle.state() as state:
            most = max(most, state.version - state.restored)
        clock.now_s += 1
        if number % 10 == 0:
            busy.maintain()  # never commits
    assert most <= 50 + 100 + 10


def test_maintenance_with_nothing_due_does_not_touch_the_store(tmp_path: Path) -> None:
    store = TimedStore(tmp_path, Clock())
    ours = Committer(store, clock=store.clock, limits=LIMITS)
    ours.commit(next(deliveries(1, 1)))
    ours.maintain()
    calls: list[str] = []
    store.before = lambda verb, path: calls.append(verb)
    assert ours.maintain() is False
    assert calls == []


def test_a_commit_that_fails_half_way_is_made_up_for(tmp_path: Path) -> None:
    store = TimedStore(tmp_path, Clock())
    ours = Committer(store, clock=store.clock, limits=LIMITS)
    work = list(deliveries(6, 20))
    for batches in work[:10]:
        ours.commit(batches)
        ours.maintain()

    def torn(verb: str, path: str) -> None:
        if verb == "read" and path.endswith("000000000012.json"):
            raise KeyboardInterrupt

    Committer(store, clock=store.clock, limits=LIMITS).commit(work[10])
    Committer(store, clock=store.clock, limits=LIMITS).commit(work[11])
    store.before = torn
    with pytest.raises(KeyboardInterrupt):
        ours.commit(work[12])
    store.before = lambda verb, path: None
    assert ours.commit(work[12]) == 13
    with ours.state() as state:
        assert content_of(state) == content_of(replayed(store))


def dead_letter(offset: int, size: int) -> Outcome:
    message = Message(offset, b"x" * size, (("ce_h", b"v"),), timestamp_ms=7)
    return Outcome("dead_letter", Origin("t", 0, offset), reason="broken_json", payload=payload_of(message))


def test_a_sealed_batch_has_the_payload_of_each_outcome() -> None:
    letters = [dead_letter(offset, size) for offset, size in enumerate((5, 7, 9))]
    shared = letters[1].replace(mention=RunFacts("zuul~2~1", "2", "unit", source="zuul"))
    batch = Batch(OffsetRange("t", "T", 0, 0, 3), settled=[*letters, shared])
    assert unseal(seal(batch)) == batch
    assert seal(batch).count(b'payload"') == 4
    assert len(json.loads(seal(batch))["payloads"]) == 3


def test_a_losing_commit_is_computed_again_from_the_new_state(tmp_path: Path) -> None:
    one, two = (Committer(LocalStore(tmp_path)) for _ in range(2))
    seen: list[int] = []

    def find(state: RawState) -> list[Batch]:
        seen.append(state.version)
        if state.covered("t", 0):
            return []
        two.commit([Batch(OffsetRange("t", "T", 0, 3, 4))])
        return [Batch(OffsetRange("t", "T", 0, 0, 3))]

    assert one.append(lambda state: one.delta(state, find(state))) is None
    assert seen == [0, 1]


def test_a_large_message_of_a_dead_letter_lies_beside_the_manifest(raw: Store) -> None:
    sizes = (10, 10_000, 20_000, 500_000, 20_000)
    dead_letters = [dead_letter(offset, size) for offset, size in enumerate(sizes)]
    ours = Committer(raw)
    assert ours.commit([Batch(OffsetRange("t", "T", 0, 0, len(sizes)), settled=dead_letters)]) == 1
    delta = ManifestLog(raw).read(1)
    payloads = [record["payload"] for record in delta["dead_letters"]]
    assert ["object" in payload for payload in payloads] == [False, False, True, True, True]
    assert len(canonical_json(delta)) < 3 * INLINE_BYTES
    assert payloads[2]["object"] == payloads[4]["object"]  # the same content
    assert sorted(raw.list("letters")) == sorted({payload["object"] for payload in payloads[2:]})
    for offset, (size, payload) in enumerate(zip(sizes, payloads, strict=True)):
        assert message_of(read_payload(raw, payload), offset) == Message(
            offset, b"x" * size, (("ce_h", b"v"),), timestamp_ms=7
        )
    with pytest.raises(IntegrityError, match="read_payload"):
        message_of(payloads[3], 3)
    raw.replace(payloads[3]["object"], b"{}")
    with pytest.raises(IntegrityError, match="differs from its digest"):
        read_payload(raw, payloads[3])
    raw.delete(payloads[3]["object"])
    with pytest.raises(IntegrityError, match="missing"):
        read_payload(raw, payloads[3])


def _commit_twice(root: str, pipe: Any) -> None:
    ours = Committer(open_store(root), limits=LIMITS)
    first, second = list(deliveries(90, 2))
    ours.commit(first)
    pipe.send("begun")
    pipe.recv()
    ours.commit(second)


@pytest.mark.whole
@pytest.mark.parametrize("kills", [False, True])
def test_a_frozen_process_that_wakes_after_its_place_was_emptied(
    tmp_path: Path, kills: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zombie is another process, and really stopped. Its clock says that no time has passed."""
    raw = LocalStore(tmp_path / "raw")
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    zombie = context.Process(target=_commit_twice, args=(raw.root, its))
    zombie.start()
    assert ours.poll(60)
    os.kill(zombie.pid or 0, signal.SIGSTOP)
    ours.send("go on")
    try:
        other = Committer(raw, limits=LIMITS)
        for batches in deliveries(91, 30):
            other.commit(batches)
        while other.maintain():
            pass
        for path in (tmp_path / "raw" / "_manifest").rglob("*.*"):
            os.utime(path, (1_000, 1_000))  # long ago
        other.commit([Batch(OffsetRange("t", "T", 2, 5000, 5001))])  # now, by the store's own time
        later = Committer(raw, limits=LIMITS)
        while later.maintain():
            pass
        assert not raw.exists(ManifestLog(raw).path(2))
        before = dict(ManifestLog(raw).since(0))
        if kills:
            os.kill(zombie.pid or 0, signal.SIGKILL)
    finally:
        os.kill(zombie.pid or 0, signal.SIGCONT)
        zombie.join(60)
    after = dict(ManifestLog(raw).since(0))
    assert {version: delta for version, delta in after.items() if version <= max(before)} == before
    assert not raw.exists(ManifestLog(raw).path(2))
    assert list(verify_manifest(raw)) == []
    assert zombie.exitcode == (-signal.SIGKILL if kills else 0)


def _commit_and_maintain(root: str, seed: int) -> None:
    ours = Committer(open_store(root), limits=LIMITS)
    for batches in deliveries(seed, 25):
        ours.commit(batches)
        ours.maintain()


@pytest.mark.whole
def test_processes_that_commit_and_maintain_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    root = str(tmp_path / "raw")
    workers = [context.Process(target=_commit_and_maintain, args=(root, 5)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
        assert worker.exitcode == 0
    assert list(verify_manifest(open_store(root))) == []
    with Committer(open_store(root)).state() as state:
        got = content_of(state)
    assert got == content_of(replayed(open_store(root)))
    alone = Committer(open_store(tmp_path / "alone"))
    for batches in deliveries(5, 25):
        alone.commit(batches)
    with alone.state() as state:
        assert got["covered"] == state.snapshot()["covered"]


def test_threads_share_a_committer(tmp_path: Path) -> None:
    ours = Committer(LocalStore(tmp_path), limits=LIMITS)
    done = threading.Event()
    failures: list[BaseException] = []

    def work(act: Any) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def commits() -> None:
        for batches in deliveries(8, 40):
            ours.commit(batches)

    def maintains() -> None:
        while not done.is_set():
            ours.maintain(budget_s=0)

    threads = [threading.Thread(target=work, args=(act,)) for act in (commits, commits, maintains, maintains)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join(60)
    done.set()
    for thread in threads[2:]:
        thread.join(60)
    assert failures == []
    with ours.state() as state:
        assert json.loads(canonical_json(state.snapshot())) == replayed(LocalStore(tmp_path)).snapshot()


def test_predictions_are_checkpointed_too(raw: Store) -> None:
    data = DataRoot.open(raw.root.removesuffix("/raw"))
    limits = Limits(deltas=5)
    ours = Predictions(data.predictions, "m", limits=limits)
    for number in range(23):
        predictions = [
            {"offset": 2 * number, "run_id": f"r{number % 9}", "model": "m", "version": 1, "id": f"id-{number % 9}"}
        ]
        unpredictable = [{"offset": 2 * number + 1, "run_id": "x", "reason": "no_log"}]
        covers = OffsetRange("runs", "T", 0, 2 * number, 2 * number + 2)
        assert ours.commit([Predicted(covers, predictions, unpredictable)]) == number + 1
        assert ours.commit([Predicted(covers, predictions, unpredictable)]) is None
        while ours.maintain():
            pass
    plain = PredictionState()
    for version, delta in ManifestLog(data.predictions).since(0):
        plain.apply(version, delta)
    with Predictions(data.predictions, "m", limits=limits).state() as state:
        assert state.restored == 20
        assert state.snapshot() == plain.snapshot()
        assert (state.predicted, state.repeats) == ({("m", 1): 9}, 14)
        assert [state.has(f"id-{number}") for number in range(11)] == [True] * 9 + [False] * 2

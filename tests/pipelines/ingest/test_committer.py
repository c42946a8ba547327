"""The committer: from checkpoint to checkpoint, with several processes, in a folder and on S3."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events import payloads
from ciml.events.listing import open_listing
from ciml.events.payloads import INLINE_BYTES, message_of, payload_of, read_payload, redact_bytes
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RunFacts
from ciml.integrations.registry import delivered, find_adapter, read_event
from ciml.kafka import KafkaOptions
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines import predict, processor
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest.committer import Committer, IngestConfig, IngestProcessor, committer, seal, unseal
from ciml.pipelines.ingest.pipeline import RetriesInProgress
from ciml.pipelines.ingest.replay import ReplayConfig, replay
from ciml.pipelines.processor_beam import Commit
from ciml.runs.state import RawState
from ciml.serving.predict.log import Predicted
from ciml.serving.predict.predictor import PredictPolicy
from ciml.storage import LocalStore, Store, open_store
from ciml.transforms.fetch.fetch import fetch
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.ingest.ingesting import one_batch, settled
from tests.pipelines.predict.predicting import Predictions
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


def test_a_sealed_batch_comes_out_as_it_went_in_and_has_each_payload_once() -> None:
    letters = [dead_letter(offset, size) for offset, size in enumerate((5, 7, 9))]
    shared = letters[1].replace(mention=RunFacts("zuul~2~1", "2", "unit", source="zuul"))
    batch = Batch(OffsetRange("t", "T", 0, 0, 3), settled=[*letters, shared])
    assert len(json.loads(seal(batch))["payloads"]) == 3
    for each in (batch, one_batch(3), Batch(None, settled=[settled(1)]), Batch(OffsetRange("t", "", 0, 0, 9))):
        assert unseal(seal(each)) == each
    pending = PendingRun(Origin("t", 0, 0), "e", letters[0].mention or shared.mention)  # type: ignore[arg-type]
    for unsettled in (
        Batch(OffsetRange("t", "", 0, 0, 1), messages=[Message(0, b"")]),
        Batch(None, pending_runs=[pending]),
    ):
        with pytest.raises(IntegrityError):
            seal(unsettled)


def test_a_batch_that_is_delivered_again_is_committed_once(tmp_path: Path) -> None:
    raw = open_store(tmp_path)
    one, two = Committer(raw, clock=lambda: 1.5), Committer(raw)
    assert one.commit([one_batch(0)]) == 1
    assert two.commit([one_batch(0)]) is None
    assert two.commit([one_batch(1, 1), one_batch(0)]) == 2
    assert one.commit([one_batch(1, 1)]) is None
    with one.state() as state:
        assert (state.version, state.index.run_count(), list(state.covered("t", 0))) == (2, 2, [(0, 2)])
    assert one.log.read(1)["time_us"] == 1_500_000
    assert committer(raw) is committer(open_store(tmp_path))


def test_a_large_message_of_a_dead_letter_lies_beside_the_manifest(raw: Store) -> None:
    sizes = (10, 10_000, 20_000, 500_000, 20_000)
    dead_letters = [dead_letter(offset, size) for offset, size in enumerate(sizes)]
    ours = Committer(raw)
    assert ours.commit([Batch(OffsetRange("t", "T", 0, 0, len(sizes)), settled=dead_letters)]) == 1
    delta = ManifestLog(raw).read(1)
    stored = [record["payload"] for record in delta["dead_letters"]]
    assert ["object" in payload for payload in stored] == [False, False, True, True, True]
    assert len(canonical_json(delta)) < 3 * INLINE_BYTES
    assert stored[2]["object"] == stored[4]["object"]  # the same content
    assert sorted(raw.list("letters")) == sorted({payload["object"] for payload in stored[2:]})
    for offset, (size, payload) in enumerate(zip(sizes, stored, strict=True)):
        assert message_of(read_payload(raw, payload), offset) == Message(
            offset, b"x" * size, (("ce_h", b"v"),), timestamp_ms=7
        )
    with pytest.raises(IntegrityError, match="read_payload"):
        message_of(stored[3], 3)
    raw.replace(stored[3]["object"], b"{}")
    with pytest.raises(IntegrityError, match="differs from its digest"):
        read_payload(raw, stored[3])
    raw.delete(stored[3]["object"])
    with pytest.raises(IntegrityError, match="missing"):
        read_payload(raw, stored[3])


def test_threads_share_a_committer(tmp_path: Path) -> None:
    ours = Committer(LocalStore(tmp_path), limits=LIMITS)
    done = threading.Event()

    def commits() -> None:
        for batches in deliveries(8, 40):
            ours.commit(batches)

    def maintains() -> None:
        while not done.is_set():
            ours.maintain(budget_s=0)

    with ThreadPoolExecutor(4) as pool:
        committing, maintaining = ([pool.submit(act) for _ in range(2)] for act in (commits, maintains))
        wait(committing, 60)
        done.set()
        for each in (*committing, *maintaining):
            each.result(60)
    with ours.state() as state:
        assert json.loads(canonical_json(state.snapshot())) == replayed(LocalStore(tmp_path)).snapshot()


# --- a message of a CI system that names many runs: where all become dead letters, its payload is stored once


BUILDS = 300


def many_builds(**log: str) -> Message:
    builds = [
        {
            "uuid": f"{number:032x}", "job_name": f"job-{number}", "result": "FAILURE", "voting": True,
            "start_time": 1795521600.0, "end_time": 1795525600.0, "log_url": None, "pad": "x" * 600, **log,
        }
        for number in range(BUILDS)
    ]  # fmt: skip
    body = {"action": "failure", "pipeline": "check", "buildset": {"uuid": "b" * 32, "builds": builds}}
    value, headers = delivered(find_adapter("zuul"), "zuul", json.dumps(body).encode(), {}, "mqtt-user")
    return Message(0, value, tuple(headers))


@pytest.mark.parametrize("log", [{}, {"log_url": "https://not-allowed.example.org/"}])
def test_the_payload_is_made_sealed_and_stored_once(
    log: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def redact(data: bytes, guess: bool = True) -> bytes:
        if data == sent.value:  # not a part of it
            made.append(len(data))
        return redact_bytes(data, guess)

    monkeypatch.setattr(payloads, "redact_bytes", redact)
    sent = many_builds(**log)
    batch = decode(Batch(OffsetRange("t", "T", 0, 0, 1), [sent]), read_event=read_event)
    batch = fetch(batch, FetchPolicy(), 1)
    assert [outcome.kind for outcome in batch.settled] == ["dead_letter"] * BUILDS
    assert made == [len(sent.value or b"")]
    sealed = seal(batch)
    assert len(sealed) < 3 * len(sent.value or b"")
    again = unseal(sealed)
    assert again == batch
    assert len({id(outcome.payload) for outcome in again.settled}) == 1
    raw = LocalStore(tmp_path)
    Committer(raw).commit([again])
    stored = [record["payload"] for record in ManifestLog(raw).read(1)["dead_letters"]]
    assert len(stored) == BUILDS
    assert len(list(raw.list("letters"))) == 1
    assert message_of(read_payload(raw, stored[-1]), 0) == sent


# --- checkpoints, where no supervisor makes them: on Dataflow, and by commands that commit much


FEW = Limits(deltas=3)


@pytest.mark.parametrize("maintains", [False, True])
@pytest.mark.parametrize("kind", ["ingest", "predict"])
def test_a_checkpoint_is_made_by_the_stage_that_commits(
    kind: str, maintains: bool, data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = data.raw if kind == "ingest" else data.predictions
    shared = processor._replicas._objects
    if kind == "ingest":
        monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), Committer(store, limits=FEW))
        stage = Commit(
            IngestProcessor(IngestConfig(store, kafka=KafkaOptions("kafka:9092"), runs_topic="", maintains=maintains))
        )
    else:
        key = (store.root, "predictions of m")
        monkeypatch.setitem(shared, (os.getpid(), key), Predictions(store, "m", FEW))
        config = predict.PredictConfig(
            data, "models:8500", PredictPolicy("m"), kafka=KafkaOptions("kafka:9092"), maintains=maintains
        )
        stage = Commit(predict.PredictProcessor(config))
    for offset in range(8):
        covers = OffsetRange("topic", "", 0, offset, offset + 1)
        found = seal(Batch(covers)) if kind == "ingest" else canonical_json(Predicted(covers).to_json())
        assert list(stage.process(("key", [found]))) == [offset + 1]
    assert bool(ManifestLog(store).checkpoints()) == maintains


@pytest.mark.parametrize("kind", ["backfill", "replay"])
def test_a_checkpoint_is_made_by_a_command_that_commits_much(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 1)
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    store = DataRoot.open(tmp_path / "data").raw
    shared = processor._replicas._objects
    limits = Limits(deltas=100) if kind == "replay" else FEW
    monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), Committer(store, limits=limits))
    if kind == "replay":  # of dead letters: no log is allowed
        backfill(made.config(tmp_path / "data", fetch=FetchPolicy(), take_missing=True), open_listing(str(made.path)))
        monkeypatch.setitem(shared, (os.getpid(), (store.root, "raw")), Committer(store, limits=FEW))
        replay(ReplayConfig(store, fetch=FetchPolicy(file_roots=(str(made.folder),)), together=1))
    else:
        backfill(made.config(tmp_path / "data", commit_lines=1), open_listing(str(made.path)))
    assert ManifestLog(store).checkpoints()


def test_a_retry_is_repeated_five_minutes_after_its_start_and_the_next_attempt_at_once() -> None:
    def due(attempts: int) -> list[PendingRun]:
        run = RunFacts("zuul~1~1", "1", "unit", source="zuul")
        return [PendingRun(Origin("t", 0, 1), "e", run, attempts=attempts)]

    retries = RetriesInProgress()
    started = [bool(retries.start(due(1), now_s)) for now_s in (0, 100, 299, 300, 500, 601)]
    assert started == [True, False, False, True, False, True]
    assert retries.start(due(2), 602) == due(2)

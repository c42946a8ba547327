"""The committer, from checkpoint to checkpoint, in a folder and on S3; and events that are settled without a log."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events import payloads
from ciml.events.listing import open_listing
from ciml.events.payloads import INLINE_BYTES, message_of, payload_of, read_payload, redact_bytes
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RawFile, RunFacts, Trust
from ciml.integrations.registry import delivered, find_adapter, read_event
from ciml.manifest.checkpoints import Limits
from ciml.manifest.log import ManifestLog
from ciml.pipelines import processor
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.ingest.committer import Committer, committer, seal, unseal
from ciml.pipelines.ingest.pipeline import RetriesInProgress, settle_known
from ciml.pipelines.ingest.replay import ReplayConfig, replay
from ciml.runs.accounting import reconcile
from ciml.runs.state import RawState
from ciml.storage import LocalStore, Store, open_store
from ciml.transforms.fetch.fetch import shared_fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from tests.pipelines.backfill.backfilling import listed
from tests.pipelines.ingest.ingesting import one_batch, settled
from tests.pipelines.ingest.scenario import corpus_facts
from tests.raw_manifest import verify_manifest
from tests.runs.raw_world import LIMITS, Clock, TimedStore, content_of, deliveries
from tests.tier import tries


def replayed(raw: Store) -> RawState:
    state = RawState()
    for version, delta in ManifestLog(raw).since(0):
        state.apply(version, delta)
    return state


def test_committers_that_maintain_say_what_the_deltas_say(
    anywhere: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = anywhere.raw
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
    pending = PendingRun(Origin("t", 0, 0), "e", RunFacts("zuul~2~1", "2", "unit", source="zuul"))
    for unsettled in (Batch(None, messages=[Message(0, b"")]), Batch(None, pending_runs=[pending])):
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


def test_a_large_message_of_a_dead_letter_lies_beside_the_manifest(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
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
        message = Message(offset, b"x" * size, (("ce_h", b"v"),), timestamp_ms=7)
        assert message_of(read_payload(raw, payload), offset) == message
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
    batch = shared_fetcher(FetchPolicy()).fetch(batch, 1)
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


def test_commands_that_commit_much_maintain_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ciml.events.listing.BLOCK_LINES", 1)
    made = listed(tmp_path / "logs", runs=12, tricks=False)
    ours = made.config(tmp_path / "data", fetch=FetchPolicy(), take_missing=True, commit_lines=1)  # no log is allowed
    for name, limits in (("backfill", Limits(deltas=3)), ("replay", Limits(deltas=100))):
        raw = DataRoot.open(tmp_path / name).raw
        shared = processor._replicas._objects
        monkeypatch.setitem(shared, (os.getpid(), (raw.root, "raw")), Committer(raw, limits=limits))
        backfill(replace(ours, raw=raw), open_listing(str(made.path)))
        assert bool(ManifestLog(raw).checkpoints()) == (name == "backfill")
    monkeypatch.setitem(shared, (os.getpid(), (raw.root, "raw")), Committer(raw, limits=Limits(deltas=3)))
    replay(ReplayConfig(raw, fetch=FetchPolicy(file_roots=(str(made.folder),)), together=1))
    assert ManifestLog(raw).checkpoints()


def test_a_retry_is_repeated_five_minutes_after_its_start_and_the_next_attempt_at_once() -> None:
    def due(attempts: int) -> list[PendingRun]:
        run = RunFacts("zuul~1~1", "1", "unit", source="zuul")
        return [PendingRun(Origin("t", 0, 1), "e", run, attempts=attempts)]

    retries = RetriesInProgress()
    started = [bool(retries.start(due(1), now_s)) for now_s in (0, 100, 299, 300, 500, 601)]
    assert started == [True, False, False, True, False, True]
    assert retries.start(due(2), 602) == due(2)


# --- events that were seen before: the same result as if their log had been fetched again


TRUST = Trust(True, "gate", "p")


def pending(offset: int, event: int, run: int) -> PendingRun:
    return PendingRun(
        Origin("t", 0, offset), f"source e{event}" if event else "", corpus_facts(run + 1)[run][0], trust=TRUST
    )


def stored(batch: Batch, log: str = "log") -> Batch:
    """What the stages after it make of the candidates that are left: each has its log."""
    runs = [
        Outcome(
            "run", each.origin, each.event_key, each.mention, trust=each.trust,
            file=RawFile(f"runs/{each.mention.run_id}", f"digest of {log} {each.mention.run_id}", 1, 1),
        )
        for each in batch.pending_runs
    ]  # fmt: skip
    return Batch(batch.covers, settled=batch.settled + runs)


def batch(first: int, *pairs: tuple[int, int]) -> Batch:
    found = [pending(first + number, *pair) for number, pair in enumerate(pairs)]
    return Batch(OffsetRange("t", "T", 0, first, first + len(pairs)), pending_runs=found)


def state_after(*batches: Batch) -> RawState:
    state = RawState()
    for each in batches:
        delta = reconcile(state, [each], 1)
        assert delta is not None
        state.apply(state.version + 1, delta)
    return state


def test_the_same_event_needs_no_log_and_another_of_the_same_run_does() -> None:
    state = state_after(stored(batch(0, (1, 0))))
    after = settle_known(batch(1, (1, 0), (2, 0), (1, 1), (0, 0)), state.index)
    assert [each.origin.offset for each in after.pending_runs] == [2, 3, 4]
    assert [(each.kind, each.reason, each.origin.offset, each.trust) for each in after.settled] == [
        ("repeat", "event", 1, TRUST)
    ]
    assert after.covers == OffsetRange("t", "T", 0, 1, 5)


def test_another_event_with_its_id_needs_its_log() -> None:
    """An update may have made its run trusted, so that it reclaims the run of the first one."""
    untrusted = batch(0, (1, 0))
    untrusted.pending_runs[0].trust = Trust(False, "no rule", "p")
    state = state_after(stored(untrusted))
    again = batch(1, (1, 0), (1, 0))
    for each in again.pending_runs:
        each.trust = Trust(False, "no rule", "p")
    again.pending_runs[1].mention = again.pending_runs[1].mention.replace(pipeline="other")
    after = settle_known(again, state.index)
    assert [each.origin.offset for each in after.pending_runs] == [2]
    assert [each.origin.offset for each in after.settled] == [1]


_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8)


@given(_pairs, _pairs, st.booleans())
@settings(max_examples=tries(200))
def test_the_commit_says_the_same_as_if_all_logs_had_been_fetched(
    before: list[tuple[int, int]], now: list[tuple[int, int]], other_log: bool
) -> None:
    state = state_after(stored(batch(0, *before)))
    coming = batch(len(before), *now)
    log = "other" if other_log else "log"
    quick = reconcile(state, [stored(settle_known(coming, state.index), log)], 2)
    slow = reconcile(state, [stored(coming, log)], 2)
    assert quick is not None
    assert slow is not None
    for delta in (quick, slow):
        for record in delta["repeats"]:
            if record["reason"] == "event":  # that its log has changed is noticed only by one that fetches it
                record.pop("file", None)
        delta["repeats"].sort(key=lambda record: record["origin"])
    assert quick == slow

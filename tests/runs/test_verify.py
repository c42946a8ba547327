"""Verification of the raw store: no finding in an intact store, and each planted fault is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events.records import Batch, OffsetRange, Origin, Outcome, RunFacts
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import Findings
from ciml.pipelines.ingest.committer import Committer
from ciml.runs import verify
from ciml.runs.pack_index import pack_state
from ciml.runs.state import RAW, RawState, open_raw
from ciml.runs.verify import Audit, Verification, verify_raw
from ciml.storage import Store
from ciml.storage.json_files import without_seal
from tests.raw_manifest import forge
from tests.runs.compacting import FAR, FIRST, SECOND, run, squeeze
from tests.runs.scenes import TRUSTED, RawStore


class Events:
    """Commits batches to a raw manifest as ingest does."""

    def __init__(self, data: DataRoot) -> None:
        self.raw = RawStore(data)
        self.store = self.raw.store
        self.committer = Committer(self.store)
        self.at = 0

    def commit(self, *settled: tuple[str, int, Any], gap: int = 0, day: int = 0) -> None:
        """(kind, number of the run, more): an event each; ``gap`` offsets without one follow."""
        start, made = self.at, []
        for kind, number, more in settled:
            about, telemetry = run(number, day)
            facts: dict[str, Any] = {"trust": TRUSTED, **more}
            if kind in ("run", "repeat"):
                facts["file"] = self.raw.write(about, telemetry)
            made.append(self.outcome("run" if kind == "repeat" else kind, about, **facts))
            self.at += 1
        self.at += gap
        covers = OffsetRange("ci", "", 0, start, self.at)
        assert self.committer.commit([Batch(covers, settled=made)]) is not None

    def outcome(self, kind: Any, about: RunFacts, at: int | None = None, **facts: Any) -> Outcome:
        origin = Origin("ci", 0, self.at if at is None else at)
        return Outcome(kind, origin, f"zuul {origin.offset}", about, **facts)

    def retry(self, outcome: Outcome) -> None:
        assert self.committer.commit([Batch(None, settled=[outcome])]) is not None


@pytest.fixture
def events(data: DataRoot) -> Events:
    """Something of every kind: runs, repeats, ignored, letters open and closed, and offsets that hold nothing."""
    made = Events(data)
    made.commit(("run", 1, {}), ("run", 2, {}), ("ignored", 3, {"reason": "not_finished"}))
    made.commit(("repeat", 1, {}), ("dead_letter", 4, {"reason": "no_log"}), gap=2)
    late = made.at
    made.commit(("deferred", 5, {"reason": "not_there", "not_before_us": 9}), ("run", 6, {}), day=1)
    made.retry(made.outcome("deferred", run(5, 1)[0], late, reason="not_there", attempts=2, not_before_us=19))
    file = made.raw.write(*run(5, 1))
    made.retry(made.outcome("run", run(5, 1)[0], late, file=file, attempts=3, trust=TRUSTED))
    return made


def verified(raw: Store, **settings: Any) -> Verification:
    return verify_raw(raw, **{"clock": FAR, **settings})


def test_all_is_well(events: Events) -> None:
    found = verified(events.store)
    assert (found.findings, found.number) == ([], 0)
    assert (found.version, found.records, found.runs, found.objects) == (5, 9, 4, 4)
    assert (found.read, found.single, found.packed) == (4, 4, 0)
    assert found.formats["run"].total() == 4
    assert found.notes == ["ci[0]: 2 of 9 covered offsets hold no event of a run"]
    squeeze(events.store, grace_s=3_000_000_000)
    found = verified(events.store)
    assert (found.findings, found.read, found.single, found.packed, found.packs) == ([], 8, 4, 4, 2)
    squeeze(events.store)
    found = verified(events.store)
    assert (found.findings, found.read, found.single, found.packed, found.packs) == ([], 4, 0, 4, 2)
    for sample in (0, 2, 4, 100):
        found = verified(events.store, sample=sample, seed=3)
        assert (found.findings, found.read) == ([], min(sample, 4))


def test_all_faults_are_counted_and_the_first_hundred_are_kept() -> None:
    findings, more_findings = Findings(), Findings()
    for result, number in ((findings, 80), (more_findings, 130)):
        for fault in range(number):
            result.add_fault("delta", f"{number} {fault}")
    assert (more_findings.number, len(more_findings.findings)) == (130, 100)
    findings.add(more_findings, {"delta": "deltas"})
    assert (findings.number, len(findings.findings), findings.findings[99]) == (210, 100, "130 19")


def test_each_run_has_the_same_chance_to_be_in_a_sample(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: Counter[str] = Counter()
    monkeypatch.setattr(verify, "verify_run", lambda raw, run_id, file: chosen.update([run_id]))
    for seed in range(100):
        verified(events.store, sample=2, seed=seed)
    assert (len(chosen), chosen.total()) == (4, 200)
    assert 25 < min(chosen.values()) <= max(chosen.values()) < 75


def test_nothing_at_all(data: DataRoot) -> None:
    assert verified(data.raw) == Verification()


def _single(raw: Store) -> str:
    return raw.list(f"runs/{FIRST}")[0]


SINGLE_FAULTS: dict[str, tuple[Callable[[Store], Any], str]] = {
    "an object is lost": (lambda raw: raw.delete(_single(raw)), "does not exist"),
    "an object is another's": (
        lambda raw: raw.replace(_single(raw), raw.read(raw.list(f"runs/{FIRST}")[1])), "holds the seal"
    ),
    "an object is nobody's": (
        lambda raw: raw.create(f"runs/{FIRST}/zuul~9~1.0123456789abcdef.parquet", b"x"), "is not named by any manifest"
    ),
    "an object is elsewhere": (lambda raw: raw.create("runs/x", b"x"), "is not named by any manifest"),
    "a delta is lost": (lambda raw: raw.delete("_manifest/000000000002.json"), "version 2 is missing"),
    "a delta is broken": (lambda raw: raw.replace("_manifest/000000000002.json", b"{"), "has no digest"),
    "a run twice": (lambda raw: forge(raw, 2, lambda d: d["runs"].append(_run_of(raw, 1))), "holds the run"),
    "offsets twice": (
        lambda raw: forge(raw, 3, lambda d: d["offsets"]["ci"]["partitions"]["0"].append([0, 2])), "again"
    ),
    "an event twice": (lambda raw: forge(raw, 1, lambda d: d["ignored"].append(d["ignored"][0])), "settled twice"),
    "an event that is not covered": (
        lambda raw: forge(raw, 1, lambda d: d["ignored"][0].update(origin=["ci", 0, 77])), "does not cover it"
    ),
    "an event that is settled again": (
        lambda raw: forge(raw, 3, lambda d: d["ignored"].append({"origin": ["ci", 0, 0]})), "does not cover it"
    ),
    "a letter is closed that was not open": (
        lambda raw: forge(raw, 3, lambda d: d["closes"].append([["ci", 0, 0], "zuul~1~1"])), "not open"
    ),
    "a letter is not closed": (lambda raw: forge(raw, 5, lambda d: d["closes"].clear()), "is not closed"),
}  # fmt: skip


def _run_of(raw: Store, version: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(raw.read(f"_manifest/{version:012d}.json"))["runs"][0]
    return record


@pytest.mark.parametrize("fault", SINGLE_FAULTS)
def test_a_planted_fault_is_found(events: Events, fault: str) -> None:
    plant, word = SINGLE_FAULTS[fault]
    plant(events.store)
    found = verified(events.store)
    assert found.number == len(found.findings) >= 1
    assert any(word in line for line in found.findings), found.findings


PACK_FAULTS: dict[str, tuple[Callable[[Store, str], Any], str]] = {
    "a pack is lost": (lambda raw, path: raw.delete(path), "does not exist"),
    "a pack is broken": (lambda raw, path: raw.replace(path, raw.read(path)[:-9]), "differs from the digest"),
    "a pack is nobody's": (lambda raw, path: raw.create(f"packs/{SECOND}/{'0' * 32}.parquet", b""), "by any manifest"),
    "an unnamed run": (lambda raw, path: forge(raw, 1, lambda d: d["runs"].pop()), "which the manifest does not name"),
    "a pack manifest is broken": (
        lambda raw, path: raw.replace(f"packs/{FIRST}/_manifest/000000000001.json", b"{"), "is not a delta"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PACK_FAULTS)
def test_a_planted_fault_of_a_pack_is_found(events: Events, fault: str) -> None:
    squeeze(events.store)
    plant, word = PACK_FAULTS[fault]
    plant(events.store, next(iter(pack_state(events.store, FIRST).packs)))
    found = verified(events.store)
    assert any(word in line for line in found.findings), found.findings


def test_an_unnamed_object_is_only_noted_while_it_is_young(events: Events) -> None:
    events.raw.write(*run(90))
    found = verify_raw(events.store)
    assert (found.findings, found.notes[-1]) == ([], "1 young objects are not named by any manifest yet")
    squeeze(events.store)
    found = verified(events.store)
    assert found.findings == []
    assert found.notes[-1] == "1 unreferenced objects are in swept/; a later compaction removes them"


def test_an_audit_that_counts_otherwise_than_the_state(events: Events) -> None:
    log, state = open_raw(events.store)
    audit = Audit(Verification())
    for version, delta in log.since(0):
        audit.add_delta(version, delta)
    audit.compare(state)
    assert audit.result.findings == []
    state.counts["run", ""] += 1
    state.counts["ignored", "x"] = 2
    audit.compare(state)
    assert audit.result.findings == [
        "ignored x: 0 recorded, but 2 in the state",
        "run: 4 recorded, but 5 in the state",
        "7 (event, run) recorded, but 10 in the totals",
    ]
    other = Audit(Verification())
    other.compare(state)
    assert any("offsets covered by the state differ" in line for line in other.result.findings)
    assert any("4 in the index" in line for line in other.result.findings)
    assert RawState().index.run_count() == 0


@pytest.mark.parametrize(
    ("covers", "finding"),
    [("commit", "000000000006.json does not follow"), ("checkpoint", "000000000002.json differs from its segment")],
)
def test_deltas_without_a_digest_are_counted_until_they_are_covered(events: Events, covers: str, finding: str) -> None:
    """As versions without digests wrote them."""
    log = ManifestLog(events.store)
    for number in range(1, 6):
        events.store.replace(log.path(number), without_seal(events.store.read(log.path(number))))
    found = verified(events.store)
    assert found.findings == []
    assert any(line.startswith("5 deltas written by an older version carry no digest") for line in found.notes)
    if covers == "commit":
        events.committer = Committer(events.store)
        events.commit(("ignored", 9, {"reason": "not_finished"}))
    else:
        checkpoints = Checkpoints(log, RAW, Limits(deltas=5))
        while checkpoints.maintain():
            pass
    found = verified(events.store)
    assert found.findings == []
    assert not [line for line in found.notes if "digest" in line]
    altered = events.store.read(log.path(2)).replace(b'"time_us":', b'"time_Us":', 1)
    events.store.replace(log.path(2), altered)
    assert [finding in line for line in verified(events.store).findings] == [True]

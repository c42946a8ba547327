from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ciml.data_root import DataRoot, StoredDataset
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError, NoTrainingDataError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.materialise import materialise
from ciml.training.data.snapshot import (
    Snapshot,
    check_trainable,
    make_snapshot,
    read_snapshot,
    write_snapshot,
)
from ciml.trust import TrustPolicy
from tests.runs.scenes import RawStore
from tests.training.conftest import RUNS
from tests.training.records import excluding
from tests.transforms.samples import corpus

STRICT = TrustPolicy.parse('[[rule]]\nname = "merged only"\ntrusted = true\npipeline = "post"\n')
OPEN = TrustPolicy.parse('[[rule]]\nname = "all of zuul"\ntrusted = true\nsource = "zuul"\n')

GATED = '[[rule]]\nname = "gated"\ntrusted = true\npipeline = "gate"\n'


def capped_at(cap: str) -> TrustPolicy:
    return TrustPolicy.parse(f"[caps]\n{cap}\n{GATED}")


def facts(data: DataRoot) -> dict[str, dict[str, str]]:
    """Return the facts of each run, read directly from the raw manifest."""
    deltas = [delta for _, delta in ManifestLog(data.raw).since(0)]
    return {record["mention"]["run_id"]: record["mention"] for delta in deltas for record in delta["runs"]}


def test_it_holds_the_trusted_runs_with_their_rule_counts_and_splits(data: DataRoot, snapshot: Snapshot):
    known, runs = facts(data), list(snapshot.runs())
    trusted = {run_id for run_id, fact in known.items() if fact["pipeline"] == "gate"}
    assert {run.run_id for run in runs} == trusted
    assert len(trusted) == 137
    assert {run.rule for run in runs} == {"gated"}
    assert snapshot.summary()["rules"] == {"gated": 137}
    assert snapshot.untrusted == {"no rule": RUNS - 137}
    counts = snapshot.counts()
    by_class = Counter(known[run.run_id]["provider"] for run in runs)
    assert list(counts) == ["train", "dev", "test"]
    assert {name: sum(counts[role][name] for role in counts) for name in counts["train"]} == dict(by_class)
    assert snapshot.dev_from_train
    assert {(run.split, run.role) for run in runs} == {("test", "test"), ("train", "train"), ("train", "dev")}


def test_trust_is_evaluated_again_not_taken_from_ingestion(data: DataRoot):
    # in the raw manifest of this data, every run was trusted at ingestion
    none = make_snapshot(data.dataset("providers"), STRICT)
    assert list(none.runs()) == []
    assert none.untrusted == {"no rule": RUNS}
    with pytest.raises(CimlError, match="no training runs: 160 examples are untrusted"):
        materialise(data.dataset("providers").store, none, Path(data.url, "nowhere"))
    everyone = make_snapshot(data.dataset("providers"), OPEN)
    assert everyone.summary()["rules"] == {"all of zuul": RUNS}
    assert everyone.untrusted == {}
    known, sides = facts(data), {}
    for run in everyone.runs():
        sides.setdefault(known[run.run_id]["change"], set()).add(run.role)
    assert len(sides) == RUNS // 2
    assert {len(roles) for roles in sides.values()} == {1}  # runs of a change are on one side


def test_the_same_is_the_same_digest_and_all_that_counts_changes_it(data: DataRoot, snapshot: Snapshot):
    assert make_snapshot(data.dataset("providers"), TrustPolicy.load()).digest == snapshot.digest
    more = {name: {"reason": 9} for name in ("untrusted", "excluded", "withheld")}
    assert snapshot.replace(**more).digest == snapshot.digest  # omitted runs alone make no new snapshot
    one = next(snapshot.runs("train")).run_id
    without = make_snapshot(data.dataset("providers"), TrustPolicy.load(), excluding({one: "purged"}))
    others = {without.digest, make_snapshot(data.dataset("providers"), OPEN).digest, snapshot.digest}
    assert len(others) == 3
    assert without.excluded == {"purged": 1}
    assert {run.run_id for run in snapshot.runs()} - {run.run_id for run in without.runs()} == {one}


def test_training_runs_beyond_a_cap_are_withheld(data: DataRoot, snapshot: Snapshot):
    dataset, known = data.dataset("providers"), facts(data)
    capped = make_snapshot(dataset, capped_at("author = 0.3"))
    by_class: dict[int, Counter[str]] = {}
    for run in capped.runs("train", "dev"):
        by_class.setdefault(run.label, Counter())[known[run.run_id].get("owner", "")] += 1
    assert all(0 < counts["ann"] <= 0.3 * counts.total() for counts in by_class.values())
    assert any(counts["ann"] + 1 > 0.3 * counts.total() for counts in by_class.values())
    missing = {run.run_id for run in snapshot.runs()} - {run.run_id for run in capped.runs()}
    assert {known[run_id].get("owner") for run_id in missing} == {"ann"}
    assert list(capped.runs("test")) == list(snapshot.runs("test"))
    assert capped.withheld == {"cap: author": len(missing)} == capped.summary()["withheld"]
    assert capped.rejected() == {"no rule": RUNS - 137, "cap: author": len(missing)}
    write_snapshot(data.trainer("m"), capped)
    assert read_snapshot(data.trainer("m"), capped.digest) == capped
    assert capped.digest == make_snapshot(dataset, capped_at("author = 0.3")).digest


def test_a_cap_that_too_few_values_can_meet_leaves_no_training_run(data: DataRoot):
    none = make_snapshot(data.dataset("providers"), capped_at("source = 0.5"))
    assert {run.role for run in none.runs()} == {"test"}
    tests = len(list(none.runs()))
    withheld = sum(none.withheld.values())
    left_out = (
        f"{tests} are test runs, {withheld} are beyond the policy's caps or the window; ciml trust check shows why"
    )
    with pytest.raises(NoTrainingDataError, match=f"'providers' has no training runs: .* {left_out}"):
        check_trainable(none, "train", "dev")


def test_training_runs_of_one_class_are_named_before_a_training(snapshot: Snapshot):
    spans = [span.replace(runs=tuple(run for run in span.runs if run.label == 1)) for span in snapshot.spans]
    of_one_class = snapshot.replace(spans=tuple(spans))
    name = snapshot.resolved.classes[1]
    with pytest.raises(NoTrainingDataError, match=rf"'providers' has \d+ training runs, all {name}: "):
        check_trainable(of_one_class, "train", "dev")
    check_trainable(snapshot, "train", "dev")


def test_a_snapshot_of_all_trusted_runs_is_stored_as_before(snapshot: Snapshot):
    stored = snapshot.to_json()
    assert not {"withheld", "window", "half_life"} & stored.keys()
    assert all("weights" not in span for span in stored["spans"])
    assert Snapshot.from_json(stored).digest == snapshot.digest


def test_it_is_written_once_and_read_back_and_an_altered_one_is_reported(data: DataRoot, snapshot: Snapshot):
    trainer = data.trainer("m")
    path = write_snapshot(trainer, snapshot)
    assert path == f"snapshots/{snapshot.digest}.json" == write_snapshot(trainer, snapshot)
    assert trainer.list("snapshots") == [path]
    again = read_snapshot(trainer, snapshot.digest)
    assert (again, again.digest) == (snapshot, snapshot.digest)
    content = trainer.read(path)
    relabelled, lacking, longer = (json.loads(content) for _ in range(3))
    relabelled["spans"][0]["runs"][0][3] ^= 1
    del lacking["spans"][0]["runs"][0]
    longer["spans"][0]["runs"][0].append("more")
    cut = content[: len(content) // 2]
    for altered in (cut, *(json.dumps(value).encode() for value in (relabelled, lacking, longer))):
        trainer.replace(path, altered)
        with pytest.raises(IntegrityError, match=snapshot.digest):
            read_snapshot(trainer, snapshot.digest)


def test_no_snapshot_no_span_no_data_set_no_raw_manifest(data: DataRoot):
    with pytest.raises(CimlError, match="no snapshot"):
        read_snapshot(data.trainer("m"), "0" * 64)
    with pytest.raises(CimlError, match="no data set 'none'"):
        make_snapshot(data.dataset("none"), OPEN)
    create_dataset(data, DatasetDefinition(name="empty"))
    with pytest.raises(CimlError, match="has no sealed span yet"):
        make_snapshot(data.dataset("empty"), OPEN)
    data.raw.delete(ManifestLog(data.raw).path(2))
    with pytest.raises(IntegrityError, match="is missing, and a data set was built from it"):
        make_snapshot(data.dataset("providers"), OPEN)


@pytest.fixture
def status(data: DataRoot) -> StoredDataset:
    """A data set of two spans, whose label is the status."""
    create_dataset(data, DatasetDefinition(name="status", max_windows=4, span_runs=80, classes=("passed", "failed")))
    update_dataset(data.dataset("status"))
    return data.dataset("status")


def test_a_corrected_label_is_a_new_version_of_its_span_and_a_new_snapshot(data: DataRoot, status: StoredDataset):
    before = make_snapshot(status, OPEN)
    run_id = next(run.run_id for run in before.spans[1].runs if run.label == 0)
    corrected = RunFacts.from_json(facts(data)[run_id]).replace(outcome="failure", result="FAILURE")
    RawStore(data).add(corrections=[corrected])
    update_dataset(status)
    after = make_snapshot(status, OPEN)
    assert [(span.span, span.version) for span in before.spans] == [(1, 1), (2, 1)]
    assert [(span.span, span.version) for span in after.spans] == [(1, 1), (2, 2)]
    assert (after.digest != before.digest, before.spans[0] == after.spans[0]) == (True, True)
    failed = [{run.run_id for run in each.runs() if run.label == 1} for each in (before, after)]
    assert failed[1] == failed[0] | {run_id}
    assert run_id not in failed[0]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_not_one_row_of_an_untrusted_source_is_learned(data: DataRoot, status: StoredDataset, share: float):
    clean = make_snapshot(status, OPEN)
    _, before = read_snapshot_examples(status.store, clean)
    forged = []
    for number, (run, table) in enumerate(zip(*corpus(round(share * RUNS))[:2], strict=True)):
        origin = {"source": "forged", "pipeline": "gate", "change": f"change-{number}"}
        forged.append((run.replace(run_id=f"forged~{number}~1", outcome="failure", result="FAILURE", **origin), table))
    RawStore(data).add(forged)
    update_dataset(status, seal=True)
    after = make_snapshot(status, OPEN)
    runs, learned = read_snapshot_examples(status.store, after)
    assert not [run.run_id for run in runs if run.run_id.startswith("forged")]
    assert after.untrusted == {"no rule": len(forged)}
    assert (list(after.runs()), learned.labels.tolist()) == (list(clean.runs()), before.labels.tolist())
    assert learned.inputs.tobytes() == before.inputs.tobytes()

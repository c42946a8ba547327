from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.training.data.materialise import materialise
from ciml.training.data.snapshot import Snapshot, make_snapshot, read_snapshot, snapshot_path, write_snapshot
from ciml.trust import TrustPolicy
from tests.runs.scenes import RawStore
from tests.training.conftest import RUNS
from tests.training.records import excluding

STRICT = TrustPolicy.parse('[[rule]]\nname = "merged only"\ntrusted = true\npipeline = "post"\n')
OPEN = TrustPolicy.parse('[[rule]]\nname = "all of zuul"\ntrusted = true\nsource = "zuul"\n')


def facts(data: DataRoot) -> dict[str, dict[str, str]]:
    """Return the facts of each run, read directly from the raw manifest."""
    deltas = [delta for _, delta in ManifestLog(data.raw).since(0)]
    return {record["mention"]["run_id"]: record["mention"] for delta in deltas for record in delta["runs"]}


def test_no_untrusted_run_is_inside_and_the_rule_is_kept(data: DataRoot, snapshot: Snapshot):
    known = facts(data)
    trusted = {run_id for run_id, fact in known.items() if fact["pipeline"] == "gate"}

    assert {run.run_id for run in snapshot.runs()} == trusted
    assert {run.rule for run in snapshot.runs()} == {"gated"}
    assert snapshot.summary()["rules"] == {"gated": len(trusted)}
    assert snapshot.untrusted == {"no rule": RUNS - len(trusted)}
    assert len(trusted) == 137


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


def test_counts_and_splits(data: DataRoot, snapshot: Snapshot):
    known = facts(data)
    by_class = Counter(known[run.run_id]["provider"] for run in snapshot.runs())
    counts = snapshot.counts()

    assert list(counts) == ["train", "dev", "test"]
    assert {name: sum(counts[role][name] for role in counts) for name in counts["train"]} == dict(by_class)
    assert snapshot.dev_from_train
    assert {run.role for run in snapshot.runs() if run.split == "test"} == {"test"}
    assert {run.role for run in snapshot.runs() if run.split == "train"} == {"train", "dev"}
    assert {run.split for run in snapshot.runs()} == {"train", "test"}


def test_runs_of_a_change_are_on_one_side(data: DataRoot):
    known = facts(data)
    sides: dict[str, set[str]] = {}
    for run in make_snapshot(data.dataset("providers"), OPEN).runs():
        sides.setdefault(known[run.run_id]["change"], set()).add(run.role)
    assert len(sides) == RUNS // 2
    assert {len(found) for found in sides.values()} == {1}


def test_the_same_is_the_same_digest_and_all_that_counts_changes_it(data: DataRoot, snapshot: Snapshot):
    assert make_snapshot(data.dataset("providers"), TrustPolicy.load()).digest == snapshot.digest
    one = next(snapshot.runs("train")).run_id
    without = make_snapshot(data.dataset("providers"), TrustPolicy.load(), excluding({one: "purged"}))
    others = {without.digest, make_snapshot(data.dataset("providers"), OPEN).digest, snapshot.digest}

    assert len(others) == 3
    assert without.excluded == {"purged": 1}
    assert {run.run_id for run in snapshot.runs()} - {run.run_id for run in without.runs()} == {one}


def test_it_is_written_once_and_read_back(data: DataRoot, snapshot: Snapshot):
    trainer = data.trainer("m")
    path = write_snapshot(trainer, snapshot)

    assert path == f"snapshots/{snapshot.digest}.json"
    assert write_snapshot(trainer, snapshot) == path
    assert trainer.list("snapshots") == [path]
    again = read_snapshot(trainer, snapshot.digest)
    assert again == snapshot
    assert again.digest == snapshot.digest


@pytest.mark.parametrize("change", ["label", "run", "cut", "shape"])
def test_an_altered_snapshot_is_reported(data: DataRoot, snapshot: Snapshot, change: str):
    trainer = data.trainer("m")
    path = write_snapshot(trainer, snapshot)
    value = json.loads(trainer.read(path))
    if change == "label":
        value["spans"][0]["runs"][0][3] ^= 1
    elif change == "run":
        del value["spans"][0]["runs"][0]
    elif change == "shape":
        value["spans"][0]["runs"][0].append("more")
    text = json.dumps(value)
    trainer.replace(path, text[: len(text) // 2 if change == "cut" else None].encode())
    with pytest.raises(IntegrityError, match=snapshot.digest):
        read_snapshot(trainer, snapshot.digest)


def test_no_snapshot_no_span_no_data_set(data: DataRoot):
    with pytest.raises(CimlError, match="no snapshot"):
        read_snapshot(data.trainer("m"), "0" * 64)
    with pytest.raises(CimlError, match="no data set 'none'"):
        make_snapshot(data.dataset("none"), OPEN)
    create_dataset(data, DatasetDefinition(name="empty"))
    with pytest.raises(CimlError, match="has no sealed span yet"):
        make_snapshot(data.dataset("empty"), OPEN)


def test_a_corrected_label_is_a_new_version_of_its_span_and_a_new_snapshot(data: DataRoot):
    definition = DatasetDefinition(name="status", max_windows=4, span_runs=80, classes=("passed", "failed"))
    create_dataset(data, definition)
    update_dataset(data.dataset("status"))
    before = make_snapshot(data.dataset("status"), OPEN)
    known = facts(data)
    run_id = next(run.run_id for run in before.spans[1].runs if run.label == 0)
    corrected = RunFacts.from_json(known[run_id]).replace(outcome="failure", result="FAILURE")
    RawStore(data).add(corrections=[corrected])
    update_dataset(data.dataset("status"))
    after = make_snapshot(data.dataset("status"), OPEN)

    assert [(span.span, span.version) for span in before.spans] == [(1, 1), (2, 1)]
    assert [(span.span, span.version) for span in after.spans] == [(1, 1), (2, 2)]
    assert after.digest != before.digest
    failed = [{run.run_id for run in each.runs() if run.label == 1} for each in (before, after)]
    assert failed[1] - failed[0] == {run_id}
    assert failed[0] < failed[1]
    assert before.spans[0] == after.spans[0]


def test_a_missing_raw_manifest_is_reported(data: DataRoot):
    raw = data.raw
    raw.delete(ManifestLog(raw).path(2))
    with pytest.raises(IntegrityError, match="is missing, and a data set was built from it"):
        make_snapshot(data.dataset("providers"), OPEN)


def test_paths_stay_below_the_trainers_folder():
    assert snapshot_path("abc") == "snapshots/abc.json"

"""What events and listings say of runs, up to the snapshot: what is untrusted changes no trusted run and its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.listing import open_listing
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.backfill.backfill import backfill
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.training.data.snapshot import make_snapshot
from ciml.transforms.examples.spans import read_span
from ciml.trust import TrustPolicy
from tests.corpus import CORPUS, builds
from tests.pipelines.backfill.backfilling import config as backfill_config
from tests.pipelines.datasets.dataset_scenes import define, telemetry
from tests.pipelines.datasets.dataset_scenes import runs as runs_of_data_sets
from tests.pipelines.ingest.ingesting import Place, account
from tests.raw_manifest import forge
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

RUNS = 6


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    definition = {"name": "status", "class_label": "status", "span_runs": RUNS, "sample_interval": "10s"}
    create_dataset(place.data, DatasetDefinition.from_json(definition))
    return place


@pytest.fixture
def runs(place: Place) -> list[RunFacts]:
    """Gated runs, of which every other one has failed."""
    outcomes: list[Any] = ["failure", "success"] * (RUNS // 2)
    return [place.facts(number, pipeline="gate", outcome=outcome, result="") for number, outcome in enumerate(outcomes)]


def learned(place: Place) -> dict[str, tuple[str, str]]:
    """Class, and the rule that let it in, of each run that a snapshot learns."""
    dataset = place.data.dataset("status")
    update_dataset(dataset, seal=True)
    update_dataset(dataset)
    assert verify_dataset(dataset) == []
    snapshot = make_snapshot(dataset, TrustPolicy.load())
    return {run.run_id: (snapshot.resolved.classes[run.label], run.rule) for run in snapshot.runs()}


def test_an_untrusted_event_without_a_log_relabels_nothing(place: Place, runs: list[RunFacts]) -> None:
    place.take_runs(*runs)
    before = learned(place)
    assert before[runs[0].run_id] == ("failed", "gated")
    untrusted = runs[0].replace(pipeline="check", log_url="")
    place.take_runs(untrusted.replace(outcome="success", result="SUCCESS"))
    assert learned(place) == before
    place.take_runs(untrusted.replace(outcome="cancellation", result="ABORTED"))
    assert learned(place) == before
    assert place.counts["ignored", "less_trusted"] == 2
    place.take_runs(runs[0].replace(log_url="", outcome="cancellation", result="ABORTED"))
    assert learned(place) == {run_id: label for run_id, label in before.items() if run_id != runs[0].run_id}


def test_a_run_that_an_untrusted_event_claimed_first_is_reclaimed(place: Place, runs: list[RunFacts]) -> None:
    claim = runs[0].replace(pipeline="check", log_url=runs[1].log_url, outcome="success", result="SUCCESS")
    place.take_runs(claim, *runs[1:])
    before = learned(place)
    assert runs[0].run_id not in before
    place.take_runs(runs[0])
    assert learned(place) == {**before, runs[0].run_id: ("failed", "gated")}
    (row,) = [row for _, delta in ManifestLog(place.raw).since(0) for row in delta.get("reclaims", ())]
    assert (row["mention"]["run_id"], row["trust"]["rule"]) == (runs[0].run_id, "gated")
    assert account(place.raw)[0].totals()["reclaim"] == 1


def test_a_later_outcome_of_an_event_or_a_listing_makes_a_new_version_and_leaves_the_old_one(
    place: Place, runs: list[RunFacts], tmp_path: Path
) -> None:
    place.take_runs(*runs)
    labels = {run_id: label for run_id, (label, _) in learned(place).items()}
    dataset = place.data.dataset("status")
    before = {path: dataset.store.read(path) for path in dataset.store.list() if path.startswith("span-")}

    place.take_runs(runs[0].replace(outcome="success", result="SUCCESS"))
    labels[runs[0].run_id] = "passed"
    assert {run_id: label for run_id, (label, _) in learned(place).items()} == labels
    native = runs[1].build_uuid.rpartition(".")[0]
    line = next(line for line in builds() if line["build_uuid"] == native)
    (tmp_path / "listing.jsonl").write_text(json.dumps({**line, "build_uuid": runs[1].build_uuid, "result": "FAILURE"}))
    tally = backfill(backfill_config(CORPUS, place.data.url), open_listing(str(tmp_path / "listing.jsonl")))
    assert tally.counts == {("correction", "outcome"): 1}
    labels[runs[1].run_id] = "failed"
    assert {run_id: label for run_id, (label, _) in learned(place).items()} == labels

    # Nothing but the outcome is another, and every file of the old versions is as it was.
    versions = list(dataset.state().spans[1].values())
    assert [version.version for version in versions] == [1, 2, 3]
    first, last = (read_span(dataset.store, versions[at]).sort_by("run_id") for at in (0, -1))
    changed = {name for name in first.column_names if not first[name].equals(last[name])}
    assert changed <= {"label", "label_name", "outcome", "result"}
    assert {path: dataset.store.read(path) for path in before} == before
    assert place.counts == {("run", ""): RUNS, ("correction", "outcome"): 2}
    assert update_dataset(dataset).sealed == ()


def test_corrections_that_older_versions_did_not_judge_are_judged_by_their_facts(data: DataRoot, raw: RawStore) -> None:
    define(data)
    facts = [make_facts(number, outcome="failure", pipeline="gate") for number in range(1, 5)]
    raw.add([(each, telemetry(number)) for number, each in enumerate(facts, 1)])
    raw.add(corrections=[facts[0].replace(outcome="success", pipeline="check"), facts[1].replace(outcome="success")])
    raw.add(runs_of_data_sets(10, 10))
    forge(data.raw, 2, lambda delta: [record.pop("trust") for record in delta["corrections"]])
    update_dataset(data.dataset("cpu"))
    (span,) = update_dataset(data.dataset("cpu")).state.latest()
    assert [run.label_name for run in span.runs] == ["failed", "passed", "failed", "failed"]

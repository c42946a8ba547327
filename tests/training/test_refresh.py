from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError
from ciml.lineage import Data
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.runs.run_log import stored_rows
from ciml.runs.writer import write_run
from ciml.storage import Store
from ciml.storage.json_files import read_object
from ciml.training import refresh as refresh_module
from ciml.training.data.analysis import AnalysisCache
from ciml.training.data.examples import Examples, read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot, make_snapshot, read_snapshot
from ciml.training.evaluation.candidate import Champion, champion_probabilities, changes_of_test_runs
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.evaluation.metrics import accuracy, predicted_classes
from ciml.training.experiment import Experiment
from ciml.training.export import UnservedError, load_exported
from ciml.training.refresh import Candidate, Skipped, TrainConfig, _work_folder, refresh
from ciml.trust import TrustPolicy
from tests.ciml.lineage.recorded import Recorded, names, states
from tests.durable import Steps
from tests.serving.models_fixture import DEFINITION, save_model
from tests.training.conftest import QUICK
from tests.transforms.samples import RECORDINGS

First = tuple[DataRoot, Candidate, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def first(made: Path, tmp_path_factory: pytest.TempPathFactory) -> First:
    """Return the data of a first refresh, its candidate, and its lineage."""
    data = DataRoot.open(shutil.copytree(made, tmp_path_factory.mktemp("refresh") / "data"))
    recorded, steps = Recorded(data), []
    config = TrainConfig(data, "providers", "m", QUICK)
    done = refresh(config, progress=lambda step, *_: steps.append(step), lineage=recorded)
    assert isinstance(done, Candidate)
    assert (
        steps == list(done.timings) == ["snapshot", "import", "materialise", "train", "export", "evaluate", "stability"]
    )
    return data, done, recorded.events


def refreshed(*given: Any, **keys: Any) -> Candidate:
    done = refresh(*given, **keys)
    assert isinstance(done, Candidate)
    return done


def answers_of(data: DataRoot, done: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Return the exported model's answers on the test runs, and their labels."""
    _, test = read_snapshot_examples(data.dataset("providers").store, done.snapshot, "test")
    return load_exported(done.folder).predict(test.inputs, test.n_windows), test.labels


@pytest.fixture
def same_examples(materialised: Materialised, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the examples of the first refresh instead of computing them from the same snapshot again."""

    def copy(root: Store, snapshot: Snapshot, folder: Path, *, cache: AnalysisCache) -> Materialised:
        assert snapshot.digest == materialised.snapshot
        shutil.copytree(materialised.folder, folder)
        return replace(materialised, folder=folder)

    monkeypatch.setattr("ciml.training.refresh.materialise", copy)


def test_a_first_refresh_is_a_blessed_candidate_with_all_figures(first: First):
    data, done, _ = first
    metrics = read_object(data.trainer("m").read(f"metrics/{done.facts()['refresh']}.json"), "metrics")
    evaluation = metrics["evaluation"]
    assert done.decision.blessed, done.decision.reasons
    assert metrics == json.loads(json.dumps(done.metrics))
    assert (evaluation["runs"], evaluation["trained_on"]) == (40, 97)
    assert sum(metrics["class_counts"].values()) == 97
    assert evaluation["accuracy"]["low"] > evaluation["base_rate"]["value"]
    probabilities, labels = answers_of(data, done)
    assert evaluation["accuracy"]["right"] == int((probabilities.argmax(axis=1) == labels).sum())
    assert metrics["disagreement"] <= 1e-5
    assert metrics["baselines"]["memory"]["runs"] == 40
    assert metrics["snapshot"]["untrusted"] == {"no rule": 23}
    assert metrics["snapshot"]["spans"] == [[1, 1], [2, 1], [3, 1]]
    assert metrics["materialised"] == {"analysed": 3, "cached": 0}
    assert len(data.trainer("m").list("analyses")) == 1  # for the next refresh, which analyses only new spans
    assert metrics["experiment"] == QUICK.to_json()
    assert read_snapshot(data.trainer("m"), done.snapshot.digest) == done.snapshot
    assert sum(one["runs"] for one in evaluation["slices"]["job"].values()) == 40
    changes = changes_of_test_runs(data.dataset("providers"), done.snapshot)
    right = probabilities.argmax(axis=1) == labels
    assert evaluation["changes"] == len(set(changes.tolist())) < 40
    assert evaluation["accuracy"] == accuracy(right, changes)
    assert metrics["stability"]["independent"] < 40


def test_the_lineage_leads_from_the_raw_store_to_the_candidate(first: First):
    data, done, events = first
    assert states(events) == [
        ("snapshot.m", "START"), ("snapshot.m", "COMPLETE"), ("train.m", "START"), ("train.m", "COMPLETE"),
    ]  # fmt: skip
    begun, selected, _, trained = events
    raw, examples = selected["inputs"]
    (snapshot,) = selected["outputs"]
    assert names(begun["inputs"]) == [(data.dataset("providers").store.url(), "")]
    assert names([raw]) == [(data.raw.url(), "5")]  # the data set's cursor: four deltas of raw runs are read
    assert names([snapshot]) == [(data.trainer("m").url("snapshots"), done.snapshot.digest)]
    assert snapshot["outputFacets"]["outputStatistics"]["rowCount"] == 137
    assert snapshot["facets"]["ciml_data"]["untrusted"] == {"no rule": 23}
    columns = [each["name"] for each in examples["facets"]["schema"]["fields"]]
    assert columns == [*done.snapshot.resolved.features, "provider"]
    assert [span[:2] for span in examples["facets"]["ciml_data"]["spans"]] == [[1, 1], [2, 1], [3, 1]]
    assert names(trained["inputs"]) == names([examples, snapshot])
    assert names(trained["outputs"]) == [(data.candidates("m"), done.facts()["refresh"])]
    facets = trained["run"]["facets"]
    assert facets["ciml_evaluation"]["evaluation"]["accuracy"] == done.metrics["evaluation"]["accuracy"]
    assert facets["ciml_evaluation"]["evaluation"]["base_rate"] == done.metrics["evaluation"]["base_rate"]
    assert facets["ciml_evaluation"]["blessed"] is True
    assert [(each["name"], each["status"]) for each in facets["test"]["tests"]] == [
        (reason, "pass") for reason in done.decision.reasons
    ]
    parameters = {each["key"]: json.loads(each["value"]) for each in facets["executionParameters"]["parameters"]}
    assert parameters == QUICK.to_json()


def test_the_same_again_is_nothing_new_and_another_experiment_is(first: First):
    data, done, _ = first
    last = done.facts()["refresh"]
    steps: list[str] = []
    config = TrainConfig(data, "providers", "m", QUICK)
    assert done.decision.metrics["gate"] == config.gate.to_json()  # a later refresh compares them
    again = refresh(config, last_key=last, progress=lambda step, *_: steps.append(step))
    assert isinstance(again, Skipped)
    assert again.snapshot.digest == done.snapshot.digest
    assert again.reason.startswith("nothing new")
    assert steps == ["snapshot"]
    assert replace(done, experiment=QUICK.replace(seed=5)).facts()["refresh"] != last


@pytest.mark.usefixtures("same_examples")
def test_a_candidate_that_learned_nothing_is_rejected(first: First, tmp_path: Path):
    data, done, _ = first
    shutil.copytree(done.folder, tmp_path / "champion")
    poor = QUICK.replace(steps=1, epochs=1, hidden_layers=())
    work = tmp_path / "work"
    for age_s in range(1, 7):  # earlier candidates, the latest first
        for part in ("records", "model"):
            (work / f"earlier-{age_s}" / part).mkdir(parents=True)
        os.utime(work / f"earlier-{age_s}", (1e9 - age_s, 1e9 - age_s))
    with Steps(data.url).recording() as steps:
        champion = Champion(tmp_path / "champion", 1)
        bad = refreshed(TrainConfig(data, "providers", "m3", poor), champion=champion, work=work)
    assert not bad.decision.blessed
    assert any("against the champion" in reason for reason in bad.decision.reasons)
    assert bad.metrics["champion"]["version"] == 1
    assert bad.metrics["champion"]["accuracy"] == done.metrics["evaluation"]["accuracy"]
    assert bad.metrics["comparison"]["difference"] < 0
    # a model without its snapshot could not be purged: the snapshot is stored first
    assert steps.steps == ["create trainer/m3/snapshots/*.json", "replace trainer/m3/metrics/*.json"]
    key = bad.facts()["refresh"]
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == sorted(
        [key, *(f"earlier-{age_s}" for age_s in range(1, 5))]
    )
    assert [path.parent.name for path in work.glob("*/records")] == [key]
    assert len(list(work.glob("*/model"))) == 5


@pytest.mark.usefixtures("same_examples")
def test_a_candidate_that_cannot_be_loaded_is_described_without_figures_or_a_second_training(
    first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> Any:
        raise UnservedError("the exported model cannot be loaded: it crashed")

    monkeypatch.setattr("ciml.training.export.load_served", crash)
    done = refreshed(TrainConfig(first[0], "providers", "m6", QUICK))
    assert done.decision.reasons == ("the exported model cannot be loaded: it crashed",)
    described = refresh_module._describe_candidate((), Data("file:///d"), done)
    assert (described.facts["evaluation"], described.facts["blessed"]) == (None, False)


@pytest.mark.usefixtures("same_examples")
def test_a_damaged_champion_keeps_the_gate_closed(first: First, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data, _, _ = first
    (tmp_path / "champion").mkdir()
    done = refreshed(TrainConfig(data, "providers", "m4", QUICK), champion=Champion(tmp_path / "champion", 1))
    assert not done.decision.blessed
    assert done.decision.reasons == (
        "the champion could not be evaluated on the same runs, so no comparison is possible",
    )
    assert f"the champion cannot be evaluated: {tmp_path}/champion is not an exported model" in caplog.text


def right_answers(raw: Store, champion: Champion, snapshot: Snapshot, runs: Any, test: Examples) -> np.ndarray:
    answers = champion_probabilities(raw, champion, snapshot.resolved, runs, test)
    return np.asarray(predicted_classes(answers) == test.labels)


def test_a_champion_of_another_definition_is_given_the_same_runs_prepared_its_way(first: First):
    data, done, _ = first
    create_dataset(
        data,
        DatasetDefinition(
            name="other", sample_interval="1s", class_label="provider", features_regex="usr|1m$", max_windows=8,
            classes=RECORDINGS[::-1], span_runs=60,
        ),
    )  # fmt: skip
    update_dataset(data.dataset("other"), seal=True)
    mine = make_snapshot(data.dataset("other"), TrustPolicy.load())
    runs, test = read_snapshot_examples(data.dataset("other").store, mine, "test")
    found = right_answers(data.raw, Champion(done.folder, 1), mine, runs, test)
    theirs = {run.run_id: position for position, run in enumerate(done.snapshot.runs("test"))}
    probabilities, labels = answers_of(data, done)
    right = probabilities.argmax(axis=1) == labels
    assert {run.run_id for run in runs} == set(theirs)  # one salt: the same split
    assert found.tolist() == [bool(right[theirs[run.run_id]]) for run in runs]


def test_a_run_without_an_answer_of_the_champion_is_wrong(made: Path, snapshot: Snapshot, tmp_path: Path):
    data = DataRoot.open(shutil.copytree(made, tmp_path / "data"))
    runs, test = read_snapshot_examples(data.dataset("providers").store, snapshot, "test")
    silent = save_model(tmp_path / "nan", definition=snapshot.resolved, spoil="nan")
    assert {run.label for run in runs} == {0, 1}  # also of the last class
    assert not right_answers(data.raw, Champion(silent, 1), snapshot, runs, test).any()
    other = DEFINITION.replace(columns=("total cpu usage:usr",), features=("usr",), classes=snapshot.resolved.classes)
    champion = Champion(save_model(tmp_path / "other", definition=other), 1)
    before = right_answers(data.raw, champion, snapshot, runs, test)
    assert before.any()
    for row in stored_rows(ManifestLog(data.raw), [run.run_id for run in runs]).values():
        path = Path(data.url, "raw", row.file.path)
        path.write_bytes(write_run(pq.read_table(path).drop_columns(["total cpu usage:usr"]), row.file.path))
    assert not right_answers(data.raw, champion, snapshot, runs, test).any()
    nothing = right_answers(data.raw, champion, snapshot, [], test.take(np.zeros(0, np.int64)))
    assert nothing.tolist() == []  # a test split without runs: the gate says so


def test_a_candidate_that_no_server_can_load_is_rejected_and_the_trainer_goes_on(
    made: Path, snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataRoot.open(shutil.copytree(made, tmp_path / "data"))

    def export(fitted: Any, normalise: Any, resolved: Any, folder: Path, **keys: Any) -> Path:
        return save_model(folder, definition=resolved, spoil="read")

    monkeypatch.setattr("ciml.training.export.export", export)
    done = refreshed(TrainConfig(data, "providers", "m", QUICK))
    assert not done.decision.blessed
    (reason,) = done.decision.reasons[:1]
    assert reason.startswith("the exported model cannot be loaded: ")
    assert "stability" not in done.timings


def test_a_second_model_is_trained_only_for_a_candidate_that_passes_all_else(first: First, tmp_path: Path) -> None:
    _, done, _ = first
    assert done.decision.blessed
    assert done.metrics["stability"]["seed"] == 1
    assert done.metrics["stability"]["runs"] == done.metrics["evaluation"]["runs"]
    data = DataRoot.open(shutil.copytree(first[0].url, tmp_path / "data"))
    fast = Experiment(estimator="LogisticRegression")
    few = refreshed(TrainConfig(data, "providers", "few", fast, gate=GatePolicy(min_test_runs=1000)))
    assert "stability" not in few.timings
    (reason,) = few.decision.reasons
    assert "held-out runs are too few; at least 1000 are needed" in reason
    assert "cross-validated over" in reason
    off = refreshed(TrainConfig(data, "providers", "off", fast, gate=GatePolicy(min_agreement=0.0)))
    assert off.decision.blessed
    assert "stability" not in off.timings


def test_two_trainers_of_one_model_do_not_meet(first: First):
    data, _, _ = first
    with (
        FileLock(Path(data.url, "trainer/m/work/.lock")),
        pytest.raises(CimlError, match="model 'm' is being trained by another process"),
    ):
        refresh(TrainConfig(data, "providers", "m", QUICK))


def test_a_store_that_is_not_local_keeps_its_work_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = {_work_folder(DataRoot.open(f"s3://{name}/data").trainer("m"), None) for name in ("one", "two")}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "ciml/trainer"}


def test_nothing_trusted_nothing_trained(data: DataRoot):
    none = TrustPolicy.parse('[[rule]]\nname = "merged"\ntrusted = true\npipeline = "post"\n')
    with pytest.raises(CimlError, match="no training runs: 160 examples are untrusted"):
        refresh(TrainConfig(data, "providers", "m", QUICK, trust=none, gate=GatePolicy()))
    assert not (Path(data.url) / "trainer/m/metrics").exists()

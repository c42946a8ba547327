from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.runs.run_log import files_of
from ciml.runs.writer import write_run
from ciml.storage import Store
from ciml.storage.json_files import read_object
from ciml.training.data.analysis_cache import AnalysisCache
from ciml.training.data.examples import read_snapshot_examples
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot, make_snapshot, read_snapshot
from ciml.training.evaluation.candidate import Champion, assess, right_answers
from ciml.training.evaluation.gate import GatePolicy
from ciml.training.export import load_exported
from ciml.training.refresh import Candidate, Skipped, TrainConfig, refresh
from ciml.trust import TrustPolicy
from tests.ciml.lineage.recorded import Recorded, names, states
from tests.durable import Steps
from tests.runs.scenes import RawStore
from tests.serving.models_fixture import DEFINITION, save_model
from tests.training.conftest import QUICK
from tests.transforms.samples import RECORDINGS, by_recording, corpus


@pytest.fixture(scope="module")
def first(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRoot, Candidate, list[str]]:
    """Return the data of a first refresh, its candidate, and the reported steps."""
    root = tmp_path_factory.mktemp("refresh") / "data"
    shutil.copytree(made, root)
    steps: list[str] = []
    data = DataRoot.open(root)
    recorded = Recorded(data)
    done = refresh(
        TrainConfig(data, "providers", "m", QUICK), progress=lambda step, *_: steps.append(step), lineage=recorded
    )
    assert isinstance(done, Candidate)
    (root / "events.json").write_text(json.dumps(recorded.events))
    return data, done, steps


@pytest.fixture
def same_examples(materialised: Materialised, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy the examples of the first refresh instead of computing them from the same snapshot again."""

    def copy(root: Store, snapshot: Snapshot, folder: Path, *, cache: AnalysisCache) -> Materialised:
        assert snapshot.digest == materialised.snapshot
        shutil.copytree(materialised.folder, folder)
        return replace(materialised, folder=folder)

    monkeypatch.setattr("ciml.training.refresh.materialise", copy)


def test_a_first_refresh_is_a_blessed_candidate_with_all_figures(first: tuple[DataRoot, Candidate, list[str]]):
    data, done, steps = first
    metrics = read_object(data.trainer("m").read(f"metrics/{done.facts()['refresh']}.json"), "metrics")

    assert done.decision.blessed, done.decision.reasons
    assert steps == ["snapshot", "import", "materialise", "train", "export", "evaluate"]
    assert list(done.timings) == steps
    assert metrics == json.loads(json.dumps(done.metrics))
    assert metrics["evaluation"]["runs"] == 40
    assert metrics["evaluation"]["trained_on"] == 97 == sum(metrics["class_counts"].values())
    assert metrics["evaluation"]["accuracy"]["low"] > metrics["evaluation"]["base_rate"]["value"]
    assert metrics["disagreement"] <= 1e-5
    assert metrics["baselines"]["memory"]["runs"] == 40
    assert metrics["snapshot"]["untrusted"] == {"no rule": 23}
    assert metrics["snapshot"]["spans"] == [[1, 1], [2, 1], [3, 1]]
    assert metrics["materialised"] == {"analysed": 3, "cached": 0}
    assert metrics["experiment"] == QUICK.to_json()
    assert read_snapshot(data.trainer("m"), done.snapshot.digest) == done.snapshot
    assert sum(one["runs"] for one in metrics["evaluation"]["slices"]["job"].values()) == 40


def test_the_lineage_leads_from_the_raw_store_to_the_candidate(first: tuple[DataRoot, Candidate, list[str]]):
    data, done, _ = first
    events = json.loads(data.store.read("events.json"))
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


def test_the_metrics_are_those_of_the_exported_model(first: tuple[DataRoot, Candidate, list[str]]):
    data, done, _ = first
    _, test = read_snapshot_examples(data.dataset("providers").store, done.snapshot, "test")
    answers = load_exported(done.folder).predict(test.inputs, test.n_windows)
    assert done.metrics["evaluation"]["accuracy"]["right"] == int((answers.argmax(axis=1) == test.labels).sum())


def test_a_disagreement_with_answers_that_are_not_finite_is_unknown(
    first: tuple[DataRoot, Candidate, list[str]], materialised: Materialised
):
    data, done, _ = first

    def model(inputs: dict[str, np.ndarray], training: bool) -> np.ndarray:
        answers = np.full((len(inputs["inputs"]), 2), 0.5, np.float32)
        answers[0] = np.nan
        return answers

    exported = load_exported(done.folder)
    policy = GatePolicy()
    figures = assess(data.dataset("providers"), done.snapshot, materialised, model, exported, QUICK, None, policy)
    assert figures["evaluation"]["finite"]
    assert figures["disagreement"] is None


def test_the_same_again_is_nothing_new_and_another_experiment_is(first: tuple[DataRoot, Candidate, list[str]]):
    data, done, _ = first
    last = done.facts()["refresh"]
    steps: list[str] = []
    again = refresh(
        TrainConfig(data, "providers", "m", QUICK), last_key=last, progress=lambda step, *_: steps.append(step)
    )

    assert isinstance(again, Skipped)
    assert again.snapshot.digest == done.snapshot.digest
    assert again.reason.startswith("nothing new")
    assert steps == ["snapshot"]
    other = QUICK.replace(seed=5)
    assert refresh_key_of(done, other) != last


def refresh_key_of(done: Candidate, experiment: object) -> str:
    return str(replace(done, experiment=experiment).facts()["refresh"])  # type: ignore[arg-type]


@pytest.mark.usefixtures("same_examples")
def test_against_a_champion_on_the_same_runs(first: tuple[DataRoot, Candidate, list[str]], tmp_path: Path):
    data, done, _ = first
    shutil.copytree(done.folder, tmp_path / "champion")
    again = refresh(TrainConfig(data, "providers", "m2", QUICK), champion=Champion(tmp_path / "champion", 7))
    assert isinstance(again, Candidate)

    # the same runs and seed give the same model
    _, test = read_snapshot_examples(data.dataset("providers").store, done.snapshot, "test")
    answers = [load_exported(each.folder).predict(test.inputs, test.n_windows) for each in (done, again)]
    np.testing.assert_array_equal(*answers)
    assert again.metrics["champion"]["version"] == 7
    assert again.metrics["champion"]["accuracy"] == again.metrics["evaluation"]["accuracy"]
    assert again.metrics["comparison"]["difference"] == 0.0
    assert again.decision.blessed


@pytest.mark.usefixtures("same_examples")
def test_a_candidate_that_learned_nothing_is_rejected(first: tuple[DataRoot, Candidate, list[str]], tmp_path: Path):
    data, done, _ = first
    shutil.copytree(done.folder, tmp_path / "champion")
    poor = QUICK.replace(steps=1, epochs=1, hidden_layers=())
    work = tmp_path / "work"
    for age_s in range(1, 7):  # earlier candidates, the latest first
        for part in ("records", "model"):
            (work / f"earlier-{age_s}" / part).mkdir(parents=True)
        os.utime(work / f"earlier-{age_s}", (1e9 - age_s, 1e9 - age_s))
    with Steps(data.url).recording() as steps:
        bad = refresh(
            TrainConfig(data, "providers", "m3", poor), champion=Champion(tmp_path / "champion", 1), work=work
        )

    assert isinstance(bad, Candidate)
    assert not bad.decision.blessed
    assert any("against the champion" in reason for reason in bad.decision.reasons)
    # a model without its snapshot could not be purged: the snapshot is stored first
    assert steps.steps == ["create trainer/m3/snapshots/*.json", "replace trainer/m3/metrics/*.json"]
    key = bad.facts()["refresh"]
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == sorted(
        [key, *(f"earlier-{age_s}" for age_s in range(1, 5))]
    )
    assert [path.parent.name for path in work.glob("*/records")] == [key]
    assert len(list(work.glob("*/model"))) == 5


@pytest.mark.usefixtures("same_examples")
def test_a_damaged_champion_keeps_the_gate_closed(
    first: tuple[DataRoot, Candidate, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    data, _, _ = first
    (tmp_path / "champion").mkdir()
    done = refresh(TrainConfig(data, "providers", "m4", QUICK), champion=Champion(tmp_path / "champion", 1))

    assert isinstance(done, Candidate)
    assert not done.decision.blessed
    assert done.decision.reasons == (
        "the champion could not be evaluated on the same runs, so no comparison is possible",
    )
    assert f"the champion cannot be evaluated: {tmp_path}/champion is not an exported model" in caplog.text


def test_a_champion_of_another_definition_is_given_the_same_runs_prepared_its_way(
    first: tuple[DataRoot, Candidate, list[str]],
):
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
    found = right_answers(data.raw, Champion(done.folder, 1), mine.resolved, runs, test)
    theirs = {run.run_id: position for position, run in enumerate(done.snapshot.runs("test"))}
    _, their_test = read_snapshot_examples(data.dataset("providers").store, done.snapshot, "test")
    right = (
        load_exported(done.folder).predict(their_test.inputs, their_test.n_windows).argmax(axis=1) == their_test.labels
    )

    assert {run.run_id for run in runs} == set(theirs)  # one salt: the same split
    assert found.tolist() == [bool(right[theirs[run.run_id]]) for run in runs]


def test_a_run_without_an_answer_of_the_champion_is_wrong(made: Path, snapshot: Snapshot, tmp_path: Path):
    data = DataRoot.open(shutil.copytree(made, tmp_path / "data"))
    runs, test = read_snapshot_examples(data.dataset("providers").store, snapshot, "test")
    silent = save_model(tmp_path / "nan", definition=snapshot.resolved, spoil="nan")
    assert {run.label for run in runs} == {0, 1}  # also of the last class
    assert not right_answers(data.raw, Champion(silent, 1), snapshot.resolved, runs, test).any()

    other = DEFINITION.replace(columns=("total cpu usage:usr",), features=("usr",), classes=snapshot.resolved.classes)
    champion = Champion(save_model(tmp_path / "other", definition=other), 1)
    before = right_answers(data.raw, champion, snapshot.resolved, runs, test)
    assert before.any()
    for file in files_of(ManifestLog(data.raw), [run.run_id for run in runs]).values():
        path = Path(data.url, "raw", file.path)
        path.write_bytes(write_run(pq.read_table(path).drop_columns(["total cpu usage:usr"]), file.path))
    assert not right_answers(data.raw, champion, snapshot.resolved, runs, test).any()
    nothing = right_answers(data.raw, champion, snapshot.resolved, [], test.take(np.zeros(0, np.int64)))
    assert nothing.tolist() == []  # a test split without runs: the gate says so


@pytest.mark.whole
def test_more_runs_are_a_new_snapshot_and_only_the_new_span_is_analysed(first: tuple[DataRoot, Candidate, list[str]]):
    data, done, _ = first
    more = [
        (by_recording(run).replace(source="zuul", pipeline="gate", run_id=f"zuul~more-{number}~1"), table)
        for number, (run, table) in enumerate(zip(*corpus(60)[:2], strict=True))
    ]
    RawStore(data).add(more)
    update_dataset(data.dataset("providers"), seal=True)
    again = refresh(TrainConfig(data, "providers", "m", QUICK), last_key=done.facts()["refresh"])

    assert isinstance(again, Candidate)
    assert again.metrics["materialised"] == {"analysed": 1, "cached": 3}
    assert len(list(again.snapshot.runs())) == 137 + 60
    # the last candidate stays on disk, its records do not
    assert done.folder.is_dir()
    assert not (done.folder.parent / "records").exists()
    assert (again.folder.parent / "records").is_dir()


def test_two_trainers_of_one_model_do_not_meet(first: tuple[DataRoot, Candidate, list[str]]):
    data, _, _ = first
    with (
        FileLock(Path(data.url, "trainer/m/work/.lock")),
        pytest.raises(CimlError, match="model 'm' is being trained by another process"),
    ):
        refresh(TrainConfig(data, "providers", "m", QUICK))


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["constant features", "permuted labels"])
def test_the_gate_rejects_what_learned_nothing_of_real_runs(tmp_path: Path, kind: str):
    column = "total cpu usage:usr"
    runs, tables, _ = corpus(200)
    outcomes = [run.outcome for run in runs]
    if kind == "permuted labels":
        outcomes = np.random.default_rng(0).permutation(outcomes).tolist()
    else:
        tables = [
            table.set_column(table.column_names.index(column), column, pa.array([7.0] * table.num_rows))
            for table in tables
        ]
    data = DataRoot.open(tmp_path / "data")
    stored = [
        run.replace(source="zuul", pipeline="gate", outcome=outcome)
        for run, outcome in zip(runs, outcomes, strict=True)
    ]
    RawStore(data).add(list(zip(stored, tables, strict=True)))
    definition = DatasetDefinition(
        name="status", class_label="status", features_regex="^usr$", sample_interval="5s",
        aggregation_functions=("mean",), tdt_split=(5, 0, 5), span_runs=500,
    )  # fmt: skip
    create_dataset(data, definition)
    update_dataset(data.dataset("status"), seal=True)
    candidate = refresh(TrainConfig(data, "status", "m", QUICK))
    assert isinstance(candidate, Candidate)
    assert not candidate.decision.blessed
    assert any("does not beat the base rate" in reason for reason in candidate.decision.reasons)
    assert list(candidate.metrics["baselines"]) == ["duration", "memory"]
    for baseline in candidate.metrics["baselines"].values():
        assert baseline["comparison"]["runs"] == candidate.metrics["evaluation"]["runs"]


def test_nothing_trusted_nothing_trained(data: DataRoot):
    none = TrustPolicy.parse('[[rule]]\nname = "merged"\ntrusted = true\npipeline = "post"\n')
    with pytest.raises(CimlError, match="no training runs: 160 examples are untrusted"):
        refresh(TrainConfig(data, "providers", "m", QUICK, trust=none, gate=GatePolicy()))
    assert not (Path(data.url) / "trainer/m/metrics").exists()

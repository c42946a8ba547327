from __future__ import annotations

import io
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import sem, t

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.intervals import wilson
from ciml.pipelines.datasets.update import create_dataset, update_dataset
from ciml.storage import Store
from ciml.training.data.examples import InMemoryDataset, read_dataset
from ciml.training.data.materialise import Materialised
from ciml.training.data.snapshot import Snapshot
from ciml.training.evaluation import cross_validation
from ciml.training.evaluation.baselines import first_memory, predict_test_runs
from ciml.training.evaluation.cross_validation import cross_validate, predict_fold, split_folds
from ciml.training.evaluation.metrics import accuracy, scores
from ciml.training.evaluation.text import other_lines, result_lines
from ciml.training.experiment import Experiment
from ciml.training.experiments.results import create_experiment, experiment_names, load_experiment, results_of
from ciml.training.experiments.trials import Trial
from ciml.transforms.examples.prepare import subject_of
from ciml.trust import TrustPolicy
from tests.durable import Steps
from tests.runs.scenes import RawStore
from tests.training.records import excluding, written
from tests.transforms.samples import make_facts
from tests.transforms.samples import table as telemetry

FOREST = Experiment(name="forest", estimator="random_forest", parameters={"n_estimators": 20})
SMALL = Experiment(name="small", hidden_layers=(16,), epochs=20, learning_rate=0.01)


pytestmark = pytest.mark.usefixtures("few_resamples")


def trial(data: DataRoot, dataset: InMemoryDataset, experiment: Experiment = FOREST) -> Trial:
    create_experiment(data.experiments, experiment)
    return Trial(data.experiments, load_experiment(data.experiments, experiment.name), dataset)


def test_an_experiment_is_stored_once(tmp_path: Path):
    data = DataRoot.open(tmp_path)
    assert create_experiment(data.experiments, SMALL) is True
    assert create_experiment(data.experiments, SMALL) is False
    assert load_experiment(data.experiments, "small") == SMALL
    with pytest.raises(CimlError, match="'small' exists with other values: epochs is 20, not 21; choose another"):
        create_experiment(data.experiments, SMALL.replace(epochs=21))
    assert load_experiment(data.experiments, "small") == SMALL
    create_experiment(data.experiments, FOREST)
    assert experiment_names(data.experiments) == ["forest", "small"]
    with pytest.raises(CimlError, match=r"no experiment 'none' in .*; define it first"):
        load_experiment(data.experiments, "none")
    with pytest.raises(CimlError, match="is not valid"):
        load_experiment(data.experiments, "../small")
    (tmp_path / "experiments/small/experiment.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"experiment\.json is unreadable"):
        load_experiment(data.experiments, "small")


def test_the_snapshot_is_that_of_the_raw_manifest_and_needs_no_raw_store(
    data: DataRoot, dataset: InMemoryDataset, snapshot: Snapshot
):
    assert dataset.snapshot == snapshot
    shutil.rmtree(Path(data.url, "raw"))
    assert read_dataset(data.dataset("providers"), TrustPolicy.load()).snapshot.digest == snapshot.digest
    left_out = dataset.facts[3].run_id
    fewer = read_dataset(data.dataset("providers"), TrustPolicy.load(), excluding({left_out: "a leak"}))
    assert left_out not in {each.run_id for each in fewer.facts}
    assert fewer.snapshot.excluded == {"a leak": 1}


def test_normalised_examples_are_those_that_tf_transform_materialises(
    dataset: InMemoryDataset, materialised: Materialised, snapshot: Snapshot
):
    normal = dataset.normalisation().apply(dataset.rows.inputs)
    seen = 0
    for role in ("train", "dev", "test"):
        for ordinal, (inputs, n_windows, label) in written(materialised, role, snapshot).items():
            np.testing.assert_allclose(normal[ordinal], inputs, atol=1e-6)
            assert (dataset.rows.n_windows[ordinal], dataset.rows.labels[ordinal]) == (n_windows, label)
            assert dataset.roles[ordinal] == role
            seen += 1
    assert seen == len(dataset.facts)


def answers(one: Trial, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stored predictions of a trial."""
    return pq.read_table(io.BytesIO(one.store.read(result["predictions"]))).to_pylist()


@pytest.mark.parametrize("experiment", [FOREST, SMALL], ids=["forest", "network"])
def test_a_trial_runs_once_and_stores_all_results(data: DataRoot, dataset: InMemoryDataset, experiment: Experiment):
    one = trial(data, dataset, experiment)
    result, new = one.run()
    test = dataset.of("test")
    assert new
    assert result["test"]["runs"] == test.size
    assert result["dev"] is None  # dev was taken from train, and is trained on
    assert result["training"]["runs"] == dataset.of("train", "dev").size
    assert result["experiment"] == experiment.to_json()
    memory = predict_test_runs("memory", data.raw, dataset.snapshot, {run.run_id: run for run in dataset.facts})
    assert memory is not None
    baseline = result["baselines"]["memory"]["accuracy"]
    assert (baseline["right"], baseline["runs"]) == (memory.right.sum(), len(memory.right))
    assert set(result["test"]["slices"]) == {"job", "provider"}
    assert sum(each["runs"] for each in result["test"]["slices"]["provider"].values()) == test.size
    rows = answers(one, result)
    assert [row["run_id"] for row in rows] == [dataset.facts[position].run_id for position in test]
    changes = dataset.changes(test)
    assert [row["change"] for row in rows] == changes.tolist()
    assert result["test"]["changes"] == len(set(changes.tolist())) < test.size
    assert baseline == accuracy(memory.right, changes)
    right = sum(row["label_name"] == row["predicted"] for row in rows)
    assert right == result["test"]["accuracy"]["right"] > result["test"]["base_rate"]["right"]
    assert results_of(data.experiments, experiment.name) == [result]
    again = trial(data, dataset, experiment)
    assert again.run() == (result, False)
    assert "fitted" not in again.__dict__  # nothing was trained


def test_early_stopping_keeps_dev_apart(data: DataRoot, dataset: InMemoryDataset):
    patient = SMALL.replace(name="patient", early_stopping=3)
    result, _ = trial(data, dataset, patient).run()
    assert result["training"]["runs"] == dataset.of("train").size
    assert result["dev"]["runs"] == dataset.of("dev").size > 0
    assert result["training"]["best_epoch"] <= result["training"]["epochs"]


def test_a_calibration_keeps_dev_apart_and_moves_probabilities_not_classes(data: DataRoot, dataset: InMemoryDataset):
    plain, sure = (
        trial(data, dataset, FOREST.replace(name=name, calibration=method))
        for name, method in (("plain", None), ("sure", "temperature"))
    )
    result, _ = sure.run()
    assert result["training"]["runs"] == dataset.of("train").size
    assert plain.run()[0]["training"]["runs"] == dataset.of("train", "dev").size
    calibration = result["calibration"]
    assert (calibration["runs"], calibration["method"]) == (dataset.of("dev").size, "temperature")
    assert "verdicts" not in result  # a provider is no cause
    rows = sure.rows_at(dataset.of("test"))
    raw = sure.fitted.predict(rows.inputs, rows.n_windows)
    logits = np.log(np.maximum(raw, 1e-300)) / calibration["temperature"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = (1 - calibration["doubt"]) * shares + calibration["doubt"] / shares.shape[1]
    found = scores(
        shares, rows.labels, dataset.snapshot.resolved.classes, dataset.rows.labels[sure.train_positions], resamples=0
    )
    assert result["test"]["log_loss"] == pytest.approx(found["log_loss"], abs=1e-4)
    assert result["test"]["accuracy"]["value"] == found["accuracy"]["value"]
    own = -np.log(np.clip(raw[np.arange(len(raw)), rows.labels], 1e-7, 1)).mean()
    assert calibration["before"]["log_loss"] == pytest.approx(own)
    assert calibration["temperature"] != 1.0
    folds, _ = sure.cross_validate(3, ("change",))
    assert folds["pooled"]["runs"] == dataset.of("train", "dev").size
    assert f"calibrated by temperature {calibration['temperature']:.2f} on" in "\n".join(result_lines(result))


def test_the_result_is_written_last_and_a_trial_that_died_is_repeated(data: DataRoot, dataset: InMemoryDataset):
    def run(name: str, before: int | None = None) -> tuple[list[str], Store]:
        root = DataRoot(data.store.child(name))
        with Steps(root.url, before).recording() as steps:
            trial(root, dataset).run()
        return steps.steps, Trial(root.experiments, FOREST, dataset).store

    steps, whole = run("whole")
    assert steps == [
        "create experiments/forest/experiment.json",
        "create experiments/forest/results/providers/*/predictions-*.parquet",
        "create experiments/forest/results/providers/*/result.json",
    ]
    for before in range(3):
        assert "result.json" not in run(str(before), before)[1].list()
        again = run(str(before))[1]
        assert {path: again.read(path) for path in again.list()} == {path: whole.read(path) for path in whole.list()}
    whole.replace("result.json", b"{")
    with pytest.raises(IntegrityError, match=r"result\.json is unreadable"):
        run("whole")


def test_a_data_set_or_an_estimator_that_cannot_be_used_is_reported(data: DataRoot, dataset: InMemoryDataset):
    empty = read_dataset(data.dataset("providers"), TrustPolicy.from_json({}))
    with pytest.raises(CimlError, match="'providers' has no training runs: 160 examples are untrusted"):
        trial(data, empty).run()
    with pytest.raises(CimlError, match="estimator cnn needs windows, but data set 'providers' holds aggreg"):
        trial(data, dataset, Experiment(name="cnn", estimator="cnn")).run()


def other_set(data: DataRoot, **keys: Any) -> InMemoryDataset:
    definition = read_dataset(data.dataset("providers"), TrustPolicy.load()).snapshot.resolved.definition
    name = keys["name"]
    create_dataset(data, DatasetDefinition.from_json({**definition.to_json(), **keys}))
    update_dataset(data.dataset(name), seal=True)
    return read_dataset(data.dataset(name), TrustPolicy.load())


def subject(dataset: InMemoryDataset, position: int) -> str:
    """Return the change of a run."""
    run = dataset.facts[position]
    return subject_of(run.project, run.change, run.run_id)


def test_a_model_is_evaluated_on_another_data_set_by_the_names_of_classes(data: DataRoot, dataset: InMemoryDataset):
    classes = dataset.snapshot.resolved.classes
    # its classes are in another order, and one of them is renamed: the model does not have it
    order = [*classes[:0:-1], "elsewhere"]
    renamed = {name: name if name in order else "elsewhere" for name in classes}
    other = other_set(data, name="renamed", salt="another", classes=order, class_map=renamed)
    one = trial(data, dataset)
    found, new = one.run_on(other)
    assert new
    assert one.run_on(other) == (found, False)
    seen = {subject(dataset, position) for position in one.train_positions}
    unseen = [position for position in other.of("test") if subject(other, position) not in seen]
    names = {position: order[other.rows.labels[position]] for position in unseen}
    test = [position for position in unseen if names[position] in classes]
    left_out = {"trained_on": other.of("test").size - len(unseen), "unknown_class": len(unseen) - len(test)}
    assert found["test"]["runs"] == len(test) > 0
    assert found["left_out"] == {**left_out, "dev": 0}
    assert min(left_out.values()) > 0
    rows = one.rows_at(np.array(test), other)
    answers = [classes[label] for label in one.fitted.predict(rows.inputs, rows.n_windows).argmax(axis=1)]
    assert found["test"]["accuracy"]["right"] == sum(map(str.__eq__, answers, (names[position] for position in test)))
    assert found["test"]["accuracy"]["right"] > 0
    learned = dataset.facts[one.train_positions[0]]
    facts = list(other.facts)
    facts[test[0]] = facts[test[0]].replace(project=learned.project, change=learned.change)  # another run of a change
    assert learned.change
    assert one._result_on(replace(other, facts=facts))["left_out"]["trained_on"] == left_out["trained_on"] + 1
    resolved = other.snapshot.resolved
    definition = resolved.definition.replace(sample_interval="2s")
    coarser = replace(other, snapshot=other.snapshot.replace(resolved=resolved.replace(definition=definition)))
    with pytest.raises(CimlError, match="'renamed' cannot be evaluated: its sample_interval is 2s, but the model"):
        one.run_on(coarser)


def test_dev_runs_are_not_tested_on_another_data_set(data: DataRoot, dataset: InMemoryDataset):
    other = other_set(data, name="other-split", salt="another")
    calibrated = trial(data, dataset, FOREST.replace(name="sure", calibration="temperature"))
    found, _ = calibrated.run_on(other)
    test = {subject(dataset, position) for position in dataset.of("test")}
    tested = [position for position in other.of("test") if subject(other, position) in test]
    dev = {subject(dataset, position) for position in dataset.of("dev")}
    assert found["test"]["runs"] == len(tested) > 0
    assert found["left_out"]["dev"] == sum(subject(other, position) in dev for position in other.of("test")) > 0
    assert f"{found['left_out']['dev']} dev" in other_lines(found)[0]


def test_an_unanswered_run_has_no_predicted_class(data: DataRoot, dataset: InMemoryDataset):
    class Diverged:
        def predict(self, inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
            return np.full((len(inputs), len(dataset.snapshot.resolved.classes)), np.nan)

        def to_json(self) -> dict[str, Any]:
            return {"runs": 1}

    one = trial(data, dataset)
    one.__dict__["fitted"] = Diverged()
    result, _ = one.run()
    assert {row["predicted"] for row in answers(one, result)} == {None}
    assert result["test"]["accuracy"]["right"] == 0


def _nearest_memory(dataset: InMemoryDataset, positions: np.ndarray, found: dict[str, Any]) -> float:
    """Return the share of runs with the provider of the nearest run by memory in the other folds."""
    runs = [dataset.facts[position] for position in positions]
    memory = first_memory(dataset.raw, [run.run_id for run in runs])
    flavours, labels = np.array([run.flavour for run in runs]), dataset.rows.labels[positions]
    right = 0
    for fold in found["folds"]:
        held = np.isin(flavours, fold["held_out"])
        nearest = np.abs(memory[held][:, None] - memory[~held]).argmin(axis=1)
        right += int((labels[~held][nearest] == labels[held]).sum())
    return right / len(runs)


def test_logs_without_memory_have_no_first_memory(tmp_path: Path):
    data = DataRoot.open(tmp_path / "data")
    runs = [(make_facts(number), telemetry([0, 1_000_000], usr=[1.0, 2.0])) for number in range(3)]
    RawStore(data).add(runs)
    assert np.isnan(first_memory(data.raw, [facts.run_id for facts, _ in runs])).all()


def test_folds_that_are_all_right_have_the_interval_of_their_runs(dataset: InMemoryDataset):
    known = replace(dataset, rows=replace(dataset.rows, inputs=dataset.rows.inputs.copy()))
    known.rows.inputs[:] = known.rows.labels[:, np.newaxis, np.newaxis]  # the answer
    folds = cross_validate(FOREST, known, folds=3)
    accuracy = folds["pooled"]["accuracy"]
    changes = accuracy["independent"]
    assert changes < accuracy["runs"]
    assert folds["mean"]["accuracy"] == {"value": 1.0, "low": wilson(changes, changes)[0], "high": 1.0}
    assert folds["mean"]["accuracy"]["low"] < 0.99


def test_folds_hold_whole_groups_out_and_leave_the_test_runs_unread(data: DataRoot, dataset: InMemoryDataset):
    one = trial(data, dataset)
    found, new = one.cross_validate(4, ("flavour",))
    flavours = [each["held_out"] for each in found["folds"]]
    assert new
    assert one.cross_validate(4, ("flavour",)) == (found, False)
    positions = dataset.of("train", "dev")
    assert sorted(itertools.chain(*flavours)) == sorted({dataset.facts[position].flavour for position in positions})
    assert sum(each["accuracy"]["runs"] for each in found["folds"]) == found["pooled"]["runs"] == positions.size
    accuracies = [each["accuracy"]["value"] for each in found["folds"]]
    assert found["mean"]["accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    right = sum(each["accuracy"]["right"] for each in found["folds"])
    assert found["pooled"]["accuracy"]["right"] == right
    memory = found["baselines"]["memory"]
    assert memory["pooled"]["accuracy"]["runs"] == positions.size
    assert memory["pooled"]["accuracy"]["value"] == pytest.approx(_nearest_memory(dataset, positions, found))
    blind = replace(dataset, rows=replace(dataset.rows, inputs=dataset.rows.inputs.copy()))
    blind.rows.inputs[dataset.of("test")] = np.nan
    assert cross_validate(FOREST, blind, folds=4, hold_out=("flavour",)) == found
    noise = np.random.default_rng(0).permutation(dataset.rows.labels)
    by_chance = cross_validate(FOREST, replace(dataset, rows=replace(dataset.rows, labels=noise)), folds=4)
    for name, values in (
        ("accuracy", [each["accuracy"]["value"] for each in by_chance["folds"]]),
        ("f1", [each["f1"] for each in by_chance["folds"]]),
    ):
        student = t.interval(0.95, 3, np.mean(values), sem(values))
        low, high = wilson(np.mean(values) * positions.size, positions.size)
        want = {
            "value": np.mean(values),
            "low": min(low, max(student[0], 0.0)),
            "high": max(high, min(student[1], 1.0)),
        }
        assert by_chance["mean"][name] == pytest.approx(want)
    machine = Experiment(name="svm", estimator="svm")
    split = split_folds(dataset, folds=4, hold_out=("flavour",))
    first, *others = split.positions[split.folds[0].held_out]
    far = replace(dataset, rows=replace(dataset.rows, inputs=dataset.rows.inputs.copy()))
    far.rows.inputs[first] *= 1e6  # a held-out run changes no other one's prediction, not even by the normalisation
    before, after = (predict_fold(machine, each, split, 0) for each in (dataset, far))
    np.testing.assert_array_equal(before[1:], after[1:])
    assert len(others) == len(before) - 1 > 0
    by_run, _ = one.cross_validate(3, ())
    assert [each["held_out"] for each in by_run["folds"]] == [[], [], []]
    with pytest.raises(CimlError, match="no run of 'providers' has the fact 'weather'"):
        one.cross_validate(3, ("weather",))
    alone = replace(dataset, facts=tuple(facts.replace(change="") for facts in dataset.facts))
    groups = split_folds(alone, folds=3, hold_out=("change",)).groups
    assert groups is not None
    assert len(np.unique(groups)) == len(groups)


def test_held_out_runs_are_predicted_with_their_numbers_of_windows(
    dataset: InMemoryDataset, monkeypatch: pytest.MonkeyPatch
):
    def predict(inputs: np.ndarray, n_windows: np.ndarray) -> np.ndarray:
        return np.column_stack([n_windows, np.zeros(len(inputs))])

    monkeypatch.setattr(cross_validation, "fit", lambda *_, **__: SimpleNamespace(predict=predict))
    split = split_folds(dataset, folds=4)
    held_out = split.folds[0].held_out
    expected = dataset.rows.n_windows[split.positions[held_out]]
    np.testing.assert_array_equal(predict_fold(FOREST, dataset, split, 0)[:, 0], expected)


def few_runs(dataset: InMemoryDataset, facts: list[dict[str, Any]]) -> InMemoryDataset:
    """Return a data set of training runs, of two classes in turn, with these facts."""
    labels = dataset.rows.labels
    of_class = [np.flatnonzero(labels == label)[: len(facts) // 2] for label in np.unique(labels)[:2]]
    positions = np.array(of_class).T.ravel()
    runs = [dataset.facts[position].replace(**keys) for position, keys in zip(positions, facts, strict=True)]
    roles = np.full(len(runs), "train", "U5")
    return replace(dataset, facts=tuple(runs), rows=dataset.rows.take(positions), roles=roles)


def test_folds_of_groups_need_as_many_runs_of_a_class(dataset: InMemoryDataset):
    runs = few_runs(dataset, [{"build_name": f"job-{number}"} for number in range(8)])
    assert len(split_folds(runs, folds=4, hold_out=("job",)).folds) == 4
    with pytest.raises(CimlError, match="8 runs have too few runs of a class for 5 folds"):
        split_folds(runs, folds=5, hold_out=("job",))


def test_folds_that_leave_a_single_class_or_no_group_name_the_held_out_groups(dataset: InMemoryDataset):
    runs = few_runs(dataset, [{"build_name": f"job-{job}"} for job in (0, 0, 0, 1, 1, 1)])
    labels = np.array([0, 0, 0, 1, 1, 1])
    of_one_job = replace(runs, rows=replace(runs.rows, labels=labels))
    with pytest.raises(CimlError, match=r"without job-[01], the training runs of a fold have a single class"):
        cross_validate(FOREST, of_one_job, folds=2, hold_out=("job",))
    one_failed = replace(runs, rows=replace(runs.rows, labels=np.array([0, 0, 0, 0, 0, 1])))
    with pytest.raises(CimlError, match="cross-validation: the training runs of a fold have a single class"):
        cross_validate(FOREST, one_failed, folds=2)
    uneven = few_runs(dataset, [{"build_name": f"job-{job}"} for job in (0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3)])
    mixed = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 1])  # StratifiedGroupKFold makes an empty fold of these
    uneven = replace(uneven, rows=replace(uneven.rows, labels=mixed))
    assert all(len(fold.held_out) for fold in split_folds(uneven, folds=4, hold_out=("job",)).folds)


def test_values_with_a_slash_do_not_merge_groups(dataset: InMemoryDataset):
    facts = [{"build_name": "a/b", "flavour": "c"}, {"build_name": "a", "flavour": "b/c"}]
    facts += [{"build_name": "a/d", "flavour": "c"}, {"build_name": "a", "flavour": "c"}]
    groups = split_folds(few_runs(dataset, facts), folds=2, hold_out=("job", "flavour")).groups
    assert groups is not None
    assert groups.tolist() == ["'a/b' / 'c'", "'a' / 'b/c'", "a/d/c", "a/c"]


@pytest.mark.parametrize(
    ("keys", "need"), [({"calibration": "temperature"}, "calibration"), ({"early_stopping": 2}, "early stopping")]
)
def test_a_fold_without_dev_runs_is_rejected_where_they_are_needed(
    dataset: InMemoryDataset, keys: dict[str, Any], need: str
):
    runs = few_runs(dataset, [{}] * 8)
    with pytest.raises(CimlError, match=f"{need} needs dev runs in each fold; use fewer folds, or leave it out"):
        cross_validate(SMALL.replace(**keys), runs, folds=2)

"""Sweeps over real runs: each trial is what a direct computation gives, whatever is parallel, pruned or killed."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.pipelines import sweep
from ciml.pipelines.processes import process_pool
from ciml.pipelines.sweep import SweepContext, Swept, run_sweep
from ciml.reports.sweeps import define_lines
from ciml.training.data.examples import InMemoryDataset, read_dataset
from ciml.training.evaluation import metrics as scoring
from ciml.training.evaluation.baselines import number_of, predict_by
from ciml.training.evaluation.cross_validation import CVSplit, cross_validate, split_folds
from ciml.training.experiments.results import load_experiment
from ciml.training.sweeps.definition import Sweep
from ciml.training.sweeps.study import sweep_store
from ciml.trust import TrustPolicy
from tests.training.conftest import made  # noqa: F401  (a fixture)

pytestmark = pytest.mark.whole

SUMMARY = {"aggregation_functions": ["mean", "std"], "class_label": "provider", "sample_interval": "1s"}
#: From the machines of the corpus to their number of cores.
CORES = {"one-core": "one", "one-core-0.75": "one", "two-core": "two", "two-core-1.3": "two"}
FOREST = {"estimator": "random_forest", "parameters": {"n_estimators": 12}}
GRID: dict[str, Any] = {
    "name": "grid",
    "dataset": {**SUMMARY, "class_label": "flavour"},
    "experiment": FOREST,
    "vary": {
        "dataset": {"features_regex": ["usr", "(usr|1min)", "nosuch"], "class_map": {"four": {}, "two": CORES}},
        "experiment": {"parameters": {"max_depth": [1, 8]}},
    },
    "startup_trials": 1,
    "lag": 2,
}
SAMPLED: dict[str, Any] = {
    "name": "sampled",
    "dataset": SUMMARY,
    "experiment": FOREST,
    "vary": {"experiment": {"parameters": {"max_depth": {"low": 1, "high": 3}, "criterion": ["gini", "entropy"]}}},
    "trials": 9,
    "startup_trials": 2,
    "lag": 2,
}


def context(source: Path, target: DataRoot, keys: dict[str, Any]) -> SweepContext:
    return SweepContext(DataRoot.open(source), target, Sweep.from_json(keys, "tests.toml"), TrustPolicy.load())


def lasting(swept: Swept) -> list[dict[str, Any]]:
    """The outcomes without their time."""
    return [{**each.to_json(), "seconds": 0} for each in swept.outcomes]


def stored(target: DataRoot, name: str) -> dict[str, bytes]:
    store = sweep_store(target.sweeps, name)
    return {path: store.read(path) for path in store.list()}


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRoot, Swept]:  # noqa: F811
    """`GRID`, run by two processes in one go, and where."""
    target, reports = DataRoot.open(tmp_path_factory.mktemp("whole")), list[tuple[int, int]]()
    found = run_sweep(context(made, target, GRID), jobs=2, progress=lambda step, done, of: reports.append((done, of)))
    assert reports == [(number, 12) for number in range(1, 13)]
    return target, found


@pytest.fixture(autouse=True)
def _trials_of_one_job_train_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes seconds to start; those of several jobs are real."""

    def make_pool(jobs: int, *arguments: Any) -> Any:
        return ThreadPoolExecutor(1) if jobs == 1 else process_pool(jobs, *arguments)

    monkeypatch.setattr(sweep, "process_pool", make_pool)


def test_any_estimator_is_swept_and_its_printed_command_defines_it_again(
    made: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "RESAMPLES", 2)
    steps = [["scale", {"class": "StandardScaler"}], ["model", {"class": "LogisticRegression"}]]
    vary = {
        "estimator": ["Pipeline", "tests.training.estimators.user_models:Shares"],
        "parameters": {"model__C": [0.5], "scale": {"robust": {"class": "RobustScaler"}}, "weight": [2.0]},
    }
    keys = {"dataset": SUMMARY, "experiment": {"parameters": {"steps": steps}}, "vary": {"experiment": vary}}
    target = DataRoot.open(tmp_path)
    swept = run_sweep(context(made, target, {"name": "any", **keys}), jobs=1)
    assert [(outcome.state, outcome.reason) for outcome in swept.outcomes] == [("complete", "")] * 2
    for outcome in swept.outcomes:
        combination = swept.sweep.combine(outcome.parameters)
        examples = read_dataset(target.dataset(outcome.dataset), TrustPolicy.load())
        direct = cross_validate(combination.experiment, examples, folds=3, allow_modules=swept.sweep.modules)
        assert outcome.value == direct["pooled"]["accuracy"]["value"]
        define, train = (shlex.split(line)[1:] for line in define_lines(swept, outcome, str(tmp_path)))
        for words in (define, train):
            done = CliRunner().invoke(cli, words)
            assert done.exit_code == 0, done.output
        name = f"any-{outcome.number}"
        assert load_experiment(target.experiments, name).to_json() == {**outcome.experiment, "name": name}


def test_each_trial_is_what_a_direct_computation_gives(
    whole: tuple[DataRoot, Swept], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "RESAMPLES", 2)
    target, swept = whole
    assert [dict(each.parameters) for each in swept.outcomes] == list(swept.sweep.grid)
    states = Counter((each.parameters["features_regex"] == "nosuch", each.state) for each in swept.outcomes)
    assert states[True, "failed"] == 4
    assert states[False, "failed"] == 0
    assert states[False, "pruned"] >= 1
    for each in swept.outcomes:
        if each.state == "failed":
            assert each.reason.startswith("features_regex 'nosuch' matches none of the columns usr, sys")
            continue
        material = read_dataset(target.dataset(each.dataset), TrustPolicy.load())
        definition = material.snapshot.resolved.definition
        combination = swept.sweep.combine(each.parameters, definition.raw_version)
        assert (definition, each.snapshot) == (combination.definition, material.snapshot.digest)
        direct = cross_validate(combination.experiment, material, folds=3)
        first = direct["folds"][0]["accuracy"]
        assert each.steps[0] == (1, first["value"])
        if each.state == "pruned":
            assert (each.value, len(each.steps) < 3, each.low, each.scores) == (each.steps[-1][1], True, None, {})
            others = [one for one in swept.outcomes if one.question == each.question and one.steps]
            assert each.steps[0][1] <= max(one.steps[0][1] for one in others)
            continue
        pooled = direct["pooled"]
        assert {"value": each.value, "low": each.low, "high": each.high} == {
            key: pooled["accuracy"][key] for key in ("value", "low", "high")
        }
        assert each.scores == {
            "accuracy": pooled["accuracy"]["value"],
            "f1": pooled["macro"]["f1"]["value"],
            "base_rate": pooled["base_rate"]["value"],
        }
        division = split_folds(material, folds=3)
        assert (each.held_out, each.trained_on) == (pooled["runs"], len(division.folds[2].train))
        number = swept.baselines[each.question]["memory"]["value"]
        assert number == pytest.approx(_by_memory(material, division))


def _by_memory(material: InMemoryDataset, division: CVSplit) -> float:
    """The accuracy of memory alone, by the same folds."""
    values, labels = number_of(material.raw, "memory", material.facts), material.rows.labels
    assert values is not None
    right = 0
    for learned, held in division.folds:
        known, asked = division.positions[learned], division.positions[held]
        answers = predict_by("memory", values[known], labels[known], values[asked], int(labels.max()) + 1)
        right += int((answers.argmax(axis=1) == labels[asked]).sum())
    return right / len(division.positions)


def test_the_same_again_trains_nothing_and_changes_nothing(whole: tuple[DataRoot, Swept], made: Path) -> None:  # noqa: F811
    target, swept = whole
    before = stored(target, "grid")
    assert swept.trained == 8
    again = run_sweep(context(made, target, GRID), jobs=1)
    assert (again.trained, again.outcomes, again.baselines) == (0, swept.outcomes, swept.baselines)
    assert stored(target, "grid") == before


def test_the_command_shows_what_is_stored_and_how_to_test_the_best(
    whole: tuple[DataRoot, Swept],
    made: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    target, swept = whole
    file = tmp_path / "sweep.toml"
    file.write_text(Sweep.from_json(GRID).to_toml())
    places = ["--data-path", str(made), "--target-data-path", target.url, "--output", str(tmp_path / "page")]
    done = CliRunner().invoke(cli, ["experiment", "sweep", str(file), *places], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    for each in swept.outcomes:
        row = next(line for line in lines if line.startswith("│") and line.split("│")[1].strip() == str(each.number))
        assert (f" {each.value:.3f} " if each.value is not None else each.reason[:60]) in row
    pruned = sum(each.state == "pruned" for each in swept.outcomes)
    assert f"12 trials: {8 - pruned} complete, {pruned} pruned, 4 failed; 0 trained now" in lines
    assert lines[-1] == str(tmp_path / "page/index.html")
    for question, name in enumerate(("four", "two")):
        found = [each for each in swept.outcomes if (each.question, each.state) == (question, "complete")]
        best = max(found, key=lambda each: (each.value or 0.0, -each.number))
        shown = lines[lines.index(f"# trial {best.number}, {name}") :]
        depth = {"1": 1, "8": 8}[str(best.parameters["parameters.max_depth"])]
        define = f"ciml experiment define grid-{best.number} --estimator random_forest -p max_depth={depth} -p"
        assert shown[1].startswith(define)
        train = f"ciml experiment train --experiment grid-{best.number} --dataset {best.dataset} --da"
        assert shown[2].startswith(train)


def test_a_sampled_sweep_goes_on_as_if_nothing_had_been_and_trains_nothing_twice(made: Path, tmp_path: Path) -> None:  # noqa: F811
    target = DataRoot.open(tmp_path)
    few = run_sweep(context(made, target, {**SAMPLED, "trials": 6}), jobs=1)
    more = run_sweep(context(made, target, SAMPLED), jobs=1)
    same = [each for each in more.outcomes if each.same_as is not None]
    assert same  # of 9 trials of 6 combinations
    for each in same:
        first = more.outcomes[each.same_as or 0]
        assert (each.parameters, each.value, each.steps) == (first.parameters, first.value, first.steps)
        assert each.seconds == 0
    assert few.trained + more.trained == 9 - len(same)
    assert lasting(more)[:6] == lasting(few)

    store = sweep_store(target.sweeps, "sampled")  # as a killed sweep leaves it: each trial is one object
    for number in range(3, 9):
        store.delete(f"trials/{number:06}.json")
    before = stored(target, "sampled")
    again = run_sweep(context(made, target, SAMPLED), jobs=2)
    assert lasting(again) == lasting(more)
    assert again.trained == sum(each.same_as is None for each in more.outcomes[3:])
    assert before.items() <= stored(target, "sampled").items()


def test_what_is_stored_of_another_sweep_is_not_taken(made: Path, data: DataRoot) -> None:  # noqa: F811
    keys = {**GRID, "name": "small", "vary": {"dataset": {"features_regex": ["usr", "1min"]}}, "pruner": "none"}
    swept = run_sweep(context(made, data, keys), jobs=1)
    assert [each.state for each in swept.outcomes] == ["complete", "complete"]
    store = sweep_store(data.sweeps, "small")
    other = {**swept.outcomes[1].to_json(), "parameters": swept.outcomes[0].to_json()["parameters"]}
    store.replace("trials/000001.json", json.dumps(other).encode())
    with pytest.raises(IntegrityError, match=r"000001\.json has other parameters than trial 1 of the sweep"):
        run_sweep(context(made, data, keys), jobs=1)
    with pytest.raises(CimlError, match="was begun with another seed; choose another name"):
        run_sweep(context(made, data, {**keys, "seed": 4}), jobs=1)
    elsewhere = DataRoot(data.store.child("x"))
    with pytest.raises(CimlError, match="no raw store at"):
        run_sweep(SweepContext(elsewhere, elsewhere, swept.sweep, TrustPolicy.load()), jobs=1)


def test_a_sweep_of_which_nothing_is_left_says_why(made: Path, tmp_path: Path) -> None:  # noqa: F811
    nothing = {**GRID, "vary": {"dataset": {"features_regex": ["nosuch"]}}}
    with pytest.raises(CimlError, match="no trial completed; the first: features_regex 'nosuch' matches none"):
        run_sweep(context(made, DataRoot.open(tmp_path), nothing), jobs=1)

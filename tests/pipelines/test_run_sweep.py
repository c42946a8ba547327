"""Sweeps over real runs: each trial is what a direct computation gives, whatever is parallel, pruned or killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ciml.errors import CimlError, IntegrityError
from ciml.settings import read_toml
from ciml.storage import LocalStore, Store, open_store
from pipelines.run_sweep import Place, Swept, run_sweep
from tests.pipelines.ingesting import wait_for
from tests.training.conftest import made  # noqa: F401  (a fixture)
from training.baselines import number_of, predict_by
from training.crossval import cross_validate, divide
from training.material import read_material
from training.sweeps.definition import Sweep
from training.sweeps.store import sweep_store
from transforms.trust import TrustPolicy

SUMMARY = {"aggregation_functions": ["mean", "std"], "class_label": "provider", "sample_interval": "1s"}
MERGED = {"aws": "aws", "alibaba": "other", "huawei": "other", "tencent": "other"}
GRID: dict[str, Any] = {
    "name": "grid",
    "dataset": SUMMARY,
    "experiment": {"estimator": "random_forest", "parameters": {"n_estimators": 5}},
    "vary": {
        "dataset": {"features_regex": ["usr", "(usr|1min)", "nosuch"], "class_map": {"four": {}, "two": MERGED}},
        "experiment": {"parameters": {"max_depth": [2, 8]}},
    },
    "seed": 3,
    "startup_trials": 2,
    "lag": 2,
}
#: Sampled, scored on dev after each two epochs of a network.
SAMPLED: dict[str, Any] = {
    "name": "sampled",
    "dataset": SUMMARY,
    "experiment": {"epochs": 8, "hidden_layers": "8", "batch_size": 32},
    "vary": {"experiment": {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}}},
    "on": "dev",
    "trials": 7,
    "report_epochs": 2,
    "startup_trials": 2,
    "lag": 2,
}


def place(source: Path, target: Store, keys: dict[str, Any]) -> Place:
    return Place(LocalStore(source), target, Sweep.from_json(keys, "tests.toml"), TrustPolicy.load())


def lasting(swept: Swept) -> list[dict[str, Any]]:
    """The outcomes without their time."""
    return [{**each.to_json(), "seconds": 0} for each in swept.outcomes]


def stored(target: Store, name: str) -> dict[str, bytes]:
    store = sweep_store(target, name)
    return {path: store.read(path) for path in store.list()}


def test_each_trial_is_what_a_direct_computation_gives(made: Path, tmp_path: Path) -> None:  # noqa: F811
    target, told = open_store(tmp_path / "a"), list[tuple[int, int]]()
    whole = run_sweep(place(made, target, GRID), jobs=2, progress=lambda one, done, of: told.append((done, of)))
    assert told == [(number, 12) for number in range(1, 13)]
    assert [dict(each.parameters) for each in whole.outcomes] == list(whole.sweep.grid)
    assert whole.trained == 8
    failed = [each for each in whole.outcomes if each.parameters["features_regex"] == "nosuch"]
    assert [each.state for each in failed] == ["failed"] * 4
    assert failed[0].reason.startswith("features_regex 'nosuch' selects none of the columns usr, sys")
    pruned = [each for each in whole.outcomes if each.state == "pruned"]
    for each in pruned:
        assert each.value == each.steps[-1][1]
        assert len(each.steps) < 3
    complete = [each for each in whole.outcomes if each.state == "complete"]
    assert len(complete) + len(pruned) == 8
    assert pruned
    for each in complete:
        material = read_material(target, each.dataset, TrustPolicy.load())
        combination = whole.sweep.combine(each.parameters, material.snapshot.resolved.definition.raw_version)
        assert combination.definition == material.snapshot.resolved.definition
        seeded = combination.experiment.model_copy(update={"seed": 3})
        pooled = cross_validate(seeded, material, folds=3)["pooled"]
        if combination.experiment.seed == 3:
            assert each.value == pooled["accuracy"]["value"]
        assert each.held_out == pooled["runs"]
        assert each.scores["base_rate"] == pooled["base_rate"]["value"]
        division = divide(material, folds=3, seed=3)
        assert each.trained_on == len(division.parts[2][0])
    _check_number(target, whole)

    before = stored(target, "grid")
    again = run_sweep(place(made, target, GRID), jobs=1)
    assert (again.trained, again.outcomes, again.baselines) == (0, whole.outcomes, whole.baselines)
    assert stored(target, "grid") == before
    alone = run_sweep(place(made, open_store(tmp_path / "b"), GRID), jobs=1)
    assert lasting(alone) == lasting(whole)
    assert alone.baselines == whole.baselines


def _check_number(target: Store, swept: Swept) -> None:
    """Memory alone, by the same folds."""
    one = next(each for each in swept.outcomes if each.state == "complete")
    material = read_material(target, one.dataset, TrustPolicy.load())
    division, labels = divide(material, folds=3, seed=3), material.rows.labels
    values = number_of(material.raw, "memory", material.mentions)
    assert values is not None
    right = 0
    for learned, held in division.parts:
        known, asked = division.places[learned], division.places[held]
        answers = predict_by("memory", values[known], labels[known], values[asked], int(labels.max()) + 1)
        right += int((answers.argmax(axis=1) == labels[asked]).sum())
    found = swept.baselines[one.question]["memory"]
    assert found["value"] == pytest.approx(right / len(division.places))


def test_a_sampled_sweep_goes_on_as_if_nothing_had_been(made: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = run_sweep(place(made, open_store(tmp_path / "a"), SAMPLED), jobs=2)
    states = [each.state for each in whole.outcomes]
    assert (states[0], "pruned" in states, "failed" in states) == ("complete", True, False)
    ends = {each.state: [step for step, _ in each.steps] for each in whole.outcomes}
    assert ends["complete"] == [2, 4, 6, 8]
    assert ends["pruned"] == list(range(2, 2 * len(ends["pruned"]) + 1, 2))
    assert len({each.parameters["learning_rate"] for each in whole.outcomes}) == 7

    target = open_store(tmp_path / "b")
    few = run_sweep(place(made, target, {**SAMPLED, "trials": 4}), jobs=1)
    more = run_sweep(place(made, target, SAMPLED), jobs=1)
    assert (few.trained, more.trained) == (4, 3)
    assert lasting(more) == lasting(whole)


def test_what_is_stored_of_another_sweep_is_not_taken(made: Path, anywhere: Store) -> None:  # noqa: F811
    keys = {**GRID, "name": "small", "vary": {"dataset": {"features_regex": ["usr", "1min"]}}, "pruner": "none"}
    swept = run_sweep(place(made, anywhere, keys), jobs=1)
    assert [each.state for each in swept.outcomes] == ["complete", "complete"]
    store = sweep_store(anywhere, "small")
    other = {**swept.outcomes[1].to_json(), "parameters": swept.outcomes[0].to_json()["parameters"]}
    store.replace("trials/000001.json", json.dumps(other).encode())
    with pytest.raises(IntegrityError, match=r"000001\.json has other parameters than trial 1 of the sweep"):
        run_sweep(place(made, anywhere, keys), jobs=1)
    with pytest.raises(CimlError, match="was begun with another seed; take another name"):
        run_sweep(place(made, anywhere, {**keys, "seed": 4}), jobs=1)
    nothing = {**keys, "name": "none", "vary": {"dataset": {"features_regex": ["nosuch"]}}}
    with pytest.raises(CimlError, match="no trial came to its end; the first: features_regex 'nosuch' selects none"):
        run_sweep(place(made, anywhere, nothing), jobs=1)
    with pytest.raises(CimlError, match="no raw store at"):
        run_sweep(Place(anywhere.child("x"), anywhere.child("x"), swept.sweep, TrustPolicy.load()), jobs=1)


def test_a_command_that_is_killed_goes_on_and_trains_nothing_twice(made: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = {**GRID, "experiment": {"estimator": "random_forest", "parameters": {"n_estimators": 60}}}
    file = tmp_path / "sweep.toml"
    file.write_text(Sweep.from_json({**keys, "name": "killed"}).to_toml())
    assert Sweep.load(file).to_json() == Sweep.from_json({**keys, "name": "killed"}).to_json()
    assert read_toml(file)["seed"] == 3
    command = [sys.executable, "-m", "cli.main", "experiment", "sweep", str(file), "--data-path", str(made)]
    command += [
        "--target-data-path",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "page"),
        "--json",
        "--jobs",
        "2",
    ]
    trials = tmp_path / "data/sweeps/killed/trials"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: running.poll() is not None or len(list(trials.glob("*.json"))) >= 3)
        children = psutil.Process(running.pid).children(recursive=True)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert children
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    before = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert 3 <= len(before) < 12
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    kept = {path.name: path.read_bytes() for path in trials.glob("*.json")}
    assert {name: kept[name] for name in before} == before
    trained = [each for each in told["trials"] if each["reason"] == "" and f"{each['number']:06}.json" not in before]
    assert told["trained"] == len(trained)
    uninterrupted = run_sweep(place(made, open_store(tmp_path / "b"), {**keys, "name": "killed"}), jobs=2)
    assert [{**each, "seconds": 0} for each in told["trials"]] == lasting(uninterrupted)

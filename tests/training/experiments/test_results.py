"""Stored trials are read back unchanged: the latest of each; an altered file is an error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.storage.json_files import seal, without_seal
from ciml.training.data.examples import InMemoryDataset, read_dataset
from ciml.training.evaluation.metrics import predicted_classes
from ciml.training.experiments.results import StoredTrial, create_experiment, named_results, stored_trials
from ciml.trust import TrustPolicy
from tests.training.experiments.test_trials import FOREST, trial

pytestmark = pytest.mark.usefixtures("few_resamples")


@pytest.fixture(scope="module")
def trained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRoot, InMemoryDataset]:
    """Build a data path with a trained forest, and with the folds of another experiment without a result."""
    root = tmp_path_factory.mktemp("trained") / "data"
    shutil.copytree(made, root)
    data = DataRoot.open(root)
    dataset = read_dataset(data.dataset("providers"), TrustPolicy.load())
    trial(data, dataset).run()
    trial(data, dataset).cross_validate(3, ("flavour",))
    trial(data, dataset, FOREST.replace(name="small")).cross_validate(2, ())
    return data, dataset


@pytest.fixture
def data(trained: tuple[DataRoot, InMemoryDataset], tmp_path: Path) -> DataRoot:
    shutil.copytree(trained[0].url, tmp_path / "data")
    return DataRoot.open(tmp_path / "data")


def only(data: DataRoot, *experiments: str) -> StoredTrial:
    (found,) = stored_trials(data.experiments, experiments)
    return found


def test_a_trial_is_read_as_it_was_stored(trained: tuple[DataRoot, InMemoryDataset]):
    data, dataset = trained
    one = trial(data, dataset)
    found = only(data, "forest")
    assert (found.experiment, found.dataset, found.store) == ("forest", "providers", one.store)
    assert (found.result, found.older, found.elsewhere) == (one.run()[0], 0, ())
    assert [each["by"] for each in found.folds] == ["flavour"]
    assert found.snapshot == dataset.snapshot.digest
    predictions, test = found.predictions(), dataset.of("test")
    rows = one.rows_at(test)
    assert predictions is not None
    assert predictions.run_id.tolist() == [dataset.facts[position].run_id for position in test]
    assert predictions.labels.tolist() == rows.labels.tolist()
    assert predictions.classes == dataset.snapshot.resolved.classes
    np.testing.assert_array_equal(predictions.probabilities, one.fitted.predict(rows.inputs, rows.n_windows))
    right = predicted_classes(predictions.probabilities) == predictions.labels
    assert right.sum() == one.run()[0]["test"]["accuracy"]["right"]


def test_folds_alone_are_a_trial_without_a_result(trained: tuple[DataRoot, InMemoryDataset]):
    found = only(trained[0], "small")
    assert (found.result, found.snapshot, found.predictions()) == (None, "", None)
    assert [(each["by"], len(each["folds"])) for each in found.folds] == [("run", 2)]


def copied(data: DataRoot, trial: str, **changed: object) -> Path:
    """Store another trial of the forest: a copy with a changed result."""
    (path,) = Path(data.url, "experiments/forest/results/providers").glob("*")
    other = Path(shutil.copytree(path, path.parent / trial))
    result = json.loads((other / "result.json").read_text()) | changed
    (other / "result.json").write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    return other


def copied_snapshot(data: DataRoot, trial: str, **changed: object) -> Path:
    return copied(data, trial, snapshot=only(data, "forest").result["snapshot"] | changed)


@pytest.mark.parametrize(
    ("spans", "latest"),
    [([[1, 1], [2, 1], [3, 1], [4, 1]], True), ([[1, 1], [2, 2], [3, 1]], True), ([[1, 9], [2, 1]], False)],
)
def test_the_latest_has_the_most_spans_then_the_newest_versions(data: DataRoot, spans: list, latest: bool):
    assert only(data, "forest").result["snapshot"]["spans"] == [[1, 1], [2, 1], [3, 1]]
    copied_snapshot(data, "0" * 24, spans=spans, digest="other")
    found = only(data, "forest")
    assert (found.snapshot == "other", found.older) == (latest, 1)


def test_of_equally_old_trials_one_with_a_shared_snapshot_is_chosen(data: DataRoot):
    other = copied_snapshot(data, "f" * 24, digest="other exclusions")
    assert only(data, "forest").snapshot == "other exclusions"  # by name: nothing else distinguishes them
    experiments = Path(data.url, "experiments")
    shutil.copytree(experiments / "forest", experiments / "second")
    shutil.rmtree(experiments / "second" / other.relative_to(experiments / "forest"))
    found = stored_trials(data.experiments, ["forest", "second"])
    assert [each.experiment for each in found] == ["forest", "second"]
    assert found[0].snapshot == found[1].snapshot != "other exclusions"


def test_a_trial_of_an_older_normalisation_is_read_but_the_present_one_counts(data: DataRoot):
    present = only(data, "forest")
    assert present.result["normalisation"] == 2
    old = copied(data, "f" * 24, normalisation=None)
    assert (only(data, "forest").store.root, only(data, "forest").older) == (present.store.root, 1)
    shutil.rmtree(present.store.root)
    assert only(data, "forest").store.root == str(old)
    assert only(data, "forest").predictions() is not None


def test_only_the_named_data_sets_are_read(data: DataRoot):
    assert stored_trials(data.experiments, ["forest"], ["others"]) == []
    create_experiment(data.experiments, FOREST.replace(name="idle"))
    assert stored_trials(data.experiments, ["idle"]) == []


def test_another_file_of_predictions_is_no_answer(data: DataRoot):
    found = only(data, "forest")
    (path,) = Path(found.store.root).glob("predictions-*")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(IntegrityError, match=r"predictions-\w+.parquet was altered: its digest"):
        found.predictions()
    path.unlink()
    assert found.predictions() is None
    result = Path(found.store.root, "result.json")
    content = without_seal(result.read_bytes())
    result.write_bytes(seal(content.replace(path.name.encode(), b"../../experiment.json")))
    with pytest.raises(IntegrityError, match=r"result\.json: predictions: invalid file name '\.\./\.\./experiment"):
        only(data, "forest").predictions()
    result.write_text("{")
    with pytest.raises(IntegrityError, match=r"result\.json is unreadable"):
        stored_trials(data.experiments, ["forest"])


def test_reading_results_starts_no_thread_and_imports_no_pandas(data: DataRoot):
    """A thread of Arrow that lives when the interpreter shuts down may abort the process."""
    code = f"""
import os, sys
import numpy, pyarrow.compute, pyarrow.parquet
from ciml.data_root import DataRoot
from ciml.training.experiments.comparison import compare
from ciml.training.experiments.results import named_results
before = len(os.listdir("/proc/self/task"))
(row,) = compare(named_results(DataRoot.open({data.url!r}).experiments, ["forest"])).records()
print(row["runs"] > 0, len(os.listdir("/proc/self/task")) - before, "pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True 0 False\n"


def names(found: list) -> list[tuple[str, str]]:
    return [(trial.dataset, trial.experiment) for trial, _ in found]


def test_results_are_named_with_or_without_a_data_set(data: DataRoot):
    experiments = Path(data.url, "experiments")
    shutil.copytree(experiments / "forest", experiments / "second")
    store = data.experiments
    assert names(named_results(store, ["second", "forest"])) == [("providers", "second"), ("providers", "forest")]
    assert names(named_results(store, [], "providers")) == [("providers", "forest"), ("providers", "second")]
    assert named_results(store, ["forest"])[0][1] is not None
    shutil.copytree(experiments / "second/results/providers", experiments / "second/results/minutes")
    found = named_results(store, ["forest", "minutes/second"], "providers")
    assert names(found) == [("providers", "forest"), ("minutes", "second")]
    with pytest.raises(CimlError, match="results on several data sets, minutes, providers: choose one, such as"):
        named_results(store, ["forest", "second"])


@pytest.mark.parametrize(
    ("wanted", "dataset", "line"),
    [
        ([], None, "no experiments: name some, or a data set for all that have a result on it"),
        (["none"], None, "no experiment 'none' in"),
        (["small"], "providers", "no result of small on providers in .*--experiment small --dataset providers"),
        (["small"], None, "no result of small in .* --experiment small --dataset NAME"),
        (["other/forest"], "providers", "no result of forest on other in"),
        ([], "other", "no result on other in .*: ciml experiment train --dataset other"),
        (["a/b/forest"], None, "no result of forest on a/b"),
    ],
)
def test_a_result_that_is_missing_is_named(trained: tuple, wanted: list[str], dataset: str | None, line: str):
    with pytest.raises(CimlError, match=line):
        named_results(trained[0].experiments, wanted, dataset)

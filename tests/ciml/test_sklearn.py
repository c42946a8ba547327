"""`ciml.sklearn.Downsample` is the preparation of data sets, and a transformer by scikit-learn's rules."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import ciml
from ciml.datasets.definition import DatasetDefinition, resolve
from ciml.sklearn import Downsample
from ciml.telemetry import telemetry_columns
from ciml.transforms.examples.prepare import prepare_many
from tests.ciml.api.conftest import made  # noqa: F401  (a fixture)
from tests.ciml.api.made import RUNS, write_log

#: The checks of scikit-learn that apply: those that give an estimator no data. All others fit it on a matrix of
#: numbers, which is not what it takes.
WITHOUT_DATA = """
    check_estimator_cloneable check_estimator_tags_renamed check_valid_tag_types check_estimator_repr check_mixin_order
    check_no_attributes_set_in_init check_do_not_raise_errors_in_init_or_set_params check_get_params_invariance
    check_parameters_default_constructible check_set_params
""".split()


@pytest.fixture(scope="module")
def logs(made: Path) -> list[Path]:  # noqa: F811
    return sorted((made / "logs").iterdir())


def test_it_is_the_preparation_of_a_data_set(made: Path, logs: list[Path]) -> None:  # noqa: F811
    dataset = ciml.open(made / "data").dataset("status")
    X, _ = dataset.to_numpy()
    by_id = {f"zuul~{number}~1": path for number, path in enumerate(logs)}
    paths = [by_id[run_id] for run_id in dataset.facts()["run_id"].to_pylist()]
    cubes = Downsample("6s", "^(usr|1m)", max_windows=12, flatten=False).fit_transform(paths)
    assert (cubes.dtype, cubes.tobytes()) == (np.float32, X.tobytes())
    flat = Downsample("6s", "^(usr|1m)", max_windows=12).fit(paths)
    assert np.array_equal(flat.transform(paths), X.transpose(0, 2, 1).reshape(len(X), -1))
    assert list(flat.get_feature_names_out())[:2] == ["usr[0]", "usr[1]"]
    assert list(flat.get_feature_names_out())[12:] == [f"1m[{window}]" for window in range(12)]
    tables = [ciml.parse_log(path) for path in paths]
    for forms in (tables, [table.to_pandas() for table in tables], [*paths[:5], *tables[5:]]):
        assert np.array_equal(flat.transform(forms), flat.transform(paths))


@pytest.mark.parametrize(
    "keys",
    [
        {"sample_statistic": "max", "max_windows": 12},
        {"count_first_sample": False, "max_windows": 12},
        {"aggregation_functions": ("mean", "std")},
        {"max_windows": 4},
    ],
)
def test_each_setting_means_that_of_a_definition(logs: list[Path], keys: dict[str, Any]) -> None:
    tables = [ciml.parse_log(path) for path in logs[:6]]
    booted = [table.set_column(1, "boot", pa.array([True] + [False] * (table.num_rows - 1))) for table in tables]
    definition = DatasetDefinition.from_json(
        {"name": "x", "sample_interval": "6s", "features_regex": "^(usr|1m)", **keys}
    )
    resolved = resolve(definition, [telemetry_columns(booted[0].column_names)], [])
    want, _, rejected = prepare_many(booted, resolved)
    found = Downsample("6s", "^(usr|1m)", **keys, flatten=False).fit_transform(booted)
    assert rejected == []
    assert np.array_equal(found, want)
    assert not np.array_equal(found, Downsample("6s", "^(usr|1m)", max_windows=12, flatten=False).fit_transform(booted))


def test_the_length_is_the_99th_percentile_of_the_runs(tmp_path: Path) -> None:
    for number in range(200):
        write_log(tmp_path / f"{number:03}", number, 50 if number else 500)
    paths = sorted(tmp_path.iterdir())
    assert Downsample("10s").fit(paths).windows_ == 5
    assert Downsample("10s").fit(paths[:50]).windows_ == 50
    summed = Downsample("10s", "usr", aggregation_functions=("mean", "max")).fit(paths)
    assert list(summed.get_feature_names_out()) == ["usr[mean]", "usr[max]"]
    assert summed.transform(paths[:3]).shape == (3, 2)


def test_it_is_a_step_of_a_pipeline(logs: list[Path]) -> None:
    labels = np.arange(RUNS) % 2
    pipeline = make_pipeline(Downsample("6s", "usr"), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, logs, labels, cv=3).min() > 0.9
    named = Downsample("6s", "usr").set_output(transform="pandas").fit_transform(logs)
    assert list(named.columns)[:2] == ["usr[0]", "usr[1]"]


def test_a_clone_is_unfitted_and_a_pickle_is_fitted(logs: list[Path]) -> None:
    one = Downsample("6s", "usr|1m", max_windows=9, zone="+02:00", aggregation_functions=()).fit(logs)
    assert clone(one).get_params() == one.get_params()
    assert not hasattr(clone(one), "windows_")
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.transform(logs[:4]), one.transform(logs[:4]))
    assert list(again.get_feature_names_out()) == list(one.get_feature_names_out())


def test_wrong_runs_are_named(logs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no telemetry\n")
    one = Downsample("6s", "usr").fit(logs)
    with pytest.raises(ciml.CimlError, match=r"run 1 \(.*text\): not_telemetry"):
        one.transform([logs[0], tmp_path / "text"])
    with pytest.raises(ciml.CimlError, match="run 0: missing_column: total cpu usage:usr"):
        one.transform([ciml.parse_log(logs[0]).select(["time", "boot", "load avg:1m"])])
    with pytest.raises(ciml.CimlError, match="expected paths or tables, got float"):
        one.transform([1.0])
    with pytest.raises(ciml.CimlError, match="matches none of the columns"):
        Downsample("6s", "nothing").fit(logs)
    with pytest.raises(ciml.CimlError, match="sample_interval"):
        Downsample("6 apples").fit(logs)
    with pytest.raises(Exception, match="not fitted"):
        Downsample().transform(logs)


class OfMatrices(Downsample):
    """Claims to take matrices: of other estimators, scikit-learn checks the cloning alone."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def test_it_passes_the_checks_of_scikit_learn_that_apply() -> None:
    results = estimator_checks.check_estimator(OfMatrices(), on_fail=None, on_skip=None)
    passed = {one["check_name"] for one in results if one["status"] == "passed"}
    assert passed >= set(WITHOUT_DATA)
    failed = {one["check_name"]: reasons(one["exception"]) for one in results if one["status"] == "failed"}
    assert {name: text for name, text in failed.items() if "expected paths or tables" not in text} == {}


def reasons(error: BaseException | None) -> str:
    """The texts of an exception and of those behind it."""
    return "" if error is None else f"{error}\n{reasons(error.__cause__ or error.__context__)}"

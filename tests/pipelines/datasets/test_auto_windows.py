"""``max_windows = "auto"``: resolved once from the first span's runs, the same by a raw store and by a listing."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import RunFacts
from ciml.pipelines.datasets import update
from ciml.pipelines.datasets.build import build_dataset
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset, with_default_windows
from ciml.transforms.live.samples import LivePolicy
from ciml.transforms.live.windows import LiveDataset, LiveRun
from tests.pipelines.datasets.dataset_scenes import NOON, SECOND, resolved_of
from tests.pipelines.poison import fail_for
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.transforms.live.live_scenes import arrivals, feed, recorded
from tests.transforms.samples import make_facts, table


def run_of(number: int, seconds: int, **facts: Any) -> tuple[RunFacts, Any]:
    """A run of so many samples, one a second."""
    outcome = "success" if number % 3 else "failure"
    times = [NOON + second * SECOND for second in range(seconds)]
    values = [float(number + second) for second in range(seconds)]
    return make_facts(number, outcome=outcome, result=outcome.upper(), **facts), table(times, usr=values, load=values)


def keys(**more: Any) -> dict[str, Any]:
    return {"name": "cpu", "sample_interval": "1s", "max_windows": "auto", "span_runs": 200, **more}


def defined(**more: Any) -> DatasetDefinition:
    return DatasetDefinition.from_json(keys(**more))


LENGTHS = [3 + (number * 7) % 11 for number in range(150)] + [90, 400]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    RawStore(DataRoot.open(folder)).add([run_of(number, length) for number, length in enumerate(LENGTHS, 1)])
    return folder


@pytest.fixture
def data(stored: Path, tmp_path: Path) -> DataRoot:
    return DataRoot.open(shutil.copytree(stored, tmp_path / "data"))


def test_at_most_one_run_in_a_hundred_is_cut(data: DataRoot) -> None:
    whole = build_dataset(data, data, defined(name="whole", max_windows=None)).state
    state = build_dataset(data, data, defined()).state
    lengths = sorted(run.n_windows for span in whole.latest() for run in span.runs)
    assert lengths == sorted(LENGTHS)
    assert resolved_of(state).windows == lengths[math.ceil(0.99 * len(lengths)) - 1] == 90
    assert resolved_of(state).definition.max_windows == "auto"
    cut = {run.run_id: run.n_windows for span in state.latest() for run in span.runs}
    assert cut == {run.run_id: min(run.n_windows, 90) for span in whole.latest() for run in span.runs}
    before, after = whole.padding(), state.padding()
    assert before == pytest.approx(1 - sum(LENGTHS) / (5500 * len(LENGTHS)))
    assert after == pytest.approx(1 - sum(min(length, 90) for length in LENGTHS) / (90 * len(LENGTHS)))
    assert verify_dataset(data.dataset("cpu")) == []


def test_it_is_resolved_once_and_later_runs_are_cut_to_it(data: DataRoot) -> None:
    create_dataset(data, defined(span_runs=100))
    assert data.dataset("cpu").state().padding() is None
    update_dataset(data.dataset("cpu"))
    first = data.dataset("cpu").state()
    assert resolved_of(first).windows == sorted(LENGTHS[:100])[98] == 13
    update_dataset(data.dataset("cpu"), seal=True)
    later = data.dataset("cpu").state()
    assert later.resolved == resolved_of(first)
    assert max(run.n_windows for run in later.latest()[1].runs) == 13
    again = DataRoot.open(Path(data.url).parent / "again")
    rebuilt = build_dataset(data, again, defined(span_runs=100)).state
    assert [span.to_json() for span in rebuilt.latest()] == [span.to_json() for span in later.latest()]


@pytest.mark.parametrize(
    "more",
    [{"sample_interval": "20s"}, {"min_windows": 100}, {"min_windows": 12}, {"slicer": ":100"},
     {"build_name": ["other"]}, {"class_label": "source", "classes": ["zuul", "none"]}],
)  # fmt: skip
def test_only_runs_that_may_be_examples_count(data: DataRoot, more: dict[str, Any]) -> None:
    others = [run_of(number, 20, build_name="other") for number in range(201, 204)]
    others += [run_of(204, 300, build_name="other")]
    cancelled = [(make_facts(205, build_name="other", outcome="cancellation", source=""), run_of(205, 500)[1])]
    RawStore(data).add(others + cancelled)
    whole = build_dataset(data, data, defined(name="whole", **more, max_windows=None)).state
    lengths = sorted(run.n_windows for span in whole.latest() for run in span.runs)
    assert len(set(lengths)) > 1
    state = build_dataset(data, data, defined(**more)).state
    assert resolved_of(state).windows == lengths[math.ceil(0.99 * len(lengths)) - 1] < 500


def test_untrusted_runs_do_not_decide(data: DataRoot) -> None:
    RawStore(data).add([run_of(number, 3000) for number in range(301, 400)], trust=UNTRUSTED)
    state = build_dataset(data, data, defined(span_runs=5000)).state
    assert resolved_of(state).windows == 90


def test_the_longest_length_stays_5500_s(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    RawStore(data).add([run_of(number, 6000) for number in range(1, 4)])
    state = build_dataset(data, data, defined(features_regex="usr")).state
    assert resolved_of(state).windows == 5500


def test_a_poisoned_run_does_not_decide_and_the_others_do(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = f"zuul~{len(LENGTHS)}~1"
    is_poison = lambda _, runs, __: any(run.run_id == poisoned for run in runs)  # noqa: E731
    fail_for(monkeypatch, update, "lengths_of", is_poison)
    state = build_dataset(data, data, defined()).state
    assert resolved_of(state).windows == sorted(LENGTHS[:-1])[math.ceil(0.99 * (len(LENGTHS) - 1)) - 1] == 13


def test_a_finished_live_run_equals_its_example(data: DataRoot) -> None:
    state = build_dataset(data, data, defined()).state
    examples = {run.run_id: run.digest for span in state.latest() for run in span.runs}
    for number in (len(LENGTHS), 5):  # one that is cut, and one that is padded
        facts, telemetry = run_of(number, LENGTHS[number - 1])
        run = LiveRun(facts.run_id, [LiveDataset("cpu", resolved_of(state))], LivePolicy())
        for _ in feed(run, arrivals(recorded(facts.run_id, telemetry), np.random.default_rng(0))):
            pass
        (example,) = run.take_examples(over=True)
        assert example.digest == examples[facts.run_id]


def test_the_default_is_auto_except_where_a_data_set_began_without(tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path)
    written = {"name": "cpu", "sample_interval": "1s"}
    assert with_default_windows(data.dataset("cpu"), written) == {**written, "max_windows": "auto"}
    for given in ({"max_windows": 5}, {"max_windows": "auto"}, {"aggregation_functions": ["mean"]}):
        assert with_default_windows(data.dataset("cpu"), {**written, **given}) == {**written, **given}
    create_dataset(data, DatasetDefinition.from_json(written))
    assert with_default_windows(data.dataset("cpu"), written) == written
    create_dataset(data, DatasetDefinition.from_json({**written, "name": "five", "max_windows": 5}))
    assert with_default_windows(data.dataset("five"), written)["max_windows"] == "auto"

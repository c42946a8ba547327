"""Data sets that are built at one go: which runs a slicer pins, and that they come out the same anywhere, any time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset, remove_dataset
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.runs.run_log import stored_rows
from ciml.training.data.snapshot import make_snapshot
from ciml.trust import TrustPolicy
from tests.durable import Steps
from tests.pipelines.datasets.dataset_scenes import files, ids, resolved_of, run_ids, telemetry
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.transforms.samples import make_facts

HOUR_US = 3_600_000_000


def ended(number: int, hour: int, **facts: Any) -> tuple[RunFacts, Any]:
    """A run that ended at an hour; every third has failed."""
    outcome = "failure" if number % 3 == 0 else "success"
    facts = {"outcome": outcome, "end_us": hour * HOUR_US, "source": "backfill", "event": "listing", **facts}
    return make_facts(number, **facts), telemetry(number)


def defined(**keys: Any) -> DatasetDefinition:
    return DatasetDefinition.from_json({"name": "cpu", "span_runs": 2, "max_windows": 4, "slicer": ":3", **keys})


@pytest.mark.parametrize(
    ("slicer", "wanted"),
    [(":", "42513"), (":3", "425"), ("3", "425"), ("-2:", "13"), ("1:4", "251"), ("::2", "453"), ("1 :-1", "251")],
)
def test_a_slicer_cuts_the_runs_in_the_order_of_end_time_and_run_id(
    data: DataRoot, raw: RawStore, slicer: str, wanted: str
) -> None:
    raw.add([ended(1, 8), ended(5, 7), ended(9, 1, build_name="docs")])
    raw.add([ended(3, 9), ended(2, 7), ended(4, 6)])
    update = build_dataset(data, data, defined(slicer=slicer, build_name=["unit-*"]))
    assert [run for span in run_ids(update.state) for run in span] == list(wanted)
    assert verify_dataset(data.dataset("cpu")) == []


def test_a_pinned_data_set_comes_out_the_same_elsewhere_after_more_runs_and_corrections(
    tmp_path: Path, data: DataRoot, raw: RawStore
) -> None:
    raw.add([ended(2, 2), ended(4, 4), ended(3, 3)])
    raw.add([], corrections=[ended(2, 2, outcome="failure")[0], ended(3, 3, outcome="success")[0]])
    raw.add([], corrections=[ended(4, 4, outcome="failure")[0]], trust=UNTRUSTED)
    target = DataRoot.open(tmp_path / "first")
    first = build_dataset(data, target, defined(slicer="-3:"))
    labels = {run.run_id: run.label_name for span in first.state.latest() for run in span.runs}
    assert labels == {"zuul~2~1": "failed", "zuul~3~1": "passed", "zuul~4~1": "passed"}
    raw.add([ended(1, 1), ended(9, 9)], corrections=[ended(2, 2, outcome="success")[0]])
    again = build_dataset(data, target, defined(slicer="-3:"))
    assert (again.sealed, again.state.version) == ((), first.state.version)
    assert update_dataset(target.dataset("cpu"), seal=True).sealed == ()

    kept = DatasetDefinition.load(tmp_path / "first/datasets/cpu/_definition.toml")
    assert kept == defined(slicer="-3:", raw_version=3)
    rebuilt = build_dataset(data, DataRoot.open(tmp_path / "second"), kept)
    assert files(DataRoot.open(tmp_path / "second")) == files(target)
    assert len(files(target)) >= 3
    assert [span.to_json() for span in rebuilt.state.latest()] == [span.to_json() for span in first.state.latest()]
    # and anew, the slicer takes the runs of now
    new = build_dataset(data, DataRoot.open(tmp_path / "third"), defined(slicer="-3:"))
    assert run_ids(new.state) == [["3", "4"], ["9"]]


def test_raw_store_and_data_sets_may_lie_in_different_places(anywhere: DataRoot, tmp_path: Path) -> None:
    source, target = DataRoot.open(tmp_path / "raw"), DataRoot(anywhere.store.child("sets"))
    RawStore(source).add([ended(number, number) for number in range(1, 6)])
    update = build_dataset(source, target, defined(slicer=":"))
    assert run_ids(update.state) == [ids(1, 2), ids(3, 4), ["5"]]
    assert source.store.list("datasets") == []
    assert verify_dataset(target.dataset("cpu")) == []
    assert update_dataset(target.dataset("cpu")).sealed == ()
    snapshot = make_snapshot(target.dataset("cpu"), TrustPolicy.load(None))
    assert [run.run_id for run in snapshot.runs()] == [f"zuul~{number}~1" for number in range(1, 6)]
    taken = {run.run_id for run in snapshot.runs()}
    assert stored_rows(ManifestLog(target.dataset("cpu").raw()), taken).keys() == taken


def test_without_a_slicer_the_same_line_takes_in_what_has_come(data: DataRoot, raw: RawStore) -> None:
    definition = defined(slicer=None, span_runs=4)
    raw.add([ended(1, 9), ended(3, 8)])
    assert run_ids(build_dataset(data, data, definition).state) == [["1", "3"]]
    assert build_dataset(data, data, definition).sealed == ()
    raw.add([ended(2, 1)])
    assert run_ids(build_dataset(data, data, definition).state) == [["1", "3"], ["2"]]
    assert verify_dataset(data.dataset("cpu")) == []


#: The definition is written last, for people: it is in the manifest already.
STEPS = [
    "create datasets/cpu/span-1/version-1/train/examples-*.parquet",
    "append datasets/cpu: definition source",
    "append datasets/cpu: corrections_to cursor resolved spans",
    "create datasets/cpu/span-2/version-1/train/examples-*.parquet",
    "append datasets/cpu: corrections_to cursor spans",
    "create datasets/cpu/span-3/version-1/train/examples-*.parquet",
    "create datasets/cpu/span-3/version-1/test/examples-*.parquet",
    "append datasets/cpu: corrections_to cursor spans",
    "replace datasets/cpu/_definition.toml",
]


def test_a_build_that_is_killed_before_any_step_goes_on(tmp_path: Path, data: DataRoot, raw: RawStore) -> None:
    raw.add([ended(number, 10 - number) for number in range(1, 8)])
    definition = defined(slicer=":6", raw_version=1)
    whole = DataRoot.open(tmp_path / "whole")
    with Steps(whole.url).recording() as steps:
        build_dataset(data, whole, definition)
    assert steps.steps == STEPS
    for index in range(len(STEPS)):
        target = DataRoot.open(tmp_path / str(index))
        with Steps(target.url, index).recording():
            build_dataset(data, target, definition)
        raw.add([ended(100 + index, 20 + index)])  # what comes meanwhile is not in the slice
        build_dataset(data, target, definition)
        assert verify_dataset(target.dataset("cpu")) == []
        assert files(target) == files(whole)


def test_classes_are_those_of_all_pinned_runs(data: DataRoot, raw: RawStore) -> None:
    clouds = ["aws", "aws", "aws", "oracle"]
    raw.add([ended(number, number, provider=cloud) for number, cloud in enumerate(clouds, 1)])
    raw.add([ended(9, 9, provider="forged")], trust=UNTRUSTED)
    update = build_dataset(data, data, defined(slicer=":", class_label="provider"))
    assert resolved_of(update.state).classes == ("aws", "oracle")
    assert update.state.excluded() == {"unknown_class": 1}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"features_regex": "nosuch"}, "features_regex 'nosuch' matches none of the columns usr, 1m"),
        ({"build_name": "nosuch"}, "build_name nosuch: no stored run matches; stored jobs: unit-tests"),
        ({"build_name": "nosuch", "slicer": None}, "build_name nosuch: no stored run matches; stored jobs: unit-tests"),
        ({"class_label": "provider"}, "class_label 'provider': no run has a value of it; choose from status, "),
        ({"slicer": "10:"}, "slicer '10:': selects none of the 4 runs of all"),
        ({"raw_version": 7}, "is at version 1; check the raw store"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    data: DataRoot, raw: RawStore, keys: dict[str, Any], said: str
) -> None:
    raw.add([ended(number, number) for number in range(1, 5)])
    with pytest.raises(CimlError, match=r"^[^\n]+$") as error:
        build_dataset(data, data, defined(**keys))
    assert said in str(error.value)
    assert error.value.exit_code == 2
    assert data.dataset_names() == []


def test_no_raw_store_another_definition_another_raw_store(tmp_path: Path, data: DataRoot, raw: RawStore) -> None:
    with pytest.raises(CimlError, match=r"no raw store at .*/nowhere/raw; fill it with ciml-cache-data"):
        build_dataset(DataRoot.open(tmp_path / "nowhere"), data, defined())
    raw.add([ended(number, number) for number in range(1, 5)])
    build_dataset(data, data, defined())
    with pytest.raises(CimlError, match="'cpu' exists with another sample_statistic; choose another name"):
        build_dataset(data, data, defined(sample_statistic="max"))
    with pytest.raises(CimlError, match="'cpu' exists with another slicer"):
        build_dataset(data, data, defined(slicer=":2"))
    with pytest.raises(CimlError, match="a slicer needs raw_version"):
        create_dataset(data, defined(name="other"))
    other = DataRoot.open(tmp_path / "other")
    RawStore(other).add([ended(number, number) for number in range(11, 15)])
    with pytest.raises(IntegrityError, match=r"span 1 differs from .*/other/raw"):
        build_dataset(other, data, defined())
    remove_dataset(data.dataset("cpu"))
    assert data.store.list("datasets") == []
    assert run_ids(build_dataset(data, data, defined(slicer=":2")).state) == [ids(1, 2)]
    assert data.dataset("cpu").state().source is None


def test_a_removal_that_is_killed_before_any_step_leaves_the_first_spans(
    tmp_path: Path, data: DataRoot, raw: RawStore
) -> None:
    raw.add([ended(number, number) for number in range(1, 7)])
    build_dataset(data, DataRoot.open(tmp_path / "whole"), defined(slicer=":"))
    with Steps(DataRoot.open(tmp_path / "whole").url).recording() as steps:
        remove_dataset(DataRoot.open(tmp_path / "whole").dataset("cpu"))
    assert len(steps.steps) >= 4 + 3 + 1
    for index in range(len(steps.steps)):
        target = DataRoot.open(tmp_path / str(index))
        build_dataset(data, target, defined(slicer=":"))
        with Steps(target.url, index).recording():
            remove_dataset(target.dataset("cpu"))
        deltas = list(target.dataset("cpu").log.since(0))
        assert len(deltas) == max(4 - index, 0)  # the definition, and three spans
        if deltas:
            assert run_ids(target.dataset("cpu").state()) == [ids(1, 2), ids(3, 4), ids(5, 6)][: len(deltas) - 1]
        remove_dataset(target.dataset("cpu"))
        assert target.store.list("datasets") == []

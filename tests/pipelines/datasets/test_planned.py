"""A planned update: its one pipeline builds and commits what an update would, also twice, and never over another's."""

from __future__ import annotations

import shutil

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.errors import CimlError, IntegrityError
from ciml.pipelines.datasets.beam import build_spans
from ciml.pipelines.datasets.build import build_dataset, plan_build, plan_update
from ciml.pipelines.datasets.commit import commit_steps
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.pipelines.flink.submit import run_here
from tests.durable import Steps, each_step
from tests.pipelines.datasets.dataset_scenes import define, ids, run_ids, runs
from tests.runs.scenes import RawStore


def spans(data: DataRoot, name: str) -> list[object]:
    return [span.to_json() for span in data.dataset(name).state().latest()]


def test_an_update_gives_what_the_direct_one_gives(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 6))
    for name in ("direct", "planned"):
        define(data, name)
    for last in (6, 9):
        if last > 6:
            raw.add(
                runs(7, last),
                corrections=[
                    runs(
                        3,
                        3,
                    )[0][0].replace(outcome="success", result="SUCCESS")
                ],
            )
        update_dataset(data.dataset("direct"), seal=last == 9)
        planned = plan_update(data.dataset("planned"), seal=last == 9)
        assert planned.runs == (4 if last == 6 else 5 + 4)  # and the new version of the span with the corrected run
        run_here(planned.build)
        assert verify_dataset(data.dataset("planned")) == []
    direct, other = data.dataset("direct").state(), data.dataset("planned").state()
    assert (direct.cursor, direct.corrections_to, direct.version) == (other.cursor, other.corrections_to, other.version)
    assert run_ids(other) == [ids(1, 4), ids(5, 8), ids(9, 9)]
    assert spans(data, "planned") == spans(data, "direct")
    assert data.dataset("planned").store.list("results") == []
    again = plan_update(data.dataset("planned"), seal=True)
    assert (again.steps, again.waiting) == ((), 0)


@pytest.mark.parametrize("slicer", [None, ":5"])
def test_a_build_gives_what_the_direct_one_gives(data: DataRoot, raw: RawStore, slicer: str | None) -> None:
    raw.add(runs(1, 7))
    for name in ("direct", "planned"):
        definition = DatasetDefinition.from_json({"name": name, "span_runs": 4, "max_windows": 4, "slicer": slicer})
        if name == "direct":
            build_dataset(data, data, definition)
        else:
            run_here(plan_build(data, data, definition).build)
            again = plan_build(data, data, definition)
            assert again.steps == ()
    assert spans(data, "planned") == spans(data, "direct")
    written = [data.dataset(name).store.read("_definition.toml").decode() for name in ("direct", "planned")]
    assert written[0].replace('"direct"', '"planned"') == written[1]


def test_nothing_is_created_for_a_job_without_runs(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 2))
    with pytest.raises(CimlError, match="no stored run matches"):
        plan_build(data, data, DatasetDefinition(name="none", build_name=("other",)))
    assert data.dataset_names() == []


def test_the_stage_may_be_repeated(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 8))
    define(data)
    planned = plan_update(data.dataset("cpu"))
    root = data.dataset("cpu").store
    run_here(planned.build)
    before = spans(data, "cpu")
    assert commit_steps(root, planned.steps, "results/none") == 0
    run_here(planned.build)  # the whole job again
    assert spans(data, "cpu") == before
    assert data.dataset("cpu").state().version == 3
    assert verify_dataset(data.dataset("cpu")) == []


def test_a_commit_that_is_killed_before_any_step_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, data: DataRoot, raw: RawStore
) -> None:
    """The records of the spans are removed after the last commit, so that the stage can read them again."""
    raw.add(runs(1, 8))
    define(data)
    planned = plan_update(data.dataset("cpu"))
    run_here(lambda pipeline: build_spans(pipeline, planned.raw, planned.root, planned.steps, "results/0"))
    order = [
        "append datasets/cpu: corrections_to cursor resolved spans",
        "append datasets/cpu: corrections_to cursor spans",
        "delete datasets/cpu/results/0/1-1.json",
        "delete datasets/cpu/results/0/2-1.json",
    ]
    for index in each_step(len(order), few=False):
        copy = DataRoot.open(shutil.copytree(data.url, tmp_path_factory.mktemp("copy") / "data"))
        root = copy.dataset("cpu").store
        with Steps(copy.url, index).recording() as steps:
            commit_steps(root, planned.steps, "results/0")
        assert steps.steps == order[:index]
        commit_steps(root, planned.steps, "results/0")
        assert run_ids(copy.dataset("cpu").state()) == [ids(1, 4), ids(5, 8)]
        assert root.list("results") == []
        assert verify_dataset(copy.dataset("cpu")) == []


def test_other_spans_of_another_updater_stop_it(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    planned = plan_update(data.dataset("cpu"))
    raw.add(runs(5, 8))
    update_dataset(data.dataset("cpu"))
    assert commit_steps(data.dataset("cpu").store, planned.steps, "results/none") == 0  # the same first span
    late = plan_update(data.dataset("cpu"), seal=True)
    assert late.steps == ()
    raw.add(runs(9, 9))
    late = plan_update(data.dataset("cpu"), seal=True)  # a span of one run
    with pytest.raises(IntegrityError, match="no result for span 3"):
        commit_steps(data.dataset("cpu").store, late.steps, "results/none")
    raw.add(corrections=[runs(1, 1)[0][0].replace(outcome="failure", result="FAILURE")])
    update_dataset(data.dataset("cpu"))  # seals no span 3, but a new version of span 1
    version = data.dataset("cpu").state().version
    with pytest.raises(CimlError, match=r"another update of .*cpu came first, from version 3 on"):
        run_here(late.build)
    assert data.dataset("cpu").state().version == version
    run_here(plan_update(data.dataset("cpu"), seal=True).build)  # started again
    assert run_ids(data.dataset("cpu").state())[-1] == ids(9, 9)
    assert verify_dataset(data.dataset("cpu")) == []

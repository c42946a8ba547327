"""Stored exclusions: never lost, never twice; honoured by snapshots until they are reverted."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.manifest.log import ManifestLog
from ciml.training.data.examples import read_dataset
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.exclusions import Exclusion, add, exclusions_of, read_state, revert
from ciml.training.experiment import Experiment, refresh_key
from ciml.training.refresh import Skipped, TrainConfig, refresh
from ciml.trust import TrustPolicy

JOB, RUN = Exclusion("bad mirror", job="tempest-*"), Exclusion("disk was full", "zuul~a~1")


def test_additions_have_ids_and_reverts_leave_them(tmp_path: Path) -> None:
    store = DataRoot.open(tmp_path).exclusions
    assert [(kept.id, kept.exclusion, kept.time_us) for kept in add(store, [JOB, RUN], now_us=5)] == [
        (1, JOB, 5),
        (2, RUN, 5),
    ]
    (again,) = add(store, [RUN], now_us=6)
    assert (again.id, again.time_us, read_state(store).version) == (2, 5, 1)
    (reverted,) = revert(store, [2, 2], now_us=7)  # one number twice is one revert
    assert (reverted.id, reverted.exclusion) == (2, RUN)
    assert [kept.id for kept in read_state(store).active()] == [1]
    first, second = add(store, [RUN, RUN], now_us=8)  # one exclusion twice is stored once
    assert first.id == second.id == 3
    kept = read_state(store).by_id
    assert [(one.id, one.reverted_us) for one in kept.values()] == [(1, None), (2, 7), (3, None)]
    assert kept[2].to_json() == {
        "id": 2, "reason": "disk was full", "run_id": "zuul~a~1", "time_us": 5, "reverted_us": 7,
    }  # fmt: skip
    assert exclusions_of(DataRoot.open(tmp_path), DataRoot.open(tmp_path)).exclusions == (JOB, RUN)


@pytest.mark.parametrize(("ids", "line"), [([9], "exclusion 9: unknown; in force: 1"), ([1, 2], "2: reverted already")])
def test_a_wrong_revert_changes_nothing(tmp_path: Path, ids: list[int], line: str) -> None:
    store = DataRoot.open(tmp_path).exclusions
    add(store, [JOB, RUN])
    revert(store, [2])
    with pytest.raises(CimlError, match=line):
        revert(store, ids)
    assert [kept.id for kept in read_state(store).active()] == [1]


def test_an_invalid_one_stores_none(tmp_path: Path) -> None:
    store = DataRoot.open(tmp_path).exclusions
    with pytest.raises(CimlError, match="reason: is empty"):
        add(store, [RUN, Exclusion("", job="unit")])
    assert add(store, []) == []
    assert store.list() == []


@pytest.mark.parametrize(
    "delta",
    [
        {"kind": "exclude", "exclusions": [{"reason": 1}]},
        {"kind": "revert", "ids": [1]},
        {"kind": "forget"},
    ],
)
def test_a_contradicting_delta_is_reported(tmp_path: Path, delta: dict) -> None:
    store = DataRoot.open(tmp_path).exclusions
    assert ManifestLog(store).try_append(1, {"time_us": 1, **delta})
    with pytest.raises(IntegrityError, match="exclusions: version 1"):
        read_state(store)


def _exclude(path: str, name: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    for number in range(20):
        add(DataRoot.open(path).exclusions, [Exclusion("race", f"zuul~{name}-{number}~1")])


def test_two_processes_that_exclude_at_once_are_both_stored(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=_exclude, args=(str(tmp_path), name, start)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    state = read_state(DataRoot.open(tmp_path).exclusions)
    assert (len(state.by_id), state.version) == (40, 40)
    assert {kept.exclusion.run_id for kept in state.active()} == {
        f"zuul~{name}-{number}~1" for name in "ab" for number in range(20)
    }


def test_a_job_is_in_no_later_snapshot_until_its_exclusion_is_reverted(data: DataRoot, snapshot: Snapshot) -> None:
    dataset, policy, experiment = data.dataset("providers"), TrustPolicy.load(), Experiment()
    jobs = sorted({run.build_name for run in snapshot.runs()})
    assert len(jobs) > 1
    spans = dataset.state().latest()
    of_the_job = sum(run.build_name == jobs[0] for span in spans for run in span.runs)  # untrusted ones too
    (kept,) = add(data.exclusions, [Exclusion("bad mirror", job=jobs[0])])

    def next_refresh() -> Snapshot:
        """Of `ciml refresh`: it stops before training where it expects the same."""
        key = refresh_key(make_snapshot(dataset, policy).digest, experiment)
        found = refresh(TrainConfig(data, "providers", "m", experiment), last_key=key)
        assert isinstance(found, Skipped)
        return found.snapshot

    trained = read_dataset(dataset, policy)  # of `ciml experiment train` and sweeps
    for found in (next_refresh(), trained.snapshot):
        assert {run.build_name for run in found.runs()} == set(jobs[1:])
        assert found.excluded == {"bad mirror": of_the_job}
        assert found.digest != snapshot.digest
    assert {facts.build_name for facts in trained.facts} == set(jobs[1:])
    revert(data.exclusions, [kept.id])
    assert next_refresh() == snapshot
    assert read_dataset(dataset, policy).snapshot == snapshot
    assert make_snapshot(dataset, policy, exclusions_of(data)) == snapshot


def test_exclusions_of_the_raw_stores_data_root_count_too(data: DataRoot, tmp_path: Path) -> None:
    from ciml.pipelines.datasets.build import build_dataset

    other = DataRoot.open(tmp_path / "other")
    definition = data.dataset("providers").state().definition
    assert definition is not None
    build_dataset(data, other, definition)
    before = make_snapshot(other.dataset("providers"), TrustPolicy.load())
    one, two = [run.run_id for run in before.runs()][:2]
    add(data.exclusions, [Exclusion("raw", one)])
    add(other.exclusions, [Exclusion("own", two)])
    after = make_snapshot(other.dataset("providers"), TrustPolicy.load())
    assert after.excluded == {"raw": 1, "own": 1}
    assert {run.run_id for run in before.runs()} - {run.run_id for run in after.runs()} == {one, two}

"""A served model that learned from excluded runs is named; the data root is one that an older version wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.storage import LocalStore
from ciml.training.data.snapshot import make_snapshot, read_snapshot
from ciml.training.exclusions import Exclusion, add, revert
from ciml.training.learned import models_with_excluded_runs
from ciml.trust import TrustPolicy


def runs(data: DataRoot, *roles: str) -> list[str]:
    (path,) = Path(data.url, "trainer/provider/snapshots").glob("*.json")
    return [run.run_id for run in read_snapshot(data.trainer("provider"), path.stem).runs(*roles)]  # type: ignore[arg-type]


def test_without_exclusions_nothing_is_read_and_the_snapshot_is_that_of_the_older_version(golden: DataRoot) -> None:
    (path,) = Path(golden.url, "trainer/provider/snapshots").glob("*.json")
    before = read_snapshot(golden.trainer("provider"), path.stem)
    made = make_snapshot(golden.dataset("provider"), TrustPolicy.load())
    assert made.replace(policy=before.policy) == before  # the built-in rules have changed since
    for folder in ("trainer", "datasets"):  # an older data root may lack them
        shutil.rmtree(Path(golden.url, folder))
        assert models_with_excluded_runs(golden) == []


def test_a_training_run_is_named_and_a_test_run_is_not_learned(golden: DataRoot) -> None:
    (kept,) = add(golden.exclusions, [Exclusion("why", runs(golden, "test")[0])])
    assert models_with_excluded_runs(golden) == []
    learned = runs(golden, "train", "dev")
    add(golden.exclusions, [Exclusion("why", run_id) for run_id in learned[:5]])
    (found,) = models_with_excluded_runs(golden)
    assert (found.model, found.version, found.labels, found.runs) == ("provider", 1, ("stable",), tuple(learned[:5]))
    assert str(found) == (
        f"model provider version 1 (stable) learned 5 excluded runs ({', '.join(learned[:3])} and 2 more) and is still "
        "served; replace it by ciml refresh, or roll back"
    )
    assert models_with_excluded_runs(golden, ["provider"]) == [found]
    assert models_with_excluded_runs(golden, []) == []
    revert(golden.exclusions, [kept.id, 2, 3, 4, 5, 6])
    assert models_with_excluded_runs(golden) == []


def test_jobs_sources_and_times_are_matched_too(golden: DataRoot) -> None:
    learned = runs(golden, "train", "dev")
    facts = {}
    for path in Path(golden.url, "raw/_manifest").glob("*.json"):
        for row in json.loads(path.read_text())["runs"]:
            facts[row["mention"]["run_id"]] = row["mention"]
    middle = sorted(facts[run_id]["end_us"] for run_id in learned)[len(learned) // 2]
    want = tuple(run_id for run_id in learned if facts[run_id]["end_us"] >= middle)
    assert 0 < len(want) < len(learned)
    for exclusion, expected in (
        (Exclusion("why", since_us=middle), want),
        (Exclusion("why", job=f"{facts[learned[0]]['build_name'][:-1]}?"), tuple(learned)),
        (Exclusion("why", source=learned[0].partition("~")[0]), tuple(learned)),
        (Exclusion("why", source="elsewhere"), ()),
    ):
        (kept,) = add(golden.exclusions, [exclusion])
        assert tuple(run for found in models_with_excluded_runs(golden) for run in found.runs) == expected
        revert(golden.exclusions, [kept.id])


def test_what_cannot_be_determined_is_said(golden: DataRoot) -> None:
    add(golden.exclusions, [Exclusion("why", job="other")])
    shutil.rmtree(Path(golden.url, "trainer"))
    (found,) = models_with_excluded_runs(golden)
    assert str(found).startswith(
        "model provider version 1 (stable): cannot determine whether it learned excluded runs: no snapshot "
    )
    shutil.rmtree(Path(golden.url, "datasets"))
    (found,) = models_with_excluded_runs(golden)
    assert "cannot determine whether it learned excluded runs: no data set 'provider'" in str(found)


@pytest.mark.parametrize("folder", ["datasets", "exclusions", "trainer"])
def test_a_store_that_does_not_answer_is_no_fault_of_a_model(
    golden: DataRoot, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    add(golden.exclusions, [Exclusion("why", job="other")])
    read = LocalStore.read

    def failing(store: LocalStore, path: str) -> bytes:
        if f"/data/{folder}/" in store.url(path):
            raise EngineError("no answer")
        return read(store, path)

    monkeypatch.setattr(LocalStore, "read", failing)
    with pytest.raises(EngineError, match="no answer"):
        models_with_excluded_runs(golden)

"""A short selection of the faults: an honest trial, and one whose planted defects are found. All of it: make faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults import planted, rows, scene
from tests.faults.long import Look, judge_growth
from tests.faults.planted import DEFECTS
from tests.faults.results import Verdict
from tests.faults.scene import Stage
from tests.pipelines.ingest.ingesting import need_real

SCALE = 0.25


@pytest.fixture(scope="module")
def place(kafka: str) -> Iterator[Stage]:
    need_real(kafka)  # what dies announces twice where there are no transactions
    with scene.stage(broker=kafka) as shared:
        yield shared


@pytest.mark.engines
def test_runs_survive_kills_of_the_ingest(place: Stage) -> None:
    verdict, _ = scene.play(1, 1, "micro-batches", place, scale=SCALE)
    assert verdict.failures == []
    assert verdict.counts["kills"] >= 1
    assert verdict.counts["rows"] > 10


@pytest.mark.engines
def test_planted_defects_are_found(place: Stage) -> None:
    defects = ("row-twice", "dropped-repeat", "other-values")
    verdict, _ = scene.play(9, 1, "micro-batches", place, ",".join(defects), SCALE)
    found = {line.partition(":")[0] for line in verdict.failures}
    assert all(found.intersection(DEFECTS[defect].finds) for defect in defects), verdict.failures


@pytest.fixture(scope="module")
def alone() -> Iterator[Stage]:
    """A stage for trials that need no engine."""
    with scene.stage(broker="127.0.0.1:1") as shared:
        yield shared


@pytest.mark.engines
@pytest.mark.parametrize("row", [30, 31, 32])
def test_pushers_lease_holders_and_purges_die_at_every_step(row: int, alone: Stage) -> None:
    verdict, _ = scene.play(row, 3, "micro-batches", alone)
    assert verdict.failures == []
    assert verdict.counts["kills"] + verdict.counts["frozen"] >= 2


@pytest.mark.engines
@pytest.mark.parametrize("defect", ["pushes-in-place", "checks-no-lease", "withdraws-last"])
def test_defects_of_trainers_are_found(defect: str, alone: Stage) -> None:
    lines = scene.hunt(defect, alone)
    assert any(line.startswith(DEFECTS[defect].finds) for line in lines), lines


def test_every_defect_has_a_row_and_patches_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {defect.row for defect in DEFECTS.values()} <= rows.load().keys()
    patched: list[object] = []
    monkeypatch.setattr(planted, "_patch", lambda owner, name, make: patched.append(getattr(owner, name)))
    for defect in DEFECTS.values():
        defect.plant()
    assert len(patched) >= len(DEFECTS)
    assert all(row.trials >= 10 for row in rows.load().values())


def growth(
    *, rss_mb: Callable[[float], float] = lambda at: 330.0, checkpoint_mb: Callable[[float], float] = lambda at: 1.0,
    latency_s: Callable[[float], float] = lambda at: 5.0,
) -> list[str]:  # fmt: skip
    """The failures of half an hour with a look every ten seconds, by what each figure is at a second."""
    times = [10.0 * n for n in range(1, 181)]
    looks = [Look(at, rss_mb(at), 47, checkpoint_mb(at), latency_s(at), 2, int(at * 20), 90) for at in times]
    verdict = Verdict()
    judge_growth(looks, verdict)
    return verdict.failures


def test_a_soak_finds_growth() -> None:
    assert growth(checkpoint_mb=lambda at: 0.15 + at * 2.0 / 1020) == [
        "I6: the checkpoint's peak grew from 2.5 to 3.7 MB"
    ]
    (found,) = growth(rss_mb=lambda at: 300 + at / 20)
    assert found.startswith("I6: rss_mb grew by 60.0 ")
    (found,) = growth(latency_s=lambda at: 4 + at / 900)
    assert found.startswith("I6: latency_s grew by 1.3")


@pytest.mark.parametrize("period_s", [300.0, 1020.0])
def test_a_size_that_is_reset_before_it_is_large_is_no_growth(period_s: float) -> None:
    assert growth(checkpoint_mb=lambda at: 0.15 + at % period_s * 2.0 / 1020) == []


def test_what_settles_at_first_is_no_growth() -> None:
    assert growth(rss_mb=lambda at: min(300 + at / 5, 400)) == []

"""A short selection of the faults, and of the planted defects that the harness has to find. All of it: make faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import rows, stage
from tests.faults.planted import DEFECTS
from tests.faults.planted_trials import HUNTS, found
from tests.faults.playing import play
from tests.faults.stage import Stage
from tests.pipelines.ingest.ingesting import need_real

SCALE = 0.25


@pytest.fixture(scope="module")
def place(kafka: str) -> Iterator[Stage]:
    need_real(kafka)  # what dies announces twice where there are no transactions
    with stage.stage(broker=kafka) as shared:
        yield shared
        stage.close_nursery()


@pytest.mark.engines
@pytest.mark.parametrize(("row", "seed"), [(1, 1), (9, 2), (18, 1)])
def test_a_trial_of_the_row_holds(place: Stage, row: int, seed: int) -> None:
    verdict, _ = play(row, seed, "micro-batches", place, scale=SCALE)
    assert verdict.failures == []
    assert verdict.counts["rows"] > 10


@pytest.mark.engines
@pytest.mark.parametrize("defect", ["dropped-repeat", "row-twice", "other-values"])
def test_a_planted_defect_is_found(place: Stage, defect: str) -> None:
    ok, lines, _ = found(defect, place, scale=SCALE)
    assert ok, lines


def test_every_defect_has_a_row_that_finds_it() -> None:
    assert HUNTS.keys() == DEFECTS.keys()
    known = rows.load()
    assert {hunt.row for hunt in HUNTS.values()} <= known.keys()
    for row in known.values():
        assert row.TITLE
        assert row.INJECTED
        assert row.EXPECTED
        assert row.INVARIANTS
        assert row.TRIALS >= 10

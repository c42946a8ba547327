from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import UNJUDGED, RawFile, RunFacts, Trust
from ciml.runs import neighbours
from ciml.runs.neighbours import NEAR_WITHIN_US, NearbyRuns, Neighbours
from ciml.runs.run_log import RunDelta, RunRecord, TrustChange

HOUR = 1_700_000_000_000_000


def run(number: int, outcome: Any = "failure", end_us: int | None = HOUR, **keys: Any) -> RunFacts:
    facts = {"source": "zuul", "provider": "north", "region": "1", "build_name": "unit", "change": str(number), **keys}
    return RunFacts(f"zuul~{number}~1", str(number), outcome=outcome, end_us=end_us, **facts)


TRUSTED = Trust(True, "gate", "0")


def record(facts: RunFacts, trust: Trust = TRUSTED) -> RunRecord:
    return RunRecord(facts, RawFile("", "", 0, 0), trust)


def add(known: NearbyRuns, *runs: RunFacts, trust: Trust = TRUSTED, **lists: Any) -> None:
    known.add(RunDelta(runs=tuple(record(each, trust) for each in runs), **lists))


def near(*runs: RunFacts, wants: str = "unit", trust: Trust = TRUSTED) -> list[Neighbours | None]:
    known = NearbyRuns(lambda job: job == wants)
    add(known, *runs, trust=trust)
    return [known.of(each.run_id) for each in runs]


def test_runs_of_other_changes_that_ended_in_the_hour_before_count() -> None:
    assert near(
        run(1, "failure", HOUR - NEAR_WITHIN_US),  # an hour before: too early
        run(2, "failure", HOUR - NEAR_WITHIN_US + 1),
        run(3, "success", HOUR - 1),
        run(4, "timeout", HOUR),
        run(5, "error", HOUR - 1),  # says nothing
        run(6, "cancellation", HOUR - 1),
        run(7, "failure", HOUR + 1),  # ended later
        run(8, "failure", HOUR - 1, change="9"),  # of the same change
        run(9, build_name="unit"),
        run(10),  # recorded later
    )[8] == Neighbours(failed=2, runs=3)


@pytest.mark.parametrize(
    "keys", [{"provider": "south"}, {"region": "2"}, {"source": "other"}, {"labels": {"node": "n1"}}, {"provider": ""}]
)
def test_only_runs_of_the_same_place_are_neighbours(keys: dict[str, Any]) -> None:
    assert near(run(1), run(2, **keys))[1] == (None if keys == {"provider": ""} else Neighbours(0, 0))
    at: dict[str, Any] = {"provider": "south", "region": "2", "labels": {"node": "n1"}}
    assert near(run(1, **at), run(2, **at))[1] == Neighbours(1, 1)


def test_passing_runs_and_other_jobs_are_not_asked_for() -> None:
    found = near(run(1), run(2, "success"), run(3, build_name="docs"), run(4, end_us=None))
    assert found == [Neighbours(0, 0), None, None, None]


def test_untrusted_runs_do_not_count() -> None:
    assert near(run(1), run(2), trust=UNJUDGED) == [Neighbours(0, 0)] * 2


def test_runs_without_a_change_are_apart() -> None:
    assert near(run(1, change=""), run(2, change=""))[1] == Neighbours(1, 1)


def test_there_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_NEAR_RUNS", 2)
    assert near(*(run(number) for number in range(1, 6)))[4] == Neighbours(2, 2)
    monkeypatch.setattr(neighbours, "MAX_NEAR_PLACES", 1)
    assert near(run(1), run(2, region="2"), run(3))[2] == Neighbours(0, 0)
    monkeypatch.setattr(neighbours, "MAX_NEAR_FOUND", 1)
    assert near(run(1), run(2)) == [None, Neighbours(1, 1)]


def test_untrusted_runs_displace_no_figures_of_a_run_that_is_believed_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_NEAR_FOUND", 3)
    known = NearbyRuns(lambda job: True)
    add(known, run(1), run(2))
    add(known, run(3, auth="hmac-sha256"), trust=UNJUDGED)
    add(known, *(run(number) for number in range(100, 150)), trust=UNJUDGED)
    assert [known.of(f"zuul~{number}~1") for number in (1, 2, 3)] == [(0, 0), (1, 1), (2, 2)]
    add(known, trust_changes=(TrustChange("zuul~3~1", TRUSTED), TrustChange("zuul~149~1", TRUSTED)))
    add(known, *(run(number, auth="hmac-sha256") for number in range(200, 250)), trust=UNJUDGED)
    assert [known.of(f"zuul~{number}~1") for number in (2, 3, 149)] == [(1, 1), (2, 2), (2, 2)]


def test_a_reclaim_replaces_the_figures_of_the_former_row() -> None:
    known = NearbyRuns(lambda job: True)
    add(known, run(1))
    add(known, run(2), trust=UNJUDGED)
    assert known.of("zuul~2~1") == Neighbours(1, 1)
    add(known, reclaims=(record(run(2, "success")),))
    assert known.of("zuul~2~1") is None


def test_a_row_that_completes_a_trusted_one_counts_once() -> None:
    known = NearbyRuns(lambda job: True)
    add(known, run(1), run(2))
    add(known, reclaims=(record(run(1, labels={"team": "red"})),))
    add(known, run(3))
    assert known.of("zuul~3~1") == Neighbours(2, 2)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["failure", "success"]), st.integers(-2, 2), st.integers(0, 3), st.integers(0, 2),
        st.sampled_from("rt"),
    ),
    max_size=24,
)  # fmt: skip


@given(ROWS, st.sampled_from([0, 1, 2]), st.integers(0, 24), st.booleans())
def test_runs_that_are_believed_less_and_a_stored_state_leave_all_figures_as_they_are(
    rows: list[tuple[str, int, int, int, str]], least: int, cut: int, bounded: bool
) -> None:
    limits = {"MAX_NEAR_RUNS": 2, "MAX_NEAR_PLACES": 2, "MAX_NEAR_FOUND": 3} if bounded else {}
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(neighbours, name, limit)
        together, split, alone = (NearbyRuns(lambda job: True) for _ in range(3))
        believed: list[str] = []
        for number, (outcome, half, region, standing, kind) in enumerate(rows):
            auth = "hmac-sha256" if standing else ""
            one = run(number, outcome, HOUR + half * NEAR_WITHIN_US // 2, region=str(region), auth=auth)
            delta = RunDelta(runs=(record(one, TRUSTED if standing == 2 else UNJUDGED),))
            if kind == "t":
                change = TrustChange(one.run_id, TRUSTED if standing >= least else UNJUDGED)
                delta = delta.replace(trust_changes=(change,))
            if number == cut:
                again = NearbyRuns(lambda job: True)
                again.restore(split.encode())
                split = again
            for known in (together, split):
                known.add(delta)
            if standing >= least:
                alone.add(delta)
                believed.append(one.run_id)
            assert [together.of(run_id) for run_id in believed] == [alone.of(run_id) for run_id in believed]
        assert split.encode() == together.encode()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["failure", "success", "timeout", "skip"]), st.integers(-2, 2), st.integers(0, 2),
            st.sampled_from(["north", "south", ""]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_a_plain_search_finds_the_same(rows: list[tuple[str, int, int, str]]) -> None:
    runs = [
        run(number, outcome, HOUR + half * NEAR_WITHIN_US // 2, change=str(change), provider=provider)
        for number, (outcome, half, change, provider) in enumerate(rows)
    ]
    expected: list[Neighbours | None] = []
    for at, one in enumerate(runs):
        others = [
            other
            for other in runs[:at]
            if other.provider == one.provider
            and other.change != one.change
            and other.outcome in ("failure", "success", "timeout")
            and 0 <= (one.end_us or 0) - (other.end_us or 0) < NEAR_WITHIN_US
        ]
        failed = sum(other.outcome != "success" for other in others)
        asked = one.outcome in ("failure", "timeout") and one.provider
        expected.append(Neighbours(failed, len(others)) if asked else None)
    assert near(*runs) == expected

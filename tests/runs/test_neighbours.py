from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.events.records import UNJUDGED, RawFile, RunFacts, Trust
from ciml.runs import neighbours
from ciml.runs.neighbours import NEAR_WITHIN_US, NearbyRuns, Neighbours
from ciml.runs.run_log import RunDelta, RunRecord, TrustChange
from tests.tier import tries

HOUR = 1_700_000_000_000_000


def run(number: int, outcome: Any = "failure", end_us: int | None = HOUR, **keys: Any) -> RunFacts:
    facts = {"source": "zuul", "provider": "north", "region": "1", "build_name": "unit", "change": str(number), **keys}
    return RunFacts(f"zuul~{number}~1", str(number), outcome=outcome, end_us=end_us, **facts)


TRUSTED = Trust(True, "gate", "0")


def record(facts: RunFacts, trust: Trust = TRUSTED) -> RunRecord:
    return RunRecord(facts, RawFile("", "", 0, 0), trust)


def add(known: NearbyRuns, *runs: RunFacts, trust: Trust = TRUSTED, **lists: Any) -> None:
    known.add(RunDelta(runs=tuple(record(each, trust) for each in runs), **lists))


def near(*runs: RunFacts) -> list[Neighbours | None]:
    known = NearbyRuns(lambda job: True)
    add(known, *runs)
    return [known.of(each.run_id) for each in runs]


def test_there_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MAX_NEAR_RUNS", 2)
    assert near(*(run(number) for number in range(1, 6)))[4] == Neighbours(2, 2)
    monkeypatch.setattr(neighbours, "MAX_NEAR_PLACES", 1)
    assert near(run(1), run(2, region="2"), run(3))[2] == Neighbours(0, 0)
    monkeypatch.setattr(neighbours, "MAX_NEAR_FOUND", 1)
    assert near(run(1), run(2)) == [None, Neighbours(1, 1)]


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


ENDS_US = [HOUR - NEAR_WITHIN_US, HOUR - NEAR_WITHIN_US + 1, HOUR - 1, HOUR, HOUR, HOUR + 1, None]
PLACES: list[dict[str, Any]] = [
    *[{}] * 6,
    {"provider": "south"},
    {"region": "2"},
    {"source": "other"},
    {"provider": ""},
    {"labels": {"node": "n1"}},
    {"provider": "", "labels": {"node": "n1"}},
]
RUNS = st.builds(
    lambda outcome, end_us, change, job, place: run(1, outcome, end_us, change=change, build_name=job, **place),
    st.sampled_from(["failure", "failure", "timeout", "success", "success", "error", "cancellation"]),
    st.sampled_from(ENDS_US), st.sampled_from(["", "1", "2"]), st.sampled_from(["unit", "unit", "docs"]),
    st.sampled_from(PLACES),
)  # fmt: skip


@settings(max_examples=tries(200))
@given(st.lists(st.tuples(RUNS, st.sampled_from([True, True, False])), min_size=4, max_size=12))
def test_a_plain_search_finds_the_same(rows: list[tuple[RunFacts, bool]]) -> None:
    """Trusted runs of other changes that finished at the same place in the hour before and were recorded earlier."""
    known = NearbyRuns(lambda job: job == "unit")
    earlier: list[RunFacts] = []
    for number, (facts, trusted) in enumerate(rows):
        one = facts.replace(run_id=f"zuul~{number}~1")
        add(known, one, trust=TRUSTED if trusted else UNJUDGED)
        is_asked = one.build_name == "unit" and one.outcome in ("failure", "timeout") and one.end_us is not None
        others = [
            other
            for other in earlier
            if place(other) == place(one)
            and (not one.change or other.change != one.change)
            and 0 <= (one.end_us or 0) - (other.end_us or 0) < NEAR_WITHIN_US
        ]
        figures = Neighbours(sum(other.outcome != "success" for other in others), len(others))
        assert known.of(one.run_id) == (figures if is_asked and place(one) else None)
        if trusted and one.outcome in ("failure", "timeout", "success") and one.end_us is not None:
            earlier.append(one)


def place(facts: RunFacts) -> tuple[str, ...] | None:
    node = facts.labels.get("node", "")
    return (facts.source, facts.provider, facts.region, node) if node or facts.provider else None

"""What recorders report and CI systems do not: kept apart from the run's row, in any order of the events."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import Outcome, RunFacts, Trust
from ciml.runs.known_subjects import Claim, with_claims
from ciml.runs.run_log import StoredRunLog
from ciml.runs.state import RawState
from tests.runs.accounts import batch, known, outcome, step
from tests.runs.raw_world import Actor, World

RUN = "zuul~a~1"
MACHINE = {"provider": "north", "region": "1", "flavour": "large"}
LABELS = {"exit_code": "137", "node": "n7", "cause": "machine", "team": "red"}
CLAIMED = {**MACHINE, "exit_code": "137", "node": "n7"}


def event(offset: int, trusted: bool, kind: str = "run", **facts: Any) -> Outcome:
    return outcome(
        offset, kind, event=f"e{offset}", digest=f"d{offset}", reason="why", trusted=trusted, facts=facts
    )  # fmt: skip


def recorder(offset: int, **more: Any) -> Outcome:
    return event(offset, False, **{"labels": LABELS, **MACHINE, **more})


def system(offset: int, **more: Any) -> Outcome:
    return event(offset, True, auth="mqtt-user", url="https://zuul/a", **more)


def stored(tmp_path: Path, *outcomes: Outcome) -> Actor:
    actor = World(tmp_path).actor()
    for number, one in enumerate(outcomes):
        actor.commit([batch(number, number + 1, one)])
    return actor


def values(state: RawState) -> dict[str, str]:
    return {name: claim.value for name, claim in state.index.subjects.claims(RUN).items()}


@pytest.mark.parametrize("kind", ["run", "dead_letter", "deferred"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("first", ["recorder", "system"])
def test_what_a_recorder_reports_is_kept_in_any_order_of_the_events(first: str, together: bool, kind: str) -> None:
    state = RawState()
    outcomes = [recorder(0, kind=kind), system(1)] if first == "recorder" else [system(0), recorder(1, kind=kind)]
    for settled in [outcomes] if together else [[one] for one in outcomes]:
        step(state, *settled)
    assert values(state) == CLAIMED
    assert known(state).trusted


def test_no_row_that_trains_holds_a_claim(tmp_path: Path) -> None:
    log = stored(tmp_path, recorder(0), system(1), recorder(2)).log
    rows = [row for _, delta in StoredRunLog(log, lambda facts: Trust(False, "", "")).since(0) for row in delta.rows]
    assert [dict(row.facts.labels) for row in rows] == [LABELS, {}]
    assert (rows[1].facts.provider, rows[1].trust.trusted) == ("", True)


def test_the_facts_of_a_trusted_row_are_no_claims() -> None:
    state = RawState()
    step(state, event(0, True, labels=LABELS, **MACHINE))
    assert values(state) == {}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_claim_of_the_highest_standing_counts_and_of_equals_the_first(order: tuple[int, ...]) -> None:
    state = RawState()
    claims = [
        recorder(0, labels={"exit_code": "1", "node": "n1"}),
        recorder(1, labels={"exit_code": "2"}, auth="hmac-sha256"),
        system(2, kind="ignored"),
    ]
    for number in order:
        step(state, claims[number])
    assert state.index.subjects.claims(RUN)["exit_code"] == Claim(1, "2")
    assert state.index.subjects.claims(RUN)["node"] == Claim(0, "n1")
    step(state, recorder(3, labels={"exit_code": "3", "node": "n3"}))
    assert values(state)["exit_code"] == "2"
    assert values(state)["node"] == "n1"


@given(st.lists(st.tuples(st.sampled_from(["1", "2", ""]), st.booleans()), max_size=6))
def test_claims_without_proof_leave_proved_ones_as_they_are(events: list[tuple[str, bool]]) -> None:
    together, alone = RawState(), RawState()
    for offset, (code, proved) in enumerate(events):
        labels = {"exit_code": code} if code else {}
        claim = recorder(offset, kind="ignored", labels=labels, auth="token" if proved else "")
        step(together, claim)
        if proved:
            step(alone, claim)
    expected = alone.index.subjects.claims(RUN)
    found = together.index.subjects.claims(RUN)
    assert {name: claim for name, claim in found.items() if claim.standing} == expected


def test_checkpoints_hold_claims(tmp_path: Path) -> None:
    actor = stored(tmp_path, recorder(0), system(1), *map(system, range(2, 8)))
    actor.maintain()
    restored = actor.checkpoints.open()
    assert restored.restored > 0
    assert values(restored) == CLAIMED


def test_claims_complete_facts_and_replace_none() -> None:
    facts = RunFacts(RUN, "a", "unit", provider="south", labels={"exit_code": "1", "x": "y"})
    claims = {"provider": Claim(0, "north"), "region": Claim(0, "2"), "exit_code": Claim(0, "9"), "node": Claim(1, "n")}
    completed = with_claims(facts, claims)
    assert (completed.provider, completed.region) == ("south", "2")
    assert completed.labels == {"exit_code": "1", "node": "n", "x": "y"}

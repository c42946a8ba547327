"""What recorders report and CI systems do not: kept apart from the run's row, in any order of the events."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.digest import canonical_json
from ciml.events.records import Batch, OffsetRange, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.checkpoints import Checkpoints, Limits
from ciml.manifest.log import ManifestLog, catch_up
from ciml.runs.accounting import reconcile
from ciml.runs.known_subjects import Claim, with_claims
from ciml.runs.run_log import StoredRunLog
from ciml.runs.state import RAW, RawState
from ciml.storage import LocalStore

RUN = "zuul~a~1"
MACHINE = {"provider": "north", "region": "1", "flavour": "large"}
LABELS = {"exit_code": "137", "node": "n7", "cause": "machine", "team": "red"}


def settled(offset: int, trusted: bool, kind: Any = "run", **facts: Any) -> Batch:
    mention = RunFacts(RUN, "a", "unit", outcome="failure", source="zuul", **facts)
    file = RawFile(f"runs/{offset}", f"d{offset}", 3, 99) if kind == "run" else None
    trust = Trust(trusted, "gated" if trusted else "no rule", "p")
    outcome = Outcome(kind, Origin("t", 0, offset), f"zuul {offset}", mention, "why", trust=trust, file=file)
    return Batch(OffsetRange("t", "T", 0, offset, offset + 1), settled=[outcome])


def recorder(offset: int, **more: Any) -> Batch:
    return settled(offset, False, **{"labels": LABELS, **MACHINE, **more})


def system(offset: int, **more: Any) -> Batch:
    return settled(offset, True, auth="mqtt-user", url="https://zuul/a", **more)


def step(state: RawState, *batches: Batch) -> dict[str, Any]:
    delta = reconcile(state, batches, 1)
    assert delta is not None
    delta = json.loads(canonical_json(delta))
    state.apply(state.version + 1, delta)
    return delta


def values(state: RawState) -> dict[str, str]:
    return {name: claim.value for name, claim in state.index.subjects.claims(RUN).items()}


CLAIMED = {**MACHINE, "exit_code": "137", "node": "n7"}


@pytest.mark.parametrize("kind", ["run", "dead_letter", "deferred"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("first", ["recorder", "system"])
def test_what_a_recorder_reports_is_kept_in_any_order_of_the_events(first: str, together: bool, kind: str) -> None:
    state = RawState()
    batches = [recorder(0, kind=kind), system(1)] if first == "recorder" else [system(0), recorder(1, kind=kind)]
    if together:
        step(state, *batches)
    else:
        for batch in batches:
            step(state, batch)
    assert values(state) == CLAIMED
    run = state.index.run(RUN)
    assert run is not None
    assert run.trusted


def test_no_row_that_trains_holds_a_claim(tmp_path: Path) -> None:
    log, state = ManifestLog(LocalStore(tmp_path)), RawState()
    for batch in (recorder(0), system(1), recorder(2)):
        delta = reconcile(state, [batch], 1)
        assert delta is not None
        assert log.try_append(state.version + 1, delta)
        catch_up(log, state)
    rows = [row for _, delta in StoredRunLog(log, lambda facts: Trust(False, "", "")).since(0) for row in delta.rows]
    assert [dict(row.facts.labels) for row in rows] == [LABELS, {}]
    assert (rows[1].facts.provider, rows[1].trust.trusted) == ("", True)


def test_the_facts_of_a_trusted_row_are_no_claims() -> None:
    state = RawState()
    step(state, settled(0, True, labels=LABELS, **MACHINE))
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
        batch = recorder(offset, kind="ignored", labels=labels, auth="token" if proved else "")
        step(together, batch)
        if proved:
            step(alone, batch)
    expected = alone.index.subjects.claims(RUN)
    found = together.index.subjects.claims(RUN)
    assert {name: claim for name, claim in found.items() if claim.standing} == expected


def test_checkpoints_hold_claims(tmp_path: Path) -> None:
    log = ManifestLog(LocalStore(tmp_path))
    checkpoints = Checkpoints(log, RAW, Limits(deltas=2))
    state = checkpoints.open()
    for batch in (recorder(0), system(1), *(system(offset) for offset in range(2, 8))):
        delta = reconcile(state, [batch], 1)
        assert delta is not None
        assert log.try_append(state.version + 1, delta)
        catch_up(log, state)
    while checkpoints.maintain():
        pass
    restored = checkpoints.open()
    assert restored.restored > 0
    assert values(restored) == CLAIMED


def test_claims_complete_facts_and_replace_none() -> None:
    facts = RunFacts(RUN, "a", "unit", provider="south", labels={"exit_code": "1", "x": "y"})
    claims = {"provider": Claim(0, "north"), "region": Claim(0, "2"), "exit_code": Claim(0, "9"), "node": Claim(1, "n")}
    completed = with_claims(facts, claims)
    assert (completed.provider, completed.region) == ("south", "2")
    assert completed.labels == {"exit_code": "1", "node": "n", "x": "y"}

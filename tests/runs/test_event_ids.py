"""Ids of events: an event never blocks one that is believed more, and the same event is a repeat for ever."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import UNJUDGED, FactUpdate, Origin, Outcome, RunFacts, Trust
from ciml.manifest.verify import verify_log
from ciml.runs import state as state_module
from ciml.runs.state import RAW, RawState
from tests.runs.accounts import TOPIC, TRUSTED, UNTRUSTED, batch, known, outcome, settle, step
from tests.runs.raw_world import Actor, World

KEY = "zuul e1"


def event(
    offset: int, word: Any = "success", trust: Trust = TRUSTED, auth: str = "", kind: Any = "run", **more: Any
) -> Outcome:
    facts = {"auth": auth, "subjects": ("s",), "pipeline": trust.rule}
    return outcome(offset, kind, word=word, digest=f"{word}{offset}", trusted=trust.trusted, facts=facts, **more)


def update(offset: int, key: str = KEY, when: int = 1, **facts: str) -> Outcome:
    said = FactUpdate("zuul", "s", facts, "hmac-sha256", when)
    return Outcome("update", Origin(TOPIC, 0, offset), key, updates=(said,))


def reviewed(facts: RunFacts) -> Trust:
    return TRUSTED if facts.review == "approved" and facts.auth else UNTRUSTED


LESS: list[tuple[Trust, str]] = [(UNTRUSTED, ""), (UNTRUSTED, "hmac-sha256"), (TRUSTED, "hmac-sha256")]


@pytest.mark.parametrize(("less", "more"), [(LESS[0], LESS[1]), (LESS[0], LESS[2]), (LESS[1], LESS[2])])
@pytest.mark.parametrize("word", ["success", "failure"])
@pytest.mark.parametrize("together", [True, False])
def test_an_id_does_not_block_an_event_that_is_believed_more(
    less: tuple[Trust, str], more: tuple[Trust, str], word: str, together: bool
) -> None:
    state = RawState()
    outcomes = [event(0, word, *less), event(1, "success", *more)]
    for settled in [outcomes] if together else [[one] for one in outcomes]:
        step(state, *settled)
    assert state.counts == {("run", ""): 1, ("reclaim", ""): 1}
    run = known(state)
    assert (run.outcome, run.digest, run.standing) == ("success", "success1", 2 if more[0].trusted else 1)
    step(state, event(2, "failure", *less), event(3, "success", *more))
    assert state.counts["repeat", "event"] == 2


@pytest.mark.parametrize("kind", ["ignored", "dead_letter", "deferred"])
def test_neither_does_an_untrusted_event_without_a_row(kind: str) -> None:
    state = RawState()
    step(state, event(0, "failure", UNTRUSTED, kind=kind, reason="not_finished"))
    step(state, event(1))
    assert state.counts["run", ""] == 1
    assert state.counts["repeat", "event"] == 0


def test_the_same_event_is_a_repeat_though_an_update_has_raised_its_trust() -> None:
    """Otherwise it would take back the correction of its run."""
    state = RawState()
    first = event(0, "failure", UNTRUSTED, "hmac-sha256")
    step(state, first, judge=reviewed)
    step(state, event(1, "success", UNTRUSTED, "hmac-sha256", event="e2"), judge=reviewed)
    step(state, update(2, "zuul e3", review="approved"), judge=reviewed)
    step(state, event(3, "failure", UNTRUSTED, "hmac-sha256"), judge=reviewed)
    run = known(state)
    assert (run.outcome, run.trusted) == ("success", True)
    assert state.counts["repeat", "event"] == 1


def test_an_id_does_not_block_the_event_of_a_run_that_an_update_has_made_trusted() -> None:
    state = RawState()
    step(state, event(0, "failure", UNTRUSTED, ""), judge=reviewed)
    step(state, update(1, "zuul e3", review="approved"), judge=reviewed)
    step(state, event(2, "success", UNTRUSTED, "hmac-sha256"), judge=reviewed)
    assert state.counts["repeat", "event"] == 0
    run = known(state)
    assert (run.outcome, run.proved) == ("success", True)


@pytest.mark.parametrize("first", [update(0, owner="mallory"), outcome(0, "ignored", run="", reason="no_run")])
def test_an_update_counts_though_another_event_had_its_id(first: Outcome) -> None:
    state = RawState()
    step(state, first)
    step(state, update(1, fork="yes"))
    assert state.index.subjects.statements(("zuul", "s"))["fork"].value == "yes"
    step(state, update(2, fork="yes"))
    assert (state.counts["repeat", "event"], state.counts["update", ""]) == (1, 1 if first.kind == "ignored" else 2)


@pytest.mark.parametrize(
    "outcomes", list(permutations([update(0, owner="a"), update(1, fork="yes"), update(2, owner="b")]))
)
def test_facts_do_not_depend_on_the_order_of_updates_with_one_id(outcomes: tuple[Outcome, ...]) -> None:
    state = RawState()
    for one in outcomes:
        step(state, one)
    said = state.index.subjects.statements(("zuul", "s"))
    assert {name: one.value for name, one in said.items()} == {"owner": "b", "fork": "yes"}


@pytest.mark.parametrize("trust", [TRUSTED, UNTRUSTED])
@pytest.mark.parametrize("stored", ["row without a decision", "checkpoint"])
def test_an_id_that_an_older_version_stored_is_still_that_of_a_repeat(stored: str, trust: Trust) -> None:
    state = RawState()
    if stored == "checkpoint":  # its table holds the plain pair, whoever sent the event
        state.index.add_event(KEY, "zuul~a~1")
    else:
        delta = settle(state, event(0, "failure").replace(trust=UNJUDGED))
        assert "trust" not in delta["runs"][0]
    before = state.counts.copy()
    step(state, event(1, "success", trust, "hmac-sha256"))
    assert state.counts - before == {("repeat", "event"): 1}


EVENTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["success", "failure"]), st.integers(0, 2)), max_size=8)


@given(EVENTS, st.lists(st.integers(0, 7), max_size=4), st.sampled_from([1, 2]))
def test_events_that_are_believed_less_change_no_run_that_is_believed_more(
    events: list[tuple[int, str, int]], again: list[int], least: int
) -> None:
    """Any events of one run under few ids, some of them delivered twice."""
    together, alone = RawState(), RawState()
    for offset, (standing, word, number) in enumerate(events + [events[at] for at in again if at < len(events)]):
        trust = TRUSTED if standing == 2 else UNTRUSTED
        one = event(offset, word, trust, "hmac-sha256" if standing else "", event=f"e{number}")
        step(together, one)
        if standing >= least:
            step(alone, one)
        if (expected := alone.index.run("zuul~a~1")) is not None:
            assert known(together) == expected


def fill(actor: Actor, offsets: range) -> None:
    for offset in offsets:
        one = event(offset, "failure", UNTRUSTED, "hmac-sha256", event=f"e{offset}")
        actor.commit([batch(offset, offset + 1, one)])
    actor.maintain()


def test_checkpoints_hold_the_ids_of_all_standings(tmp_path: Path) -> None:
    actor = World(tmp_path).actor()
    fill(actor, range(12))
    restored = actor.checkpoints.open()
    assert restored.restored > 0
    step(restored, event(20, "failure", UNTRUSTED, "hmac-sha256"), event(21, "success", TRUSTED, "hmac-sha256"))
    assert restored.counts["repeat", "event"] == 1
    assert known(restored).digest == "success21"


def test_a_checkpoint_of_an_older_version_is_no_damage_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_marker(state: RawState) -> dict[str, Any]:
        return {name: value for name, value in snapshot(state).items() if name != state_module.BY_STANDING}

    snapshot = RawState.snapshot
    with monkeypatch.context() as older:
        older.setattr(state_module, "recorded_ids", lambda key, run_id, *_: [(key, run_id)])
        older.setattr(RawState, "snapshot", without_marker)
        fill(World(tmp_path).actor(), range(8))
    actor = World(tmp_path).actor()
    fill(actor, range(8, 16))
    assert {fault.kind for fault in verify_log(actor.log, RAW)} == {"older"}
    restored = actor.checkpoints.open()
    step(restored, event(20))
    assert restored.counts["repeat", "event"] == 1

"""Replayed dead letters: an undecodable message is settled by its runs, once, for any number of replays."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.events.records import FactUpdate, Outcome
from ciml.manifest.log import ManifestLog, catch_up, commit
from ciml.runs.accounting import reconcile
from ciml.runs.dead_letters import Choice, DeadLetter
from ciml.runs.state import RawState
from ciml.runs.verify import Audit, Verification
from ciml.storage import LocalStore
from tests.runs.accounts import TOPIC, batch, outcome, retry, settle, step
from tests.tier import tries


def undecoded(offset: int) -> Outcome:
    return outcome(offset, "dead_letter", run="", event="", reason="broken_json", payload={"value": "e30="})


def broken(*offsets: int) -> RawState:
    state = RawState()
    step(state, batch(0, 9, *(undecoded(offset) for offset in offsets)))
    return state


def test_a_message_that_can_be_decoded_now_is_settled_run_by_run() -> None:
    state = broken(4)
    assert state.counts == {("dead_letter", "broken_json"): 1}
    outcomes = [
        outcome(4, run="a"),
        outcome(4, "ignored", run="b", reason="cancelled"),
        outcome(4, "dead_letter", run="c", reason="log_not_found", payload={"value": "e30="}),
    ]
    delta = settle(state, retry(*outcomes))
    assert delta["closes"] == [[[TOPIC, 0, 4], ""]]
    assert delta["closed_letters"] == delta["closes"]
    assert delta["offsets"] == {}
    assert state.counts == {("run", ""): 1, ("ignored", "cancelled"): 1, ("dead_letter", "log_not_found"): 1}
    assert [key[1] for key, _ in state.index.dead_letters()] == ["zuul~c~1"]
    assert step(state, retry(*outcomes)) is None  # a second replay
    step(state, retry(outcome(4, run="c")))
    assert state.counts == {("run", ""): 2, ("ignored", "cancelled"): 1}


def test_a_message_that_is_ignored_now_or_updates_runs_is_settled() -> None:
    state = broken(4, 5)
    ignored = outcome(4, "ignored", run="", event="e4", reason="no_run")
    update = outcome(5, "update", run="", event="e5").replace(updates=(FactUpdate("zuul", "a", {"fork": "no"}),))
    step(state, retry(ignored), retry(update, outcome(5, run="b", event="e5")))
    assert state.counts == {("ignored", "no_run"): 1, ("update", ""): 1, ("run", ""): 1}
    assert step(state, retry(ignored), retry(update)) is None
    assert state.index.subjects.statements(("zuul", "a"))["fork"].value == "no"
    step(state, retry(undecoded(4)))  # an older version cannot open it again
    assert list(state.index.dead_letters()) == []


def test_adjacent_ranges_of_commit_times_share_no_dead_letter() -> None:
    ranges = [(None, 5), (5, 6), (6, None)]
    for time_us in (4, 5, 6):
        dead_letter = DeadLetter(undecoded(0), 1, time_us)
        chosen = [Choice(since_us=since, until_us=until).matches(dead_letter) for since, until in ranges]
        assert chosen == [time_us == 4, time_us == 5, time_us == 6]


def test_an_undecodable_message_stays_open() -> None:
    state = broken(4)
    assert step(state, retry(undecoded(4))) is None
    assert step(state, retry(outcome(4, run="a"), undecoded(4))) is None  # not the whole message
    assert state.counts == {("dead_letter", "broken_json"): 1}
    assert step(state, retry(outcome(5, run="a"))) is None  # nothing is open there


def test_an_outcome_of_a_decoded_message_counts_as_one_of_a_new_message() -> None:
    state = broken(4)
    step(state, batch(9, 11, outcome(9, run="a", event="x"), outcome(10, run="b", event="y")))
    deferred = outcome(4, "deferred", run="c", reason="log_not_found", not_before_us=5)
    twice = [outcome(4, run="d"), outcome(4, run="d", word="failure")]
    delta = settle(state, retry(outcome(4, run="a"), outcome(4, run="b", word="failure"), deferred, *twice))
    assert [record["mention"]["outcome"] for record in delta["runs"]] == ["success"]
    counts = {("run", ""): 3, ("repeat", "run"): 1, ("correction", "outcome"): 1}
    assert state.counts == {**counts, ("deferred", "log_not_found"): 1}
    step(state, retry(outcome(4, run="c", attempts=2)))
    assert state.counts == {**counts, ("run", ""): 4}


def test_a_dead_letter_of_a_run_that_has_its_row_by_now_is_closed_as_a_repeat() -> None:
    state = RawState()
    unfetched = outcome(0, "dead_letter", event="e1", reason="log_not_found")
    step(state, batch(0, 1, unfetched))
    assert step(state, retry(unfetched)) is None
    step(state, batch(1, 2, outcome(1, event="e2")))
    delta = settle(state, retry(unfetched))
    assert delta["closed_letters"] == delta["closes"] == [[[TOPIC, 0, 0], "zuul~a~1"]]
    assert state.counts == {("run", ""): 1, ("repeat", "run"): 1}
    assert step(state, retry(unfetched)) is None


def test_only_dead_letters_are_in_closed_letters() -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0, "deferred", reason="log_not_found", not_before_us=1)))
    delta = settle(state, retry(outcome(0, "dead_letter", reason="log_not_found", attempts=2)))
    assert "closed_letters" not in delta
    delta = settle(state, retry(outcome(0)))
    assert delta["closed_letters"] == [[[TOPIC, 0, 0], "zuul~a~1"]]


def test_the_audit_finds_a_record_without_an_open_dead_letter() -> None:
    state = broken(4)
    good = reconcile(state, [retry(outcome(4, run="a"), outcome(4, run="b"))], 7)
    assert good is not None
    for change, finding in (
        ({}, ""),
        ({"closes": []}, "does not cover it"),
        ({"runs": [*good["runs"], outcome(6, run="z").to_json()]}, "does not cover it"),
        ({"runs": [*good["runs"], good["runs"][0]]}, "is settled twice"),
    ):
        audit = Audit(Verification())
        first = reconcile(RawState(), [batch(0, 9, undecoded(4))], 1)
        assert first is not None
        audit.add_delta(1, first)
        audit.add_delta(2, {**good, **change})
        assert [finding in found for found in audit.result.findings[:1]] == ([True] if finding else [])


@st.composite
def messages(draw: st.DrawFn) -> dict[int, list[Outcome]]:
    """Draw the outcomes of up to six decoded messages: events of few runs, some sent twice."""
    found = {}
    for offset in range(draw(st.integers(1, 6))):
        event = draw(st.sampled_from(["e1", "e2", "e3"]))
        runs = {"e1": ["a"], "e2": ["a", "b", "d"], "e3": ["c", "e"]}[event]  # an event always names the same runs
        kinds = {"d": "dead_letter", "e": "ignored"}
        reasons = {"d": "log_not_found", "e": "cancelled"}
        found[offset] = [
            outcome(offset, kinds.get(run, "run"), run, event, reason=reasons.get(run, "")) for run in runs
        ]
    return found


@settings(max_examples=tries(80))
@given(data=st.data())
def test_replayed_in_any_order_by_any_number_the_sums_are_those_of_decoding_at_first(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    decoded = data.draw(messages())
    log = ManifestLog(LocalStore(tmp_path_factory.mktemp("raw")))
    states = [RawState() for _ in range(2)]
    first = batch(0, len(decoded), *(undecoded(offset) for offset in decoded))
    commit(log, states[0], lambda: reconcile(states[0], [first], 1))
    offsets = data.draw(st.permutations([*decoded, *data.draw(st.lists(st.sampled_from(sorted(decoded)), max_size=6))]))
    while offsets:
        count = data.draw(st.integers(1, len(offsets)))
        batches = retry(*(one for offset in offsets[:count] for one in data.draw(st.permutations(decoded[offset]))))
        state = data.draw(st.sampled_from(states))
        commit(log, state, lambda state=state, batches=batches: reconcile(state, [batches], 1))  # type: ignore[misc]
        offsets = offsets[count:]
    plain = RawState()
    step(plain, batch(0, len(decoded), *(one for outcomes in decoded.values() for one in outcomes)))
    audit, records = Audit(Verification()), Counter[tuple[int, str]]()
    for version, delta in log.since(0):
        audit.add_delta(version, delta)
        for name in ("runs", "repeats", "corrections", "ignored", "dead_letters"):
            for record in delta[name]:
                if record.get("mention"):
                    records[record["origin"][2], record["mention"]["run_id"]] += 1
    for state in states:
        catch_up(log, state)
        assert state.totals() == plain.totals()
        audit.compare(state)
    assert audit.result.findings == []
    assert records == Counter({(offset, one.run_id): 1 for offset, outcomes in decoded.items() for one in outcomes})

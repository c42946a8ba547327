"""Accounting: repeats, other batches, replays and concurrent committers give the same sums."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.errors import IntegrityError
from ciml.events.records import LISTS, Batch, Message, Origin, Outcome
from ciml.manifest.coverage import RangeSet
from ciml.manifest.log import ManifestLog, catch_up, commit
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import KnownRun
from ciml.runs.state import RawState
from ciml.storage import LocalStore
from tests.runs.accounts import TOPIC, batch, known, outcome, retry, settle, step
from tests.tier import tries


def test_a_run_is_a_raw_row_and_its_offsets_are_covered() -> None:
    state = RawState()
    delta = step(state, batch(0, 5, outcome(2)))
    assert delta == {
        "time_us": 1000,
        "offsets": {TOPIC: {"id": "T", "partitions": {"0": [[0, 5]]}}},
        "runs": [outcome(2).to_json()],
        "repeats": [], "corrections": [], "ignored": [], "dead_letters": [], "deferred": [], "closes": [],
    }  # fmt: skip
    assert state.counts == {("run", ""): 1}
    assert state.trust == {(True, "gated"): 1}
    assert list(state.covered(TOPIC, 0)) == [(0, 5)]
    assert known(state) == KnownRun("success", "d1", True)


@pytest.mark.parametrize(
    ("second", "kind", "reason", "digest"),
    [
        (outcome(1, event="e1"), "repeat", "event", None),
        (outcome(1, event="e1", digest="d2"), "repeat", "event", "d2"),
        (outcome(1, event="e2"), "repeat", "run", None),
        (outcome(1, event="e2", digest="d2"), "repeat", "other_log", "d2"),
        (outcome(1, event="e2", word="failure"), "correction", "outcome", None),
        (outcome(1, event="e2", word="failure", digest="d2"), "correction", "outcome", "d2"),
        (outcome(1, "dead_letter", event="e2", reason="log_not_found"), "repeat", "run", None),
        (outcome(1, "dead_letter", event="e2", word="failure", reason="log_not_found"), "correction", "outcome", None),
        (outcome(1, "deferred", event="e2", reason="log_not_found"), "repeat", "run", None),
        (outcome(1, "deferred", event="e2", word="timeout", reason="log_not_found"), "correction", "outcome", None),
        (outcome(1, "ignored", event="e2", word=None, reason="not_finished"), "ignored", "not_finished", None),
        (outcome(1, "ignored", event="e2", word="cancellation", reason="cancelled"), "correction", "outcome", None),
        (outcome(1, "ignored", event="e2", word="error", reason="not_selected"), "ignored", "not_selected", None),
        (outcome(1, "ignored", event="e1", word=None, reason="not_finished"), "repeat", "event", None),
        (outcome(1, event="e2", run="b"), "run", "", "d1"),
        (outcome(1, event="e1", run="b"), "run", "", "d1"),
        (outcome(1, "dead_letter", run="", event="", reason="broken_json"), "dead_letter", "broken_json", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("together", [True, False])
def test_the_second_event_of_a_run(second: Outcome, kind: str, reason: str, digest: str | None, together: bool) -> None:
    second = second.replace(payload={"value": "e30="})
    state = RawState()
    batches = [batch(0, 1, outcome(0)), batch(1, 2, second)]
    deltas = [settle(state, *reversed(batches))] if together else [settle(state, one) for one in batches]
    assert state.counts == Counter({("run", ""): 1}) + Counter({(kind, reason): 1})
    record = deltas[-1][LISTS[kind]][-1]
    assert record.get("file", {}).get("digest") == digest
    assert ("payload" in record) == (kind in ("dead_letter", "deferred"))


def test_corrections_are_compared_with_the_outcome_that_counts_now() -> None:
    state = RawState()
    words = ["success", "failure", "failure", "success"]
    delta = settle(state, batch(0, 4, *(outcome(n, event=f"e{n}", word=word) for n, word in enumerate(words))))
    assert [record["detail"] for record in delta["corrections"]] == ["was success", "was failure"]
    assert state.counts == {("run", ""): 1, ("repeat", "run"): 1, ("correction", "outcome"): 2}
    assert known(state) == KnownRun("success", "d1", True)


def test_of_the_outcomes_in_a_batch_the_one_that_was_sent_last_counts() -> None:
    state = RawState()
    cancelled = outcome(2, "ignored", event="e3", word="cancellation", reason="cancelled")
    step(state, batch(0, 3, cancelled, outcome(1, event="e2", word="failure"), outcome(0)))
    assert state.counts == {("run", ""): 1, ("correction", "outcome"): 2}
    assert known(state).outcome == "cancellation"


def test_an_event_counts_once_for_each_run_that_it_names_and_one_without_a_key_is_no_repeat() -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0, run="a"), outcome(0, run="b"), outcome(0, run="a", word="failure")))
    assert state.counts == {("run", ""): 2}
    undecoded = [outcome(n, "dead_letter", run="", event="", reason="broken_json") for n in (1, 2)]
    step(state, batch(1, 3, *undecoded))
    assert state.counts == {("run", ""): 2, ("dead_letter", "broken_json"): 2}


def test_covered_offsets_are_dropped() -> None:
    state = RawState()
    covered = batch(0, 4, *(outcome(n, run=str(n), event=str(n)) for n in range(4)))
    step(state, covered)
    assert step(state, covered) is None
    overlap = batch(2, 6, *(outcome(n, run=str(n), event=str(n)) for n in range(2, 6)))
    delta = settle(state, overlap, overlap)
    assert delta["offsets"][TOPIC]["partitions"] == {"0": [[4, 6]]}
    assert [record["origin"][2] for record in delta["runs"]] == [4, 5]
    assert state.totals() == dict.fromkeys(LISTS, 0) | {"run": 6}
    delta = settle(state, batch(7, 9))  # without an event
    assert delta["offsets"][TOPIC]["partitions"] == {"0": [[7, 9]]}
    assert reconcile(state, [batch(3, 3)], 0) is None


def retried(kind: str, attempts: int, **more: Any) -> Batch:
    return retry(outcome(0, kind, attempts=attempts, **more))


def deferred_once() -> RawState:
    state = RawState()
    later = outcome(0, "deferred", reason="log_not_found", not_before_us=50, first_seen_us=10, payload={"value": "x"})
    step(state, batch(0, 1, later))
    return state


def test_a_deferred_log_is_due_in_time_and_settled_once() -> None:
    state = deferred_once()
    assert state.due(49) == []
    assert state.next_due_us() == 50
    [pending] = state.due(50)
    assert (pending.attempts, pending.first_seen_us, pending.origin) == (2, 10, Origin(TOPIC, 0, 0))
    step(state, retried("deferred", 2, reason="log_not_found", not_before_us=70))
    assert state.counts == {("deferred", "log_not_found"): 1}
    assert step(state, retried("deferred", 2, reason="log_not_found", not_before_us=99)) is None  # a replay
    assert state.next_due_us() == 70
    delta = settle(state, retried("run", 3))
    assert delta["closes"] == [[[TOPIC, 0, 0], "zuul~a~1"]]
    assert delta["offsets"] == {}
    assert state.counts == {("run", ""): 1}
    assert state.due(99) == []
    assert step(state, retried("run", 3)) is None


def test_a_deferred_log_that_never_comes_is_a_dead_letter_with_the_payload_it_came_with() -> None:
    state = deferred_once()
    delta = settle(state, retried("dead_letter", 2, reason="log_not_found"))
    [dead_letter] = delta["dead_letters"]
    assert dead_letter["payload"] == {"value": "x"}
    assert dead_letter["first_seen_us"] == 10
    assert state.counts == {("dead_letter", "log_not_found"): 1}
    assert [found for _, found in state.index.dead_letters()] == [(2, "log_not_found")]
    step(state, retried("run", 3))  # replayed by hand, when the log is available
    assert state.counts == {("run", ""): 1}
    assert list(state.index.dead_letters()) == []


def test_two_deferred_events_of_one_run_are_a_row_and_a_repeat() -> None:
    state = RawState()
    later = [outcome(n, "deferred", event=f"e{n}", reason="log_not_found", not_before_us=1) for n in range(2)]
    step(state, batch(0, 2, *later))
    step(state, retry(*(outcome(n, event=f"e{n}", attempts=2) for n in range(2))))
    assert state.counts == {("run", ""): 1, ("repeat", "run"): 1}


def test_a_recreated_topic_is_an_error() -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0)))
    with pytest.raises(IntegrityError, match="ci-events was deleted and created again"):
        reconcile(state, [batch(0, 1, outcome(0), topic_id="U")], 0)
    assert reconcile(state, [batch(0, 1, outcome(0), topic_id="")], 0) is None  # a broker without ids


def test_an_unsettled_batch_is_never_committed() -> None:
    half = batch(0, 1)
    half.messages.append(Message(0, b""))
    for broken in (half, batch(0, 1, outcome(1)), batch(0, 1, outcome(0, partition=1))):
        with pytest.raises(IntegrityError):
            reconcile(RawState(), [broken], 0)


def test_a_manifest_that_contradicts_itself_is_rejected() -> None:
    delta = settle(RawState(), batch(0, 1, outcome(0)))
    for version, change in ((3, {}), (2, {}), (2, {"runs": [], "closes": [[[TOPIC, 0, 9], "x"]]})):
        state = RawState()
        state.apply(1, delta)
        with pytest.raises(IntegrityError):
            state.apply(version, {**delta, **change})


# --- properties


RUNS = st.sampled_from(["a", "b", "c", "d", "e"])


@st.composite
def deliveries(draw: st.DrawFn) -> list[Outcome]:
    """Draw two partitions: events of few runs, most of them repeated; each run has its own log and outcome."""
    found: list[Outcome] = []
    for partition in range(2):
        for offset in range(draw(st.integers(0, 8))):
            run, event = draw(RUNS), draw(st.sampled_from(["e1", "e2"]))
            kind = {"d": "dead_letter", "e": "ignored"}.get(run, "run")
            reason = {"d": "log_not_found", "e": "job_not_selected"}.get(run, "")
            found.append(outcome(offset, kind, run, event + run, reason=reason, partition=partition))
    return found


def cut(draw: st.DrawFn, found: list[Outcome]) -> list[Batch]:
    """Draw batches of the deliveries: each partition is cut anywhere, and some parts are delivered again."""
    batches: list[Batch] = []
    for partition in range(2):
        mine = [one for one in found if one.origin.partition == partition]
        for _ in range(draw(st.integers(1, 3))):
            marks = sorted(draw(st.sets(st.integers(0, len(mine)), max_size=4)) | {0, len(mine)})
            for start, end in pairwise(marks):
                inside = [one for one in mine if start <= one.origin.offset < end]
                batches.append(batch(start, end, *inside, partition=partition))
    return batches


@settings(max_examples=tries(100))
@given(st.data())
def test_any_cut_any_replay_any_order_give_the_same_sums(data: st.DataObject) -> None:
    found = data.draw(deliveries())
    plain = RawState()
    step(plain, *(batch(0, 99, *(o for o in found if o.origin.partition == n), partition=n) for n in range(2)))
    other = RawState()
    batches = data.draw(st.permutations(cut(data.draw, found)))
    while batches:
        count = data.draw(st.integers(1, len(batches)))
        step(other, *batches[:count])
        batches = batches[count:]
    # The order decides which delivery becomes the row and which event is first, but not the counts.
    assert other.totals() == plain.totals()
    assert sum(other.totals().values()) == len(found)
    assert other.totals()["run"] == len({one.run_id for one in found if one.kind == "run"}) == other.index.run_count()
    covered = {partition: ranges.count() for _, partition, ranges in other.partitions()}
    for partition in range(2):
        assert covered.get(partition, 0) == len([one for one in found if one.origin.partition == partition])


@settings(max_examples=tries(50))
@given(data=st.data())
def test_committers_that_race_share_one_history(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = data.draw(deliveries())
    log = ManifestLog(LocalStore(tmp_path_factory.mktemp("raw")))
    committers = [RawState() for _ in range(3)]
    for one in data.draw(st.permutations(cut(data.draw, found) * 2)):
        state = data.draw(st.sampled_from(committers))
        if data.draw(st.booleans()):  # another writer commits between the read and the commit
            rival = data.draw(st.sampled_from(cut(data.draw, found)))
            catch_up(log, state)
            commit(log, committers[0], lambda rival=rival: reconcile(committers[0], [rival], 1))  # type: ignore[misc]
        commit(log, state, lambda state=state, one=one: reconcile(state, [one], 1))  # type: ignore[misc]
    for state in committers:
        catch_up(log, state)
    assert committers[0].counts == committers[1].counts == committers[2].counts
    assert sum(committers[0].totals().values()) == len(found)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))), st.integers(0, 30), st.integers(0, 30))
def test_range_sets_equal_sets_of_numbers(ranges: list[tuple[int, int]], start: int, end: int) -> None:
    numbers = {number for first, last in ranges for number in range(first, last)}
    found = RangeSet(ranges)
    assert [number for number in range(40) if number in found] == sorted(numbers)
    assert found.count() == len(numbers)
    kept = list(found)
    assert all(a[1] < b[0] for a, b in pairwise(kept))
    missing = [number for first, last in found.missing(start, end) for number in range(first, last)]
    assert missing == [number for number in range(start, end) if number not in numbers]
    assert found.first_missing(start) == next(n for n in range(start, 99) if n not in numbers)

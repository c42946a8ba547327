"""Events that were seen before: settled without their log, and with the same result as if it had been fetched again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.events.records import Batch, OffsetRange, Origin, Outcome, PendingRun, RawFile, Trust
from ciml.pipelines.ingest.pipeline import settle_known
from ciml.runs.accounting import reconcile
from ciml.runs.state import RawState
from tests.pipelines.ingest.scenario import corpus_facts
from tests.tier import tries

TRUST = Trust(True, "gate", "p")


def pending(offset: int, event: int, run: int) -> PendingRun:
    return PendingRun(
        Origin("t", 0, offset), f"source e{event}" if event else "", corpus_facts(run + 1)[run][0], trust=TRUST
    )


def stored(batch: Batch, log: str = "log") -> Batch:
    """What the stages after it make of the candidates that are left: each has its log."""
    runs = [
        Outcome(
            "run", each.origin, each.event_key, each.mention, trust=each.trust,
            file=RawFile(f"runs/{each.mention.run_id}", f"digest of {log} {each.mention.run_id}", 1, 1),
        )
        for each in batch.pending_runs
    ]  # fmt: skip
    return Batch(batch.covers, settled=batch.settled + runs)


def batch(first: int, *pairs: tuple[int, int]) -> Batch:
    found = [pending(first + number, *pair) for number, pair in enumerate(pairs)]
    return Batch(OffsetRange("t", "T", 0, first, first + len(pairs)), pending_runs=found)


def state_after(*batches: Batch) -> RawState:
    state = RawState()
    for each in batches:
        delta = reconcile(state, [each], 1)
        assert delta is not None
        state.apply(state.version + 1, delta)
    return state


def test_the_same_event_needs_no_log_and_another_of_the_same_run_does() -> None:
    state = state_after(stored(batch(0, (1, 0))))
    after = settle_known(batch(1, (1, 0), (2, 0), (1, 1), (0, 0)), state.index)
    assert [each.origin.offset for each in after.pending_runs] == [2, 3, 4]
    assert [(each.kind, each.reason, each.origin.offset, each.trust) for each in after.settled] == [
        ("repeat", "event", 1, TRUST)
    ]
    assert after.covers == OffsetRange("t", "T", 0, 1, 5)


def test_another_event_with_its_id_needs_its_log() -> None:
    """An update may have made its run trusted, so that it reclaims the run of the first one."""
    untrusted = batch(0, (1, 0))
    untrusted.pending_runs[0].trust = Trust(False, "no rule", "p")
    state = state_after(stored(untrusted))
    again = batch(1, (1, 0), (1, 0))
    for each in again.pending_runs:
        each.trust = Trust(False, "no rule", "p")
    again.pending_runs[1].mention = again.pending_runs[1].mention.replace(pipeline="other")
    after = settle_known(again, state.index)
    assert [each.origin.offset for each in after.pending_runs] == [2]
    assert [each.origin.offset for each in after.settled] == [1]


_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8)


@given(_pairs, _pairs, st.booleans())
@settings(max_examples=tries(200))
def test_the_commit_says_the_same_as_if_all_logs_had_been_fetched(
    before: list[tuple[int, int]], now: list[tuple[int, int]], other_log: bool
) -> None:
    state = state_after(stored(batch(0, *before)))
    coming = batch(len(before), *now)
    log = "other" if other_log else "log"
    quick = reconcile(state, [stored(settle_known(coming, state.index), log)], 2)
    slow = reconcile(state, [stored(coming, log)], 2)
    assert quick is not None
    assert slow is not None
    for delta in (quick, slow):
        for record in delta["repeats"]:
            if record["reason"] == "event":  # that its log has changed is noticed only by one that fetches it
                record.pop("file", None)
        delta["repeats"].sort(key=lambda record: record["origin"])
    assert quick == slow

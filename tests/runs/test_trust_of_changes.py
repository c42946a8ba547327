"""Trust in the accounting: no untrusted event changes a trusted run, and a trusted one reclaims an untrusted run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.digest import canonical_json
from ciml.events.records import Outcome
from ciml.manifest.id_index import IdTable, PartFiles, fingerprint
from ciml.runs.accounting import reconcile
from ciml.runs.known_ids import TABLES, Index, KnownRun
from ciml.runs.state import RawState
from ciml.runs.verify import Audit, Verification
from ciml.storage import LocalStore
from tests.runs.accounts import batch, known, outcome, retry, settle, step
from tests.tier import tries

#: An untrusted event about a run has another log, another outcome, or no log.
UNTRUSTED = [
    outcome(1, event="e2", word="success", trusted=False),
    outcome(1, event="e2", word="success", digest="d2", trusted=False),
    outcome(1, "dead_letter", event="e2", word="success", reason="missing_field", trusted=False),
    outcome(1, "deferred", event="e2", word="success", reason="log_not_found", trusted=False),
    outcome(1, "ignored", event="e2", word="cancellation", reason="cancelled", trusted=False),
]


@pytest.mark.parametrize("second", UNTRUSTED)
def test_an_untrusted_event_changes_nothing_of_a_trusted_run(second: Outcome) -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0, word="failure")))
    delta = settle(state, batch(1, 2, second))
    assert (delta["corrections"], delta.get("reclaims")) == ([], None)
    assert state.counts == {("run", ""): 1, ("ignored", "less_trusted"): 1}
    assert known(state) == KnownRun("failure", "d1", True)
    step(state, batch(2, 3, outcome(2, event="e3", word="success")))  # a trusted event is not a repeat of it
    assert known(state) == KnownRun("success", "d1", True)


@pytest.mark.parametrize("together", [True, False])
def test_a_trusted_event_reclaims_an_untrusted_run(together: bool) -> None:
    state = RawState()
    events = [
        batch(0, 1, outcome(0, word="success", trusted=False)),
        batch(1, 2, outcome(1, event="e2", word="timeout", trusted=False)),
        batch(2, 3, outcome(2, event="e3", word="failure", digest="d2")),
        batch(3, 4, outcome(3, event="e4", word="success", trusted=False)),
        batch(4, 5, outcome(4, event="e5", word="failure", digest="d2")),
    ]
    deltas = [settle(state, *events)] if together else [settle(state, one) for one in events]
    assert state.counts == {
        ("run", ""): 1, ("correction", "outcome"): 1, ("reclaim", ""): 1, ("ignored", "less_trusted"): 1,
        ("repeat", "run"): 1,
    }  # fmt: skip
    assert known(state) == KnownRun("failure", "d2", True)
    assert state.index.run_count() == 1
    [reclaim] = [record for delta in deltas for record in delta.get("reclaims", ())]
    assert (reclaim["origin"][2], reclaim["file"]["digest"], reclaim["trust"]["rule"]) == (2, "d2", "gated")
    audit = Audit(Verification())
    for version, delta in enumerate(deltas, 1):
        audit.add_delta(version, delta)
    audit.compare(state)
    assert audit.result.findings == []


@pytest.mark.parametrize(
    "trusted",
    [
        outcome(1, "dead_letter", event="e2", word="failure", reason="log_not_found", payload={"value": "e30="}),
        outcome(1, "deferred", event="e2", word="failure", reason="log_not_found", not_before_us=1),
        outcome(1, "ignored", event="e2", word="cancellation", reason="cancelled"),
    ],
)
def test_a_trusted_event_without_a_log_is_not_settled_by_an_untrusted_row(trusted: Outcome) -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0, trusted=False)))
    step(state, batch(1, 2, trusted))
    assert state.counts == {("run", ""): 1, (trusted.kind, trusted.reason): 1}
    assert known(state) == KnownRun("success", "d1", False)


@pytest.mark.parametrize("kind", ["dead_letter", "deferred"])
def test_a_log_that_comes_later_reclaims_the_run(kind: str) -> None:
    state = RawState()
    step(state, batch(0, 1, outcome(0, kind, event="e2", word="failure", reason="log_not_found", not_before_us=1)))
    step(state, batch(1, 2, outcome(1, trusted=False)))
    assert state.counts == {(kind, "log_not_found"): 1, ("run", ""): 1}
    step(state, retry(outcome(0, "dead_letter", event="e2", word="failure", reason="log_cut", attempts=2)))
    delta = settle(state, retry(outcome(0, event="e2", word="failure", digest="d2", attempts=3)))
    assert len(delta["closes"]) == len(delta["reclaims"]) == 1
    assert state.counts == {("run", ""): 1, ("reclaim", ""): 1}
    assert known(state) == KnownRun("failure", "d2", True)


@settings(max_examples=tries(150))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "dead_letter", "deferred", "ignored"]),
            st.sampled_from(["success", "failure", "timeout"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.sets(st.integers(1, 7)),
)
def test_a_run_follows_its_trusted_events_alone(events: list[tuple[str, str, bool]], cuts: set[int]) -> None:
    """After a trusted event gave a run its row, untrusted events have no effect on the run."""
    reasons = {"run": "", "ignored": "cancelled"}

    def play(wanted: set[bool]) -> RawState:
        state = RawState()
        outcomes = [
            outcome(n, kind, event=f"e{n}", word=word, digest=f"d{n}", reason=reasons.get(kind, "log_not_found"),
                    trusted=trusted)
            for n, (kind, word, trusted) in enumerate(events)
            if trusted in wanted
        ]  # fmt: skip
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 99], strict=True):
            inside = [one for one in outcomes if start <= one.origin.offset < end]
            step(state, batch(start, end, *inside))
        return state

    both, alone = play({True, False}), play({True})
    assert sum(both.totals().values()) == len(events)
    assert both.totals()["run"] + both.totals()["reclaim"] <= 2
    if alone.index.run("zuul~a~1") is not None:
        assert both.index.run("zuul~a~1") == alone.index.run("zuul~a~1")


def test_records_of_untrusted_events_by_older_versions_do_not_correct_a_trusted_run() -> None:
    """They did not judge events without a log, and treated a missing decision as trusted."""
    state = RawState()
    step(state, batch(0, 1, outcome(0, word="failure")))
    delta = json.loads(canonical_json(reconcile(state, [batch(1, 2, outcome(1, event="e2", word="success"))], 1)))
    del delta["corrections"][0]["trust"]
    state.apply(2, delta)
    assert known(state) == KnownRun("failure", "d1", True)
    assert state.counts == {("run", ""): 1, ("correction", "outcome"): 1}


def test_a_run_of_an_index_that_does_not_say_counts_as_trusted(tmp_path: Path) -> None:
    """Older versions stored the outcome alone."""
    files = PartFiles(LocalStore(tmp_path), "index")
    tables = {name: IdTable(kind, (), files) for name, kind in TABLES.items()}
    rows = TABLES["runs"].rows([fingerprint("r")], {"outcome": [2], "digest": [b"\1d"]})
    assert Index({**tables, "runs": tables["runs"].with_rows(rows)}, 1).run("r") == KnownRun("failure", "d", True)

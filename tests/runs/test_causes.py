from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.events.records import RawFile, RunFacts, Trust
from ciml.runs import causes
from ciml.runs.causes import RERUN_WITHIN_US, Causes
from ciml.runs.run_log import Correction, RunDelta, RunRecord, TrustChange

TRUSTED, UNTRUSTED = Trust(True, "gate", "0"), Trust(False, "none", "0")
WORDS: dict[str, Any] = {"P": "success", "F": "failure", "T": "timeout", "E": "error"}


def facts(number: int, word: str, **keys: Any) -> RunFacts:
    code = {"source": "zuul", "project": "nova", "change": "7", "patchset": "1", "build_name": "unit"}
    return RunFacts(
        f"zuul~{number}~1", str(number), outcome=WORDS[word], start_us=1_000_000 * number, **{**code, **keys}
    )


def delta(*runs: RunFacts, trust: Trust = TRUSTED, **lists: Any) -> RunDelta:
    return RunDelta(runs=tuple(RunRecord(run, RawFile("", "", 0, 0), trust) for run in runs), **lists)


def every(selected: str) -> bool:
    return True


def of(*runs: RunFacts) -> list[str]:
    known = Causes(every)
    for run in runs:
        known.add(delta(run))
    return [known.of(run.run_id) for run in runs]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("F", ["none"]),
        ("FP", ["machine", "none"]),
        ("TP", ["machine", "none"]),
        ("FF", ["code", "code"]),
        ("FFP", ["machine", "machine", "none"]),
        ("FFF", ["code", "code", "code"]),
        ("PF", ["none", "none"]),  # it passed before: not the code for certain, and no proof of the machine
        ("PFF", ["none", "none", "none"]),
        ("FPF", ["machine", "none", "none"]),
        ("FE", ["none", "none"]),  # what the system ended says nothing
        ("EF", ["none", "none"]),
    ],
)
def test_later_attempts_decide(words: str, expected: list[str]) -> None:
    runs = [facts(number, word) for number, word in enumerate(words, 1)]
    assert [cause or "none" for cause in of(*runs)] == expected


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({}, {}, True),
        ({"patchset": "1"}, {"patchset": "2"}, False),
        ({"change": "7"}, {"change": "8"}, False),
        ({"build_name": "unit"}, {"build_name": "docs"}, False),
        ({"source": "zuul"}, {"source": "other"}, False),
        ({"project": "nova"}, {"project": "cinder"}, False),
        ({"pipeline": "check"}, {"pipeline": "gate"}, False),  # merged with other changes
        ({"patchset": ""}, {"patchset": ""}, False),  # the code may have changed
        ({"change": ""}, {"change": ""}, False),
        ({"head": "c0ffee", "change": ""}, {"head": "c0ffee", "change": "9"}, True),  # a fact that came late
        ({"head": "c0ffee"}, {"head": "decade"}, False),
        ({"attempt_of": "b/1", "change": "", "head": ""}, {"attempt_of": "b/1", "change": "3"}, True),
        ({"attempt_of": "b/1"}, {"attempt_of": "b/2"}, True),  # a recheck
        ({"attempt_of": "b/1", "patchset": ""}, {"attempt_of": "b/2", "patchset": ""}, False),
        ({"attempt_of": "b/1", "build_name": "unit"}, {"attempt_of": "b/1", "build_name": "docs"}, False),
    ],
)
def test_attempts_are_of_one_series_if_the_code_is_the_same(
    first: dict[str, str], second: dict[str, str], same: bool
) -> None:
    assert of(facts(1, "F", **first), facts(2, "P", **second))[0] == ("machine" if same else "")


@pytest.mark.parametrize(
    ("word", "later_us", "cause"),
    [
        ("P", 1, "machine"),
        ("P", RERUN_WITHIN_US, "machine"),
        ("P", RERUN_WITHIN_US + 1, ""),
        ("P", 0, ""),  # at the same time: no later attempt
        ("F", RERUN_WITHIN_US + 1, ""),
        ("F", -RERUN_WITHIN_US, "code"),
        ("F", -RERUN_WITHIN_US - 1, ""),
    ],
)
def test_attempts_within_a_week_before_and_after_count(word: str, later_us: int, cause: str) -> None:
    start_us = 2 * RERUN_WITHIN_US
    first = facts(1, "F").replace(start_us=start_us)
    assert of(first, facts(2, word).replace(start_us=start_us + later_us))[0] == cause


def test_an_untrusted_rerun_says_nothing_of_a_trusted_run() -> None:
    known = Causes(every)
    known.add(delta(facts(1, "F")))
    known.add(delta(facts(2, "P"), trust=UNTRUSTED))
    assert known.of("zuul~1~1") == ""
    assert known.add(RunDelta(trust_changes=(TrustChange("zuul~2~1", TRUSTED),))) == {"zuul~1~1", "zuul~2~1"}
    assert known.of("zuul~1~1") == "machine"
    known.add(RunDelta(trust_changes=(TrustChange("zuul~2~1", UNTRUSTED),)))
    assert known.of("zuul~1~1") == ""
    known = Causes(every)
    known.add(delta(facts(1, "F"), facts(2, "P"), trust=UNTRUSTED))
    assert known.of("zuul~1~1") == "machine"


def test_a_corrected_outcome_changes_the_causes_of_its_series() -> None:
    known = Causes(every)
    known.add(delta(facts(1, "F"), facts(2, "F")))
    assert known.of("zuul~1~1") == "code"
    assert known.add(RunDelta(corrections=(Correction(facts(2, "P"), UNTRUSTED),))) == set()
    assert known.add(RunDelta(corrections=(Correction(facts(2, "P"), TRUSTED),))) == {"zuul~1~1", "zuul~2~1"}
    assert (known.of("zuul~1~1"), known.of("zuul~2~1")) == ("machine", "")


def test_a_reclaim_leaves_its_former_series() -> None:
    known = Causes(every)
    known.add(delta(facts(1, "F"), facts(2, "P"), trust=UNTRUSTED))
    other = RunRecord(facts(2, "P", patchset="2"), RawFile("", "", 0, 0), TRUSTED)
    assert known.add(RunDelta(reclaims=(other,))) == {"zuul~1~1", "zuul~2~1"}
    assert known.of("zuul~1~1") == ""


def test_a_reviewer_comes_before_the_own_event_and_that_before_reruns() -> None:
    known = Causes(every, {"zuul~1~1": "code"})
    own = facts(2, "F", labels={"cause": "code"})
    known.add(delta(facts(1, "F"), own, facts(3, "F"), facts(4, "P")))
    assert [known.of(f"zuul~{number}~1") for number in (1, 2, 3)] == ["code", "", "machine"]
    assert known.by_reruns("zuul~2~1") == "machine"


def test_jobs_that_are_not_selected_cost_nothing() -> None:
    known = Causes(lambda job: job == "unit")
    assert known.add(delta(facts(1, "F", build_name="docs"), facts(2, "P", build_name="docs"))) >= {"zuul~1~1"}
    assert known.of("zuul~1~1") == ""


def test_a_series_and_all_runs_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "MAX_CAUSE_ATTEMPTS", 3)
    known = Causes(every)
    known.add(delta(*(facts(number, "F") for number in range(1, 6))))
    assert [known.of(f"zuul~{number}~1") for number in range(1, 6)] == ["", "", "code", "code", "code"]
    monkeypatch.setattr(causes, "MAX_CAUSE_RUNS", 2)
    known = Causes(every)
    known.add(delta(facts(1, "F"), facts(2, "F"), facts(3, "F", change="8"), facts(4, "P", change="8")))
    assert [known.of(f"zuul~{number}~1") for number in range(1, 5)] == ["", "", "machine", ""]


def test_an_attempt_that_leaves_the_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "MAX_CAUSE_ATTEMPTS", 2)
    monkeypatch.setattr(causes, "MAX_CAUSE_RUNS", 3)
    known = Causes(every)
    known.add(delta(facts(1, "F"), facts(2, "F")))
    assert known.of("zuul~1~1") == "code"
    assert "zuul~1~1" in known.add(delta(facts(3, "F")))  # the limit of a series
    assert known.of("zuul~1~1") == ""
    assert "zuul~1~1" in known.add(delta(facts(4, "F", change="8")))  # the limit of all


#: (number, outcome, change, standing, kind of record): of trusted runs 0 to 6, and of others 10 to 16.
STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from("PFTE"), st.integers(0, 1), st.integers(0, 2), st.sampled_from("rct")),
    min_size=8,
    max_size=24,
)


@given(STEPS, st.sampled_from([0, 1, 2]), st.integers(0, 24), st.booleans())
def test_runs_that_are_believed_less_and_a_stored_state_leave_every_cause_as_it_is(
    steps: list[tuple[int, str, int, int, str]], least: int, cut: int, bounded: bool
) -> None:
    """Rows, corrections and changes of trust, in any order, also with limits that each standing exceeds."""
    with pytest.MonkeyPatch.context() as patch:
        if bounded:
            patch.setattr(causes, "MAX_CAUSE_ATTEMPTS", 2)
            patch.setattr(causes, "MAX_CAUSE_RUNS", 3)
        together, split, alone = Causes(every), Causes(every), Causes(every)
        ids = [f"zuul~{number}~1" for number in range(7)]
        for at, (number, word, change, standing, kind) in enumerate(steps):
            believed = standing >= least
            run = facts(number if believed else number + 10, word, change=str(change), attempt_of=f"a{number}")
            run = run.replace(start_us=1_000_000 * at, auth="hmac-sha256" if standing else "")
            trust = TRUSTED if standing == 2 else UNTRUSTED
            if kind == "r":
                step = delta(run, trust=trust)
            elif kind == "c":
                step = RunDelta(corrections=(Correction(run, trust),))
            else:
                step = RunDelta(trust_changes=(TrustChange(run.run_id, TRUSTED if believed else UNTRUSTED),))
            if at == cut:
                again = Causes(every)
                again.restore(split.encode())
                split = again
            touched = together.add(step)
            assert split.add(step) == touched
            if believed:
                assert alone.add(step) <= touched
            else:
                assert touched.isdisjoint(ids)
            assert [together.of(run_id) for run_id in ids] == [alone.of(run_id) for run_id in ids]
        assert split.encode() == together.encode()


@given(st.lists(st.tuples(st.sampled_from("PFTE"), st.integers(0, 2), st.booleans()), max_size=8), st.randoms())
def test_any_order_and_any_deltas_give_the_same_causes(runs: list[tuple[str, int, bool]], random: Any) -> None:
    rows = [
        delta(facts(at, word, patchset=str(patchset)), trust=TRUSTED if trusted else UNTRUSTED).runs[0]
        for at, (word, patchset, trusted) in enumerate(runs, 1)
    ]
    ids = [row.mention.run_id for row in rows]
    at_once, one_by_one = Causes(every), Causes(every)
    at_once.add(RunDelta(runs=tuple(rows)))
    before = dict.fromkeys(ids, "")
    for row in random.sample(rows, len(rows)):
        changed = one_by_one.add(RunDelta(runs=(row,)))
        after = {run_id: one_by_one.of(run_id) for run_id in ids}
        assert {run_id for run_id in ids if after[run_id] != before[run_id]} <= changed
        before = after
    assert before == {run_id: at_once.of(run_id) for run_id in ids}

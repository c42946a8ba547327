"""A run outside of the ranges that a model learned has the verdict unknown, however sure the model is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import IntegrityError
from ciml.verdict_rules import (
    Group,
    LearnedRanges,
    Outside,
    Verdict,
    VerdictRules,
    make_verdict,
    parts_outside,
    read_rules,
)

CLASSES, FEATURES = ("code", "machine"), ("usr_mean", "1m_mean", "stl_mean")
#: usr is 10 to 50, load 0.5 to 4.5, steal always 0.
RANGES = LearnedRanges(30, FEATURES, (10.0, 0.5, 0.0), (50.0, 4.5, 0.0), 0.25)
RULES = VerdictRules(
    CLASSES, 0.9, {}, {"": Group(19, {"code": 0.5, "machine": 0.5}, {"": tuple(n / 50 for n in range(19))})}, RANGES
)
SURE = {"code": 0.01, "machine": 0.99}
#: 19 runs whose true classes had a probability of 0.66 at least.
FEW = RULES.replace(
    groups={"": RULES.groups[""].replace(scores={"": tuple(1 - (66 + n) / 100 for n in range(18, -1, -1))})},
    ranges=None,
)


@pytest.mark.parametrize(
    ("means", "feature"),
    [
        ((10.0, 0.5, 0.0), None),
        ((50.0, 4.5, 0.0), None),
        ((60.0, 5.5, 0.25), None),  # a quarter of each width; of a range of one value, of 1
        ((60.1, 5.5, 0.25), "usr_mean"),
        ((-0.1, 2.0, 0.0), "usr_mean"),
        ((30.0, 5.51, 0.0), "1m_mean"),
        ((30.0, 2.0, 0.26), "stl_mean"),
        ((62.0, 9.7, 0.5), "1m_mean"),  # the farthest
        ((float("nan"), 5.5, 0.25), None),  # an unknown mean is not outside, and hides no other
        ((float("nan"), 9.7, 0.5), "1m_mean"),
        ((60.1, float("nan"), float("nan")), "usr_mean"),
    ],
)
def test_a_run_may_be_outside_by_a_part_of_the_width(means: tuple[float, ...], feature: str | None) -> None:
    verdict = make_verdict("unit", SURE, RULES, np.array(means))
    if feature is None:
        assert (verdict.cause, verdict.set, verdict.retry, verdict.outside) == ("machine", ("machine",), "yes", None)
        return
    assert (verdict.cause, verdict.set, verdict.retry) == ("unknown", CLASSES, "unsure")
    assert verdict.probabilities == SURE
    at = FEATURES.index(feature)
    assert verdict.outside == Outside(feature, means[at], RANGES.low[at], RANGES.high[at])


def test_a_verdict_outside_is_stored_and_read_again_and_others_are_stored_as_before() -> None:
    far = make_verdict("unit", SURE, RULES, np.array([30.0, 9.70000001, 0.0]))
    stored = json.loads(json.dumps(far.to_json()))
    assert stored["outside"] == {"feature": "1m_mean", "value": 9.7, "low": 0.5, "high": 4.5}
    assert Verdict.from_json(stored) == far
    near = make_verdict("unit", SURE, RULES, np.array([30.0, 2.0, 0.0]))
    assert "outside" not in near.to_json()
    assert Verdict.from_json(near.to_json()) == near
    assert make_verdict("unit", SURE, RULES).cause == "machine"  # nothing is known of the run
    old = RULES.replace(ranges=None)
    assert "ranges" not in old.to_json()
    assert make_verdict("unit", SURE, old, np.array([1e9, 1e9, 1e9])).cause == "machine"
    assert read_rules(changed(), CLASSES, FEATURES, "x") == RULES


@pytest.mark.parametrize(
    ("machine", "classes", "cause"),
    [
        (0.99, ("machine",), "machine"),
        (0.66, ("machine",), "machine"),  # 0.34 is a score of the group: two of twenty runs are at most as probable
        (0.65, (), "unknown"),  # one of twenty
        (0.5, (), "unknown"),
    ],
)
def test_a_class_that_a_tenth_of_the_runs_is_as_improbable_in_is_possible(
    machine: float, classes: tuple[str, ...], cause: str
) -> None:
    verdict = make_verdict("unit", {"code": round(1 - machine, 2), "machine": machine}, FEW)
    assert (verdict.set, verdict.cause) == (classes, cause)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=3, max_size=3),
)
def test_parts_are_those_of_a_plain_loop(means: list[float], ranges: list[tuple[float, float]]) -> None:
    low, high = [start for start, _ in ranges], [start + width for start, width in ranges]
    wanted = []
    for value, start, end in zip(means, low, high, strict=True):
        width = end - start if end > start else max(abs(start), 1.0)
        wanted.append((start - value if value < start else value - end if value > end else 0.0) / width)
    assert parts_outside(np.array(means), np.array(low), np.array(high)).tolist() == wanted


def changed(**changes: Any) -> bytes:
    value: dict[str, Any] = RULES.to_json()
    return json.dumps({**value, "ranges": {**value["ranges"], **changes}}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(features=["usr_mean", "1m_mean"]), "ranges of 2 features, but the model has 3"),
        (changed(features=["usr_mean", "stl_mean", "1m_mean"]), "ranges of 3 features, but the model has 3, or others"),
        (changed(low=[1.0]), "want a low and a high of each feature"),
        (changed(high=[1.0, 2.0, 3.0, 4.0]), "want a low and a high of each feature"),
        (changed(high=[1.0, 4.5, 0.0]), "a low is above its high"),
        (changed(limit=-0.1), "the limit of the ranges is negative"),
        (changed(limit="far"), "no rules of verdicts"),
    ],
)
def test_malformed_ranges_are_named(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_rules(data, CLASSES, FEATURES, "model m, version 1: assets/verdicts.json")

"""The verdict on a failed run follows from the model's probabilities and the rules in its assets, by counting."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ciml.errors import IntegrityError
from ciml.events.records import RunFacts
from ciml.serving.predict.answers import recorded_verdict
from ciml.verdict_rules import Group, Verdict, VerdictRules, make_verdict, read_rules

CLASSES = ("code", "machine")
#: 19 runs of each class, whose scores are 0, 0.02, … 0.36.
SCORES = tuple(round(0.02 * number, 2) for number in range(19))
RULES = VerdictRules(
    CLASSES,
    0.9,
    {"method": "temperature", "runs": 38},
    {
        "": Group(38, {"code": 0.5, "machine": 0.5}, {"": tuple(sorted(SCORES * 2))}),
        "unit": Group(38, {"code": 0.5, "machine": 0.5}, {"code": SCORES, "machine": tuple(2 * one for one in SCORES)}),
    },
)
#: Those of a run; the rules have no ranges.
WINDOWS = np.zeros((1, 1), np.float32)
FACTS = RunFacts(
    run_id="zuul~1~1", build_uuid="1", build_name="unit", outcome="failure", change="9,1", log_url="file:///x",
    labels={"a": "b"}, subjects=("c",), head="f00",
)  # fmt: skip


@pytest.mark.parametrize(
    ("job", "code", "cause", "possible", "retry"),
    [
        ("other", 0.95, "code", ("code",), "no"),
        ("other", 0.66, "code", ("code",), "no"),  # score 0.34: 4 of 38 runs have no lower one, so p = 5 / 39 > 0.1
        ("other", 0.63, "unknown", (), "unsure"),  # score 0.37: no run of any class was so unsure
        ("other", 0.05, "machine", ("machine",), "yes"),
        ("unit", 0.63, "unknown", ("machine",), "unsure"),  # not the most probable one
        ("unit", 0.5, "unknown", ("machine",), "unsure"),  # not the first of equals
        ("unit", 0.66, "unknown", ("code", "machine"), "unsure"),
        ("unit", 0.95, "code", ("code",), "no"),
    ],
)
def test_a_class_is_possible_where_enough_runs_of_it_fitted_no_better(
    job: str, code: float, cause: str, possible: tuple[str, ...], retry: str
) -> None:
    verdict = make_verdict(job, {"code": code, "machine": round(1 - code, 2)}, RULES)
    assert (verdict.cause, verdict.set, verdict.retry) == (cause, possible, retry)
    assert verdict.probability == max(code, round(1 - code, 2))
    assert verdict.group == ("unit" if job == "unit" else "")


@pytest.mark.parametrize(
    ("job", "code", "cause", "possible"),
    [
        ("other", 0.95, "code", ("code",)),
        ("other", 0.63, "code", ("code",)),  # no run of any class was so unsure
        ("other", 0.4, "machine", ("machine",)),
        ("other", 0.5, "unknown", CLASSES),  # none is the most probable one
        ("unit", 0.63, "unknown", CLASSES),  # the set had the less probable one alone
    ],
)
def test_the_most_probable_class_is_possible_in_a_model_that_keeps_it(
    job: str, code: float, cause: str, possible: tuple[str, ...]
) -> None:
    rules = read_rules(changed(keeps_likely=True), CLASSES, (), "x")
    verdict = make_verdict(job, {"code": code, "machine": round(1 - code, 2)}, rules)
    assert (verdict.cause, verdict.set) == (cause, possible)
    assert "keeps_likely" not in RULES.to_json()  # an earlier model's


def test_the_record_has_the_facts_of_the_run_and_the_verdict() -> None:
    found = json.loads(json.dumps(recorded_verdict(FACTS, {"code": 0.95, "machine": 0.05}, RULES, WINDOWS)))
    assert found == {
        "run": {
            "run_id": "zuul~1~1", "build_uuid": "1", "build_name": "unit", "outcome": "failure", "change": "9,1",
            "head": "f00", "phase": "finished",
        },
        "verdict": {
            "cause": "code", "probability": 0.95, "probabilities": {"code": 0.95, "machine": 0.05}, "set": ["code"],
            "coverage": 0.9, "group": "unit", "runs": 38, "base_rate": {"code": 0.5, "machine": 0.5}, "retry": "no",
        },
    }  # fmt: skip
    assert Verdict.from_json(found["verdict"]) == make_verdict("unit", {"code": 0.95, "machine": 0.05}, RULES)


def test_a_run_that_did_not_fail_or_a_model_without_rules_gives_no_verdict() -> None:
    shares = {"code": 0.95, "machine": 0.05}
    for outcome in ("success", "cancellation", "skip", "error", None):
        assert recorded_verdict(FACTS.replace(outcome=outcome), shares, RULES, WINDOWS) == {}
    assert recorded_verdict(FACTS.replace(outcome="timeout"), shares, RULES, WINDOWS)["verdict"]["cause"] == "code"
    assert recorded_verdict(FACTS, shares, None, WINDOWS) == {}
    assert recorded_verdict(None, shares, RULES, WINDOWS) == {}


def group(base_rate: Any, scores: Any) -> Any:
    return {"": {"runs": 1, "base_rate": base_rate, "scores": scores}}


HALF = {"code": 0.5, "machine": 0.5}


def changed(**changes: Any) -> bytes:
    return json.dumps({**RULES.to_json(), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no rules of verdicts"),
        (changed(coverage="0.9"), "no rules of verdicts: Expected `float`"),
        (changed(coverage=1.0), "coverage 1.0 is not between 0 and 1"),
        (changed(classes=["machine", "code"]), "classes machine, code, but the model has code, machine"),
        (changed(groups={}), "the group '' of all other jobs is missing"),
        (changed(groups=group({}, {"": []})), "group '': want the base rate of each class"),
        (changed(groups=group(HALF, {"code": []})), "want scores of each class, in order, or of all together"),
        (changed(groups=group(HALF, {"": [2, 1]})), "the scores are not in ascending order"),
    ],
)  # fmt: skip
def test_malformed_rules_are_named(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_rules(data, CLASSES, (), "model m, version 1: assets/verdicts.json")


def test_rules_are_read_as_they_were_written() -> None:
    assert read_rules(changed(), CLASSES, (), "x") == RULES

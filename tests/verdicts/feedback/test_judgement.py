"""What is said and what is not: each rule of the policy, and records that are no predictions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.verdicts.feedback.config import Feedback, Policy, load_feedback
from ciml.verdicts.feedback.judgement import SILENT, Item, Judgement, Silence, decide_feedback
from ciml.verdicts.feedback.state import entry_key
from tests.verdicts.feedback.reviews import NOW_S, ReviewSystem, feedback, prediction

NOW_US = int(NOW_S * 1e6)


def judged(record: dict[str, Any], config: Feedback | None = None, *muted: str) -> Judgement:
    return decide_feedback(record, config or feedback(), muted, NOW_US)


def item_of(record: dict[str, Any], config: Feedback | None = None, *muted: str) -> Item:
    """Return what is said of a record."""
    item = judged(record, config, *muted).item
    assert item is not None
    return item


def reason_of(record: dict[str, Any], config: Feedback | None = None, *muted: str) -> str:
    """Return the reason for silence, which is one of the closed set."""
    judgement = judged(record, config, *muted)
    assert judgement.item is None
    assert judgement.silence is not None
    assert judgement.silence.reason in SILENT
    return judgement.silence.reason


def test_a_confident_verdict_on_a_failed_run_is_said() -> None:
    item = item_of(prediction())
    found = (item.system, item.job, item.run_id, item.cause, item.probability, item.ref.change)
    assert found == ("review", "unit", "zuul~1~1", "machine", 0.91, "12")
    assert item.verdict.base_rate == {"code": 0.63, "machine": 0.37}


def test_the_head_repository_and_branch_of_a_run_tell_its_change_from_others() -> None:
    fork = {"change": "", "head": "a1" * 20, "head_project": "forker/widget", "labels": {"head_branch": "fix"}}
    item = item_of(prediction(**fork))
    assert (item.ref.change, item.ref.head_project, item.ref.head_branch) == ("", "forker/widget", "fix")
    other = item.replace(head_project="mallory/widget").ref
    assert entry_key("review", item.ref) != entry_key("review", other)


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"outcome": "success"}, {}, "not_failed"),
        ({"outcome": "cancellation"}, {}, "not_failed"),
        ({"outcome": None}, {}, "not_failed"),
        ({"verdict": {"cause": "unknown", "set": ["code", "machine"]}}, {}, "unknown"),
        ({"verdict": {"cause": "weather"}}, {}, "unknown"),
        ({}, {"causes": ("code",)}, "unknown"),
        ({"verdict": {"outside": {"feature": "usr", "value": 9.0, "low": 0.0, "high": 1.0}}}, {}, "outside"),
        ({"verdict": {"probability": 0.52, "base_rate": {"code": 0.41, "machine": 0.59}}}, {}, "base_rate"),
        ({"verdict": {"probability": 0.72, "base_rate": {"code": 0.34, "machine": 0.66}, "runs": 25}}, {}, "base_rate"),
        ({"verdict": {"runs": 0}}, {}, "base_rate"),
        ({"verdict": {"base_rate": {"code": 0.63}}}, {}, "base_rate"),
        ({}, {"min_probability": 0.95}, "unlikely"),
        ({}, {"pipelines": ("gate",)}, "not_selected"),
        ({}, {"branches": ("stable/*",)}, "not_selected"),
        ({}, {"jobs": ("lint*",)}, "not_selected"),
        ({}, {"projects": ("other/*",)}, "not_selected"),
        ({}, {"models": ("other",)}, "not_selected"),
        ({}, {"muted_projects": ("org/*",)}, "muted_project"),
        ({"change": "", "head": ""}, {}, "no_change"),
        ({"patchset": "", "head": ""}, {}, "no_change"),
        ({"project": ""}, {}, "no_change"),
        ({"source": "tekton"}, {}, "no_system"),
        ({"end_us": NOW_US - 7 * 3_600_000_000}, {}, "late"),
        ({"verdict": {"base_rate": {"code": "much"}}}, {}, "bad_record"),
        ({"build_name": 7}, {}, "bad_record"),
        ({"result": "x" * 40_000}, {}, "bad_record"),
    ],
)
def test_what_is_not_said_has_a_reason(changes: dict[str, Any], policy: dict[str, Any], reason: str) -> None:
    verdict = changes.pop("verdict", None)
    assert reason_of(prediction(verdict=verdict, **changes), feedback(**policy)) == reason


def test_a_probability_is_above_the_base_rate_only_by_enough_calibration_runs() -> None:
    verdict = {"probability": 0.72, "base_rate": {"code": 0.34, "machine": 0.66}}
    items = [judged(prediction(verdict={**verdict, "runs": runs})).item for runs in (100, 400)]
    assert [item is not None for item in items] == [False, True]


def test_a_verdict_whose_run_cannot_be_compared_is_not_said_and_no_claim() -> None:
    short = Silence("not_comparable", "3 s of telemetry; 10 s are needed")
    judgement = decide_feedback(prediction(), feedback(), (), NOW_US, lambda record: short)
    assert (judgement.item, judgement.silence) == (None, short)
    assert judgement.verdict is not None
    assert not judgement.verdict.claim


@pytest.mark.parametrize(
    "verdict", [{"cause": "unknown", "set": ["code", "machine"]}, {"probability": 0.52, "cause": "code"}]
)
def test_an_operator_s_note_is_said_without_a_verdict_and_is_no_claim(verdict: dict[str, Any]) -> None:
    def noted(run_id: str) -> bool:
        return run_id == "zuul~1~1"

    judgement = decide_feedback(prediction(verdict=verdict), feedback(), (), NOW_US, is_noted=noted)
    assert judgement.item is not None
    assert judgement.item.cause == "unknown"
    assert judgement.verdict is not None
    assert not judgement.verdict.claim
    other = decide_feedback(prediction(2, verdict=verdict), feedback(), (), NOW_US, is_noted=noted)
    assert other.item is None
    muted = decide_feedback(prediction(verdict=verdict), feedback(), ("org/*",), NOW_US, is_noted=noted)
    assert muted.silence == Silence("muted_project")


def test_what_could_be_said_of_another_change_is_recorded_as_a_claim() -> None:
    for changes in ({"change": "", "head": ""}, {"source": "tekton"}, {"end_us": NOW_US - 86_400_000_000}):
        verdict = judged(prediction(**changes)).verdict
        assert verdict is not None
        assert verdict.claim
    assert judged(prediction(), feedback(models=("other",))).verdict is None
    assert judged(prediction(end_us=NOW_US - 91 * 86_400_000_000)).verdict is None


@pytest.mark.parametrize(
    ("known", "change"),
    [
        ({}, "12"),
        ({"change": ""}, "a1" * 20),
        ({"change": "", "head": "", "attempt_of": "81/unit"}, "81/unit"),
        ({"change": "", "head": ""}, ""),
    ],
)
def test_what_stands_for_the_change_of_a_recorded_verdict(known: dict[str, str], change: str) -> None:
    verdict = judged(prediction(**known)).verdict
    assert verdict is not None
    assert (verdict.change, verdict.subject) == (change, ("org/project", change or "zuul~1~1"))


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["probability", "coverage", "base_rate"])
def test_a_share_outside_of_0_and_1_makes_a_bad_record(name: str, share: float) -> None:
    value = {"machine": 0.3, "code": share} if name == "base_rate" else share
    assert reason_of(prediction(verdict={name: value})) == "bad_record"


def test_a_prediction_without_verdict_is_no_error() -> None:
    for missing in ("run", "verdict"):
        assert reason_of({key: value for key, value in prediction().items() if key != missing}) == "no_verdict"


def test_the_prediction_of_a_candidate_is_neither_said_nor_recorded() -> None:
    assert item_of(prediction()).job == "unit"
    for candidate in ({"id": "0123456789abcdef", "blessed": True, "reasons": []}, None, {}):
        judgement = judged({**prediction(), "candidate": candidate})
        assert (judgement.item, judgement.silence, judgement.verdict) == (None, Silence("candidate"), None)


def test_a_project_can_be_muted_at_run_time() -> None:
    assert reason_of(prediction(), None, "org/*") == "muted_project"
    assert item_of(prediction(), None, "other/*").job == "unit"


def test_the_first_system_that_takes_a_run_has_it() -> None:
    first = ReviewSystem(name="first", sources=("zuul",), projects=("other/*",))
    second = ReviewSystem(name="second", sources=("zuul", "github"))
    assert item_of(prediction(), feedback(first, second)).system == "second"


_GITHUB = '[[system]]\nname = "hub"\nkind = "github"\nsources = ["github"]\nsecret_file = "token"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settle_s = -1", "feedback.toml: settle_s: -1.0 is not between 0.0 and 3600.0"),
        ("settle_s = 60\nsettle_most_s = 10", "feedback.toml: settle_most_s: 10.0 is not between 60.0 and 86400.0"),
        ('causes = ["weather"]', "feedback.toml: causes.0: 'weather' is unknown; choose from code, machine"),
        ('mute_word = "[skip]"', "feedback.toml: mute_word: '[skip]' is not a word such as ciml-quiet"),
        ('base_url = "javascript:x"', "feedback.toml: base_url: 'javascript:x' is not an address such as"),
        ('base_url = "https://ci.example.org/a)b"', "feedback.toml: base_url: 'https://ci.example.org/a)b' is not"),
        ('base_url = "https://u:p@ci.example.org/"', "feedback.toml: base_url: "),
        ('reviewers = ["alice"]', "feedback.toml: reviewers: 'alice' is not SYSTEM:ACCOUNT"),
        ('reviewers = ["git:ada"]\n' + _GITHUB, "reviewers: 'git:ada' is of no [[system]]; choose from hub"),
        ("min_settled = 0", "feedback.toml: min_settled: 0 is not between 1 and 1000"),
        ("settled_window = 10", "feedback.toml: settled_window: 10 is not between 20 and 1000"),
        ("min_precision = 2", "feedback.toml: min_precision: 2.0 is not between 0.0 and 1.0"),
        ("dryrun = true", "feedback.toml: dryrun: unknown key"),
        ("dry_run = 1", "feedback.toml: dry_run: expected bool, got int"),
        ("", "feedback.toml: no [[system]]; add one"),
        ("system = 3", "feedback.toml: system: expected tables"),
        ('[[system]]\nname = "a"', "feedback.toml, system a: kind: is missing; choose from"),
        ('[[system]]\nname = "a"\nkind = "svn"', "feedback.toml, system a: kind: 'svn' is unknown; choose from"),
    ],
)
def test_an_invalid_configuration_names_file_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "feedback.toml").write_text(text)
    with pytest.raises(CimlError) as caught:
        load_feedback(tmp_path / "feedback.toml")
    assert message in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_the_defaults_say_nothing_to_anybody() -> None:
    assert Policy().dry_run

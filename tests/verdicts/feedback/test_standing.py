"""Whether a model may speak: by its recently settled verdicts, for each verdict and project."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.intervals import wilson
from ciml.verdicts.feedback import standing as records_module
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.standing import (
    RERUNS,
    REVIEWER,
    RecordedVerdict,
    Records,
    Share,
    Standings,
    report_standings,
)
from ciml.verdicts.feedback.state import FeedbackState

DAY_US = 86_400_000_000
NOW_US = 100 * DAY_US


def recorded(number: int, cause: str = "machine", settled: str = "", **more: Any) -> RecordedVerdict:
    """A recorded claim on a change of its own; ``settled`` is what reruns say."""
    given: dict[str, Any] = {
        "id": f"{number:032x}", "run_id": f"zuul~{number}~1", "model": "cause", "version": 1, "project": "org/project",
        "change": str(number), "job": "unit", "cause": cause, "claim": True, "probability": 0.9, "seconds": 60.0,
        "time_us": NOW_US - DAY_US, "trusted": True, "settled": settled, "by": RERUNS if settled else "",
        "settled_us": NOW_US - DAY_US + number if settled else 0,
    }  # fmt: skip
    return RecordedVerdict(**{**given, **more})


def settled_verdicts(
    right: int, wrong: int, first: int = 0, cause: str = "machine", **more: Any
) -> list[RecordedVerdict]:
    """Claims of a cause of which so many are right and wrong, each on a change of its own."""
    other = "code" if cause == "machine" else "machine"
    outcomes = [cause] * right + [other] * wrong
    return [recorded(first + number, cause, outcome, **more) for number, outcome in enumerate(outcomes)]


def background(code: int, machine: int, first: int = 5000, **more: Any) -> list[RecordedVerdict]:
    """Settled failed runs on which the verdict was unknown: they count for the base rate alone."""
    causes = ["code"] * code + ["machine"] * machine
    return [recorded(first + number, "unknown", cause, claim=False, **more) for number, cause in enumerate(causes)]


def mode_of(
    verdicts: list[RecordedVerdict], cause: str = "machine", project: str = "org/project", **policy: Any
) -> str:
    """Whether the model may say a verdict."""
    return Standings(verdicts, Policy(**policy), NOW_US).of("cause", project, cause).mode


#: Failed runs of which half were caused by the machine.
HALF = background(20, 20)


def test_a_new_model_is_in_shadow_until_enough_of_its_verdicts_are_settled() -> None:
    assert mode_of([]) == "shadow"
    assert mode_of([*HALF, *settled_verdicts(19, 0)]) == "shadow"
    assert mode_of([*HALF, *settled_verdicts(20, 0)]) == "active"
    assert mode_of([*HALF, *[recorded(number) for number in range(500)]]) == "shadow"  # open ones do not count
    assert mode_of([], active_models=("cause",)) == "active"  # it needs no history
    assert mode_of([], active_models=("other",)) == "shadow"
    for policy in ({"shadow_models": ("cau*",)}, {"shadow_models": ("cause",), "active_models": ("cause",)}):
        assert mode_of([*HALF, *settled_verdicts(60, 0)], **policy) == "shadow"


@pytest.mark.parametrize(
    ("right", "wrong", "others", "mode"),
    [
        (18, 2, background(20, 20), "active"),
        (14, 6, background(20, 20), "precision"),  # at least 0.48, and the base rate is 0.57
        (13, 7, background(90, 0), "precision"),  # above the base rate, below min_precision
        (20, 0, background(0, 100), "precision"),  # all failures are the machine's: the verdict says nothing
        (95, 5, background(10, 190), "precision"),
        (95, 5, background(190, 10), "active"),
        (0, 20, background(20, 0), "precision"),
    ],
)
def test_settled_verdicts_must_hold_up_beyond_the_base_rate(
    right: int, wrong: int, others: list[RecordedVerdict], mode: str
) -> None:
    verdicts, runs = [*others, *settled_verdicts(right, wrong)], right + wrong
    standing = Standings(verdicts, Policy(), NOW_US).of("cause", "org/project", "machine")
    assert (standing.mode, standing.precision) == (mode, Share(right, runs))
    machine = right + sum(verdict.settled == "machine" for verdict in others)
    assert standing.base_rate == Share(machine, runs + len(others))
    holds_up = wilson(right, runs)[0] > machine / (runs + len(others))
    assert (holds_up and right / runs >= 0.7) == (mode == "active")
    assert mode_of(verdicts, min_precision=0.0) == ("active" if holds_up else "precision")


def test_a_model_that_is_never_right_is_silent_whatever_the_policy() -> None:
    never = [*background(20, 0), *settled_verdicts(0, 20)]  # the lower end and the base rate are both 0
    assert mode_of(never, min_precision=0.0) == "precision"


def test_a_model_that_gets_worse_goes_silent_and_returns_by_itself() -> None:
    good = settled_verdicts(60, 0, settled_us=NOW_US - 9 * DAY_US)
    bad = settled_verdicts(0, 60, first=100, settled_us=NOW_US - 5 * DAY_US)
    better = settled_verdicts(100, 0, first=200, settled_us=NOW_US - DAY_US)
    assert mode_of([*HALF, *good]) == "active"
    assert mode_of([*HALF, *good, *bad]) == "precision"
    assert mode_of([*HALF, *good, *bad, *better]) == "active"  # the last hundred count
    assert mode_of([*HALF, *good], settled_days=8) == "shadow"
    again = recorded(900, settled="code", change="0", settled_us=NOW_US)  # the first change of 21 is settled again
    standings = Standings([*settled_verdicts(21, 0), again], Policy(settled_window=20), NOW_US)
    assert standings.of("cause", "org/project", "machine").precision == Share(19, 20)


def test_each_verdict_of_a_model_stands_for_itself() -> None:
    verdicts = [*HALF, *settled_verdicts(20, 0), *settled_verdicts(10, 10, first=300, cause="code")]
    assert mode_of(verdicts, "machine") == "active"
    assert mode_of(verdicts, "code") == "precision"
    assert Standings(verdicts, Policy(), NOW_US).of("other", "org/project", "machine").mode == "shadow"


def test_a_project_counts_alone_once_it_has_enough_and_before_that_may_contradict_the_others() -> None:
    others = [*HALF, *settled_verdicts(60, 0)]
    assert mode_of(others, project="new/project") == "active"
    few = settled_verdicts(0, 3, first=400, project="bad/project")
    assert mode_of([*others, *few], project="bad/project") == "precision"
    unclear = settled_verdicts(1, 1, first=400, project="bad/project")  # the upper end is 0.91
    assert mode_of([*others, *unclear], project="bad/project") == "active"
    assert mode_of([*others, *few]) == "active"
    own = [*settled_verdicts(20, 0, first=500, project="own/project"), *background(40, 0, project="own/project")]
    worse = settled_verdicts(0, 100, first=700)
    assert mode_of([*HALF, *worse, *own], project="own/project") == "active"
    assert mode_of([*HALF, *worse, *own]) == "precision"


def test_runs_of_one_change_count_once() -> None:
    same = settled_verdicts(200, 0, change="1")
    assert mode_of([*background(40, 0), *same]) == "shadow"
    standing = Standings(same, Policy(), NOW_US).of("cause", "org/project", "machine")
    assert (standing.precision, standing.base_rate) == (Share(1, 1), Share(1, 1))


def test_a_rerun_is_counted_where_it_passed_and_a_reviewer_is_no_rerun() -> None:
    verdicts = [
        *settled_verdicts(12, 3), *settled_verdicts(5, 0, first=100, by=REVIEWER),
        *settled_verdicts(18, 2, first=200, cause="code"),
    ]  # fmt: skip
    standings = Standings(verdicts, Policy(), NOW_US)
    assert standings.of("cause", "org/project", "machine").reruns == Share(12, 15)
    assert standings.of("cause", "org/project", "code").reruns == Share(2, 20)


def test_untrusted_verdicts_displace_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "MAX_FEEDBACK_VERDICTS", 3)
    open_ones = [recorded(number) for number in range(3)]
    known = Records([*settled_verdicts(2, 1, first=10), *open_ones])
    for number in range(100, 200):
        known.put(recorded(number, trusted=False))
    numbers = sorted(int(verdict.id, 16) for verdict in known)
    assert numbers == [0, 1, 2, 10, 11, 12, 197, 198, 199]
    known.put(recorded(0, settled="machine"))
    assert len(known) == 8  # the oldest settled one is forgotten, and the run is in one memory
    assert [int(verdict.id, 16) for verdict in known if verdict.settled] == [11, 12, 0]
    assert known.find(f"{1:032x}") == recorded(1)
    assert known.find("none") is None


def test_recorded_verdicts_are_in_deltas_and_checkpoints() -> None:
    state = FeedbackState()
    verdict = recorded(1)
    state.apply(1, {"time_us": 5, "recorded": [verdict.to_json()], "verdicts": [], "silent": {"shadow": 1}})
    settled = {"id": verdict.id, "cause": "machine", "by": RERUNS, "trusted": True}
    state.apply(2, {"time_us": 7, "settled": [settled, {**settled, "id": "forgotten"}]})
    (found,) = state.history
    assert found == verdict.replace(settled="machine", by=RERUNS, settled_us=7)
    stored = json.loads(json.dumps(state.snapshot()))
    assert list(FeedbackState.restored_from(2, stored, {}).history) == [found]
    state.apply(3, {"time_us": 9, "settled": [{**settled, "cause": "", "by": ""}]})
    assert list(state.history) == [verdict]  # a later rerun has made it open again


def test_a_report_counts_settled_and_open_verdicts_beside_base_rate_and_duration() -> None:
    lasting = [
        verdict.replace(seconds=10.0 if verdict.settled == "code" else 100.0)
        for verdict in (*background(20, 10), *settled_verdicts(18, 2))
    ]
    lasting += [verdict.replace(id=f"a{verdict.id[1:]}", run_id=f"{verdict.run_id}0") for verdict in lasting]  # reruns
    others = [recorded(300), recorded(301, change="300"), recorded(302, project="other"), recorded(303, claim=False)]
    verdicts = [*lasting, *others, *settled_verdicts(5, 5, first=800, model="cause-2")]
    rows = {(row.model, row.project, row.cause): row for row in report_standings(verdicts, Policy(), NOW_US)}
    projects = {"cause": ("", "org/project", "other"), "cause-2": ("", "org/project")}
    assert list(rows) == [
        (model, project, cause) for model in projects for project in projects[model] for cause in ("code", "machine")
    ]
    machine = rows["cause", "org/project", "machine"]
    share = Share(18, 20)
    assert (machine.mode, machine.precision, machine.open, machine.reruns) == ("active", share, 1, share)
    # The duration alone is always right here.
    assert (machine.base_rate, machine.duration) == (Share(28, 50), Share(28, 28))
    assert rows["cause", "", "machine"].open == 2
    assert (rows["cause", "", "code"].mode, rows["cause", "", "code"].precision) == ("shadow", Share(0, 0))
    assert rows["cause-2", "", "machine"].detail == "10 of at least 20 verdicts machine are settled"
    assert rows["cause-2", "", "machine"].duration == Share(0, 0)  # too few settled runs
    value: dict[str, Any] = json.loads(json.dumps(machine.to_json()))
    low, high = wilson(18, 20)
    assert value["precision"] == {"right": 18, "runs": 20, "value": 0.9, "low": low, "high": high}
    assert (value["settled"], value["open"], value["mode"]) == (20, 1, "active")
    assert report_standings([], Policy(), NOW_US) == []

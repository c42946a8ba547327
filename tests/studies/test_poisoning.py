"""The study of flipped labels: the poisoner's runs, their facts, and the table."""

from __future__ import annotations

import numpy as np

from ciml.events.records import RunFacts
from studies.poisoning import POISONER, Trial, facts_of, poisoned_runs, table
from studies.recordings import Recorded


def recorded(number: int) -> Recorded:
    """Return runs of changes of two runs each, of which every fourth failed."""
    facts = tuple(
        RunFacts(f"zuul~{index}~1", "", "job", source="backfill", outcome="success" if index % 4 else "failure")
        for index in range(number)
    )
    return Recorded(facts, (), {}, {}, np.array([f"change-{index // 2}" for index in range(number)]))


def test_the_poisoner_has_whole_changes_until_they_are_the_share():
    runs = recorded(200)
    poisoned = poisoned_runs(runs, 0.05, seed=1)
    assert len(poisoned) == 10
    assert {index ^ 1 for index in poisoned} == poisoned
    assert poisoned != poisoned_runs(runs, 0.05, seed=2)


def test_the_poisoners_runs_alone_are_flipped():
    runs = recorded(40)
    poisoned = poisoned_runs(runs, 0.2, seed=1)
    for index, (before, after) in enumerate(zip(runs.facts, facts_of(runs, poisoned, "elsewhere", 1), strict=True)):
        is_flipped = before.outcome != after.outcome
        assert is_flipped is (index in poisoned) is (after.owner == POISONER) is (after.source == "elsewhere")


def test_the_table_has_each_case_with_its_losses():
    def trial(seed: int, share: float, right: int, pushed: bool) -> Trial:
        answers = [True] * right + [False] * (10 - right)
        groups = [str(index) for index in range(10)]
        return Trial(seed, "zuul" if share else "", share, "none", answers, [True] * 10, groups, 0.5, 3, 30, pushed)

    trials = [trial(0, 0.0, 9, True), trial(1, 0.0, 8, True), trial(0, 0.2, 6, True), trial(1, 0.2, 4, False)]
    text = table(trials)
    assert "| 0% | – | none | 3.0 of 30.0 | 0.850" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| 20%")]
    assert line.startswith("| 20% | zuul | none | 3.0 of 30.0 | 0.500 ")
    assert line.endswith("| 1 of 2 | 0.300 |")
    assert table([*trials[:2], trials[3]]).splitlines()[3].endswith("| 0 of 1 | – |")
    assert "duration alone 0.500; 20 held-out runs in 2 splits" in text

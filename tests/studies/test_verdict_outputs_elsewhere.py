"""Verdicts on runs whose output is withheld, and candidates for features: what they may know of a run."""

from __future__ import annotations

import json

import numpy as np

from ciml.datasets.definition import LOG_FEATURES
from ciml.events.outcomes import CAUSES
from ciml.events.records import RunFacts
from ciml.transforms.logs.ranking import scan
from studies import verdict_outputs_elsewhere
from studies.output_candidates import spreads
from studies.recordings import Recorded
from studies.verdict_outputs_elsewhere import withheld, without_telemetry
from studies.verdicts import Fold

HOUR_US = 3_600_000_000
DISK = b"OSError: [Errno 28] No space left on device\n"


def test_only_held_out_runs_lose_their_output() -> None:
    inputs = np.ones((2, 2, 1 + len(LOG_FEATURES)), np.float32)
    nothing = np.zeros(0, np.int64)
    fold = Fold(np.array([0]), nothing, np.array([1]), inputs, np.array([2, 1]), ("usr", *LOG_FEATURES))
    ((_, made),) = withheld([(0, fold)])
    assert made.inputs[0].tolist() == inputs[0].tolist()
    assert made.inputs[1, 0].tolist() == [1, *[0] * (len(LOG_FEATURES) - 1), 10]
    assert made.inputs[1, 1].tolist() == [1, *[0] * len(LOG_FEATURES)]  # padding


def test_only_learned_runs_keep_their_telemetry() -> None:
    inputs = np.arange(24, dtype=np.float32).reshape(3, 2, 4) + 1
    features = ("usr", "profile:length", "outcome:exit", "log:other")
    fold = Fold(np.array([1]), np.array([0]), np.array([2]), inputs, np.array([2, 2, 2]), features)
    made = without_telemetry(fold)
    assert made.inputs.tolist() == [
        [[0, 0, 3, 4], [0] * 4],
        inputs[1].tolist(),
        [[0, 0, 19, 20], [0] * 4],
    ]
    assert made.n_windows.tolist() == [1, 2, 1]


def test_the_spread_counts_earlier_failures_of_other_changes_alone() -> None:
    changes = ["a", "b", "b", "c", "a"]
    ends = [0, 1, 2, 3, 9]
    facts = tuple(
        RunFacts(run_id=str(number), build_uuid=str(number), build_name="unit", outcome="failure", end_us=end * HOUR_US)
        for number, end in enumerate(ends)
    )
    runs = Recorded(facts, (), {}, {}, np.array(changes))
    outputs = {run.build_uuid: scan(DISK) for run in facts}
    assert spreads(runs, outputs) == {"0": 0, "1": 1, "2": 1, "3": 2, "4": 1}


def test_judged_cases_have_a_cause_or_none() -> None:
    path = verdict_outputs_elsewhere.CASES
    cases = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({case["case"] for case in cases}) == len(cases) == 18
    assert {case["cause"] for case in cases} == {*CAUSES, ""}

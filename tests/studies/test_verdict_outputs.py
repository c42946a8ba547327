"""Verdicts from outputs: the score, what a fold may see of them, runs without one, and candidates for features."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ciml.datasets.definition import LOG_FEATURES
from ciml.events.outcomes import CAUSES
from ciml.events.records import RunFacts
from ciml.transforms.logs.ranking import scan
from studies.output_candidates import spreads
from studies.recordings import Recorded
from studies.verdict_outputs import macro_f1, make_output_profiles, read_outputs, with_outputs
from studies.verdict_outputs_elsewhere import CASES, withheld, without_telemetry
from studies.verdicts import Fold

NOISY = b"ValueError: expected by a test\n"
DISK = b"OSError: [Errno 28] No space left on device\n"
HOUR_US = 3_600_000_000


def facts_of(number: int, job: str, outcome: str) -> RunFacts:
    return RunFacts(run_id=str(number), build_uuid=str(number), build_name=job, change=str(number), outcome=outcome)


def test_the_score_is_that_of_scikit_learn_over_all_repeats_together() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 40)
    likely = random.integers(0, 2, (2, 40))
    value, low, high = macro_f1(likely, labels, np.arange(40))
    assert value == pytest.approx(f1_score(np.tile(labels, 2), likely.ravel(), average="macro"))
    assert low < value < high


def test_outputs_are_read_next_to_their_logs(tmp_path: Path) -> None:
    lines = [{"build_uuid": name, "log_path": f"logs/{name}/dstat.csv.gz"} for name in ("with", "without")]
    (tmp_path / "builds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "logs/with").mkdir(parents=True)
    (tmp_path / "logs/with/job-output.txt.gz").write_bytes(gzip.compress(b"3 passed\n"))
    outputs = read_outputs([tmp_path])
    assert {name: output.templates.to_pylist() for name, output in outputs.items()} == {"with": ["", "<*> passed"]}


def test_a_job_of_few_passing_runs_has_the_pooled_profile() -> None:
    runs = [(facts_of(number, "often", "success"), scan(b"often\n")) for number in range(5)]
    runs += [(facts_of(9, "seldom", "success"), scan(b"seldom\n")), (facts_of(10, "often", "failure"), scan(NOISY))]
    profiles = make_output_profiles(runs)
    assert set(profiles.of("often").templates) == {"often"}
    assert set(profiles.of("seldom").templates) == {"often", "seldom"}


def test_a_fold_sees_no_output_of_what_it_holds() -> None:
    facts = (facts_of(0, "unit", "success"), facts_of(1, "unit", "failure"), facts_of(2, "unit", "failure"))
    outputs = {"0": scan(NOISY), "1": scan(NOISY), "2": scan(NOISY)}
    nothing = np.zeros(0, np.int64)
    fold = Fold(np.array([0]), nothing, np.array([1]), np.ones((2, 2, 1), np.float32), np.array([1, 2]), ("usr",))
    program, silent = (LOG_FEATURES.index(f"log:{name}") for name in ("program", "silent"))

    def features(groups: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        runs = Recorded(facts, (), {"1": "code", "2": "code"}, {}, np.array(groups))
        ((_, made),) = with_outputs(runs, outputs, [(0, fold)])
        return made.inputs[:, :, 1:], made.features

    visible, names = features(["a", "b", "c"])
    assert names == ("usr", *LOG_FEATURES)
    assert visible[:, 0, silent].tolist() == [1, 1]
    assert visible[:, 1, silent].tolist() == [0, 1]  # the first run has one window; the rest is padding
    hidden, _ = features(["c", "b", "c"])  # the passing run is of the change that is held out
    assert hidden[:, 0, program].tolist() == [1, 1]


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
    facts = tuple(facts_of(number, "unit", "failure").replace(end_us=end * HOUR_US) for number, end in enumerate(ends))
    runs = Recorded(facts, (), {}, {}, np.array(changes))
    outputs = {run.build_uuid: scan(DISK) for run in facts}
    assert spreads(runs, outputs) == {"0": 0, "1": 1, "2": 1, "3": 2, "4": 1}


def test_judged_cases_have_a_cause_or_none() -> None:
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    assert len({case["case"] for case in cases}) == len(cases) == 18
    assert {case["cause"] for case in cases} == {*CAUSES, ""}

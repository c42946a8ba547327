"""The comparison of verdicts from telemetry and from outputs: its score, and what a fold may see of the outputs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ciml.datasets.definition import LOG_FEATURES
from ciml.events.records import RunFacts
from ciml.transforms.logs.ranking import scan
from studies.recordings import Recorded
from studies.verdict_outputs import macro_f1, make_output_profiles, read_outputs, with_outputs
from studies.verdicts import Fold

NOISY = b"ValueError: expected by a test\n"


def facts_of(number: int, job: str, outcome: str) -> RunFacts:
    return RunFacts(run_id=str(number), build_uuid=str(number), build_name=job, change=str(number), outcome=outcome)


def test_the_score_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 40)
    likely = random.integers(0, 2, (1, 40))
    value, low, high = macro_f1(likely, labels, np.arange(40))
    assert value == pytest.approx(f1_score(labels, likely[0], average="macro"))
    assert low < value < high


def test_repeats_count_together() -> None:
    labels = np.array([0, 0, 1, 1])
    likely = np.array([[0, 1, 1, 1], [0, 0, 1, 0]])
    value, _, _ = macro_f1(likely, labels, np.arange(4))
    assert value == pytest.approx(f1_score(np.tile(labels, 2), likely.ravel(), average="macro"))


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

"""The tutorial of own logs: its commands run as they stand. tests/examples/test_own_logs.py runs its Python lines."""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import pytest

from tests.ciml.api.made import START, write_log
from tests.project.test_readme import ROOT, commands, run

pytestmark = pytest.mark.whole
DOCUMENT = (ROOT / "docs" / "own-logs.md").read_text()
RUNS = 150


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Logs of 150 runs, of which every second one failed, their table, and a log without a row."""
    (tmp_path / "logs").mkdir()
    rows = []
    for number in range(RUNS + 1):
        log = tmp_path / "logs" / f"{number}.csv"
        write_log(log, number)
        packed = log.with_name("new.gz" if number == RUNS else f"{number}.csv.gz")
        packed.write_bytes(gzip.compress(log.read_bytes()))
        log.unlink()
        result = "FAILURE" if number % 2 else "SUCCESS"
        rows.append([f"a{number}", "unit", result, START.isoformat(), f"logs/{packed.name}"])
    with (tmp_path / "results.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["id", "job", "result", "start", "log"], *rows[:RUNS]])
    return tmp_path


def test_six_commands_lead_to_three_models_compared_and_a_prediction(folder: Path) -> None:
    found = commands(DOCUMENT)
    assert len(found) == 6
    outputs = [run(line, folder) for line in found]
    assert f"{RUNS} runs." in outputs[0]
    assert all(f"{name}-" in outputs[3] for name in ("random_forest", "svm", "dnn"))
    assert "pushed version 1" in outputs[4]
    classes = dict(re.findall(r"(logs/\S+) +│ (\w+)", outputs[5]))
    assert (len(classes), classes["logs/new.gz"], classes["logs/1.csv.gz"]) == (RUNS + 1, "passed", "failed")

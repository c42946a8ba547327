"""The benchmarks of outputs, on made-up data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from studies import job_output
from studies.job_output import grouping_accuracy, loghub, logjuicer, recorded


@pytest.mark.parametrize(
    ("groups", "accuracy"),
    [("xxyy", 1.0), ("xyzz", 0.5), ("xxxx", 0.0), ("abcd", 0.0)],
)
def test_a_group_is_right_if_it_has_exactly_the_lines_of_a_template(groups: str, accuracy: float) -> None:
    assert grouping_accuracy("1122", groups) == accuracy


def test_systems_of_loghub(tmp_path: Path) -> None:
    (tmp_path / "Made").mkdir()
    rows = ["EventId,Content", "E1,took 1 s", "E1,took 2 s", "E2,done"]
    (tmp_path / "Made" / "Made_2k.log_structured.csv").write_text("\n".join(rows))
    assert [row.split("|")[1:3] for row in loghub(tmp_path)][-2:] == [[" Made ", " 1.000 "], [" mean ", " 1.000 "]]


def test_pairs_of_logjuicer(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "made-01"
    folder.mkdir(parents=True)
    (folder / "log.good").write_text("start\nend\n")
    (folder / "log.fail").write_text("start\nsome note\nError: no disk\n")
    (folder / "inf.yaml").write_text("anomalies:\n  - line: |\n      Error: no disk\n")
    assert list(logjuicer(tmp_path, ["made-01"]))[-1] == "| made-01 | 3 | 2 | 1 | 1 | 1 | 1 |"

    anomaly = {"before": ["start"], "anomaly": {"line": "some note"}, "after": ["Error: no disk"]}
    report = json.dumps({"log_reports": [{"anomalies": [anomaly]}]})
    program = tmp_path / "logjuicer"
    program.write_text(f"#!/bin/sh\n[ -f $4 ] && [ -f $5 ] && echo '{report}'\n")
    program.chmod(0o755)
    header, _, row = logjuicer(tmp_path, ["made-01"], str(program))
    assert row == "| made-01 | 3 | 2 | 1 | 1 | 1 | 1 | 1 | 0 | 1 | 3 | 1 | 1 |"
    assert header.count("|") == row.count("|")


def test_the_place_of_the_cause_in_recorded_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"good": "start\nERROR: known\nend\n", "bad": "start\nERROR: known\nValueError: no\n"}
    rows = []
    for name, text in outputs.items():
        (tmp_path / "rec" / name).mkdir(parents=True)
        (tmp_path / "rec" / name / "job-output.txt.gz").write_bytes(gzip.compress(text.encode()))
        result = "SUCCESS" if name == "good" else "FAILURE"
        rows.append({"build_uuid": name, "build_name": "job", "result": result, "log_path": f"{name}/dstat.gz"})
    (tmp_path / "rec" / "builds.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "stated_causes.jsonl").write_text('{"build_uuid": "bad", "lines": [3]}')
    monkeypatch.setattr(job_output, "__file__", str(tmp_path / "job_output.py"))
    assert [row.split("|")[2].strip() for row in recorded(tmp_path, ["rec"])] == ["1 of 1"] * 3

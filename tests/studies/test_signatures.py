"""The study of signatures counts what it says: shared signatures, their causes, and judgements when a run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ciml.transforms.logs.profile import printed_templates
from ciml.transforms.logs.ranking import scan
from studies.signatures import Judged, judge, logdx, recorded, true_cause


def run(number: int, output: str, result: str = "FAILURE", **fields: Any) -> dict[str, Any]:
    return {
        "build_uuid": f"run {number}",
        "build_name": "unit",
        "result": result,
        "end_time": f"2026-11-26T01:{number:02}:00Z",
        "printed": printed_templates(scan(output.encode())),
        **fields,
    }


def test_runs_are_judged_by_the_runs_before_them() -> None:
    known = "error: could not find a cache\n"
    runs = [
        run(0, known, "SUCCESS"),
        *(
            run(
                number,
                f"{known}error: mirror unreachable now\n",
                change=f"change {number}",
                patch=False,
                trouble="setup",
            )
            for number in (3, 1, 2)
        ),
        run(4, known, patch=True, trouble="none"),
    ]
    first, second, third, alone = judge(runs)
    assert [first.judgement, second.judgement, third.judgement] == ["", "", "machine"]
    assert len({first.signature, second.signature, third.signature}) == 1
    assert alone == Judged("code", "", "")


def test_a_cause_is_true_if_the_recording_made_one_alone() -> None:
    assert true_cause({"patch": True, "trouble": "none"}) == "code"
    assert true_cause({"patch": False, "trouble": "disk"}) == "disk"
    assert true_cause({"patch": True, "trouble": "disk"}) == ""
    assert true_cause({"fault": "patch"}) == "code"
    assert true_cause({"fault": "hang"}) == "hang"
    assert true_cause({"fault": "none"}) == ""


def test_the_table_counts_runs_signatures_and_judgements() -> None:
    judged = [
        *[Judged("disk", "a", ""), Judged("disk", "a", "machine"), Judged("", "a", "machine")],
        *[Judged("code", "b", ""), Judged("disk", "b", "code"), Judged("code", "c", ""), Judged("code", "", "")],
    ]
    assert list(recorded(judged)) == [
        "| failed runs with a signature | 6 of 7 | 0.49 to 0.97 |",
        "| signatures | 3 | |",
        "| runs that share one with another run | 5 of 7 | 0.36 to 0.92 |",
        "| shared signatures whose runs have one true cause | 1 of 2 | 0.09 to 0.91 |",
        "| `machine` when the run ended, right | 1 of 1 | 0.21 to 1.00 |",
        "| `code` when the run ended, right | 0 of 1 | 0.00 to 0.79 |",
    ]


def test_failures_of_other_projects_are_counted_where_they_share_one(tmp_path: Path) -> None:
    for name, line in (("a", "mirror is unreachable"), ("b", "mirror is unreachable"), ("c", "disk is unwritable")):
        path = tmp_path / "cases" / "dev" / name / "raw.log"
        path.parent.mkdir(parents=True)
        path.write_text(f"error: {line}\n")
    assert list(logdx(tmp_path, ["dev"])) == [
        "| failures of other projects that share a signature | 2 of 3 | 0.21 to 0.94 |"
    ]

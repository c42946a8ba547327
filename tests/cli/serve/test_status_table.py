"""The table of a service's status: values that are unknown."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ciml.cli.commands.serve.service import print_status

NOTHING = {
    "name": "one", "health": "starting", "why": "", "remedy": None, "uptime_s": None, "last_commit_age_s": None,
    "supervisor": None, "worker": None, "ages_s": {}, "stale": [], "last_known": None,
}  # fmt: skip


def rows(capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, str]:
    print_status({**NOTHING, **changes})  # type: ignore[typeddict-item]
    lines = [line.strip().partition("  ") for line in capsys.readouterr().out.splitlines()]
    return {title: text.strip() for title, _, text in lines}


def test_ages_are_shown_and_left_out_if_there_is_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys)["version"] == "–"
    for time_us, age_s, version, checkpoint, failure in (
        (0, None, "3", "2 KiB", "no disk"),
        (int((time.time() - 300) * 1e6), 5, "3, committed 5 s ago", "2 KiB, 5 min old", "5 min ago: no disk"),
    ):
        known = rows(
            capsys, version=3, last_commit_age_s=age_s, checkpoint={"bytes": 2048, "time_us": time_us},
            last_failure={"time_us": time_us, "why": "no disk"},
        )  # fmt: skip
        assert (known["version"], known["checkpoint"], known["last failure"]) == (version, checkpoint, failure)


def test_the_last_resubmissions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    resubmissions = [{"time_us": number * 1_000_000, "why": f"reason {number}."} for number in range(20)]
    print_status({**NOTHING, "resubmissions": resubmissions, "resubmitted": 20})  # type: ignore[typeddict-item]
    shown = capsys.readouterr().out
    assert "reason 19." in shown
    assert "reason 0." not in shown


def test_a_service_without_data_has_no_rows_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    of_data = {"data", "lag", "version", "counts", "checkpoint", "savepoint"}
    kept = rows(capsys, kind="webhooks", data="data").keys()
    assert rows(capsys, kind="webhooks", data="").keys() == kept - of_data
    assert of_data < kept

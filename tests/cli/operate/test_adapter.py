"""``ciml adapter``: what is listed, and what a delivery becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.integrations.github.adapter import PUSH
from ciml.integrations.registry import adapters
from tests.cli.calling import ciml
from tests.integrations import github_samples as github
from tests.integrations import gitlab_samples as gitlab

EVENT = "--header=X-GitHub-Event="


def adapter(*arguments: str, code: int = 0, given: bytes = b"") -> str:
    return ciml("adapter", *arguments, code=code, input=given).output


def test_each_adapter_is_listed_with_its_headers() -> None:
    lines = adapter("list").splitlines()
    assert lines[0].split() == ["adapter", "headers", "signature"]
    assert [line.split()[0] for line in lines[1:]] == sorted(adapters())
    listed = [json.loads(line) for line in adapter("list", "--json").splitlines()]
    assert [one["headers"] for one in listed if one["name"] == "github"] == [["x-github-event"]]


def test_a_run_is_shown_with_its_facts_and_the_address_of_its_log(tmp_path: Path) -> None:
    body = tmp_path / "job.json"
    body.write_bytes(github.job().body)
    output = adapter("try", "github", str(body), f"{EVENT}workflow_job")
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    assert lines[:6] == [
        ["event", "workflow_job.completed"], ["run", "github~4001~1"], ["phase", "finished"],
        ["start_time", "2026-11-24T12:00:00Z"], ["end_time", "2026-11-24T12:20:00Z"], ["build_uuid", "4001"],
    ]  # fmt: skip
    subjects = f"workflow_run:81, branch:octo/widget/main/{github.SHA}, sha:octo/widget/{github.SHA}"
    assert ["subjects", subjects] in lines
    address = "https://api.github.com/repos/octo/widget/actions/runs/81/artifacts"
    assert lines[-1] == ["its", f"log is fetched: {address}"]


def test_json_holds_the_same() -> None:
    body = github.job().body
    found = json.loads(adapter("try", "github", "-", f"{EVENT}workflow_job", "--source", "gh", "--json", given=body))
    assert found["event"] == {"type": "workflow_job.completed", "time": None}
    assert found["updates"] == []
    (run,) = found["runs"]
    assert (run["facts"]["run_id"], run["facts"]["end_time"]) == ("gh~4001~1", "2026-11-24T12:20:00Z")
    assert run["log"] == "https://api.github.com/repos/octo/widget/actions/runs/81/artifacts"
    assert "ignored" not in found


def test_updates_are_shown() -> None:
    output = adapter("try", "gitlab", "-", given=gitlab.merge_request(target_branch="main").body)
    assert output == (
        "event merge_request.merge at 2026-11-24T13:00:00Z\n"
        "update of the runs of merge_request:44/6\n"
        "  fork    no\n  branch  main\n  change  6\n"
        f"update of the runs of sha:44/{gitlab.SHA}\n"
        "  only  change=6, branch=main\n"
        f"update of the runs of sha:44/{gitlab.SHA}\n"
        "  review  merged\n  only    change=6, branch=main\n"
    )


@pytest.mark.parametrize(
    ("arguments", "body", "exit_code", "last"),
    [
        (["gitlab"], gitlab.job(build_status="running").body, 0, "  ignored: not_finished"),
        (["github", f"{EVENT}push"], b"{}", 0, f"ignored: {PUSH}"),
        (["gitlab"], gitlab.job(build_name="").body, 2, "dead letter: missing_field: build_name"),
        (["gitlab"], gitlab.job(repository={}, project={}).body, 2, "  dead letter: missing_field: log_url"),
        (["github"], b"{}", 2, "The adapter reads headers that were not given: x-github-event; give --header."),
    ],
)
def test_why_a_delivery_is_not_used(arguments: list[str], body: bytes, exit_code: int, last: str) -> None:
    assert adapter("try", arguments[0], "-", *arguments[1:], given=body, code=exit_code).splitlines()[-1] == last


def test_a_run_that_is_rejected_alone_is_a_dead_letter() -> None:
    body = github.job(conclusion="finished").body
    output = adapter("try", "github", "-", f"{EVENT}workflow_job", given=body, code=2)
    assert "dead letter: bad_field: result: 'FINISHED' is an unknown word" in output


def test_wrong_use_names_the_remedy(tmp_path: Path) -> None:
    assert "no adapter 'hudson'; choose from " in adapter("try", "hudson", "-", code=2)
    assert "give NAME=VALUE" in adapter("try", "github", "-", "--header", "x", code=2)
    for value in ("\udcff", "a\r\nb"):
        assert "NAME=VALUE, printable" in adapter("try", "github", "-", f"{EVENT}{value}", code=2)
    assert "No such file" in adapter("try", "github", str(tmp_path / "none.json"), code=2)

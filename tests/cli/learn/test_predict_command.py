"""``ciml predict FILE…`` as a user types it, and its former form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ciml
from ciml.cli.main import cli
from ciml.data_root import DataRoot
from ciml.serving.registry import CandidateNotice, Decision, Registry
from ciml.storage import open_store
from tests.ciml.api.conftest import folder, made, served  # noqa: F401  (fixtures)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["predict", *arguments], standalone_mode=False)


def test_a_table_of_files_with_a_row_for_each(served: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "text").write_text("no telemetry\n")
    logs = served / "logs"
    files = (str(logs / "unit-001.csv"), str(tmp_path / "text"), str(logs / "unit-002.csv"))
    words = ["predict", *files, "--model", "status", "--data-path", str(served / "data")]
    done = CliRunner().invoke(cli, words, env={"COLUMNS": "400"}, standalone_mode=False)
    assert (done.return_value, done.stderr) == (2, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "status, version 1"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0].rpartition("/")[2] for row in cells] == ["unit-001.csv", "text", "unit-002.csv"]
    assert [row[1] for row in cells] == ["failed", "", "passed"]
    assert [row[3] for row in cells] == ["10", "", "10"]
    assert 0.5 < float(cells[0][2]) <= 1
    assert cells[1][4].startswith("not telemetry")


def test_json_has_a_line_for_each_file(served: Path) -> None:  # noqa: F811
    words = [str(served / "logs" / "unit-001.csv"), "no~such~1", "--model", "status", "--json"]
    done = run(*words, "--data-path", str(served / "data"))
    one, none = map(json.loads, done.output.splitlines())
    assert done.return_value == 2
    assert (one["class"], one["version"], list(one["probabilities"])) == ("failed", 1, ["passed", "failed"])
    assert none == {
        "file": "no~such~1", "model": "status", "version": 1, "reason": "log_not_found", "detail": "no such file",
    }  # fmt: skip


def test_a_version_or_a_label_is_chosen(folder: Path) -> None:  # noqa: F811
    log, data = str(folder / "logs" / "unit-001.csv"), str(folder / "data")
    base = [log, "--model", "status", "--data-path", data, "--json"]
    assert json.loads(run(*base, "--version", "1").output)["version"] == 1
    assert CliRunner().invoke(cli, ["predict", *base, "--version", "2"]).exit_code == 2
    failed = CliRunner().invoke(cli, ["predict", *base, "--label", "canary"])
    assert (failed.exit_code, "no version has the label 'canary'" in failed.output) == (2, True)
    both = CliRunner().invoke(cli, ["predict", *base, "--label", "stable", "--version", "1"])
    assert (both.exit_code, "exclude each other" in both.output) == (2, True)
    shutil.rmtree(folder / "data" / "models" / "status" / "1" / "variables")
    altered = CliRunner().invoke(cli, ["predict", *base])
    assert (altered.exit_code, "is missing since the model was recorded" in altered.output) == (4, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "m", "--data-path", "."], "no FILE: name the logs to predict; the stream is ciml predict stream"),
        (["--model", "m", "--data-path", "x", "--once"], "--once: is an option of the stream; use ciml predict stream"),
        (["--engine=flink", "--model", "m"], "--engine: is an option of the stream"),
        (["--model", "m", "--kafka", "k:1", "--data-path", "x"], "or ciml service start predict"),
        (["file"], "Missing option '--model'"),
        (["file", "--model", "m", "--data-path", "no-such-folder"], "no data at no-such-folder"),
    ],
)
def test_wrong_use_says_what_to_do(words: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["predict", *words])
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_a_server_needs_no_data_root() -> None:
    words = ["predict", "file", "--server", "http://127.0.0.1:1", "--model", "m"]
    done = CliRunner().invoke(cli, words, env={"CIML_DATA_PATH": "no-such-folder"})
    assert (done.exit_code, "http://127.0.0.1:1 cannot be reached" in done.output) == (3, True), done.output


def test_help_has_both_forms() -> None:
    for words, options in (([], "--zone"), ([], "stream"), (["stream"], "--kafka")):
        assert options in CliRunner().invoke(cli, ["predict", *words, "--help"]).output


def test_a_candidate_answers_with_the_decision_of_the_gate(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    data = DataRoot.open(folder / "data")
    other = Path(shutil.copytree(data.models.url("status/1"), tmp_path / "other"))
    (other / "assets" / "notes.json").write_text("another candidate")
    registry = Registry(data, "status")
    candidate = registry.record_candidate(open_store(other)).id
    notice = CandidateNotice(candidate, False, ("too few runs", "below the base rate"))
    registry.record_decision(candidate, Decision(False, notice.reasons))
    logs = [str(folder / "logs" / "unit-001.csv"), str(folder / "none")]
    words = ["--model", "status", "--data-path", str(folder / "data")]
    answers = [json.loads(line) for line in run(*logs, *words, "--candidate", "--json").stdout.splitlines()]
    assert [answer["candidate"] for answer in answers] == [notice.to_json()] * 2
    assert [(answer["version"], answer.get("class")) for answer in answers] == [(None, "failed"), (None, None)]
    text = run(logs[0], *words, "--candidate").stdout
    assert f"status, candidate {candidate}, rejected by the gate, not served" in text
    assert text.endswith("gate: too few runs\ngate: below the base rate\n")
    of_version = json.loads(run(logs[0], *words, "--json").stdout)
    assert ("candidate" in of_version, of_version["version"]) == (False, 1)
    for excluded in (["--label", "stable"], ["--version", "1"], ["--server", "http://h:1"]):
        failed = CliRunner().invoke(cli, ["predict", logs[0], *words, "--candidate", *excluded])
        assert (failed.exit_code, "--candidate excludes --server" in failed.output) == (2, True)
    with ciml.open(folder / "data") as opened:
        model = opened.model("status", candidate=True)
        prediction = model.predict(logs[0])
        assert prediction.candidate == model.candidate == notice
        assert repr(model).startswith(f"Model('status', candidate {candidate}, rejected by the gate")

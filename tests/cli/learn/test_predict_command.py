"""``ciml predict FILE…`` as a user types it, and its former form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ciml
from ciml.data_root import DataRoot
from ciml.serving.registry import CandidateNotice, Decision, Registry
from ciml.storage import open_store
from tests.ciml.api.conftest import folder, made, served  # noqa: F401  (fixtures)
from tests.cli import calling


def predict(*words: str, code: int = 0) -> list[dict[str, Any]]:
    """Return the answers as JSON."""
    return [json.loads(line) for line in calling.ciml("predict", *words, "--json", code=code).stdout.splitlines()]


def test_a_table_of_files_with_a_row_for_each(served: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "text").write_text("no telemetry\n")
    logs = served / "logs"
    files = (str(logs / "unit-001.csv"), str(tmp_path / "text"), str(logs / "unit-002.csv"))
    words = ["predict", *files, "--model", "status", "--data-path", str(served / "data")]
    done = calling.ciml(*words, env={"COLUMNS": "400"}, code=2)
    assert done.stderr == ""
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "status, version 1"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[0].rpartition("/")[2] for row in cells] == ["unit-001.csv", "text", "unit-002.csv"]
    assert [row[1] for row in cells] == ["failed", "", "passed"]
    assert [row[3] for row in cells] == ["10", "", "10"]
    assert 0.5 < float(cells[0][2]) <= 1
    assert cells[1][4].startswith("not telemetry")


def test_json_has_a_line_for_each_file(served: Path) -> None:  # noqa: F811
    words = [str(served / "logs" / "unit-001.csv"), "no~such~1", "--model", "status"]
    one, none = predict(*words, "--data-path", str(served / "data"), code=2)
    assert (one["class"], one["version"], list(one["probabilities"])) == ("failed", 1, ["passed", "failed"])
    assert none == {
        "file": "no~such~1", "model": "status", "version": 1, "reason": "log_not_found", "detail": "no such file",
    }  # fmt: skip


def test_a_version_or_a_label_is_chosen(folder: Path) -> None:  # noqa: F811
    log, data = str(folder / "logs" / "unit-001.csv"), str(folder / "data")
    base = [log, "--model", "status", "--data-path", data]
    assert predict(*base, "--version", "1")[0]["version"] == 1
    calling.ciml("predict", *base, "--version", "2", code=2)
    assert "no version has the label 'canary'" in calling.ciml("predict", *base, "--label", "canary", code=2).output
    both = calling.ciml("predict", *base, "--label", "stable", "--version", "1", code=2)
    assert "exclude each other" in both.output
    shutil.rmtree(folder / "data" / "models" / "status" / "1" / "variables")
    assert "is missing since the model was recorded" in calling.ciml("predict", *base, code=4).output


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
    assert said in calling.ciml("predict", *words, code=2).output


def test_a_server_needs_no_data_root() -> None:
    words = ["predict", "file", "--server", "http://127.0.0.1:1", "--model", "m"]
    done = calling.ciml(*words, env={"CIML_DATA_PATH": "no-such-folder"}, code=3)
    assert "http://127.0.0.1:1 cannot be reached" in done.output


def test_help_has_both_forms() -> None:
    for words, options in (([], "--zone"), ([], "stream"), (["stream"], "--kafka")):
        assert options in calling.ciml("predict", *words, "--help").output


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
    answers = predict(*logs, *words, "--candidate", code=2)
    assert [answer["candidate"] for answer in answers] == [notice.to_json()] * 2
    assert [(answer["version"], answer.get("class")) for answer in answers] == [(None, "failed"), (None, None)]
    text = calling.ciml("predict", logs[0], *words, "--candidate").stdout
    assert f"status, candidate {candidate}, rejected by the gate, not served" in text
    assert text.endswith("gate: too few runs\ngate: below the base rate\n")
    (of_version,) = predict(logs[0], *words)
    assert ("candidate" in of_version, of_version["version"]) == (False, 1)
    for excluded in (["--label", "stable"], ["--version", "1"], ["--server", "http://h:1"]):
        failed = calling.ciml("predict", logs[0], *words, "--candidate", *excluded, code=2)
        assert "--candidate excludes --server" in failed.output
    with ciml.open(folder / "data") as opened:
        model = opened.model("status", candidate=True)
        prediction = model.predict(logs[0])
        assert prediction.candidate == model.candidate == notice
        assert repr(model).startswith(f"Model('status', candidate {candidate}, rejected by the gate")

"""``ciml models``, ``ciml serve`` and ``ciml predict`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.serving.push import NotBlessedError, push
from ciml.serving.registry import Decision, Registry
from tests.cli.calling import ciml
from tests.serving.models_fixture import stand_in


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Two versions and a candidate without a blessing. The files are no models: nothing here loads one."""
    data = DataRoot.open(tmp_path / "data")
    for number in (1, 2, 3):
        candidate = stand_in(tmp_path / f"candidate-{number}", number)
        decision = Decision(number < 3, (f"accuracy 0.{number}",), {"accuracy": number / 10})
        try:
            push(data, "m", candidate, decision, check=False, facts={"dataset": "small"})
        except NotBlessedError:
            assert number == 3
    return data


def test_list(data: DataRoot) -> None:
    lines = ciml("models", "list", "--data-path", data.url).output.splitlines()
    assert lines[0] == "m: stable = 2"
    assert [line.split("  ")[3:] for line in lines[1::2]] == [
        ["blessed", "version 1"],
        ["blessed", "version 2"],
        ["not blessed"],
    ]
    assert lines[6] == "    accuracy 0.3"
    found = json.loads(ciml("models", "list", "m", "--data-path", data.url, "--json").output)
    assert found["m"]["labels"] == {"stable": 2}
    assert found["m"]["served"] == [1, 2]
    assert [one["blessed"] for one in found["m"]["candidates"]] == [True, True, False]
    assert found["m"]["candidates"][0]["facts"] == {"dataset": "small"}
    assert found["m"]["candidates"][0]["versions"] == [{"number": 1, "withdrawn": False}]
    other = DataRoot.open(f"{data.url}-other")
    other.experiments.create("x", b"")
    assert ciml("models", "list", "--data-path", other.url).output == "no models yet; train one by ciml refresh\n"


def test_rollback(data: DataRoot) -> None:
    assert ciml("models", "rollback", "m", "--data-path", data.url).output == "m: stable = 1\n"
    assert "version 2 (withdrawn)" in ciml("models", "list", "--data-path", data.url).output
    assert "no predecessor" in ciml("models", "rollback", "m", "--data-path", data.url, code=2).output
    assert ciml("models", "rollback", "m", "--version", "2", "--data-path", data.url).output == "m: stable = 2\n"
    assert Registry(data, "m").state.champion == 2
    assert "no model 'x'" in ciml("models", "verify", "x", "--data-path", data.url, code=2).output


def test_decisions_are_recorded_and_listed(data: DataRoot) -> None:
    signed = ("--reason", "release week", "--author", "ann", "--data-path", data.url)
    assert ciml("models", "hold", "m", *signed).output == "m: version 2 is held\n"
    assert "held by ann: release week" in ciml("models", "rollback", "m", *signed, code=2).output
    assert ciml("models", "release", "m", *signed).output == "m: released\n"
    assert ciml("models", "promote", "m", "--version", "1", "--label", "canary", *signed).output == "m: canary = 1\n"
    unlabelled = ("models", "unlabel", "m", "--label", "canary", *signed)
    assert ciml(*unlabelled).output == "m: version 1 is no longer canary\n"
    assert "no version has the label canary" in ciml(*unlabelled, code=2).output
    ciml("models", "promote", "m", "--version", "1", "--label", "canary", *signed)
    withdrawn = ciml("models", "withdraw", "m", "2", *signed).output
    assert withdrawn == "m: withdrawn: 2\nm: stable = 1\n"
    lines = ciml("models", "withdraw", "m", "1", *signed).output.splitlines()
    assert sorted(lines[1:]) == [
        f"m: {label} = nothing; train a model by ciml refresh" for label in ("canary", "stable")
    ]
    entries = ciml("models", "history", "m", "--json", "--data-path", data.url).output.splitlines()
    by_ann = [entry["action"] for entry in map(json.loads, entries) if entry["author"] == "ann"]
    assert by_ann == ["hold", "release", "promote", "unlabel", "promote", "withdraw", "withdraw"]
    table = ciml("models", "history", "m", "--data-path", data.url).output
    assert "release week" in table
    assert "hold version 2" in table
    assert "unlabel version 1, no canary" in table


def test_versions_are_shown_and_compared(data: DataRoot) -> None:
    place = ("--data-path", data.url)
    shown = json.loads(ciml("models", "show", "m", "2", "--json", *place).output)
    assert (shown["version"], shown["dataset"], shown["decision"]["metrics"]) == (2, "small", {"accuracy": 0.2})
    assert "decision.metrics.accuracy" in ciml("models", "show", "m", "2", *place).output
    differing = json.loads(ciml("models", "diff", "m", "1", "2", "--json", *place).output)
    assert differing["decision.metrics.accuracy"] == [0.1, 0.2]
    assert "dataset" not in differing
    assert "dataset" in json.loads(ciml("models", "diff", "m", "1", "2", "--all", "--json", *place).output)
    assert "no version 9" in ciml("models", "show", "m", "9", *place, code=2).output


def test_verify_and_reconcile(data: DataRoot) -> None:
    done = ciml("models", "verify", "--data-path", data.url)
    assert done.output == "m: 2 of 2 versions are as recorded\n"
    assert ciml("models", "reconcile", "--data-path", data.url).output == "nothing to do\n"
    Path(data.url, "models", "m", "1", "saved_model.pb").write_bytes(b"other")
    data.models.delete("models.config")
    assert ciml("models", "reconcile", "--data-path", data.url).output == "m: models.config written\n"
    done = ciml("models", "verify", "--data-path", data.url, code=4)
    assert "BROKEN m 1:" in done.output
    assert "saved_model.pb was altered" in done.output


def test_serve_and_predict_say_what_they_lack(data: DataRoot, tmp_path: Path) -> None:
    assert "--data-path DATA or --config FILE" in ciml("serve", code=2).output
    words = ("predict", "stream", "--model", "m", "--data-path", data.url, "--home", tmp_path)
    assert "no model server" in ciml(*words, "--kafka", "k:1", code=2).output
    more = ("--candidate", "--once", "--engine", "micro-batches", "--kafka", "127.0.0.1:1")
    by_candidate = ciml(*words, *more, code=3)
    assert "127.0.0.1:1" in by_candidate.output  # it needs no model server, and got as far as the broker
    for name in ("serve", "predict", "models"):
        assert "Example:" in ciml(name, "--help").output

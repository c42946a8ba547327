"""``ciml gate explain`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from ciml.data_root import DataRoot
from ciml.serving.push import NotBlessedError, push
from ciml.serving.registry import Decision, Registry
from tests.cli.calling import ciml
from tests.serving.models_fixture import stand_in

CHECKS = [
    {"check": "held-out runs", "passed": True, "reason": "40, at least 20 are needed"},
    {"check": "base rate", "passed": False, "reason": "accuracy 0.5 does not beat \x1b[31mthe base rate"},
]


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Two rejected candidates of one model; the first is one of an earlier version, without checks."""
    data = DataRoot.open(tmp_path / "data")
    for number, decision in enumerate((
        Decision(False, ("too few runs",)),
        Decision(False, ("it cannot be exported", CHECKS[1]["reason"]), {"checks": CHECKS}),
    )):  # fmt: skip
        with pytest.raises(NotBlessedError):
            push(data, "m", stand_in(tmp_path / f"candidate-{number}", number), decision, check=False)
    return data


def explain(data: DataRoot, name: str, *more: str, code: int = 0) -> Result:
    return ciml("gate", "explain", name, "--data-path", data.url, *more, code=code)


def test_a_model_stands_for_its_last_candidate(data: DataRoot) -> None:
    last = Registry(data, "m").state.last_candidate
    lines = explain(data, "m").output.splitlines()
    assert lines[0] == f"m: candidate {last} is rejected"
    (passed,) = [line for line in lines if "held-out" in line]
    assert [cell.strip() for cell in passed.strip("│").split("│")] == ["held-out runs", "ok", CHECKS[0]["reason"]]
    (failed,) = [line for line in lines if "FAILED" in line]
    assert "accuracy 0.5 does not beat" in failed
    assert "\x1b" not in failed
    assert lines[-1] == "it cannot be exported"
    explained = json.loads(explain(data, "m", "--json").output)
    assert explained["checks"] == CHECKS
    assert (explained["model"], explained["candidate"], explained["blessed"]) == ("m", last, False)


def test_a_candidate_is_named_by_the_beginning_of_its_id(data: DataRoot) -> None:
    first, _ = Registry(data, "m").state.candidates
    assert explain(data, first[:8]).output.splitlines() == [f"m: candidate {first} is rejected", "too few runs"]


def test_other_names_are_errors(data: DataRoot) -> None:
    assert "no model or candidate has this name" in explain(data, "nobody", code=2).output
    assert "2 candidates begin like this; give more characters" in explain(data, "", code=2).output

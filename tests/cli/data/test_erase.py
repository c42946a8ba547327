"""``ciml erase``: it counts first, erases only with --apply, and prints receipts and what is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.manifest import rewrite
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.services.stored.erase import Erased, Receipt
from tests.cli.calling import ciml

PRESENT = Path(__file__).parents[2] / "golden" / "present"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rewrite, "WAIT_S", 0.0)
    return Path(shutil.copytree(PRESENT, tmp_path / "data"))


def erase(data: Path, *words: str, code: int = 0) -> str:
    return ciml("erase", "--data-path", data, *words, code=code).output


def run_ids(data: Path) -> list[str]:
    return [run.facts.run_id for run in latest_runs(*open_raw(DataRoot.open(data).raw))]


def test_runs_are_counted_first_and_erased_with_apply(data: Path) -> None:
    target = run_ids(data)[0]
    assert erase(data, "--run", target) == "runs: 1; --apply erases them permanently\n"
    assert target in run_ids(data)
    output = erase(data, "--run", target, "--apply", "--author", "ann", "--reason", "request 17")
    assert "receipt 1: 1 runs erased (by run): request 17" in output
    assert "objects with a name left: 0" in output
    assert target not in run_ids(data)
    (receipt,) = json.loads(erase(data, "--receipts", "--json"))
    assert (receipt["author"], receipt["by"], len(receipt["runs"])) == ("ann", ["run"], 1)
    assert json.loads(erase(data, "--run", target, "--json")) == {"runs": 0}


def test_topics_without_compaction_are_named_once_if_runs_are_erased(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erased: list[Collection[str]] = []
    monkeypatch.setattr("ciml.services.stored.erase.is_compacted", lambda _, topic: topic == "runs")
    monkeypatch.setattr("ciml.services.stored.erase.write_tombstones", lambda *words: erased.append(words[2]))
    target = run_ids(data)[0]
    signed = ("--apply", "--author", "ann", "--reason", "request 17", "--kafka", "localhost:1")
    assert erase(data, "--owner", "nobody", *signed) == "no run was erased\n"
    assert erase(data, "--run", target, *signed).count("warning: topic predictions is not compacted") == 1
    assert [target] in map(list, erased)


def test_a_name_in_an_object_that_ciml_did_not_write_is_listed(data: Path) -> None:
    target = run_ids(data)[0]
    (data / "notes.txt").write_text(f"look at {target}")
    output = erase(data, "--run", target, "--apply", "--author", "ann", "--reason", "request 17", code=4)
    assert "notes.txt: " in output


def test_a_name_that_the_first_of_several_erasures_left_counts(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remaining = {"raw": 2, "models": 1}
    receipt = Receipt(1, "ann", "request 17", ("before",), ("erased~1~1",), {}, remaining, 9, 1, 2)
    parts = [Erased(receipt, ("notes.txt: owner",)), Erased(replace(receipt, version=2, remaining={}), ())]
    monkeypatch.setattr("ciml.services.stored.erase.erase", lambda *_: iter(parts))
    output = erase(data, "--before", "2030-01-01", "--apply", "--author", "ann", "--reason", "request 17", code=4)
    assert "objects with a name left: 3" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the runs"),
        (("--project", "p"), "name the runs"),
        (("--apply", "--run", "zuul~1~1", "--author", "ann"), "reason: want one printable line"),
        (("--before", "2026-11-01", "--older-than", "3d"), "--before or --older-than, not both"),
    ],
)
def test_wrong_use_is_an_error(data: Path, words: tuple[str, ...], message: str) -> None:
    assert message in erase(data, *words, code=2)

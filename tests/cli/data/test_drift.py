from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import Result

from ciml.cli.commands.data import drift
from ciml.data_root import DataRoot
from ciml.transforms.drift.compare import KINDS
from tests.cli.calling import ciml
from tests.pipelines.datasets.test_validate import SPAN, fill, some_runs

DOCS = Path(__file__).parents[3] / "docs" / "drift.md"


def compared(*arguments: str, code: int) -> Result:
    return ciml("drift", *arguments, code=code, env={"COLUMNS": "140"})


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data")
    fill(DataRoot.open(path), some_runs(1), some_runs(101), some_runs(201, factor=1024))
    return str(path)


def test_drift_is_a_table_and_the_exit_code_5(data_path: str) -> None:
    shown = compared("cpu", "--data-path", data_path, code=5).stdout
    assert f"cpu, spans 1 to 2 ({2 * SPAN} runs) → cpu, span 3 ({SPAN} runs)" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("│ usr")]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[:4] == ["usr", "all", "all", f"{2 * SPAN} → {SPAN}"]
    assert re.fullmatch(r"[45]\d\.\d → 5\.\d+e\+04", cells[4])
    assert cells[7].startswith("another unit: × 1000 or 1024 (measured × 10")
    assert "since span 3" in " ".join(shown.replace("│", " ").split())


def test_findings_that_are_allowed_leave_the_exit_code_0(data_path: str) -> None:
    allowed = compared("cpu", "--allow", "unit", "--json", "--data-path", data_path, code=0)
    value = json.loads(allowed.stdout)
    assert [(each["kind"], each["what"], each["build_name"], each["provider"]) for each in value["findings"]] == [
        ("unit", "usr", None, None)
    ]
    assert value["findings"][0]["since"] == 3
    assert value["after"]["jobs"] == {"job-0": SPAN // 2, "job-1": SPAN // 2}
    compared("cpu", "--allow", "mix", "--data-path", data_path, code=5)


def test_no_drift_and_too_few_runs_exit_with_0(data_path: str, tmp_path: Path) -> None:
    fill(DataRoot.open(tmp_path), some_runs(1), some_runs(101))
    still = compared("cpu", "--data-path", str(tmp_path), code=0).stdout
    assert re.search(r"\nno drift, by \d+ tests\n", still)
    few = compared("cpu", "--min-runs", "31", "--data-path", data_path, code=0).stdout
    assert "too few runs: 31 needed on both sides" in few


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cpu", "--against", "a", "--model", "b"], "--against and --model exclude each other"),
        (["nothing"], "no data set 'nothing' in"),
        (["cpu", "--last", "3"], "has 3 spans, none before the last 3"),
    ],
)
def test_wrong_use_gets_one_line(words: list[str], message: str, data_path: str) -> None:
    assert message in compared(*words, "--data-path", data_path, code=2).stderr


def test_kinds_are_those_of_the_report_and_documented() -> None:
    assert drift._KINDS == KINDS
    documented = re.findall(r"^\| `([a-z_]+)` \| ", DOCS.read_text(), re.MULTILINE)
    assert documented[: len(KINDS)] == list(KINDS)

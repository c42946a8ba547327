"""The queries of docs/tables.md run as they stand, on a data root made here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.data_root import DataRoot
from tests.project.test_readme import ROOT
from tests.runs.tables.readers import load_delta
from tests.runs.tables.scenes import make_dataset, make_store

DOCUMENT = (ROOT / "docs" / "tables.md").read_text()
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
_COMMAND = re.compile(r"^    ciml (tables .*)$", re.M)


def test_the_commands_and_queries_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    data = DataRoot.open(tmp_path / "DATA")
    make_store(data)
    make_dataset(data)
    monkeypatch.chdir(tmp_path)
    commands = _COMMAND.findall(DOCUMENT)
    assert [command.split()[1] for command in commands] == ["publish", "list"]
    outputs = [CliRunner().invoke(cli, command.split()) for command in commands]
    assert [done.exit_code for done in outputs] == [0, 0], outputs[0].output
    load_delta(duckdb.default_connection(), {})  # which DuckDB itself would fetch
    blocks = _PYTHON.findall(DOCUMENT)
    assert len(blocks) == 4
    found: dict[str, object] = {}
    for block in blocks:
        exec(block, found)
    assert len(found["failed"]) == 2  # type: ignore[arg-type]
    assert len(found["examples"]) == 8  # type: ignore[arg-type]
    assert set(found["samples"]["run_id"]) == {f"zuul~{number}~1" for number in range(1, 9)}  # type: ignore[index]
    assert found["runs"].count_rows() == 9  # type: ignore[attr-defined]


def test_the_document_names_every_table_and_its_folder() -> None:
    rows = re.findall(r"^\| `([a-zA-Z_/]+)` \| `DATA/([^`]+)` \|", DOCUMENT, re.M)
    assert rows == [
        ("raw", "raw/packs"),
        ("runs", "tables/runs"),
        ("dead_letters", "tables/dead_letters"),
        ("datasets/NAME", "datasets/NAME"),
    ]

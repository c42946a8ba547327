"""``ciml schema`` prints the schemas, and writes all of them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ciml.cli.main import cli
from ciml.messages import schema, schema_titles
from tests.project.test_readme import ROOT, commands


def test_it_lists_prints_and_writes_schemas(tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = run(cli, ["schema"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(schema_titles())
    assert "A prediction, with a verdict where the run failed." in listed[7]
    assert json.loads(run(cli, ["schema", "predictions"]).output) == schema("predictions")
    assert run(cli, ["schema", "--output", str(tmp_path / "a/b")]).output == f"12 schemas in {tmp_path}/a/b\n"
    assert {path.stem: json.loads(path.read_text()) for path in (tmp_path / "a/b").iterdir()} == {
        name: schema(name) for name in schema_titles()
    }
    assert run(cli, ["schema", "x"]).exit_code == 2
    assert run(cli, ["schema", "runs", "--output", str(tmp_path)]).exit_code == 2


def test_the_commands_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = commands((ROOT / "docs/schemas.md").read_text())
    assert len(lines) == 3
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "ciml"
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output

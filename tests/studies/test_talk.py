from __future__ import annotations

from pathlib import Path

import click
import pytest

from ciml.cli.main import cli
from studies import talk


@pytest.mark.parametrize("plan", [talk.providers(), talk.status(), talk.talk()], ids=["providers", "status", "talk"])
def test_each_line_is_one_that_the_program_takes(plan: talk.Plan, tmp_path: Path):
    (tmp_path / "builds.jsonl").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "raw").touch()  # commands that only read reject an empty data root
    told = list(talk.commands(plan, str(tmp_path / "builds.jsonl"), str(tmp_path), str(tmp_path / "data")))
    for _, *words in told:
        command: click.Command = cli
        context = click.Context(cli, info_name="ciml")
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None
            command = found
        assert command.make_context(command.name, words, context).params["data_path"] == str(tmp_path / "data")
    assert len(told) == 1 + len(plan.datasets) + len(plan.experiments) + len(plan.cells)
    assert {cell.dataset for cell in plan.cells} <= set(plan.datasets)
    assert {cell.experiment for cell in plan.cells} <= set(plan.experiments)

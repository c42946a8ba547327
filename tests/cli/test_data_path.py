"""``--data-path``: of the command, else of ``ciml``, else of the environment."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from cli.main import cli
from cli.options import data_path_option

ENVIRONMENT = {"CIML_DATA_PATH": "environment"}


@click.command("show")
@data_path_option()
def show(data_path: str) -> None:
    click.echo(data_path)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "table", {"Test": {"show": (f"{__name__}:show", "Show.")}})


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["--data-path", "group", "show", "--data-path", "command"], ENVIRONMENT, "command\n"),
        (["show", "--data-path", "command"], ENVIRONMENT, "command\n"),
        (["--data-path", "group", "show"], ENVIRONMENT, "group\n"),
        (["--data-path", "group", "show"], {}, "group\n"),
        (["show"], ENVIRONMENT, "environment\n"),
    ],
)
def test_the_nearest_data_path_wins(words: list[str], environment: dict[str, str], expected: str) -> None:
    done = CliRunner().invoke(cli, words, env={"CIML_DATA_PATH": None, **environment})
    assert (done.exit_code, done.output) == (0, expected)


@pytest.mark.usefixtures("table")
def test_a_command_without_data_path_is_wrong_use() -> None:
    done = CliRunner().invoke(cli, ["show"], env={"CIML_DATA_PATH": None})
    assert done.exit_code == 2
    assert "Missing option '--data-path'" in done.output


def test_every_data_path_accepts_that_of_the_group() -> None:
    from cli.data_path import DataPathOption
    from tests.cli.test_help import ALL

    options = [
        (name, option)
        for name, command in ALL
        for option in command.params
        if "--data-path" in option.opts and name != "ciml"
    ]
    assert len(options) > 25
    assert [name for name, option in options if not isinstance(option, DataPathOption)] == []

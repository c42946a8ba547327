"""``--data-path``: of the command, else of ``ciml``, else of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from ciml.cli.command import make_command
from ciml.cli.main import cli
from ciml.cli.options import NewData
from ciml.data_root import DataRoot
from ciml.errors import CimlError
from tests.cli.calling import ciml

ENVIRONMENT = {"CIML_DATA_PATH": "environment"}


@make_command("show")
def show(options: NewData) -> None:
    click.echo(options.data_path)


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
    assert ciml(*words, env={"CIML_DATA_PATH": None, **environment}).output == expected


@pytest.mark.usefixtures("table")
def test_a_command_without_data_path_is_wrong_use() -> None:
    assert "Missing option '--data-path'" in ciml("show", env={"CIML_DATA_PATH": None}, code=2).output


def test_every_data_path_accepts_that_of_the_group() -> None:
    from ciml.cli.options import DataPathOption
    from tests.cli.test_help import ALL

    options = [
        (name, option)
        for name, command in ALL
        for option in command.params
        if "--data-path" in option.opts and name != "ciml"
    ]
    assert len(options) > 25
    assert [name for name, option in options if not isinstance(option, DataPathOption)] == []


#: Commands that create a data root, or may begin before it exists.
CREATING = {
    "ciml load", "ciml backfill", "ciml ingest run", "ciml ingest accept-loss", "ciml dataset build",
    "ciml dataset create", "ciml live", "ciml serve", "ciml demo run", "ciml demo report",
    *(f"ciml connect {system}" for system in ("gerrit", "github", "gitlab", "jenkins", "tekton", "zuul")),
    *(f"ciml service {verb} {kind}" for verb in ("run", "start") for kind in ("ingest", "live")),
}  # fmt: skip


#: Commands that read a data root only if they are not given another place; they check it themselves.
CHECKING_LATER = {"ciml explain", "ciml plot", "ciml predict files", "ciml migrate"}


def reading_commands() -> list[tuple[str, click.Command]]:
    from tests.cli.test_help import ALL

    return [
        (name, command)
        for name, command in ALL
        if name not in CREATING | CHECKING_LATER
        and any("--data-path" in option.opts for option in command.params)
        and name != "ciml"
    ]


@pytest.mark.parametrize(("name", "command"), reading_commands(), ids=[name for name, _ in reading_commands()])
def test_no_data_is_an_error_where_nothing_is_created(name: str, command: click.Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "none", tmp_path / "empty"):
        given = {"data_path": str(place)}
        option = next(option for option in command.params if option.name == "data_path")
        context = click.Context(command)
        with pytest.raises(CimlError) as error:
            option.handle_parse_result(context, given, [])
        assert str(error.value) == (
            f"no data at {place}; correct --data-path, or load data: ciml load LOGS --results FILE"
        )
        assert error.value.exit_code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["plot", "cpu-load"], ["explain", "zuul~1~1"], ["predict", "--model", "x", __file__], ["migrate"],
        ["dataset", "build", "--dataset", "x"],
    ],
)  # fmt: skip
def test_no_data_is_an_error_for_a_command_that_checks_later(words: list[str], tmp_path: Path) -> None:
    done = ciml(*words, "--data-path", tmp_path / "none", code=2)
    assert done.stderr.split(";")[0] == f"ciml: no data at {tmp_path / 'none'}"
    assert not (tmp_path / "none").exists()


@pytest.mark.engines
def test_an_empty_prefix_of_s3_is_no_data(s3: Any) -> None:
    bucket = s3.bucket()
    DataRoot.open(f"{bucket}/full").experiments.create("x", b"")
    for prefix, code in (("full", 0), ("ful", 2), ("full/x", 2)):
        done = ciml("experiment", "show", "--data-path", f"{bucket}/{prefix}", code=code)
        assert (f"ciml: no data at {bucket}/{prefix}; correct --data-path" in done.output) == (code == 2)

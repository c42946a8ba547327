from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ciml.cli.main import COMMANDS, RENAMED, LazyGroup, cli
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.version import __version__, commit, describe


def test_help_is_quick_and_imports_no_command():
    probe = (
        "import sys; from click.testing import CliRunner; from ciml.cli.main import cli;"
        "CliRunner().invoke(cli, ['--help']);"
        "print(sorted(set(sys.modules) & {'apache_beam', 'tensorflow', 'confluent_kafka', 'rich', 'psutil', 'boto3',"
        " 'pyarrow', 'numpy', 'engines', 'ciml.cli.commands.operate.up'}))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "[]\n"
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5


LINES = {name: line for group in COMMANDS.values() for name, (_, line) in group.items()}


@pytest.mark.parametrize("name", LINES)
def test_every_command_is_what_the_table_says(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(200) == LINES[name]


def test_help_shows_the_groups_in_order():
    help_text = CliRunner().invoke(cli, ["--help"]).output
    assert re.findall(r"^(\w+):$", help_text, re.M) == ["Options", "Data", "Learn", "Serve", "Operate"]
    assert re.findall(r"^  ([a-z][a-z-]*)  +[A-Z]", help_text, re.M) == list(LINES)


@pytest.mark.parametrize("name", RENAMED)
def test_a_former_name_is_one_line_that_has_the_new_one(name: str):
    result = CliRunner().invoke(cli, [name, "list", "--data-path", "data"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"ciml: command {name!r} was removed; use {RENAMED[name]}\n"
    for new in RENAMED[name].split(" or "):
        assert CliRunner().invoke(cli, [*new.split()[1:], "--help"]).exit_code == 0


@pytest.fixture
def failing() -> LazyGroup:
    @click.group(cls=LazyGroup, table={})
    @click.option("--debug", is_flag=True)
    def group(debug: bool) -> None:
        pass

    group.table = {"Test": {"fail": (f"{__name__}:fail", "Fail.")}}
    return group


@click.command("fail")
@click.argument("how")
def fail(how: str) -> None:
    raise {
        "user": CimlError("no data set\nnamed x"),
        "engine": EngineError("no broker"),
        "integrity": IntegrityError("a digest differs"),
        "bug": KeyError("oops"),
    }[how]


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("user", 2, "ciml: no data set named x\n"),
        ("engine", 3, "ciml: no broker\n"),
        ("integrity", 4, "ciml: a digest differs\n"),
        ("bug", 1, "ciml: internal error: KeyError: 'oops' (ciml --debug … prints the traceback)\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(failing: LazyGroup, how: str, code: int, line: str):
    result = CliRunner().invoke(failing, ["fail", how])
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


def test_debug_shows_where(failing: LazyGroup):
    result = CliRunner().invoke(failing, ["--debug", "fail", "bug"])
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("ciml: internal error: KeyError: 'oops'\n")


def test_unknown_command_has_a_suggestion():
    done = CliRunner().invoke(cli, ["statu"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith("Error: No such command 'statu'. Did you mean 'status'?\n")


def test_the_program_ends_with_the_exit_code_of_the_error(tmp_path: Path):
    (tmp_path / "engines.json").write_text("{broken")
    command = [sys.executable, "-m", "ciml", "status"]
    environment = {**os.environ, "CIML_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith(f"ciml: {tmp_path}/engines.json is unreadable")
    assert done.stderr.count("\n") == 1


TRAIN = ("-m", "ciml", "experiment", "train")
TALK_SCRIPT = ("-c", "from ciml.cli.talk_scripts import train_model; train_model()")


@pytest.mark.parametrize("program", [("-m", "ciml", "--help"), ("-m", "ciml", "schema", "runs"), (*TALK_SCRIPT, "-h")])
def test_a_closed_pipe_ends_a_program_quietly(program: tuple[str, ...]):
    """As in ``ciml … | head -1``; a shell shows 141 for a program that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, *program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("program", "value", "is_on"),
    [
        *((TRAIN, value, is_on) for value, is_on in ((None, False), ("", False), ("0", False), ("1", True))),
        (TALK_SCRIPT, "False", False),
        (TALK_SCRIPT, "1", True),
    ],
)
def test_a_variable_switches_tracebacks_on(program: tuple[str, ...], value: str | None, is_on: bool):
    environment = {name: text for name, text in os.environ.items() if name != "CIML_DEBUG"}
    environment |= {} if value is None else {"CIML_DEBUG": value}
    command = [sys.executable, *program, "--dataset", "none", "--data-path", "none"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert ("Traceback" in done.stderr) == is_on


def test_version():
    assert CliRunner().invoke(cli, ["--version"]).output == f"ciml {describe(__version__, commit())}\n"


def test_bars_are_only_for_terminals_even_with_forced_colours() -> None:
    code = "from ciml.cli.output import *\nwith progress_bar('x') as a, bars() as b: a('s', 1, 2); b('x', 1, 2)"
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("", "")

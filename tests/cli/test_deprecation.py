"""The deprecation that docs/compatibility.md promises, by click's own marks."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from ciml.cli.main import cli


@click.command("old", deprecated="use ciml new")
def old() -> None:
    """Print."""
    click.echo("output")


@click.command("new")
@click.option("--former", deprecated="use --latter", help="A text.")
@click.option("--latter", default="x", help="A text.")
def new(former: str | None, latter: str) -> None:
    """Print."""
    click.echo(former or latter)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "table", {"Test": {name: (f"{__name__}:{name}", "Print.") for name in ("old", "new")}})
    monkeypatch.setattr(cli, "renamed", {"former": "ciml new"})


@pytest.mark.parametrize(
    ("words", "output", "replacement"),
    [
        (["old"], "output\n", "use ciml new"),
        (["new", "--former", "y"], "y\n", "use --latter"),
        (["new", "--latter", "z"], "z\n", ""),
    ],
)
def test_what_is_deprecated_works_and_names_its_replacement(words: list[str], output: str, replacement: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, done.stdout) == (0, output)
    if not replacement:
        assert done.stderr == ""
        return
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("DeprecationWarning: ")
    assert replacement in done.stderr
    help_text = CliRunner().invoke(cli, [words[0], "--help"]).output
    assert "DEPRECATED: " in " ".join(help_text.split())


def test_a_removed_command_is_an_error_that_names_its_replacement() -> None:
    done = CliRunner().invoke(cli, ["former"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "ciml: no command 'former' any more; use ciml new\n"

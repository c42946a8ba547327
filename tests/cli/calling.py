"""The program ``ciml``, called in this process as a user calls it."""

from __future__ import annotations

from typing import Any, NoReturn

import click
from click.testing import CliRunner, Result

from ciml.cli.main import cli, run


class _Program(click.Command):
    """Ends as the program does: with a line on standard error for an error, and with the exit code of a command."""

    def main(self, args: list[str], **_: Any) -> NoReturn:  # type: ignore[override]
        run(cli, args)


def ciml(*words: object, code: int = 0, **settings: Any) -> Result:
    """Return what a command did; its exit code has to be ``code``. ``settings`` are those of ``CliRunner.invoke``."""
    done = CliRunner().invoke(_Program("ciml"), [str(word) for word in words], **settings)
    assert done.exit_code == code, done.output
    return done

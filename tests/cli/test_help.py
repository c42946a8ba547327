"""Help texts of all commands: short, complete, and in the words of the glossary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

import click
import pytest

from ciml.cli.commands.learn.experiment import setup
from ciml.cli.main import cli

#: Words that help does not use, as a pattern.
BANNED = (
    r"told|tell(s|ing)?|whoever|whatever|nobody|by and by|at one go|anew|let in|taken in|goes? towards|in the place of|"
    r"is to be had|of chance|for long|mend(s|ed)?|befell|befalls?|keepers?|leash(es)?|books?|looks?|(?<!dead )letters?"
)


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """All commands below one, with their full names."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            assert below.name == name
            yield from commands(below, (*path, name))


ALL = [*commands(cli, ("ciml",)), ("ciml-setup-experiment", setup)]
every_command = pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])


@every_command
def test_help_is_short_complete_and_in_the_words_of_the_glossary(name: str, command: click.Command) -> None:
    line = command.get_short_help_str(200)
    assert re.fullmatch(r"[A-Z].*\.", line), line
    assert len(line.split()) <= 9, line
    example = cleandoc(command.help or "").partition("\n\b\nExample:\n")[2]
    default = name.removesuffix(" run").removesuffix(" summary").removesuffix(" files")
    default = default.replace("exclude add", "exclude")
    assert re.search(rf"^  {default}\b", example, re.M), command.help
    texts = [command.help or "", command.epilog or "", command.short_help or ""]
    for option in (each for each in command.params if isinstance(each, click.Option)):
        assert re.match(r"[A-Za-z].*[.\])]$", option.help or ""), (option.opts, option.help)
        texts.append(option.help or "")
    for text in texts:
        prose = text.replace("dead-letters", "")
        assert not (found := re.search(rf"\b({BANNED})\b", prose, re.I)), (found[0], text)


def test_the_walk_finds_the_commands() -> None:
    names = [name for name, _ in ALL]
    assert {"ciml runs verify", "ciml dataset build", "ciml dead-letters replay", "ciml demo report"} <= set(names)
    assert len(names) > 40

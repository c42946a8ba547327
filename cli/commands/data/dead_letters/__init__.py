"""``ciml letters``: dead letters listed, counted, shown and tried again."""

from __future__ import annotations

import click

from cli.commands.data.dead_letters.replay import replay_command
from cli.commands.data.dead_letters.show import count, list_command, show


@click.group("letters", short_help="Show dead letters, and try them again.")
def command() -> None:
    """Show dead letters, and try them again.

    A dead letter is an input that could not be used: an event, what an event says of one run, or a line of a listing.
    It is kept in the raw manifest with its reason and all that is needed to try again.

    \b
    Example:
      ciml letters count --data-path data
      ciml letters replay --reason 'log_*' --allow-host logs.example.org --data-path data
    """  # fmt: skip


for each in (list_command, count, show, replay_command):
    command.add_command(each)

"""``ciml dead-letters``: list, count, show and replay dead letters."""

from __future__ import annotations

import click

from ciml.cli.commands.data.dead_letters.replay import replay_command
from ciml.cli.commands.data.dead_letters.show import count, list_command, show


@click.group("dead-letters", commands=[list_command, count, show, replay_command])
def command() -> None:
    """List, count, show and replay dead letters.

    A dead letter is an input that could not be used: an event, one run of an event, or a line of a listing. The raw
    manifest keeps it with its reason and all data for a replay.

    \b
    Example:
      ciml dead-letters count --data-path data
      ciml dead-letters replay --reason 'log_*' --allow-host logs.example.org --data-path data
    """  # fmt: skip

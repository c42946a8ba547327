"""``ciml runs``: what became of events and runs, and the care of the raw store."""

from __future__ import annotations

import click

from cli.commands.data.runs.listing import list_runs, show
from cli.commands.data.runs.maintain import compact, verify
from cli.commands.data.runs.summary import summary
from cli.default_group import DefaultGroup

__all__ = ["command"]


@click.group("runs", cls=DefaultGroup, default="summary", short_help="Show, verify and compact the stored runs.")
def command() -> None:
    """Show what became of events and runs, verify them, and compact the raw store.

    Without a COMMAND it shows the accounting of DATA/raw by class and reason, and the latest runs.

    \b
    Example:
      ciml runs --data-path data
      ciml runs list --job 'tempest-*' --last 20 --data-path data
      ciml runs verify --sample 1000 --data-path data
      ciml runs compact --data-path data
    """


for one in (summary, list_runs, show, verify, compact):
    command.add_command(one)

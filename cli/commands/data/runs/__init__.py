"""``ciml runs``: the accounting of events and runs, and maintenance of the raw store."""

from __future__ import annotations

import click

from ciml.cli.commands.data.runs.listing import list_runs, show
from ciml.cli.commands.data.runs.maintain import compact, verify
from ciml.cli.commands.data.runs.summary import summary
from ciml.cli.default_group import DefaultGroup


@click.group("runs", cls=DefaultGroup, default="summary", commands=[summary, list_runs, show, verify, compact])
def command() -> None:
    """Show, verify and compact stored runs.

    Without a COMMAND it shows the accounting of DATA/raw by class and reason, and the latest runs.

    \b
    Example:
      ciml runs --data-path data
      ciml runs list --job 'tempest-*' --last 20 --data-path data
      ciml runs verify --sample 1000 --data-path data
      ciml runs compact --data-path data
    """

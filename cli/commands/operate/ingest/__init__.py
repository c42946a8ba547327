"""``ciml ingest``: CI events into the raw store, in the foreground or under a supervisor."""

from __future__ import annotations

import click

from cli.commands.operate.ingest.accept_loss import accept_loss
from cli.commands.operate.ingest.control import resume, start, status, stop
from cli.commands.operate.ingest.run import command as run
from cli.default_group import DefaultGroup

__all__ = ["command"]


@click.group("ingest", cls=DefaultGroup, default="run")
def command() -> None:
    """Ingest CI events into the raw store.

    It reads CloudEvents from a topic, evaluates trust, fetches logs, and commits runs, repeats, corrections, ignored
    events and dead letters with their offsets to DATA/raw. An interrupted ingest continues from the last commit.
    Without a COMMAND it runs in the foreground; start runs it under a supervisor.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest start --data-path data --allow-host logs.example.org
      ciml ingest status
    """


for one in (run, start, stop, resume, status, accept_loss):
    command.add_command(one)

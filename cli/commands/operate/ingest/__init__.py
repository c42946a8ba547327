"""``ciml ingest``: CI events to raw runs, in the foreground or under a supervisor."""

from __future__ import annotations

import click

from cli.commands.operate.ingest.accept_loss import accept_loss
from cli.commands.operate.ingest.control import resume, start, status, stop
from cli.commands.operate.ingest.run import command as run

__all__ = ["command"]


class _Group(click.Group):
    """A group that means ``run`` when no command is named, and shows its options as its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[COMMAND]", "[OPTIONS]"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with click.Context(run, info_name="run", parent=ctx) as inner:
            run.format_options(inner, formatter)
        self.format_commands(ctx, formatter)


@click.group("ingest", cls=_Group, short_help="Turn CI events into raw runs.")
def command() -> None:
    """Turn CI events into raw runs.

    Reads CloudEvents from a topic, judges and fetches each run's log, and commits runs, repeats, corrections, ignored
    events and dead letters with the offsets that they came from to DATA/raw. Stop it at any time, by Ctrl-C or harder:
    it goes on from what is committed. Without a COMMAND it runs in the foreground; start leaves a supervisor that
    keeps it at work.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest start --data-path data --allow-host logs.example.org
      ciml ingest status
    """


for one in (run, start, stop, resume, status, accept_loss):
    command.add_command(one)

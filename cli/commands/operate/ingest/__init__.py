"""``ciml ingest``: CI events into the raw store, in the foreground."""

from __future__ import annotations

import click

from ciml.cli.commands.operate.ingest.accept_loss import accept_loss
from ciml.cli.commands.operate.ingest.run import command as run
from ciml.cli.default_group import DefaultGroup
from ciml.errors import CimlError

#: Commands of earlier versions, and the present ones.
_RENAMED = {
    "start": "ciml service start ingest", "stop": "ciml service stop", "resume": "ciml service resume",
    "status": "ciml service status",
}  # fmt: skip


class _Group(DefaultGroup):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in _RENAMED:
            raise CimlError(f"no command 'ingest {args[0]}' any more; use {_RENAMED[args[0]]}")
        return super().parse_args(ctx, args)


@click.group("ingest", cls=_Group, default="run", commands=[run, accept_loss])
def command() -> None:
    """Ingest CI events into the raw store.

    It reads CloudEvents from a topic, evaluates trust, fetches logs, and commits runs, repeats, corrections, ignored
    events and dead letters with their offsets to DATA/raw. An interrupted ingest continues from the last commit.
    To keep it at work under a supervisor: ciml service start ingest.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest accept-loss --data-path data --dry-run
    """

"""``ciml predict``: predictions for files, and the stream of finished runs."""

from __future__ import annotations

import click

from ciml.cli.commands.learn.predict.files import files
from ciml.cli.commands.learn.predict.stream import command as stream
from ciml.cli.default_group import DefaultGroup


class _Group(DefaultGroup):
    """Names the stream where its options are given to `files`, which had its name in earlier versions."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands:
            own = {name for param in files.params for name in param.opts}
            moved = {name for param in stream.params for name in param.opts} - own
            for each in args:
                if (name := each.partition("=")[0]) in moved:
                    raise click.UsageError(
                        f"{name}: is an option of the stream; use ciml predict stream, or ciml service start predict",
                        ctx,
                    )
        return super().parse_args(ctx, args)


@click.group("predict", cls=_Group, default="files", commands=[files, stream])
def command() -> None:
    """Predict for logs, or for a stream of runs.

    FILE… are logs, plain or gzip. A pushed version of the model is loaded in this process, without a broker or a model
    server; its files are verified. Logs are prepared by the functions of the stream. One that cannot be used is a row
    with its reason, and the exit code is 2.

    \b
    Example:
      ciml predict dstat.csv.gz --model provider --data-path data
      ciml predict logs/*.gz --model provider --json --data-path data
      ciml predict stream --model provider --data-path data
    """

"""``ciml demo``: the whole chain on the sample runs, and its report."""

from __future__ import annotations

import click

from ciml.cli.commands.operate.demo.report import command as report
from ciml.cli.commands.operate.demo.run import command as run
from ciml.cli.default_group import DefaultGroup


@click.group("demo", cls=DefaultGroup, default="run", commands=[run, report])
def command() -> None:
    """Run the whole chain on sample runs.

    It goes from CI events to a served model and predictions, recounts all numbers from the stored data, and writes
    demo/report.html below the folder. The exit code is 4 if a number differs.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo report --data-path /tmp/demo
    """

"""``ciml feedback``: verdicts as messages on changes; what would be said, and what was."""

from __future__ import annotations

import click

from ciml.cli.commands.serve.feedback.entries import list_command, mute, unmute
from ciml.cli.commands.serve.feedback.report import command as report
from ciml.cli.commands.serve.feedback.stream import command as stream
from ciml.cli.commands.serve.feedback.trial import command as trial


@click.group("feedback", commands=[stream, trial, report, list_command, mute, unmute])
def command() -> None:
    """Answer failed runs on their changes.

    A verdict becomes one quiet message on the change in Gerrit, GitHub or GitLab. The configuration says which
    verdicts, and where; without dry_run = false nothing is sent.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data
    """

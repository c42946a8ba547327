"""``ciml feedback stream``: the feedback service in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.serve.feedback.options import config_option
from ciml.cli.foreground import Running, topic_options
from ciml.cli.options import metrics_options
from ciml.cli.param_types import Duration

if TYPE_CHECKING:
    from ciml.integrations.review import Rendered
    from ciml.services.service import Progress
    from ciml.verdicts.feedback.state import Entry


@click.command("stream")
@topic_options()
@config_option
@click.option("--predictions-topic", default="predictions", metavar="TOPIC", help="Topic of predictions.")
@click.option("--once", is_flag=True, help="Stop at the present end of the topic; what settles stays for the next run.")
@click.option(
    "--until-idle",
    type=Duration(),
    metavar="TIME",
    help="Time without new verdicts and waiting messages after which it stops.  [default: never]",
)
@metrics_options
def command(
    once: bool, until_idle: float | None, metrics_port: int | None, metrics_address: str, **arguments: Any
) -> None:
    """Answer failed runs as their verdicts arrive.

    Offsets, verdicts, calls and outcomes are committed to DATA/feedback. A call of unknown outcome is settled by
    reading the message on the change, so an interrupted stream sends nothing twice. A dry run prints each message
    instead. To keep it at work under a supervisor: ciml service start feedback.

    \b
    Example:
      ciml feedback stream --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data --until-idle 1min
    """
    from ciml.services.driver import PATIENCE_S
    from ciml.services.feedback import FeedbackService, make_config

    shown = ""

    def show(entry: Entry, message: Rendered) -> None:
        change = entry.change
        click.echo(f"--- {entry.system}: {change.project!r}, change {change.change or change.head!r}")
        click.echo(f"{message.body}\n")

    def report(progress: Progress, word: str) -> None:
        nonlocal shown
        counts = ", ".join(f"{number:,} {what}" for what, number in progress.facts.get("counts", {}).items())
        waits = f"; {word}" if word.startswith("waits: ") else ""
        line = f"{counts or 'no verdicts yet'}; {progress.behind:,} predictions to go{waits}"
        if line != shown:
            shown = line
            click.echo(line, err=True)

    running = Running(once=once, until_idle=until_idle, metrics_port=metrics_port, metrics_address=metrics_address)
    service = FeedbackService(make_config(**arguments), show)
    running.run(service, report, patience_s=PATIENCE_S if running.until is None else 0.0)

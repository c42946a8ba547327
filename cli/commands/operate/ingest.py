"""``ciml ingest``: ingest CI events into the raw store in the foreground; accept the loss of unread messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ciml.cli.default_group import DefaultGroup
from ciml.cli.foreground import Running, broker_options, running_options, service_options, topic_options
from ciml.cli.options import fetch_options, jobs_option, sources_option, trust_policy_option
from ciml.cli.param_types import Duration
from ciml.errors import CimlError
from ciml.services.options import BrokerOptions, IngestOptions

if TYPE_CHECKING:
    from ciml.services.decide import ServiceProgress

#: Commands of earlier versions, and the present ones.
_RENAMED = {
    "start": "ciml service start ingest",
    "stop": "ciml service stop",
    "resume": "ciml service resume",
    "status": "ciml service status",
}


@click.command("run")
@topic_options(creates=True)
@click.option("--topic", default="ci-events", help="Topic of CI events.")
@click.option("--runs-topic", default="runs", metavar="TOPIC", help="Topic of committed runs; '' for none.")
@click.option("--dead-letters-topic", default="", show_default="none", metavar="TOPIC", help="Topic of dead letters.")
@jobs_option("Jobs to ingest")
@sources_option
@fetch_options
@click.option(
    "--retry-after",
    "delays",
    multiple=True,
    type=Duration(),
    metavar="TIME",
    help="Delay before a further fetch of an unavailable log; repeated for each fetch."
    "  [default: 10s, 1min, 5min, 30min, 2h]",
)
@trust_policy_option
@running_options()
@service_options(IngestOptions)
def run(running: Running, options: IngestOptions) -> None:
    """Ingest in the foreground.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest --data-path s3://cimlrawdata --kafka kafka.example.org:9092 --allow-host logs.example.org
        --runner dataflow --dataflow dataflow.toml --submit
    """
    from ciml.cli.progress import Counts

    if running.launch(options):
        return
    service = options.service()
    with Counts(f"{service.topic} by {running.engine}") as counts:

        def report(progress: ServiceProgress, word: str) -> None:
            counts.show(progress.facts["counts"], progress.behind)

        running.run(service, report)


@click.command("accept-loss")
@topic_options(creates=True)
@click.option("--topic", default="ci-events", help="Topic of CI events.")
@click.option("--dry-run", is_flag=True, help="List the lost offsets; accept nothing.")
@broker_options
def accept_loss(data_path: str, broker: BrokerOptions, topic: str, dry_run: bool) -> None:
    """Accept the loss of unread messages.

    An ingest stops when the broker's retention deletes messages that it has not read. This records their ranges of
    offsets in the manifest as lost, so that the ingest can continue.

    \b
    Example:
      ciml ingest accept-loss --data-path data --dry-run
      ciml ingest accept-loss --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.pipelines.ingest.committer import accept_losses

    lost = accept_losses(DataRoot.open(data_path).raw, broker.connection(), topic, dry_run=dry_run)
    state = "lost" if dry_run else "accepted as lost"
    for loss in lost:
        click.echo(
            f"{loss.topic}[{loss.partition}]: {loss.end - loss.start} offsets, {loss.start} to {loss.end}: {state}"
        )
    if not lost:
        click.echo(f"{topic}: nothing is lost")


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

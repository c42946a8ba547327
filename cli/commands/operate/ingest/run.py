"""``ciml ingest run``: in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import Running, running_options, topic_options
from ciml.cli.options import fetch_options, jobs_option, sources_option, trust_policy_option
from ciml.cli.param_types import Duration

if TYPE_CHECKING:
    from ciml.services.service import Progress


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
def command(running: Running, **arguments: Any) -> None:
    """Ingest in the foreground.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest --data-path s3://cimlrawdata --kafka kafka.example.org:9092 --allow-host logs.example.org
        --runner dataflow --dataflow dataflow.toml --submit
    """
    from ciml.cli.progress import Counts
    from ciml.services.ingest import IngestService

    if running.launch(IngestService, arguments):
        return
    service = IngestService.of(**arguments)
    with Counts(f"{service.topic} by {running.engine}") as counts:

        def report(progress: Progress, word: str) -> None:
            counts.show(progress.facts["counts"], progress.behind)

        running.run(service, report)

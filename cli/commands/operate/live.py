"""``ciml live``: windows and examples of running jobs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ciml.cli.foreground import Running, running_options, service_options, topic_options
from ciml.cli.options import HERE
from ciml.cli.param_types import Duration
from ciml.services.options import LiveOptions

if TYPE_CHECKING:
    from ciml.services.decide import ServiceProgress


@click.command("live")
@topic_options(creates=True)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Data set that defines the windows; may be repeated.",
)
@click.option("--samples-topic", default="samples", metavar="TOPIC", help="Topic of samples.")
@click.option("--windows-topic", default="windows", metavar="TOPIC", help="Topic of windows; '' for none.")
@click.option(
    "--examples-topic",
    default="live-examples",
    metavar="TOPIC",
    help="Topic of the growing examples; '' for none.",
)
@click.option(
    "--dead-letters-topic",
    default="live-dead-letters",
    metavar="TOPIC",
    help="Topic of samples that could not be used.",
)
@click.option(
    "--since",
    type=Duration(),
    default="3h",
    metavar="TIME",
    help="Age from which samples are read; longer than any run.",
)
@click.option(
    "--slack",
    type=Duration(),
    default="60s",
    metavar="TIME",
    help="Time after its end, by the run's clock, for which a window waits for late samples.",
)
@click.option(
    "--grace",
    type=Duration(),
    default="60s",
    metavar="TIME",
    help="Time for which a finished run waits for missing samples.",
)
@click.option(
    "--silence",
    type=Duration(),
    default="30min",
    metavar="TIME",
    help="Time without samples after which a run is abandoned.",
)
@running_options("Make one pass to the present end of the topic, in this process, without Flink.")
@service_options(LiveOptions)
def command(running: Running, options: LiveOptions) -> None:
    """Stream windows of running jobs.

    It reads samples from a topic and publishes each window of a data set early, when it is final, and after late
    samples; and each run's example as it grows. A finished run equals the example of its log. It runs on Flink until a
    signal; --once reads the runs from their first samples, without Flink. docs/live.md describes the formats.

    \b
    Example:
      ciml live --dataset provider --data-path data
      ciml live --dataset provider --dataset cpu-load --data-path data --once --since 1h
    """
    from ciml.cli.progress import Counts

    if running.launch(options):
        return
    service = options.service()
    if running.once:
        running = replace(running, engine=HERE)
    with Counts(f"{service.config.topic} by {'this process' if running.once else running.engine}") as counts:

        def report(progress: ServiceProgress, word: str) -> None:
            read = progress.facts["counts"]["messages read"]
            counts.update(f"{read:,} messages read; {progress.behind:,} to go")

        running.run(service, report)

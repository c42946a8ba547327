"""``ciml live``: the windows and examples of runs that are running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    MICRO_BATCHES,
    EngineChoice,
    beam_option,
    data_path_option,
    engine_option,
    home_option,
    kafka_config_option,
    kafka_option,
    kafka_properties_option,
)
from cli.param_types import Duration
from cli.signals import stop_on_signals

if TYPE_CHECKING:
    from ciml.storage.open import Store
    from transforms.live.windows import LiveDataset


@click.command("live", short_help="Tell the windows of runs that are running.")
@data_path_option()
@kafka_option()
@kafka_config_option
@engine_option
@home_option
@click.option(
    "--dataset", "datasets", multiple=True, required=True, metavar="NAME", help="A data set; may be repeated."
)
@click.option("--samples-topic", default="samples", show_default=True, metavar="TOPIC", help="Where the samples are.")
@click.option(
    "--windows-topic",
    default="windows",
    show_default=True,
    metavar="TOPIC",
    help="Where windows are told; '' for nowhere.",
)
@click.option(
    "--examples-topic",
    default="live-examples",
    show_default=True,
    metavar="TOPIC",
    help="Where each run's example is told as it grows; '' for nowhere.",
)
@click.option(
    "--dead-letters-topic",
    default="live-dead-letters",
    show_default=True,
    metavar="TOPIC",
    help="Where samples are told that could not be used.",
)
@click.option(
    "--since",
    type=Duration(),
    default="3h",
    show_default=True,
    metavar="TIME",
    help="How far back reading begins: longer than any run lasts.",
)
@click.option("--slack", type=Duration(), default="60s", show_default=True, metavar="TIME",
              help="How long after its end, by the run's own clock, a window waits for late samples.")  # fmt: skip
@click.option("--grace", type=Duration(), default="60s", show_default=True, metavar="TIME",
              help="How long a run that ended waits for samples that are missing.")  # fmt: skip
@click.option("--silence", type=Duration(), default="30min", show_default=True, metavar="TIME",
              help="How long a run may say nothing before it is given up.")  # fmt: skip
@click.option("--once", is_flag=True, help="Read what the topic holds now, here and without Flink; tell it; end.")
@click.option("--until-idle", type=Duration(), metavar="TIME", help="End when nothing new came for so long.")
@kafka_properties_option
@beam_option
def command(
    data_path: str,
    kafka: str,
    engine: EngineChoice,
    datasets: tuple[str, ...],
    samples_topic: str,
    windows_topic: str,
    examples_topic: str,
    dead_letters_topic: str,
    since: float,
    slack: float,
    grace: float,
    silence: float,
    once: bool,
    until_idle: float | None,
    kafka_options: tuple[str, ...],
    kafka_config: str | None,
    beam_options: tuple[str, ...],
    **_: Any,
) -> None:
    """Tell the windows of runs while they are running, and their examples as they grow.

    Samples come from a topic, run by run; each window of a data set is told early, again when it is final, and again
    when a sample comes late. A run that has ended equals the example that its log makes. It runs on Flink until it is
    stopped; --once reads the runs again from their first samples and needs none. docs/live.md has the formats.

    \b
    Example:
      ciml live --dataset provider --data-path data
      ciml live --dataset provider --dataset cpu-load --data-path data --once --since 1h
    """
    from ciml.errors import CimlError
    from ciml.pairs import pairs
    from ciml.storage.open import open_store
    from cli.progress_counts import Counts
    from pipelines.kafka.client import KafkaOptions
    from pipelines.live.pipeline import LiveConfig
    from services.live import live_on_flink, live_once
    from transforms.live.windows import LivePolicy

    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    if not dead_letters_topic:
        raise click.UsageError("--dead-letters-topic: want a topic: what cannot be used has to be somewhere")
    data = open_store(data_path)
    config = LiveConfig(
        KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config),
        tuple(_dataset(data, name) for name in datasets),
        samples_topic,
        windows_topic,
        examples_topic,
        dead_letters_topic,
        LivePolicy(slack_s=slack, grace_s=grace, silence_s=silence),
    )
    if not once and engine.name == MICRO_BATCHES:
        raise CimlError(
            "live windows need Flink, whose state keeps the runs: start it (ciml up flink), or read the runs again "
            "from their first samples, now and then (--once)"
        )
    with Counts(f"{samples_topic} by {'this process' if once else engine}") as counts:

        def report(read: int, left: int) -> None:
            counts.say(f"{read:,} messages read; {left:,} to go")

        if once or engine.job_endpoint is None:
            live_once(config, since_s=since, report=report)
        else:
            live_on_flink(
                config, engine.job_endpoint, since_s=since, until=until_idle, stop=stop_on_signals(), report=report,
                extra=tuple(beam_options),
            )  # fmt: skip


def _dataset(data: Store, name: str) -> LiveDataset:
    from ciml.datasets.state import dataset_state
    from ciml.errors import CimlError
    from transforms.live.windows import LiveDataset

    resolved = dataset_state(data, name).resolved
    if resolved is None:
        raise CimlError(
            f"the data set {name!r} has no columns yet: they are known when its first span is sealed "
            f"(ciml dataset update {name} --seal)"
        )
    return LiveDataset(name, resolved)

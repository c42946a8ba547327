"""``ciml live``: windows and examples of running jobs."""

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
    from ciml.data_root import StoredDataset
    from transforms.live.windows import LiveDataset


@click.command("live")
@data_path_option()
@kafka_option()
@kafka_config_option
@engine_option
@home_option
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Data set that defines the windows; may be repeated.",
)
@click.option("--samples-topic", default="samples", show_default=True, metavar="TOPIC", help="Topic of samples.")
@click.option(
    "--windows-topic",
    default="windows",
    show_default=True,
    metavar="TOPIC",
    help="Topic of windows; '' for none.",
)
@click.option(
    "--examples-topic",
    default="live-examples",
    show_default=True,
    metavar="TOPIC",
    help="Topic of the growing examples; '' for none.",
)
@click.option(
    "--dead-letters-topic",
    default="live-dead-letters",
    show_default=True,
    metavar="TOPIC",
    help="Topic of samples that could not be used.",
)
@click.option(
    "--since",
    type=Duration(),
    default="3h",
    show_default=True,
    metavar="TIME",
    help="Age from which samples are read; longer than any run.",
)
@click.option("--slack", type=Duration(), default="60s", show_default=True, metavar="TIME",
              help="Time after its end, by the run's clock, for which a window waits for late samples.")  # fmt: skip
@click.option("--grace", type=Duration(), default="60s", show_default=True, metavar="TIME",
              help="Time for which a finished run waits for missing samples.")  # fmt: skip
@click.option("--silence", type=Duration(), default="30min", show_default=True, metavar="TIME",
              help="Time without samples after which a run is abandoned.")  # fmt: skip
@click.option(
    "--once", is_flag=True, help="Make one pass to the present end of the topic, in this process, without Flink."
)
@click.option(
    "--until-idle",
    type=Duration(),
    metavar="TIME",
    help="Time without new samples after which it stops.  [default: never]",
)
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
    """Stream windows of running jobs.

    It reads samples from a topic and publishes each window of a data set early, when it is final, and after late
    samples; and each run's example as it grows. A finished run equals the example of its log. It runs on Flink until a
    signal; --once reads the runs from their first samples, without Flink. docs/live.md describes the formats.

    \b
    Example:
      ciml live --dataset provider --data-path data
      ciml live --dataset provider --dataset cpu-load --data-path data --once --since 1h
    """
    from ciml.data_root import DataRoot
    from ciml.errors import CimlError
    from ciml.pairs import pairs
    from cli.progress_counts import Counts
    from pipelines.kafka.client import KafkaOptions
    from pipelines.live.pipeline import LiveConfig
    from services.live import live_on_flink, live_once
    from transforms.live.windows import LivePolicy

    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    if not dead_letters_topic:
        raise click.UsageError("--dead-letters-topic: must not be empty")
    data = DataRoot.open(data_path)
    config = LiveConfig(
        KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config),
        tuple(_resolved(data.dataset(name)) for name in datasets),
        samples_topic,
        windows_topic,
        examples_topic,
        dead_letters_topic,
        LivePolicy(slack_s=slack, grace_s=grace, silence_s=silence),
    )
    if not once and engine.name == MICRO_BATCHES:
        raise CimlError(
            "live windows need Flink for the state of the runs: start it (ciml up flink), or make one pass (--once)"
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


def _resolved(dataset: StoredDataset) -> LiveDataset:
    from ciml.errors import CimlError
    from transforms.live.windows import LiveDataset

    name, resolved = dataset.name, dataset.state().resolved
    if resolved is None:
        raise CimlError(
            f"data set {name!r} has no columns before its first span is sealed: run ciml dataset update {name} --seal"
        )
    return LiveDataset(name, resolved)

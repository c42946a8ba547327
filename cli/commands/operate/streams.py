"""``ciml receive``, ``ingest`` and ``live``: services in the foreground. ``ciml topics``: topics created again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import HERE, NewData
from ciml.cli.running import Foreground, Running
from ciml.errors import CimlError
from ciml.options import BrokerOptions, argument, flag, option

# `make_command` reads the annotations
from ciml.services.options import GerritOptions, IngestOptions, LiveOptions, MqttOptions, WebhooksOptions

if TYPE_CHECKING:
    from ciml.kafka import KafkaOptions
    from ciml.services.decide import ServiceProgress
    from ciml.services.receivers import SessionReceiver

#: Commands of earlier versions, and the present ones.
_RENAMED = {
    "start": "ciml service start ingest",
    "stop": "ciml service stop",
    "resume": "ciml service resume",
    "status": "ciml service status",
}


@make_command("run")
def run(options: IngestOptions, running: Running) -> None:
    """Ingest in the foreground.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest --data-path s3://cimlrawdata --kafka kafka.example.org:9092 --allow-host logs.example.org
        --runner dataflow --dataflow dataflow.toml --submit
    """
    from ciml.cli.output import counts_text

    def text(progress: ServiceProgress, word: str) -> str:
        return f"{counts_text(progress.facts['counts'], 'run')}; {progress.behind:,} messages to go"

    running.stream(options, text)


class LossOptions(BrokerOptions, NewData):
    """Options of ``ciml ingest accept-loss``.

    Attributes:
      topic: Topic of CI events.
      dry_run: List the lost offsets; accept nothing.
    """

    kafka: str = option(kind="broker", required=True)
    topic: str = option("ci-events")
    dry_run: bool = flag()


@make_command("accept-loss")
def accept_loss(options: LossOptions) -> None:
    """Accept the loss of unread messages.

    An ingest stops when the broker's retention deletes messages that it has not read. This records their ranges of
    offsets in the manifest as lost, so that the ingest can continue.

    \b
    Example:
      ciml ingest accept-loss --data-path data --dry-run
      ciml ingest accept-loss --data-path data
    """
    from ciml.pipelines.ingest.committer import accept_losses

    raw = options.root.raw
    lost = accept_losses(raw, options.connection(), options.topic, dry_run=options.dry_run)
    state = "lost" if options.dry_run else "accepted as lost"
    for loss in lost:
        click.echo(
            f"{loss.topic}[{loss.partition}]: {loss.end - loss.start} offsets, {loss.start} to {loss.end}: {state}"
        )
    if not lost:
        click.echo(f"{options.topic}: nothing is lost")


class _Group(DefaultGroup):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in _RENAMED:
            raise CimlError(f"command 'ingest {args[0]}' was removed; use {_RENAMED[args[0]]}")
        return super().parse_args(ctx, args)


@click.group("ingest", cls=_Group, default="run", commands=[run, accept_loss])
def ingest() -> None:
    """Ingest CI events into the raw store.

    It reads CloudEvents from a topic, evaluates trust, fetches logs, and commits runs, repeats, corrections, ignored
    events and dead letters with their offsets to DATA/raw. An interrupted ingest continues from the last commit.
    To run it under a supervisor: ciml service start ingest.

    \b
    Example:
      ciml ingest --data-path data --allow-host logs.example.org
      ciml ingest --data-path data --allow-root /srv/logs --once --engine micro-batches
      ciml ingest accept-loss --data-path data --dry-run
    """


class LiveRunning(Running):
    """How ``ciml live`` runs.

    Attributes:
      once: Make one pass to the present end of the topic, in this process, without Flink.
    """


@make_command("live")
def live(options: LiveOptions, running: LiveRunning) -> None:
    """Stream windows of running jobs.

    It reads samples from a topic. It publishes each window of a data set early, when it is final, and after late
    samples. It also publishes the growing example of each run; that of a finished run equals the example of its log.
    It runs on Flink until a signal. --once reads the topic once, without Flink. docs/live.md describes the formats.

    \b
    Example:
      ciml live --dataset provider --data-path data
      ciml live --dataset provider --dataset cpu-load --data-path data --once --since 1h
    """

    def text(progress: ServiceProgress, word: str) -> str:
        return f"{progress.facts['counts']['messages read']:,} messages read; {progress.behind:,} to go"

    if running.once:
        running = replace(running, engine=HERE)
    running.stream(options, text)


class AdoptOptions(BrokerOptions):
    """Options of ``ciml topics adopt``.

    Attributes:
      service: Take topic, data and broker from this service.
      dry_run: Report what would change; change nothing.
    """

    topic: str | None = argument(required=False)
    service: str | None = option(metavar="NAME")
    data_path: str | None = option(kind="data")
    dry_run: bool = flag()
    home: Path = option(kind="home")


@make_command("adopt")
def adopt(options: AdoptOptions) -> None:
    """Adopt a recreated topic.

    A service stops if its topic was deleted and created again, or restored from an older copy. With this command, each
    manifest in the data root continues with the present topic, from its first message. Committed work is kept. Unread
    messages of the old topic are lost; messages that were sent again are recognised by their ids. Resume the services
    afterwards.

    \b
    Example:
      ciml topics adopt ci-events --data-path data --dry-run
      ciml topics adopt --service ingest && ciml service resume ingest
    """
    from ciml.services.files import ServiceFiles, in_place
    from ciml.services.options import TopicOptions

    if options.service is None:
        if options.topic is None or options.data_path is None:
            raise click.UsageError("name TOPIC and --data-path, or --service")
        _adopt(options.topic, options.data_path, options.connection(), options.dry_run)
        return
    start = ServiceFiles(options.home, options.service).options()
    service = start.service
    if not isinstance(service, TopicOptions):
        raise CimlError(f"the service {options.service} reads no topic into a data root; nothing to adopt")
    with in_place(options.home, start):
        _adopt(options.topic or service.subject, service.data_path, service.connection(), options.dry_run)


def _adopt(topic: str, data_path: str, kafka: KafkaOptions, dry_run: bool) -> None:
    from ciml.data_root import DataRoot
    from ciml.services.adopt import adopt

    adoptions = adopt(DataRoot.open(data_path), kafka, topic, dry_run=dry_run)
    for adoption in adoptions:
        read = ", ".join(f"[{part}] {number:,}" for part, number in sorted(adoption.read.items())) or "nothing"
        verb = "would continue" if dry_run else "continues"
        click.echo(
            f"{topic}: the {adoption.manifest} manifest {verb} with the new topic as {adoption.generation}; read of "
            f"the old one: {read}. Its unread messages are lost"
        )
    if not adoptions:
        click.echo(f"{topic}: every manifest below {data_path} that read it read this topic; nothing to adopt")


@click.group("topics", commands=[adopt])
def topics() -> None:
    """Continue with a recreated topic.

    \b
    Example:
      ciml topics adopt ci-events --data-path data
      ciml topics adopt --service ingest
    """


def run_sessions(service: SessionReceiver, running: Foreground) -> None:
    """Run a receiver that connects to its sources, and print when all are connected, and why one is not."""

    def text(progress: ServiceProgress, word: str) -> str:
        return word if word.startswith("waits: ") else f"receiving {service.receiver}: {service.shown}"

    running.run_and_print(service, text, patience_s=None)


@make_command("webhooks")
def webhooks(options: WebhooksOptions, running: Foreground) -> None:
    """Receive webhooks over HTTP.

    It verifies the signature of each delivery over its raw bytes, and answers 202 when Kafka has acknowledged it. It
    speaks HTTP on 127.0.0.1:8470 by default, behind a proxy that speaks TLS. It runs until a signal, and finishes what
    it has read.

    \b
    Example:
      ciml receive webhooks --config receivers.toml
      ciml receive webhooks --config receivers.toml --topic ci-events --metrics-port 9468
    """
    service = options.service()
    running.run_and_print(service, lambda *_: f"receiving webhooks at {service.url}", patience_s=None)


@make_command("mqtt")
def mqtt(options: MqttOptions, running: Foreground) -> None:
    """Receive messages from MQTT brokers.

    The broker keeps messages for it while it is away. It acknowledges each message when Kafka has acknowledged it, and
    connects again after a loss. It runs until a signal.

    \b
    Example:
      ciml receive mqtt --config receivers.toml
      ciml receive mqtt --config receivers.toml --topic ci-events --metrics-port 9469
    """
    run_sessions(options.service(), running)


@make_command("gerrit")
def gerrit(options: GerritOptions, running: Foreground) -> None:
    """Receive events of Gerrit over SSH.

    It reads stream-events, and asks the REST API for the events that it missed. It connects again after a loss,
    and runs until a signal.

    \b
    Example:
      ciml receive gerrit --config receivers.toml
      ciml receive gerrit --config receivers.toml --topic ci-events --metrics-port 9470
    """
    run_sessions(options.service(), running)


@click.group("receive", commands=[webhooks, mqtt, gerrit])
def receive() -> None:
    """Receive deliveries of CI systems.

    A receiver verifies who sent a delivery and produces it to a topic. ciml ingest reads it there, by the adapter that
    its source names. One configuration file holds the sources of all receivers.

    \b
    Example:
      ciml receive webhooks --config receivers.toml
      ciml receive mqtt --config receivers.toml
    """

"""Writes a connection, prints the other side's texts, and waits for the first event."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.integrations.connect import Connection
    from ciml.kafka.options import KafkaOptions

#: Events of the last minutes count too: the job may have ended before the command began to wait.
_BACK_S = 600.0
_NOTHING, _REJECTED = 1, 2
_DEFAULT_TOPIC = "ci-events"


def finish(
    connection: Connection,
    *,
    folder: Path,
    force: bool,
    wait_s: float | None,
    data_path: str | None,
    kafka: str | None,
    kafka_config: str | None,
    kafka_options: tuple[str, ...],
    topic: str,
) -> int:
    """Finish a command. Return its exit code: 1 if no event came, 2 if the first one became a dead letter."""
    from ciml.services.receivers import connection as kafka_connection

    if wait_s is not None and kafka is None:
        raise CimlError("--wait: no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
    _write(connection, folder, force)
    _print_other_side(connection, folder)
    _print_services(connection, folder, data_path, topic)
    if wait_s is None or kafka is None:
        return 0
    options = kafka_connection(kafka=kafka, kafka_options=kafka_options, kafka_config=kafka_config)
    return _wait(connection, options, topic, data_path, wait_s)


def _write(connection: Connection, folder: Path, force: bool) -> None:
    from ciml.integrations.connect_files import write

    for one in write(folder, connection, force=force):
        click.echo(f"{one.change:<9}  {one.path}")
        if one.todo:
            click.echo(f"           {one.todo}")
        if connection.secret is not None and one.path == folder / connection.secret.path and one.change == "made":
            click.echo("           a new secret that only you can read; it is printed nowhere")
    for needed in connection.needed:
        if not (folder / needed.path).exists():
            click.echo(f"missing    {folder / needed.path}\n           {needed.how}")


def _print_other_side(connection: Connection, folder: Path) -> None:
    below = "" if folder == Path() else f" Paths of secrets are below {folder}."
    click.echo(f"\nOn the other side:{below}")
    for number, paste in enumerate(connection.pastes, 1):
        click.echo(f"\n--- {number}. {paste.where}\n{paste.text.rstrip()}")
    click.echo("\n---")
    for sentence in connection.also:
        click.echo(sentence)


def _print_services(connection: Connection, folder: Path, data_path: str | None, topic: str) -> None:
    from ciml.integrations.connect_files import FEEDBACK, FETCH, RECEIVERS, TRUST

    more = ["--topic", topic] if topic != _DEFAULT_TOPIC else []
    ingest = ["ciml", "service", "start", "ingest", "--data-path", data_path or "data", *more]
    if (folder / FETCH).exists():
        ingest += ["--fetch-policy", str(folder / FETCH)]
    ingest += ["--trust-policy", str(folder / TRUST)]
    receiver = ["ciml", "service", "start", connection.receiver, "--config", str(folder / RECEIVERS), *more]
    click.echo(f"\nStart here, or restart what runs:\n  {shlex.join(receiver)}\n  {shlex.join(ingest)}")
    if connection.feedback:
        config = str(folder / FEEDBACK)
        feedback = ["ciml", "service", "start", "feedback", "--config", config, "--data-path", data_path or "data"]
        click.echo(f"  {shlex.join(feedback)}\nIt prints its messages until dry_run is false in {config}.")


def _wait(connection: Connection, options: KafkaOptions, topic: str, data_path: str | None, wait_s: float) -> int:
    from ciml.services.arrivals import arrivals, committed

    click.echo(f"\nWaiting for an event of {connection.name} in {topic} for {wait_s:g} s …")
    until_s, since_s = time.monotonic() + wait_s, time.time() - _BACK_S
    for found in arrivals(options, topic, connection.name, str(connection.source["adapter"]), since_s, until_s):
        click.echo(f"event at {found.origin}")
        parts = list(found.became)
        for part in parts:
            click.echo(f"  {part.text}")
        updates_alone = connection.receiver == "gerrit"
        if not any(part.final or (part.updates and updates_alone) for part in parts):
            continue  # a ping, a job that has not ended, facts of a run
        if data_path is not None and any(part.pending for part in parts):
            click.echo("ingest commits:")
            parts = []
            for part in committed(data_path, found.origin, until_s):
                click.echo(f"  {part.text}")
                parts.append(part)
            if not any(part.final for part in parts):
                why = "its log is not there yet" if parts else "check that ingest works: ciml service status"
                click.echo(f"  no run yet: {why}")
                return _NOTHING
        return _REJECTED if any(part.rejected for part in parts) else 0
    click.echo("no event that says how a job ended:" if connection.receiver != "gerrit" else "no event about a change:")
    for check in _checks(connection):
        click.echo(f"  - {check}")
    return _NOTHING


def _checks(connection: Connection) -> tuple[str, ...]:
    """Return what to check where no event came."""
    works = f"the receiver works: ciml service status {connection.receiver}"
    if connection.receiver == "webhooks":
        return (works, "the sender's list of deliveries shows the status 202; docs/webhooks.md has the others",
                "a job has ended since")  # fmt: skip
    if connection.receiver == "mqtt":
        return (works, "the broker's log shows the user of ciml, and its access list lets it read the topics",
                "a pipeline with the reporters has reported since")  # fmt: skip
    return (works, "ssh -p 29418 USER@HOST gerrit stream-events prints events", "a change was reviewed since")

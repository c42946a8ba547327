"""``ciml connect``: connect a CI system.

Each system has a command, whose options `ciml.integrations.connect` declares. The command writes the connection, prints
the texts for the other side, and can wait for the first event.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.options import ask
from ciml.errors import CimlError
from ciml.integrations.connect import (
    GerritOptions,
    GithubOptions,
    GitlabOptions,
    JenkinsOptions,
    TektonOptions,
    ZuulOptions,
)
from ciml.options import BrokerOptions, flag, option

if TYPE_CHECKING:
    from ciml.events.records import Origin
    from ciml.integrations.connect import Connection
    from ciml.services.arrivals import Effect

#: Events of the last minutes count too: the job may have ended before the command began to wait.
_BACK_S = 600.0
#: Exit codes: no event came, or the first one became a dead letter.
_NOTHING = 1
_REJECTED = 2
#: By receiver: what else to check where no event came.
_CHECKS = {
    "webhooks": (
        "the sender's list of deliveries shows the status 202; docs/webhooks.md has the others",
        "a job has ended since",
    ),
    "mqtt": (
        "the broker's log shows the user of ciml, and its access list lets it read the topics",
        "a pipeline with the reporters has reported since",
    ),
    "gerrit": ("ssh -p 29418 USER@HOST gerrit stream-events prints events", "a change was reviewed since"),
}
_DEFAULT_TOPIC = "ci-events"


class ConnectOptions(BrokerOptions):
    """Options of each command.

    Attributes:
      folder: Folder of receivers.toml, fetch.toml, trust.toml and secrets.
      force: Replace a source of this name that has other settings.
      wait: Wait for the first event, up to 10min or TIME; with --data-path for its run too.
      topic: Topic that ciml ingest reads.
    """

    folder: Path = option(Path(), click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
    force: bool = flag()
    wait: float | None = option(kind="time", metavar="[TIME]", alone="10min")
    data_path: str | None = option(kind="new data")
    topic: str = option(_DEFAULT_TOPIC, metavar="TOPIC")


@make_command("github")
def github(system: GithubOptions, options: ConnectOptions) -> int:
    """Connect GitHub.

    \b
    Example:
      ciml connect github --url https://ci.example.org
      ciml connect github --url https://ci.example.org --wait --data-path data
      ciml connect github --url https://ci.example.org --feedback --app 12345
    """
    return connect(system.connection(), options)


@make_command("gitlab")
def gitlab(system: GitlabOptions, options: ConnectOptions) -> int:
    """Connect GitLab.

    \b
    Example:
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org --feedback
    """
    return connect(system.connection(), options)


@make_command("zuul")
def zuul(system: ZuulOptions, options: ConnectOptions) -> int:
    """Connect Zuul.

    \b
    Example:
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org --wait --data-path data
    """
    return connect(system.connection(), options)


@make_command("gerrit")
def gerrit(system: GerritOptions, options: ConnectOptions) -> int:
    """Connect the Gerrit of a CI system.

    Its events report who owns, reviewed and merged the changes that the CI system tests, so NAME is that of the CI
    system.

    \b
    Example:
      ciml connect gerrit --name zuul --ssh ssh://ciml@review.example.org --rest https://review.example.org
      ciml connect gerrit --ssh ssh://ciml@review.example.org --rest https://review.example.org --feedback
    """
    if system.feedback and not system.rest:
        rest = ask("--rest", "address of Gerrit's REST API, such as https://review.example.org")
        system = replace(system, rest=rest)
    return connect(system.connection(), options)


@make_command("tekton")
def tekton(system: TektonOptions, options: ConnectOptions) -> int:
    """Connect Tekton.

    Its CloudEvents have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect tekton --url https://ci.example.org --logs s3://cilogs/tekton --client CN=tekton-events
    """
    return connect(system.connection(), options)


@make_command("jenkins")
def jenkins(system: JenkinsOptions, options: ConnectOptions) -> int:
    """Connect Jenkins, by its CloudEvents plugin.

    The events have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect jenkins --url https://ci.example.org --server https://jenkins.example.org --client CN=jenkins
    """
    return connect(system.connection(), options)


def connect(connection: Connection, options: ConnectOptions) -> int:
    """Write a connection and print what to do; return 1 if no event came, 2 if the first one became a dead letter."""
    if options.wait is not None and options.kafka is None:
        raise CimlError("--wait: no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
    _write(connection, options)
    _print_other_side(connection, options.folder)
    _print_services(connection, options)
    return 0 if options.wait is None else _wait(connection, options, options.wait)


def _write(connection: Connection, options: ConnectOptions) -> None:
    from ciml.integrations.connect_files import write

    folder = options.folder
    for file in write(folder, connection, force=options.force):
        click.echo(f"{file.change:<9}  {file.path}")
        if file.todo:
            click.echo(f"           {file.todo}")
        if connection.secret is not None and file.path == folder / connection.secret.path and file.change == "made":
            click.echo("           a new secret that only you can read; it is printed nowhere")
    for needed in connection.needed:
        if not (folder / needed.path).exists():
            click.echo(f"missing    {folder / needed.path}\n           {needed.instructions}")


def _print_other_side(connection: Connection, folder: Path) -> None:
    below = "" if folder == Path() else f" Paths of secrets are below {folder}."
    click.echo(f"\nOn the other side:{below}")
    for number, paste in enumerate(connection.pastes, 1):
        click.echo(f"\n--- {number}. {paste.where}\n{paste.text.rstrip()}")
    click.echo("\n---")
    for sentence in connection.also:
        click.echo(sentence)


def _print_services(connection: Connection, options: ConnectOptions) -> None:
    from ciml.integrations.connect_files import FEEDBACK, FETCH, RECEIVERS, TRUST

    folder = options.folder
    data = ["--data-path", options.data_path or "data"]
    more = ["--topic", options.topic] if options.topic != _DEFAULT_TOPIC else []
    ingest = ["ciml", "service", "start", "ingest", *data, *more]
    if (folder / FETCH).exists():
        ingest += ["--fetch-policy", str(folder / FETCH)]
    ingest += ["--trust-policy", str(folder / TRUST)]
    receiver = ["ciml", "service", "start", connection.receiver, "--config", str(folder / RECEIVERS), *more]
    click.echo(f"\nStart here, or restart what runs:\n  {shlex.join(receiver)}\n  {shlex.join(ingest)}")
    if connection.feedback:
        config = str(folder / FEEDBACK)
        feedback = ["ciml", "service", "start", "feedback", "--config", config, *data]
        click.echo(f"  {shlex.join(feedback)}\nIt prints its messages until dry_run is false in {config}.")


def _wait(connection: Connection, options: ConnectOptions, wait_s: float) -> int:
    """Wait for the first event that shows that the source is connected; return the exit code."""
    from ciml.services.arrivals import read_arrivals

    adapter = str(connection.source["adapter"])
    sends_only_updates = connection.receiver == "gerrit"
    click.echo(f"\nWaiting for an event of {connection.name} in {options.topic} for {wait_s:g} s …")
    until_s = time.monotonic() + wait_s
    since_s = time.time() - _BACK_S
    for arrival in read_arrivals(options.connection(), options.topic, connection.name, adapter, since_s, until_s):
        click.echo(f"event at {arrival.origin}")
        effects = _print_effects(arrival.effects)
        if not any(effect.final or (effect.updates and sends_only_updates) for effect in effects):
            continue  # a ping, a job that has not ended, facts of a run
        if options.data_path is not None and any(effect.pending for effect in effects):
            effects = _wait_for_commits(options.data_path, arrival.origin, until_s)
            if not any(effect.final for effect in effects):
                return _NOTHING
        return _REJECTED if any(effect.rejected for effect in effects) else 0
    click.echo("no event about a change:" if sends_only_updates else "no event that says how a job ended:")
    click.echo(f"  - the receiver works: ciml service status {connection.receiver}")
    for check in _CHECKS[connection.receiver]:
        click.echo(f"  - {check}")
    return _NOTHING


def _wait_for_commits(data_path: str, origin: Origin, until_s: float) -> list[Effect]:
    """Wait until ingest has committed the runs of an event, and return the runs that it has committed in time."""
    from ciml.services.arrivals import follow_commits

    click.echo("ingest commits:")
    effects = _print_effects(follow_commits(data_path, origin, until_s))
    if not any(effect.final for effect in effects):
        reason = "its log is not there yet" if effects else "check that ingest works: ciml service status"
        click.echo(f"  no run yet: {reason}")
    return effects


def _print_effects(effects: Iterable[Effect]) -> list[Effect]:
    """Print each effect as it comes, and return all."""
    printed = []
    for effect in effects:
        click.echo(f"  {effect.text}")
        printed.append(effect)
    return printed


@click.group("connect", commands=[github, gitlab, zuul, gerrit, tekton, jenkins])
def command() -> None:
    """Connect a CI system.

    It writes the receivers' configuration, the fetch policy, a trust policy and a secret, prints what to paste on the
    other side and which services to start, and waits for the first event. Files are extended, never overwritten, so
    the same command may run again, for example to wait.

    \b
    Example:
      ciml connect github --url https://ci.example.org
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org --wait
    """

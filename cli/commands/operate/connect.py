"""``ciml connect``: connect a CI system.

Each system has a command. It writes the connection, prints the texts for the other side, and can wait for the first
event.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import Option, data_path_option, engines_home_option, kafka_options, stacked
from ciml.cli.param_types import Duration
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.integrations.connect import Connection
    from ciml.kafka.options import KafkaOptions

#: Events of the last minutes count too: the job may have ended before the command began to wait.
_BACK_S = 600.0
_NOTHING = 1
_REJECTED = 2
_DEFAULT_TOPIC = "ci-events"
_FILE = click.Path(dir_okay=False, resolve_path=True)


def connect_options(name: str) -> Option:
    """Options of each command. ``name`` is the default name of the source."""
    return stacked(
        click.option("--name", default=name, metavar="NAME", help="Source in run ids and trust policies."),
        click.option(
            "--folder",
            type=click.Path(file_okay=False, path_type=Path),
            default=".",
            metavar="FOLDER",
            help="Folder of receivers.toml, fetch.toml, trust.toml and secrets.",
        ),
        click.option("--force", is_flag=True, help="Replace a source of this name that has other settings."),
        click.option(
            "--wait",
            "wait_s",
            type=Duration(),
            is_flag=False,
            flag_value="10min",
            metavar="[TIME]",
            help="Wait for the first event, up to 10min or TIME; with --data-path for its run too.",
        ),
        engines_home_option,
        data_path_option(required=False, home=False, creates=True),
        click.option("--topic", default="ci-events", metavar="TOPIC", help="Topic that ciml ingest reads."),
        kafka_options(required=False),
    )


#: ``--url``, as ``url``: text or None.
url_option = click.option(
    "--url", metavar="URL", help="Public address of the receiver of webhooks, such as https://ci.example.org."
)
#: ``--feedback``, as ``feedback``: a flag.
feedback_option = click.option("--feedback", is_flag=True, help="Also comment on the changes of failed runs.")
#: ``--internal``, as ``internal``: a flag.
internal_option = click.option("--internal", is_flag=True, help="Names of log hosts have private addresses.")


def asked(value: str | None, option: str, meaning: str, example: str) -> str:
    """Return a value that was given, else ask for it on a terminal.

    Raises:
      click.UsageError: there is no terminal.
    """
    if value:
        return value
    if not sys.stdin.isatty():
        raise click.UsageError(f"missing {option}: the {meaning}, such as {example}")
    answer: str = click.prompt(f"{meaning[0].upper()}{meaning[1:]}, such as {example}")
    return answer


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
    from ciml.services.options import BrokerOptions

    if wait_s is not None and kafka is None:
        raise CimlError("--wait: no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
    _write(connection, folder, force)
    _print_other_side(connection, folder)
    _print_services(connection, folder, data_path, topic)
    if wait_s is None or kafka is None:
        return 0
    broker = BrokerOptions(kafka, kafka_options, kafka_config)
    return _wait(connection, broker.connection(), topic, data_path, wait_s)


def _write(connection: Connection, folder: Path, force: bool) -> None:
    from ciml.integrations.connect_files import write

    for file in write(folder, connection, force=force):
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
    until_s = time.monotonic() + wait_s
    since_s = time.time() - _BACK_S
    for arrival in arrivals(options, topic, connection.name, str(connection.source["adapter"]), since_s, until_s):
        click.echo(f"event at {arrival.origin}")
        parts = list(arrival.became)
        for part in parts:
            click.echo(f"  {part.text}")
        updates_alone = connection.receiver == "gerrit"
        if not any(part.final or (part.updates and updates_alone) for part in parts):
            continue  # a ping, a job that has not ended, facts of a run
        if data_path is not None and any(part.pending for part in parts):
            click.echo("ingest commits:")
            parts = []
            for part in committed(data_path, arrival.origin, until_s):
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
        return (
            works,
            "the sender's list of deliveries shows the status 202; docs/webhooks.md has the others",
            "a job has ended since",
        )
    if connection.receiver == "mqtt":
        return (
            works,
            "the broker's log shows the user of ciml, and its access list lets it read the topics",
            "a pipeline with the reporters has reported since",
        )
    return (works, "ssh -p 29418 USER@HOST gerrit stream-events prints events", "a change was reviewed since")


_ca_option = click.option(
    "--ca-file", type=_FILE, metavar="FILE", help="Certificates that sign the server's.  [default: the system's]"
)


@click.command("github")
@connect_options("github")
@url_option
@click.option(
    "--api",
    metavar="URL",
    help="REST API; GitHub Enterprise Server has https://HOST/api/v3.  [default: github.com's]",
)
@internal_option
@_ca_option
@feedback_option
@click.option(
    "--app",
    type=click.IntRange(1),
    metavar="ID",
    help="App that writes check runs; with --feedback.  [default: a token writes comments]",
)
def github(
    name: str,
    url: str | None,
    api: str | None,
    internal: bool,
    ca_file: str | None,
    feedback: bool,
    app: int | None,
    **rest: Any,
) -> int:
    """Connect GitHub.

    \b
    Example:
      ciml connect github --url https://ci.example.org
      ciml connect github --url https://ci.example.org --wait --data-path data
      ciml connect github --url https://ci.example.org --feedback --app 12345
    """
    from ciml.integrations import connect as systems

    if app and not feedback:
        raise click.UsageError("--app is that of the feedback; add --feedback")
    address = asked(url, "--url", "public address of the receiver", "https://ci.example.org")
    connection = systems.github(
        name, address, api or "", internal=internal, ca_file=ca_file or "", feedback=feedback, app=app or 0
    )
    return finish(connection, **rest)


@click.command("gitlab")
@connect_options("gitlab")
@url_option
@click.option("--server", metavar="URL", default="https://gitlab.com", help="Address of GitLab.")
@click.option("--signed", is_flag=True, help="GitLab signs its webhooks, instead of sending a secret token.")
@click.option(
    "--redirect-host",
    "redirects",
    multiple=True,
    metavar="HOST",
    help="Object store of artifacts that GitLab redirects to; may be repeated.",
)
@internal_option
@_ca_option
@feedback_option
def gitlab(
    name: str,
    url: str | None,
    server: str,
    signed: bool,
    redirects: tuple[str, ...],
    internal: bool,
    ca_file: str | None,
    feedback: bool,
    **rest: Any,
) -> int:
    """Connect GitLab.

    \b
    Example:
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org --feedback
    """
    from ciml.integrations import connect as systems

    address = asked(url, "--url", "public address of the receiver", "https://ci.example.org")
    connection = systems.gitlab(
        name,
        address,
        server,
        signed=signed,
        redirects=redirects,
        internal=internal,
        ca_file=ca_file or "",
        feedback=feedback,
    )
    return finish(connection, **rest)


@click.command("zuul")
@connect_options("zuul")
@click.option("--broker", metavar="URL", help="MQTT broker: mqtts://HOST:PORT, or mqtt://HOST:PORT without TLS.")
@click.option(
    "--logs",
    multiple=True,
    metavar="URL",
    help="Host of build logs: https://HOST or http://HOST:PORT; may be repeated.",
)
@internal_option
@click.option("--user", default="ciml", metavar="USER", help="User of ciml at the broker.")
@click.option("--password-file", type=_FILE, metavar="FILE", help="Its password.  [default: a new one]")
@click.option(
    "--ca-file", type=_FILE, metavar="FILE", help="Certificates that sign the broker's.  [default: the system's]"
)
@click.option(
    "--pipeline",
    "pipelines",
    multiple=True,
    metavar="NAME",
    help="Pipeline that ciml learns from; may be repeated.  [default: check, gate, post]",
)
@click.option("--prefix", default="zuul", metavar="TEXT", help="First level of the MQTT topics.")
def zuul(
    name: str,
    broker: str | None,
    logs: tuple[str, ...],
    user: str,
    password_file: str | None,
    ca_file: str | None,
    pipelines: tuple[str, ...],
    **rest: Any,
) -> int:
    """Connect Zuul.

    \b
    Example:
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org --wait --data-path data
    """
    from ciml.integrations import connect as systems

    address = asked(broker, "--broker", "address of the MQTT broker", "mqtts://mqtt.example.org:8883")
    places = logs or (asked(None, "--logs", "host of build logs", "https://logs.example.org"),)
    prefix = rest.pop("prefix")
    internal = rest.pop("internal")
    connection = systems.zuul(
        name,
        address,
        places,
        user=user,
        password_file=password_file or "",
        ca_file=ca_file or "",
        pipelines=pipelines or systems.PIPELINES,
        prefix=prefix,
        internal=internal,
    )
    return finish(connection, **rest)


@click.command("gerrit")
@connect_options("zuul")
@click.option("--ssh", metavar="URL", help="Gerrit over SSH: ssh://USER@HOST:29418.")
@click.option(
    "--rest", "rest_url", metavar="URL", help="REST API, which fills holes of the stream, such as https://HOST."
)
@click.option("--key-file", type=_FILE, metavar="FILE", help="Private key.  [default: secrets/NAME-gerrit]")
@click.option(
    "--known-hosts-file",
    type=_FILE,
    metavar="FILE",
    help="Host keys of the server.  [default: secrets/NAME-gerrit-hosts]",
)
@click.option("--password-file", type=_FILE, metavar="FILE", help="HTTP password for --rest.  [default: anonymous]")
@feedback_option
def gerrit(
    name: str,
    ssh: str | None,
    rest_url: str | None,
    key_file: str | None,
    known_hosts_file: str | None,
    password_file: str | None,
    feedback: bool,
    **rest: Any,
) -> int:
    """Connect the Gerrit of a CI system.

    Its events say who owns, reviewed and merged the changes that the CI system tests, so NAME is that of the CI system.

    \b
    Example:
      ciml connect gerrit --name zuul --ssh ssh://ciml@review.example.org --rest https://review.example.org
      ciml connect gerrit --ssh ssh://ciml@review.example.org --rest https://review.example.org --feedback
    """
    from ciml.integrations import connect as systems

    address = asked(ssh, "--ssh", "address of Gerrit over SSH", "ssh://ciml@review.example.org:29418")
    if feedback:
        rest_url = asked(rest_url, "--rest", "address of Gerrit's REST API", "https://review.example.org")
    connection = systems.gerrit(
        name,
        address,
        rest=rest_url or "",
        key_file=key_file or "",
        known_hosts_file=known_hosts_file or "",
        password_file=password_file or "",
        feedback=feedback,
    )
    return finish(connection, **rest)


_client_option = click.option(
    "--client", default="", metavar="SUBJECT", help="Subject of the sender's certificate.  [default: no proof]"
)


@click.command("tekton")
@connect_options("tekton")
@url_option
@click.option("--logs", metavar="s3://PREFIX", help="Prefix at which steps store their telemetry.")
@_client_option
def tekton(name: str, url: str | None, logs: str | None, client: str, **rest: Any) -> int:
    """Connect Tekton.

    Its CloudEvents have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect tekton --url https://ci.example.org --logs s3://cilogs/tekton --client CN=tekton-events
    """
    from ciml.integrations import connect as systems

    address = asked(url, "--url", "address of the receiver or its proxy", "https://ci.example.org")
    prefix = asked(logs, "--logs", "prefix at which steps store their telemetry", "s3://cilogs/tekton")
    return finish(systems.tekton(name, address, prefix, client), **rest)


@click.command("jenkins")
@connect_options("jenkins")
@url_option
@click.option("--server", metavar="URL", help="Address of Jenkins, below which builds archive their telemetry.")
@internal_option
@_client_option
def jenkins(name: str, url: str | None, server: str | None, internal: bool, client: str, **rest: Any) -> int:
    """Connect Jenkins, by its CloudEvents plugin.

    The events have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect jenkins --url https://ci.example.org --server https://jenkins.example.org --client CN=jenkins
    """
    from ciml.integrations import connect as systems

    address = asked(url, "--url", "address of the receiver or its proxy", "https://ci.example.org")
    host = asked(server, "--server", "address of Jenkins", "https://jenkins.example.org")
    return finish(systems.jenkins(name, address, host, client, internal=internal), **rest)


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

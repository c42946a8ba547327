"""``ciml connect``: connect a CI system.

Each system has a command. It writes the connection, prints the texts for the other side, and can wait for the first
event.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.errors import CimlError
from ciml.options import BrokerOptions, flag, option, repeated

if TYPE_CHECKING:
    from ciml.integrations.connect import Connection

#: Events of the last minutes count too: the job may have ended before the command began to wait.
_BACK_S = 600.0
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
      name: Source in run ids and trust policies.
      folder: Folder of receivers.toml, fetch.toml, trust.toml and secrets.
      force: Replace a source of this name that has other settings.
      wait: Wait for the first event, up to 10min or TIME; with --data-path for its run too.
      topic: Topic that ciml ingest reads.
    """

    name: str = option(metavar="NAME", required=True)
    folder: Path = option(Path(), click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
    force: bool = flag()
    wait: float | None = option(kind="time", metavar="[TIME]", alone="10min")
    data_path: str | None = option(kind="new data")
    topic: str = option(_DEFAULT_TOPIC, metavar="TOPIC")


def ask(flag: str, meaning: str, example: str) -> str:
    """Ask for a missing value on a terminal.

    Raises:
      click.UsageError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"missing {flag}: the {meaning}, such as {example}")
    answer: str = click.prompt(f"{meaning[0].upper()}{meaning[1:]}, such as {example}")
    return answer


def _asked(meaning: str, example: str) -> Callable[..., Any]:
    """Return the callback of an option whose value is asked for if it is missing."""

    def callback(ctx: click.Context, param: click.Option, value: Any) -> Any:
        if value or ctx.resilient_parsing:
            return value
        answer = ask(param.opts[0], meaning, example)
        return (answer,) if param.multiple else answer

    return callback


class WebhookOptions(ConnectOptions):
    """Options of a system that sends webhooks.

    Attributes:
      url: Public address of the receiver of webhooks, such as https://ci.example.org.
    """

    url: str = option(kind=_asked("public address of the receiver", "https://ci.example.org"), metavar="URL")


_FILE = click.Path(dir_okay=False, resolve_path=True)


class ForgeOptions(WebhookOptions):
    """Options of a system whose changes get comments.

    Attributes:
      internal: Names of log hosts have private addresses.
      ca_file: Certificates that sign the server's. [default: the system's]
      feedback: Also comment on the changes of failed runs.
    """

    internal: bool = flag()
    ca_file: str = option("", _FILE, metavar="FILE")
    feedback: bool = flag()


def finish(connection: Connection, options: ConnectOptions) -> int:
    """Finish a command. Return its exit code: 1 if no event came, 2 if the first one became a dead letter."""
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
    from ciml.services.arrivals import follow_commits, read_arrivals

    topic = options.topic
    adapter = str(connection.source["adapter"])
    click.echo(f"\nWaiting for an event of {connection.name} in {topic} for {wait_s:g} s …")
    until_s = time.monotonic() + wait_s
    since_s = time.time() - _BACK_S
    for arrival in read_arrivals(options.connection(), topic, connection.name, adapter, since_s, until_s):
        click.echo(f"event at {arrival.origin}")
        parts = list(arrival.effects)
        for part in parts:
            click.echo(f"  {part.text}")
        updates_alone = connection.receiver == "gerrit"
        if not any(part.final or (part.updates and updates_alone) for part in parts):
            continue  # a ping, a job that has not ended, facts of a run
        if options.data_path is not None and any(part.pending for part in parts):
            click.echo("ingest commits:")
            parts = []
            for part in follow_commits(options.data_path, arrival.origin, until_s):
                click.echo(f"  {part.text}")
                parts.append(part)
            if not any(part.final for part in parts):
                why = "its log is not there yet" if parts else "check that ingest works: ciml service status"
                click.echo(f"  no run yet: {why}")
                return _NOTHING
        return _REJECTED if any(part.rejected for part in parts) else 0
    click.echo("no event that says how a job ended:" if connection.receiver != "gerrit" else "no event about a change:")
    click.echo(f"  - the receiver works: ciml service status {connection.receiver}")
    for check in _CHECKS[connection.receiver]:
        click.echo(f"  - {check}")
    return _NOTHING


class GithubOptions(ForgeOptions):
    """Options of ``ciml connect github``.

    Attributes:
      name: Source in run ids and trust policies.
      api: REST API; GitHub Enterprise Server has https://HOST/api/v3. [default: github.com's]
      app: App that writes check runs; with --feedback. [default: a token writes comments]
    """

    name: str = option("github", metavar="NAME")
    api: str = option("", metavar="URL")
    app: int = option(kind="count", metavar="ID")


@make_command("github")
def github(options: GithubOptions) -> int:
    """Connect GitHub.

    \b
    Example:
      ciml connect github --url https://ci.example.org
      ciml connect github --url https://ci.example.org --wait --data-path data
      ciml connect github --url https://ci.example.org --feedback --app 12345
    """
    from ciml.integrations import connect as systems

    if options.app and not options.feedback:
        raise click.UsageError("--app is that of the feedback; add --feedback")
    connection = systems.github(
        options.name,
        options.url,
        options.api,
        internal=options.internal,
        ca_file=options.ca_file,
        feedback=options.feedback,
        app=options.app or 0,
    )
    return finish(connection, options)


class GitlabOptions(ForgeOptions):
    """Options of ``ciml connect gitlab``.

    Attributes:
      name: Source in run ids and trust policies.
      server: Address of GitLab.
      signed: GitLab signs its webhooks, instead of sending a secret token.
      redirects: Object store of artifacts that GitLab redirects to; may be repeated.
    """

    name: str = option("gitlab", metavar="NAME")
    server: str = option("https://gitlab.com", metavar="URL")
    signed: bool = flag()
    redirects: tuple[str, ...] = repeated(flags="--redirect-host", metavar="HOST")


@make_command("gitlab")
def gitlab(options: GitlabOptions) -> int:
    """Connect GitLab.

    \b
    Example:
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org --feedback
    """
    from ciml.integrations import connect as systems

    connection = systems.gitlab(
        options.name,
        options.url,
        options.server,
        signed=options.signed,
        redirects=options.redirects,
        internal=options.internal,
        ca_file=options.ca_file,
        feedback=options.feedback,
    )
    return finish(connection, options)


class ZuulOptions(ConnectOptions):
    """Options of ``ciml connect zuul``.

    Attributes:
      name: Source in run ids and trust policies.
      broker: MQTT broker: mqtts://HOST:PORT, or mqtt://HOST:PORT without TLS.
      logs: Host of build logs: https://HOST or http://HOST:PORT; may be repeated.
      internal: Names of log hosts have private addresses.
      user: User of ciml at the broker.
      password_file: Its password. [default: a new one]
      ca_file: Certificates that sign the broker's. [default: the system's]
      pipelines: Pipeline that ciml learns from; may be repeated. [default: check, gate, post]
      prefix: First level of the MQTT topics.
    """

    name: str = option("zuul", metavar="NAME")
    broker: str = option(kind=_asked("address of the MQTT broker", "mqtts://mqtt.example.org:8883"), metavar="URL")
    logs: tuple[str, ...] = repeated(
        _asked("host of build logs", "https://logs.example.org"), flags="--logs", metavar="URL"
    )
    internal: bool = flag()
    user: str = option("ciml", metavar="USER")
    password_file: str = option("", _FILE, metavar="FILE")
    ca_file: str = option("", _FILE, metavar="FILE")
    pipelines: tuple[str, ...] = repeated(metavar="NAME")
    prefix: str = option("zuul", metavar="TEXT")


@make_command("zuul")
def zuul(options: ZuulOptions) -> int:
    """Connect Zuul.

    \b
    Example:
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org --wait --data-path data
    """
    from ciml.integrations import connect as systems

    connection = systems.zuul(
        options.name,
        options.broker,
        options.logs,
        user=options.user,
        password_file=options.password_file,
        ca_file=options.ca_file,
        pipelines=options.pipelines or systems.PIPELINES,
        prefix=options.prefix,
        internal=options.internal,
    )
    return finish(connection, options)


class GerritOptions(ConnectOptions):
    """Options of ``ciml connect gerrit``.

    Attributes:
      name: Source in run ids and trust policies.
      ssh: Gerrit over SSH: ssh://USER@HOST:29418.
      rest: REST API, which fills holes of the stream, such as https://HOST.
      key_file: Private key. [default: secrets/NAME-gerrit]
      known_hosts_file: Host keys of the server. [default: secrets/NAME-gerrit-hosts]
      password_file: HTTP password for --rest. [default: anonymous]
      feedback: Also comment on the changes of failed runs.
    """

    name: str = option("zuul", metavar="NAME")
    ssh: str = option(kind=_asked("address of Gerrit over SSH", "ssh://ciml@review.example.org:29418"), metavar="URL")
    rest: str = option("", metavar="URL")
    key_file: str = option("", _FILE, metavar="FILE")
    known_hosts_file: str = option("", _FILE, metavar="FILE")
    password_file: str = option("", _FILE, metavar="FILE")
    feedback: bool = flag()


@make_command("gerrit")
def gerrit(options: GerritOptions) -> int:
    """Connect the Gerrit of a CI system.

    Its events say who owns, reviewed and merged the changes that the CI system tests, so NAME is that of the CI system.

    \b
    Example:
      ciml connect gerrit --name zuul --ssh ssh://ciml@review.example.org --rest https://review.example.org
      ciml connect gerrit --ssh ssh://ciml@review.example.org --rest https://review.example.org --feedback
    """
    from ciml.integrations import connect as systems

    rest = options.rest
    if options.feedback and not rest:
        rest = ask("--rest", "address of Gerrit's REST API", "https://review.example.org")
    connection = systems.gerrit(
        options.name,
        options.ssh,
        rest=rest,
        key_file=options.key_file,
        known_hosts_file=options.known_hosts_file,
        password_file=options.password_file,
        feedback=options.feedback,
    )
    return finish(connection, options)


class TektonOptions(WebhookOptions):
    """Options of ``ciml connect tekton``.

    Attributes:
      name: Source in run ids and trust policies.
      logs: Prefix at which steps store their telemetry.
      client: Subject of the sender's certificate. [default: no proof]
    """

    name: str = option("tekton", metavar="NAME")
    logs: str = option(
        kind=_asked("prefix at which steps store their telemetry", "s3://cilogs/tekton"), metavar="s3://PREFIX"
    )
    client: str = option("", metavar="SUBJECT")


@make_command("tekton")
def tekton(options: TektonOptions) -> int:
    """Connect Tekton.

    Its CloudEvents have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect tekton --url https://ci.example.org --logs s3://cilogs/tekton --client CN=tekton-events
    """
    from ciml.integrations import connect as systems

    return finish(systems.tekton(options.name, options.url, options.logs, options.client), options)


class JenkinsOptions(WebhookOptions):
    """Options of ``ciml connect jenkins``.

    Attributes:
      name: Source in run ids and trust policies.
      server: Address of Jenkins, below which builds archive their telemetry.
      internal: Names of log hosts have private addresses.
      client: Subject of the sender's certificate. [default: no proof]
    """

    name: str = option("jenkins", metavar="NAME")
    server: str = option(kind=_asked("address of Jenkins", "https://jenkins.example.org"), metavar="URL")
    internal: bool = flag()
    client: str = option("", metavar="SUBJECT")


@make_command("jenkins")
def jenkins(options: JenkinsOptions) -> int:
    """Connect Jenkins, by its CloudEvents plugin.

    The events have no signature: let a proxy verify the sender's certificate, and name its subject.

    \b
    Example:
      ciml connect jenkins --url https://ci.example.org --server https://jenkins.example.org --client CN=jenkins
    """
    from ciml.integrations import connect as systems

    connection = systems.jenkins(options.name, options.url, options.server, options.client, internal=options.internal)
    return finish(connection, options)


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

"""A command for each CI system."""

from __future__ import annotations

from typing import Any

import click

from ciml.cli.commands.operate.connect.finish import finish
from ciml.cli.commands.operate.connect.options import (
    asked,
    connect_options,
    feedback_option,
    internal_option,
    url_option,
)

_FILE = click.Path(dir_okay=False, resolve_path=True)


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
    "--app", type=click.IntRange(1), metavar="ID",
    help="App that writes check runs; with --feedback.  [default: a token writes comments]",
)  # fmt: skip
def github(
    name: str, url: str | None, api: str | None, internal: bool, ca_file: str | None, feedback: bool, app: int | None,
    **rest: Any,
) -> int:  # fmt: skip
    """Connect GitHub.

    \b
    Example:
      ciml connect github --url https://ci.example.org
      ciml connect github --url https://ci.example.org --wait --data-path data
      ciml connect github --url https://ci.example.org --feedback --app 12345
    """
    from ciml.integrations.connect import feedback_of_github
    from ciml.integrations.github import connect as system

    if app and not feedback:
        raise click.UsageError("--app is that of the feedback; add --feedback")
    address = asked(url, "--url", "public address of the receiver", "https://ci.example.org")
    made = system.connect(name, address, api or system.API, internal=internal, ca_file=ca_file or "")
    if feedback:
        made = feedback_of_github(made, api or "", app or 0, ca_file or "")
    return finish(made, **rest)


@click.command("gitlab")
@connect_options("gitlab")
@url_option
@click.option("--server", metavar="URL", default="https://gitlab.com", help="Address of GitLab.")
@click.option("--signed", is_flag=True, help="GitLab signs its webhooks, instead of sending a secret token.")
@click.option(
    "--redirect-host", "redirects", multiple=True, metavar="HOST",
    help="Object store of artifacts that GitLab redirects to; may be repeated.",
)  # fmt: skip
@internal_option
@_ca_option
@feedback_option
def gitlab(
    name: str, url: str | None, server: str, signed: bool, redirects: tuple[str, ...], internal: bool,
    ca_file: str | None, feedback: bool, **rest: Any,
) -> int:  # fmt: skip
    """Connect GitLab.

    \b
    Example:
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org
      ciml connect gitlab --url https://ci.example.org --server https://gitlab.example.org --feedback
    """
    from ciml.integrations.connect import feedback_of_gitlab
    from ciml.integrations.gitlab import connect as system

    address = asked(url, "--url", "public address of the receiver", "https://ci.example.org")
    made = system.connect(
        name, address, server, signed=signed, redirects=redirects, internal=internal, ca_file=ca_file or ""
    )
    if feedback:
        made = feedback_of_gitlab(made, server, ca_file or "")
    return finish(made, **rest)


@click.command("zuul")
@connect_options("zuul")
@click.option("--broker", metavar="URL", help="MQTT broker: mqtts://HOST:PORT, or mqtt://HOST:PORT without TLS.")
@click.option(
    "--logs", multiple=True, metavar="URL",
    help="Host of build logs: https://HOST or http://HOST:PORT; may be repeated.",
)  # fmt: skip
@internal_option
@click.option("--user", default="ciml", metavar="USER", help="User of ciml at the broker.")
@click.option("--password-file", type=_FILE, metavar="FILE", help="Its password.  [default: a new one]")
@click.option(
    "--ca-file", type=_FILE, metavar="FILE", help="Certificates that sign the broker's.  [default: the system's]"
)
@click.option(
    "--pipeline", "pipelines", multiple=True, metavar="NAME",
    help="Pipeline that ciml learns from; may be repeated.  [default: check, gate, post]",
)  # fmt: skip
@click.option("--prefix", default="zuul", metavar="TEXT", help="First level of the MQTT topics.")
def zuul(
    name: str, broker: str | None, logs: tuple[str, ...], user: str, password_file: str | None, ca_file: str | None,
    pipelines: tuple[str, ...], **rest: Any,
) -> int:  # fmt: skip
    """Connect Zuul.

    \b
    Example:
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org
      ciml connect zuul --broker mqtts://mqtt.example.org --logs https://logs.example.org --wait --data-path data
    """
    from ciml.integrations.zuul import connect as system

    address = asked(broker, "--broker", "address of the MQTT broker", "mqtts://mqtt.example.org:8883")
    places = logs or (asked(None, "--logs", "host of build logs", "https://logs.example.org"),)
    prefix, internal = rest.pop("prefix"), rest.pop("internal")
    made = system.connect_zuul(
        name, address, places, user=user, password_file=password_file or "", ca_file=ca_file or "",
        pipelines=pipelines or system.PIPELINES, prefix=prefix, internal=internal,
    )  # fmt: skip
    return finish(made, **rest)


@click.command("gerrit")
@connect_options("zuul")
@click.option("--ssh", metavar="URL", help="Gerrit over SSH: ssh://USER@HOST:29418.")
@click.option(
    "--rest", "rest_url", metavar="URL", help="REST API, which fills holes of the stream, such as https://HOST."
)
@click.option("--key-file", type=_FILE, metavar="FILE", help="Private key.  [default: secrets/NAME-gerrit]")
@click.option(
    "--known-hosts-file", type=_FILE, metavar="FILE",
    help="Host keys of the server.  [default: secrets/NAME-gerrit-hosts]",
)  # fmt: skip
@click.option("--password-file", type=_FILE, metavar="FILE", help="HTTP password for --rest.  [default: anonymous]")
@feedback_option
def gerrit(
    name: str, ssh: str | None, rest_url: str | None, key_file: str | None, known_hosts_file: str | None,
    password_file: str | None, feedback: bool, **rest: Any,
) -> int:  # fmt: skip
    """Connect the Gerrit of a CI system.

    Its events say who owns, reviewed and merged the changes that the CI system tests, so NAME is that of the CI system.

    \b
    Example:
      ciml connect gerrit --name zuul --ssh ssh://ciml@review.example.org --rest https://review.example.org
      ciml connect gerrit --ssh ssh://ciml@review.example.org --rest https://review.example.org --feedback
    """
    from ciml.integrations.connect import feedback_of_gerrit
    from ciml.integrations.zuul import connect as system

    address = asked(ssh, "--ssh", "address of Gerrit over SSH", "ssh://ciml@review.example.org:29418")
    made = system.connect_gerrit(
        name, address, rest=rest_url or "", key_file=key_file or "", known_hosts_file=known_hosts_file or "",
        password_file=password_file or "",
    )  # fmt: skip
    if feedback:
        url = asked(rest_url, "--rest", "address of Gerrit's REST API", "https://review.example.org")
        made = feedback_of_gerrit(made, url, password_file or "")
    return finish(made, **rest)


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
    from ciml.integrations import connect_cloudevents as system

    address = asked(url, "--url", "address of the receiver or its proxy", "https://ci.example.org")
    prefix = asked(logs, "--logs", "prefix at which steps store their telemetry", "s3://cilogs/tekton")
    return finish(system.connect_tekton(name, address, prefix, client), **rest)


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
    from ciml.integrations import connect_cloudevents as system

    address = asked(url, "--url", "address of the receiver or its proxy", "https://ci.example.org")
    host = asked(server, "--server", "address of Jenkins", "https://jenkins.example.org")
    return finish(system.connect_jenkins(name, address, host, client, internal=internal), **rest)

"""``ciml connect``: connect a CI system."""

from __future__ import annotations

import click

from ciml.cli.commands.operate.connect.systems import gerrit, github, gitlab, jenkins, tekton, zuul


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

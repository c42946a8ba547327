"""``ciml receive``: the receivers of CI systems' deliveries, in the foreground."""

from __future__ import annotations

import click

from ciml.cli.commands.operate.receive.gerrit import command as gerrit
from ciml.cli.commands.operate.receive.mqtt import command as mqtt
from ciml.cli.commands.operate.receive.webhooks import command as webhooks


@click.group("receive", commands=[webhooks, mqtt, gerrit])
def command() -> None:
    """Receive deliveries of CI systems.

    A receiver verifies who sent a delivery and produces it to a topic. ciml ingest reads it there, by the adapter that
    its source names. One configuration file holds the sources of all receivers.

    \b
    Example:
      ciml receive webhooks --config receivers.toml
      ciml receive mqtt --config receivers.toml
    """

"""``ciml receive``: receive deliveries of CI systems by webhooks, MQTT or Gerrit's SSH, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.running import Foreground
from ciml.services.options import GerritOptions, MqttOptions, WebhooksOptions

if TYPE_CHECKING:
    from ciml.services.decide import ServiceProgress
    from ciml.services.receivers import SessionReceiver


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
def command() -> None:
    """Receive deliveries of CI systems.

    A receiver verifies who sent a delivery and produces it to a topic. ciml ingest reads it there, by the adapter that
    its source names. One configuration file holds the sources of all receivers.

    \b
    Example:
      ciml receive webhooks --config receivers.toml
      ciml receive mqtt --config receivers.toml
    """

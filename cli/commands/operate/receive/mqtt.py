"""``ciml receive mqtt``: the receiver of MQTT messages in the foreground."""

from __future__ import annotations

from typing import Any

import click

from ciml.cli.commands.operate.receive.options import receiver_options, run_sessions
from ciml.cli.options import metrics_options


@click.command("mqtt")
@receiver_options
@metrics_options
def command(metrics_port: int | None, metrics_address: str, **arguments: Any) -> None:
    """Receive messages from MQTT brokers.

    The broker keeps messages for it while it is away. It acknowledges each message when Kafka has acknowledged it, and
    connects again after a loss. It runs until a signal.

    \b
    Example:
      ciml receive mqtt --config receivers.toml
      ciml receive mqtt --config receivers.toml --topic ci-events --metrics-port 9469
    """
    from ciml.services.receivers import MqttService

    run_sessions(MqttService.of(**arguments), metrics_port, metrics_address)

"""``ciml receive webhooks``: the receiver of webhooks in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.operate.receive.options import receiver_options
from ciml.cli.foreground import Running
from ciml.cli.options import metrics_options

if TYPE_CHECKING:
    from ciml.services.service import Progress


@click.command("webhooks")
@receiver_options
@metrics_options
def command(metrics_port: int | None, metrics_address: str, **arguments: Any) -> None:
    """Receive webhooks over HTTP.

    It verifies the signature of each delivery over its raw bytes, and answers 202 when Kafka has acknowledged it. It
    speaks HTTP on 127.0.0.1:8470 by default, behind a proxy that speaks TLS. It runs until a signal, and finishes what
    it has read.

    \b
    Example:
      ciml receive webhooks --config receivers.toml
      ciml receive webhooks --config receivers.toml --topic ci-events --metrics-port 9468
    """
    from ciml.services.webhooks import WebhooksService

    service, shown = WebhooksService.of(**arguments), False

    def report(progress: Progress, word: str) -> None:
        nonlocal shown
        if not shown:
            shown = True
            click.echo(f"receiving webhooks at {service.url}", err=True)

    running = Running(metrics_port=metrics_port, metrics_address=metrics_address)
    running.run(service, report, patience_s=None)

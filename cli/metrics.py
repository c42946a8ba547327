"""The metrics endpoint of a service that runs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


@contextmanager
def shown(port: int | None, address: str, *collectors: Collector) -> Iterator[None]:
    """Serve the metrics of ``collectors`` within the ``with`` and print the URL; nothing for a ``port`` of None.

    Raises:
      EngineError: the address cannot be listened on.
    """
    if port is None:
        yield
        return
    from ciml.metrics import registry_of, serve_metrics

    with serve_metrics(registry_of(*collectors), port, address) as url:
        click.echo(f"metrics: {url}", err=True)
        yield

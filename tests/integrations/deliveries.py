"""Sample deliveries of all adapters, and what ingest decodes from a delivery.

A module of this folder whose name ends in ``samples`` has a mapping ``SAMPLES``: the adapter's name -> its deliveries,
messages of our own servers or written by hand after the system's documents. The tests of hostile input change each.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ciml.events.cloudevents import Event
from ciml.events.records import Message
from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import delivered, find_adapter, read_event


def samples() -> dict[str, Sequence[Delivery]]:
    """Return the sample deliveries by the adapter's name."""
    found: dict[str, Sequence[Delivery]] = {}
    for path in sorted(Path(__file__).parent.glob("*samples.py")):
        found |= importlib.import_module(f"tests.integrations.{path.stem}").SAMPLES
    return found


def message_of(adapter: str, delivery: Delivery, source: str = "ci", auth: str = "token") -> Message:
    """Return the Kafka message that a receiver makes of a delivery."""
    value, headers = delivered(find_adapter(adapter), source, delivery.body, delivery.headers, auth, delivery.id)
    return Message(5, value, tuple(headers))


def event_of(adapter: str, delivery: Delivery, source: str = "ci") -> Event:
    """Return the event that ingest decodes from a delivery. Raises `RejectedInput`."""
    return read_event(message_of(adapter, delivery, source))

"""Deliveries of each CI system, by name: messages of our own servers, or written by hand after the system's documents.

The module of an adapter has its name, with underscores, and a mapping ``DELIVERIES``. The tests of hostile input change
each of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from adapters.adapter import Delivery
from adapters.registry import delivered, find_adapter, read_event
from ciml.events.event import Event
from ciml.events.records import Message


def samples(adapter: str) -> Mapping[str, Delivery]:
    """Return the sample deliveries of an adapter."""
    module = importlib.import_module(f"tests.adapters.samples.{adapter.replace('-', '_')}")
    found: Mapping[str, Delivery] = module.DELIVERIES
    return found


def message_of(adapter: str, delivery: Delivery, source: str = "ci", auth: str = "token") -> Message:
    """Return the Kafka message that a receiver makes of a delivery."""
    value, headers = delivered(find_adapter(adapter), source, delivery.body, delivery.headers, auth, delivery.id)
    return Message(5, value, tuple(headers))


def event_of(adapter: str, delivery: Delivery, source: str = "ci") -> Event:
    """Return the event that ingest decodes from a delivery. Raises `RejectedInput`."""
    return read_event(message_of(adapter, delivery, source))

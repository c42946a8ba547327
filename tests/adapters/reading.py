"""What becomes of a delivery, as ingest decodes it: through the message that a receiver produces."""

from __future__ import annotations

from adapters.adapter import Adapter, Delivery
from adapters.registry import delivered, read_event
from ciml.events.event import Event
from ciml.events.records import Message, RunFacts


def event_of(adapter: Adapter, delivery: Delivery, source: str = "ci") -> Event:
    """Return the event of a delivery; every field of its runs and updates has been checked."""
    headers = dict(delivery.headers)
    value, named = delivered(adapter, source, delivery.body, headers, "token", delivery.id)
    return read_event(Message(0, value, tuple(named)))


def runs_of(adapter: Adapter, delivery: Delivery) -> dict[str, RunFacts]:
    """Return the runs of a delivery by their native id and attempt: ``7 2``. None of them may be rejected."""
    event = event_of(adapter, delivery)
    assert event.rejections == ()
    return {f"{facts.build_uuid} {facts.run_id.rpartition('~')[2]}": facts for facts in event.run_facts}


def updates_of(adapter: Adapter, delivery: Delivery) -> dict[str, dict[str, str]]:
    """Return the updates of a delivery by their subject."""
    return {update.subject: dict(update.facts) for update in event_of(adapter, delivery).updates}

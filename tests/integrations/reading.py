"""The runs and updates of a delivery, as ingest decodes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.events.records import Batch, OffsetRange, RunFacts
from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import read_event
from ciml.transforms.ingest.decode import decode
from tests.integrations.deliveries import event_of, message_of


def runs_of(adapter: str, delivery: Delivery) -> dict[str, RunFacts]:
    """Return the runs of a delivery by their native id and attempt: ``7 2``. None of them may be rejected."""
    event = event_of(adapter, delivery)
    assert event.rejections == ()
    return {f"{facts.build_uuid} {facts.run_id.rpartition('~')[2]}": facts for facts in event.run_facts}


def updates_of(adapter: str, delivery: Delivery) -> dict[str, dict[str, str]]:
    """Return the updates of a delivery by their subject."""
    return {update.subject: dict(update.facts) for update in event_of(adapter, delivery).updates}


def settled_of(adapter: str, delivery: Delivery) -> list[tuple[str, str, str]]:
    """Return what decode settles a delivery as: kind, reason, detail."""
    batch = Batch(OffsetRange("ci-events", "", 0, 5, 6), [message_of(adapter, delivery)])
    return [(one.kind, one.reason, one.detail) for one in decode(batch, read_event=read_event).settled]


def facts_of(adapter: str, delivery: Delivery, names: Iterable[str]) -> dict[str, Any]:
    """Return some facts of the only run of a delivery."""
    (facts,) = runs_of(adapter, delivery).values()
    return {name: getattr(facts, name) for name in names}


def rejection_of(adapter: str, delivery: Delivery) -> tuple[str, str]:
    """Return why a whole delivery is rejected: the reason, and the place that the detail names."""
    with pytest.raises(RejectedInput) as caught:
        event_of(adapter, delivery)
    return caught.value.reason, caught.value.detail.partition(":")[0]

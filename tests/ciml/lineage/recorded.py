"""Lineage whose events a test reads."""

from __future__ import annotations

import json
from typing import Any

from openlineage.client.serde import Serde

from ciml.data_root import DataRoot
from ciml.lineage import Lineage, StepEvent
from ciml.lineage.openlineage import run_event
from tests.ciml.lineage.model import fault


class Recorded(Lineage):
    """Keeps the events of steps, converted, and checked against OpenLineage's model."""

    def __init__(self, data: DataRoot) -> None:
        super().__init__(data)
        self._data = data
        self.events: list[dict[str, Any]] = []

    def emit(self, event: StepEvent) -> None:
        self.events.append(checked(json.loads(Serde.to_json(run_event(event, self._data)))))


def checked(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event. Fails if it does not follow OpenLineage's model."""
    found = fault(event)
    assert not found, f"{found}: {json.dumps(event)[:1000]}"
    return event


def stored(data: DataRoot) -> list[dict[str, Any]]:
    """Return the events in a data root, in order of time."""
    return [checked(json.loads(data.lineage.read(path))) for path in data.lineage.list()]


def states(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (job, state) of events."""
    return [(event["job"]["name"], event["eventType"]) for event in events]


def names(data: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (name, version) of inputs or outputs."""
    return [(each["name"], each["facets"].get("version", {}).get("datasetVersion", "")) for each in data]

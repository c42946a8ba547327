"""CloudEvents over HTTP: the adapter of ciml's own events, and the parts that adapters of CloudEvents share.

In structured mode the body is the event; in binary mode headers are its attributes. The adapter reads the events of
docs/formats/events.md from a sender that a receiver verified, so their source is the configured one. On Kafka they need
no adapter: `ciml.events.cloudevents` decodes them there, and takes the source from the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.cloudevents import PHASES, open_cloudevent
from ciml.events.fields import kind_of
from ciml.events.redaction import shown
from ciml.integrations.adapter import Adapter, Delivery, Reading, Run
from ciml.integrations.fields import moment, needed, objects
from ciml.limits import MAX_EVENT_RUNS

#: The headers that an adapter of CloudEvents needs.
HEADERS = ("content-type", "ce-specversion", "ce-id", "ce-type", "ce-source", "ce-subject", "ce-time")


def opened(delivery: Delivery) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return (attributes, data) of a CloudEvent. The attributes are not checked, but for ``specversion``.

    Raises:
      RejectedInput: the delivery is no CloudEvent, or its data is no object.
    """
    headers = [(name.replace("ce-", "ce_", 1), text.encode()) for name, text in delivery.headers.items()]
    attributes, data = open_cloudevent(delivery.body, headers)
    if type(data) is not dict:
        raise RejectedInput("bad_field", f"data: want an object, not {kind_of(data)}")
    return attributes, data


def read(delivery: Delivery) -> Reading:
    """Read the runs of an event: its data is one run, or ``{"runs": [run, …]}``."""
    attributes, data = opened(delivery)
    kind = needed(attributes, "type")
    phase = PHASES.get(kind)
    if phase is None:
        raise RejectedInput("unknown_type", f"type: {shown(kind)}")
    fields: Any = objects(data, "runs", most=MAX_EVENT_RUNS) if "runs" in data else [data]
    if not fields:
        raise RejectedInput("bad_field", "runs: want a list of runs")
    runs = tuple(Run(phase, run) for run in fields)
    return Reading(needed(attributes, "id"), kind, moment(attributes, "time"), runs)


ADAPTER = Adapter("cloudevents", HEADERS, read)

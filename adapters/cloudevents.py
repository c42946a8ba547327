"""ciml's own CloudEvents over HTTP: the events of docs/formats/events.md, from a sender that a receiver verified.

On Kafka they need no adapter: `ciml.events.cloudevents` decodes them there, and takes their source from the event.
Here the source is the receiver's configured one.
"""

from __future__ import annotations

from typing import Any

from ciml.adapters.adapter import Adapter, Delivery, Reading, Run
from ciml.adapters.envelope import HEADERS, opened
from ciml.adapters.fields import moment, needed, objects
from ciml.errors import RejectedInput
from ciml.events.cloudevents import PHASES
from ciml.events.redaction import shown
from ciml.limits import MAX_EVENT_RUNS


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

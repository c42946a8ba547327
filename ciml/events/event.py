"""A decoded event: the runs that it reports and what it says of others, whatever system sent it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import iso_time
from ciml.events.records import Message, Phase, RunFacts
from ciml.events.run_id import RunId
from ciml.events.updates import FactUpdate

#: Headers of a CloudEvent in structured mode.
STRUCTURED = (("content-type", b"application/cloudevents+json"),)

#: A run that has an id but an unusable field, and why.
Rejection = tuple[RunFacts, RejectedInput]


class Event(NamedTuple):
    """A decoded message. Only ``addresses`` and ``runs`` may hold secrets; neither is stored as it is.

    Attributes:
      key: ``source id``; the same event has the same key in every message that carries it. Of a delivery whose sender
        was proved ``source+proof id``, so that nobody without that proof can claim its id first.
      source: the CloudEvent's source, without userinfo or tokens.
      id: the CloudEvent's id, unique within the source.
      type: the CloudEvent's type, or the CI system's word for it.
      time_us: the CloudEvent's own time, epoch microseconds, or None.
      run_facts: the runs, in the event's order; each run id appears once.
      rejections: runs that have an id but an unusable field, and why; their facts hold the identity alone.
      addresses: run id -> the log's full address, where it differs from the facts' `log_url`, which holds no secret.
      runs: run id -> the run's own JSON, where the event names several: a dead letter keeps it.
        An adapter leaves it empty: its dead letters keep the whole message, so that a corrected adapter can replay.
      updates: facts about runs that other events report.
      ignored: why an event without runs and updates is ignored, for people.
    """

    key: str
    source: str
    id: str
    type: str
    time_us: int | None
    run_facts: tuple[RunFacts, ...]
    rejections: tuple[tuple[RunFacts, RejectedInput], ...]
    addresses: Mapping[str, str]
    runs: Mapping[str, Mapping[str, Any]]
    updates: tuple[FactUpdate, ...] = ()
    ignored: str = ""

    def __repr__(self) -> str:
        """Leave out the fields that may hold secrets."""
        return f"Event({self.key!r}, {self.type!r}, {self.run_facts!r}, {self.rejections!r})"

    def message_for(self, run_id: str, message: Message) -> Message:
        """Return a message about one run alone; ``message`` itself if the event names no other run.

        So each run of an event with a thousand runs is in one dead letter, not in a thousand.
        """
        if run_id not in self.runs:
            return message
        wrapped = envelope(self.id, self.source, self.type, self.time_us)
        value = json.dumps({**wrapped, "data": self.runs[run_id]}).encode()
        return Message(message.offset, value, STRUCTURED, message.key, message.timestamp_ms)


def identity_alone(identity: RunId, phase: Phase, rejected: RejectedInput) -> Rejection:
    """Return a rejected run: of its facts only the identity is known."""
    return RunFacts(identity.encode(), identity.native_id, "", phase, source=identity.source), rejected


def envelope(event_id: str, source: str, event_type: str, when_us: int | None) -> dict[str, str]:
    """Return the attributes of a CloudEvent in JSON."""
    attributes = {"specversion": "1.0", "id": event_id, "source": source, "type": event_type}
    attributes["datacontenttype"] = "application/json"
    if when_us is not None:
        attributes["time"] = iso_time(when_us)
    return attributes

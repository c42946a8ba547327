"""CloudEvents as HTTP carries them: in structured mode the body is the event, in binary mode headers are attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ciml.adapters.adapter import Delivery
from ciml.errors import RejectedInput
from ciml.events.cloudevents import open_cloudevent
from ciml.events.fields import kind_of

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

"""A schema accepts each message that its decoder accepts."""

from __future__ import annotations

import json

from hypothesis import given

from ciml.errors import RejectedInput
from ciml.events.cloudevents import decode_message, open_cloudevent
from ciml.events.records import Message
from ciml.events.samples import decode
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.events import events
from tests.fuzz.strategies.events import samples as samples_values
from tests.messages import fault


@fuzz
@given(events())
def test_each_event_that_is_decoded_follows_the_schema(message: Message) -> None:
    try:
        event = decode_message(message)
    except RejectedInput:
        return
    if event.rejections:
        return  # which has a run that is wrong
    attributes, data = open_cloudevent(message.value or b"", message.headers)
    value = {**attributes, "data": data}
    assert not fault("ci-events", value), value


@fuzz
@given(samples_values())
def test_each_message_of_samples_that_is_decoded_follows_the_schema(value: bytes) -> None:
    try:
        decode(value)
    except RejectedInput:
        return
    found = json.loads(value)
    assert not fault("samples", found), found

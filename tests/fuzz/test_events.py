"""Any message is an event with valid mentions, or is refused with a known reason; no secret of it is kept.

A schema accepts each message that its decoder accepts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given

from ciml.digest import canonical_json
from ciml.errors import RejectedInput
from ciml.events import cloudevents as decoder
from ciml.events import samples
from ciml.events.cloudevents import Event, decode_message, open_cloudevent
from ciml.events.fields import is_clean
from ciml.events.listing import Reading, decode_line
from ciml.events.payloads import message_of, payload_of
from ciml.events.records import Message, RunFacts
from ciml.events.run_id import RunId
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.events import events, lines
from tests.fuzz.strategies.events import samples as samples_values
from tests.fuzz.strategies.hostile_events import CANARY, KINDS, hostile_event
from tests.messages import fault


def decoded(message: Message) -> Event | RejectedInput:
    try:
        return decode_message(message)
    except RejectedInput as refused:
        return refused


def check_facts(mention: RunFacts) -> None:
    canonical_json(mention.to_json())
    assert RunFacts.from_json(mention.to_json()) == mention
    assert RunId.decode(mention.run_id).native_id == mention.build_uuid
    assert all(
        is_clean(text) for text in (mention.build_name, mention.project, *mention.labels, *mention.labels.values())
    )


def check_refused(refused: RejectedInput, reasons: frozenset[str] = decoder.REASONS) -> None:
    assert refused.reason in reasons
    assert len(refused.detail) < 1000
    assert CANARY not in refused.detail
    canonical_json(refused.detail)


def held(payload: Mapping[str, Any]) -> bytes:
    """All bytes of a payload, as plain as a reader could make them."""
    parts = [payload.get("value"), payload.get("key"), *(value for _, value in payload.get("headers", ()))]
    return (
        b" ".join(base64.b64decode(part) for part in parts if part).replace(b"\0", b"") + json.dumps(payload).encode()
    )


@fuzz
@given(events())
def test_an_event_is_decoded_or_refused(message: Message) -> None:
    event, payload = decoded(message), payload_of(message)
    canonical_json(payload)
    assert CANARY.encode() not in held(payload)
    assert CANARY not in repr(event)
    if isinstance(event, RejectedInput):
        check_refused(event)
    else:
        for mention in (*event.run_facts, *(mention for mention, _ in event.rejections)):
            check_facts(mention)
        for _, rejected in event.rejections:
            check_refused(rejected)
        if not event.rejections:  # else it has a run that is wrong
            attributes, data = open_cloudevent(message.value or b"", message.headers)
            assert not fault("ci-events", {**attributes, "data": data})
    if "value" not in payload:
        assert isinstance(event, RejectedInput)
        assert event.reason == "too_large"
        return
    kept = message_of(payload, message.offset)
    assert payload_of(kept) == payload
    again = decoded(kept)  # what is kept says what came: of the same runs, or that it cannot be used
    assert isinstance(again, RejectedInput) == isinstance(event, RejectedInput)
    if isinstance(event, Event) and isinstance(again, Event):
        assert [each.run_id for each in again.run_facts] == [each.run_id for each in event.run_facts]


@fuzz
@given(lines())
def test_a_line_is_decoded_or_refused(line: bytes) -> None:
    try:
        run = decode_line(line, Reading(logs="/srv/logs"))
    except RejectedInput as refused:
        check_refused(refused)
        return
    check_facts(run.facts)
    assert CANARY not in repr(run.facts)
    if run.fault:
        check_refused(run.fault)


@fuzz
@given(samples_values())
def test_samples_are_decoded_or_refused(value: bytes) -> None:
    try:
        message = samples.decode(value)
    except RejectedInput as refused:
        check_refused(refused, samples.REASONS)
        return
    assert samples.decode(samples.encode(message)).run_id == message.run_id
    assert not fault("samples", json.loads(value))


def test_hostile_events_of_every_kind_repeat() -> None:
    assert len(KINDS) >= 25
    for seed in range(3 * len(KINDS)):
        assert hostile_event(seed) == hostile_event(seed)

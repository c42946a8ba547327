"""Reads the messages of a topic, and checks each against the JSON Schema of its topic.

The schemas are closed here: a field that a schema does not name is a fault of the schema, although consumers ignore it.
"""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

from confluent_kafka.admin import OffsetSpec
from jsonschema import Draft202012Validator

from ciml.events.records import Message
from ciml.kafka import KafkaOptions
from ciml.messages import schema, schema_titles
from ciml.pipelines.kafka.broker import list_topic, offsets_of
from ciml.pipelines.kafka.reader import Reader

_FINISHED = b"dev.ciml.run.finished.v1"


def published(broker: str, topic: str, name: str | None) -> list[Message]:
    """Return all committed messages of a topic, partition by partition.

    Args:
      broker: its ``host:port``.
      topic: the topic.
      name: of the schema that each message must follow: the topic's usual name; None for messages of no format.
    """
    found: list[Message] = []
    options, deadline = KafkaOptions(broker), time.monotonic() + 20.0
    bounds = list_topic(options, topic).bounds
    # The markers of a commit are written after its answer: until then, its messages are beyond the end for a reader.
    ends = offsets_of(options, topic, sorted(bounds), OffsetSpec.latest(), committed=False, timeout_s=20.0)
    for partition, (first, _) in bounds.items():
        reader = Reader(options, topic, partition)
        reader.seek(first)
        while reader.position < ends[partition] and time.monotonic() < deadline:
            found += reader.read(1000, 0.5)
        reader.close()
    for message in found if name is not None else ():
        check_message(name or "", message)
    return found


def check_message(name: str, message: Message) -> None:
    """Assert that value and headers of a message follow the schemas of a topic."""
    headers = {key: (value or b"").decode() for key, value in message.headers}
    if f"{name}-headers" in schema_titles():
        check(f"{name}-headers", headers)
    else:
        assert not headers, f"{name}: {headers}"
    if "ciml_adapter" in headers:
        return  # the value has the CI system's own format
    if "ce_type" in headers and name == "ci-events":
        check(name, json.loads(message.value or b""), form="Finished" if headers["ce_type"] == _FINISHED else "")
    else:
        check(name, json.loads(message.value or b""))


def check(name: str, value: Any, form: str | None = None) -> None:
    """Assert that a JSON value follows the closed form of a schema.

    Args:
      name: of the schema.
      value: the JSON value.
      form: of an event in binary mode: ``Finished`` or "", whose data the value is.
    """
    found = fault(name, value, closed=True, form=form)
    assert not found, f"{name}: {found}: {json.dumps(value)[:1000]}"


def fault(name: str, value: Any, *, closed: bool = False, form: str | None = None) -> str:
    """Return why a JSON value does not follow a schema; "" if it does. ``closed`` forbids unknown fields."""
    error = next(_validator(name, closed, form).iter_errors(value), None)
    return "" if error is None else f"{error.json_path}: {error.message[:500]}"


@cache
def _validator(name: str, closed: bool, form: str | None) -> Draft202012Validator:
    made = schema(name)
    if form is not None:
        prefix = form or "Event"
        made["anyOf"] = [{"$ref": f"#/$defs/{prefix}Run"}, {"$ref": f"#/$defs/{prefix}Runs"}]
    if closed:
        for each in made["$defs"].values():
            if each.get("type") == "object":
                each["additionalProperties"] = False
    return Draft202012Validator(made)

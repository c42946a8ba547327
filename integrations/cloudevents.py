"""The adapters of ciml's own CloudEvents and of CDEvents, both over HTTP.

Other adapters of CloudEvents use `HEADERS` and `open_delivery`. In structured mode the body is the event; in binary
mode headers are its attributes.

ciml's own events are those of docs/formats/events.md, from a sender that a receiver verified, so their source is the
configured one. On Kafka they need no adapter: `ciml.events.cloudevents` decodes them there, and takes the source from
the event.

CDEvents 0.3 to 0.5, and the draft of 0.6, report runs of pipelines, tasks and test suites, and the changes of their
chain. Versions differ in names: ``context.version`` became ``specversion``, ``content.url`` ``uri``, the outcomes
``pass`` and ``fail`` ``success`` and ``failure``. What a run needs and CDEvents lacks is read from ``customData.ciml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ciml.errors import RejectedInput
from ciml.events.cloudevents import PHASES, open_cloudevent, run_objects
from ciml.events.fields import kind_of
from ciml.events.records import Phase
from ciml.events.redaction import shown
from ciml.events.reviews import PARTLY_APPROVED
from ciml.events.run_id import bounded_id
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate
from ciml.integrations.fields import (
    address_at,
    join_id,
    non_empty,
    object_at,
    phases_by_status,
    required_text,
    text_at,
    time_at,
    value_at,
)

#: The headers that an adapter of CloudEvents needs.
HEADERS = ("content-type", "ce-specversion", "ce-id", "ce-type", "ce-source", "ce-subject", "ce-time")
NO_RUN = "the subject is neither a run nor a change"
CUSTOM = "a custom event reports no run"
TEST_CASE = "a test case is part of a run"
OUTPUT = "a test's output is joined to no run"
ABANDONED = "an abandoned change says nothing of its runs"
NO_CHAIN = "the change names no chain by which its runs are found"
_MAX_ID_CHARACTERS = 120  # of an id in a path; longer ones are digests
_TYPE = re.compile(r"dev\.cdevents\.([a-z]+)\.([a-z]+)\.\d+\.\d+\.\d+(?:-[a-z0-9.]+)?")
_CUSTOM_TYPE = re.compile(r"dev\.cdeventsx\..+")
_PHASES = phases_by_status(queued="queued", started="started", finished="finished")
#: Where the content of a run names its job: in the first of these that it has.
_JOBS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "pipelinerun": (("pipelineName",),),
    "taskrun": (("taskName",),),
    "testsuiterun": (("testSuite", "name"), ("testSuite", "id")),
}
_IGNORED = {"testcaserun": TEST_CASE, "testoutput": OUTPUT}
#: What a predicate of a change says of its review. A review may also have disapproved. No event says which version of
#: the change a run of the chain executed, and on what: a merge is of the last version alone.
_REVIEWS = {"created": "", "updated": "", "reviewed": "reviewed", "merged": PARTLY_APPROVED}
#: The fields of a run that ``customData.ciml`` may hold.
_FURTHER = (
    "job attempt log_url output_url provider region flavour labels event pipeline project branch change patchset "
    "review fork owner head attempt_of"
).split()


def open_delivery(delivery: Delivery) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return (attributes, data) of a CloudEvent. The attributes are not checked, but for ``specversion``.

    Raises:
      RejectedInput: the delivery is not a CloudEvent, or its data is not an object.
    """
    headers = [(name.replace("ce-", "ce_", 1), text.encode()) for name, text in delivery.headers.items()]
    attributes, data = open_cloudevent(delivery.body, headers)
    if type(data) is not dict:
        raise RejectedInput("bad_field", f"data: want an object, not {kind_of(data)}")
    return attributes, data


def read(delivery: Delivery) -> Reading:
    """Read the runs of an event: its data is one run, or ``{"runs": [run, …]}``."""
    attributes, data = open_delivery(delivery)
    kind = required_text(attributes, "type")
    phase = PHASES.get(kind)
    if phase is None:
        raise RejectedInput("unknown_type", f"type: {shown(kind)}")
    runs = tuple(Run(phase, run) for _, run in run_objects(data))
    return Reading(required_text(attributes, "id"), kind, time_at(attributes, "time"), runs)


def read_cdevent(delivery: Delivery) -> Reading | Ignored:
    """Read a run, or what an event says of the runs of a change's chain."""
    body = _event(delivery)
    event = required_text(body, "context", "id")
    kind = required_text(body, "context", "type")
    if _CUSTOM_TYPE.fullmatch(kind):
        return Ignored(event, kind, CUSTOM)
    match = _TYPE.fullmatch(kind)
    if not match:
        raise RejectedInput("unknown_type", f"context.type: {shown(kind)}")
    subject, predicate = match.groups()
    when = time_at(body, "context", "timestamp")
    if subject == "change":
        return _change(body, event, kind, when, predicate)
    if subject not in _JOBS:
        return Ignored(event, kind, _IGNORED.get(subject, NO_RUN))
    phase = _PHASES.get(predicate)
    if phase is None:
        raise RejectedInput("unknown_type", f"context.type: {shown(kind)}")
    return Reading(event, kind, when, (Run(phase, _run(body, subject, phase, when)),))


def _event(delivery: Delivery) -> Mapping[str, Any]:
    """Return the CDEvent: the data of a CloudEvent, or the body itself."""
    if "ce-type" not in delivery.headers:
        body = delivery.json()
        if "context" in body:
            return body
    return open_delivery(delivery)[1]


def _run(body: Mapping[str, Any], subject: str, phase: Phase, when: str | float | None) -> dict[str, Any]:
    content = object_at(body, "subject", "content")
    names = (text_at(content, *path) for path in _JOBS[subject])
    chain = _chain(body)
    custom = value_at(body, "customData")
    further = object_at(custom, "ciml") if type(custom) is dict else {}
    fields = non_empty(
        id=_native_id(body),
        job=next(filter(None, names), ""),
        result=text_at(content, "outcome"),
        start_time=when if phase == "started" else None,
        end_time=when if phase == "finished" else None,
        pipeline=text_at(content, "pipelineName"),
        url=address_at(content, "uri") or address_at(content, "url"),
        subjects=(chain,) if chain else (),
    )
    return fields | {name: further[name] for name in _FURTHER if name in further}


def _native_id(body: Mapping[str, Any]) -> str:
    """Return the subject's id, which is unique within its source alone."""
    source = text_at(body, "subject", "source") or text_at(body, "context", "source")
    return bounded_id(f"{source.rstrip('/')}/{required_text(body, 'subject', 'id')}".lstrip("/"), _MAX_ID_CHARACTERS)


def _chain(body: Mapping[str, Any]) -> str:
    chain = text_at(body, "context", "chainId")
    return join_id(f"chain:{chain}") if chain else ""


def _change(
    body: Mapping[str, Any], event: str, kind: str, when: str | float | None, predicate: str
) -> Reading | Ignored:
    if predicate == "abandoned":
        return Ignored(event, kind, ABANDONED)
    if predicate not in _REVIEWS:
        raise RejectedInput("unknown_type", f"context.type: {shown(kind)}")
    chain = _chain(body)
    if not chain:
        return Ignored(event, kind, NO_CHAIN)
    facts = non_empty(
        change=required_text(body, "subject", "id"),
        project=text_at(body, "subject", "content", "repository", "id"),
        review=_REVIEWS[predicate],
    )
    return Reading(event, kind, when, updates=(RunUpdate(chain, facts),))


ADAPTER = Adapter("cloudevents", HEADERS, read)
CDEVENTS = Adapter("cdevents", HEADERS, read_cdevent)

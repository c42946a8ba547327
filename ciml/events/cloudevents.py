"""CI events: CloudEvents on Kafka, decoded into typed run facts or rejected with a reason; and their encoding.

docs/formats/events.md describes the format. Treat everything in a message as hostile until it has passed this module.
`Event` is the decoded form of a message from any system: the runs that it reports, and facts about other runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ciml.digest import sha256_json
from ciml.errors import CimlError, RejectedInput
from ciml.events.fields import id_field, iso_time, kind_of, parse_json, required_text_field, time_field
from ciml.events.payloads import UNREADABLE_HEADERS, excess
from ciml.events.records import FactUpdate, Message, Phase, RunFacts
from ciml.events.redaction import redact_url, shown
from ciml.events.run_facts import facts_from_run, run_from_facts, run_identity
from ciml.events.run_id import source_name
from ciml.limits import MAX_EVENT_RUNS, MAX_ID_CHARACTERS

#: Headers of a CloudEvent in structured mode.
STRUCTURED = (("content-type", b"application/cloudevents+json"),)

FINISHED = "dev.ciml.run.finished.v1"
STARTED = "dev.ciml.run.started.v1"
QUEUED = "dev.ciml.run.queued.v1"
PHASES: dict[str, Phase] = {FINISHED: "finished", STARTED: "started", QUEUED: "queued"}
#: Why `decode_message` rejects a message: a closed set.
REASONS = frozenset(
    "broken_json not_an_event tombstone unknown_type missing_field bad_field bad_time bad_run_id too_large "
    "too_many_runs".split()
)
_redact_source = lru_cache(maxsize=1024)(redact_url)  # a topic has few sources

#: The facts of a run that has an id but an unusable field, and why. Of the facts only the identity is known.
Rejection = tuple[RunFacts, RejectedInput]


class Event(NamedTuple):
    """A decoded message. Only ``addresses``, ``outputs`` and ``runs`` may hold secrets; none is stored as it is.

    Attributes:
      key: ``source id``; the same event has the same key in every message that carries it. Of a delivery whose sender
        was proved ``source+proof id``, so that a sender without that proof cannot claim its id first.
      source: the CloudEvent's source, without userinfo or tokens.
      id: the CloudEvent's id, unique within the source.
      type: the CloudEvent's type, or the CI system's word for it.
      time_us: the CloudEvent's own time, epoch microseconds, or None.
      run_facts: the runs, in the event's order; each run id appears once.
      rejections: runs that have an id but an unusable field, see `Rejection`.
      addresses: run id -> the log's full address, where it differs from the facts' `log_url`, which holds no secret.
      runs: run id -> the run's own JSON, where the event names several: a dead letter keeps it.
        An adapter leaves it empty: its dead letters keep the whole message, so that a corrected adapter can replay.
      updates: facts about runs that other events report.
      ignored: why an event without runs and updates is ignored, for people.
      outputs: run id -> the full address of the job's output, where it differs from the facts' `output_url`.
    """

    key: str
    source: str
    id: str
    type: str
    time_us: int | None
    run_facts: tuple[RunFacts, ...]
    rejections: tuple[Rejection, ...]
    addresses: Mapping[str, str]
    runs: Mapping[str, Mapping[str, Any]]
    updates: tuple[FactUpdate, ...] = ()
    ignored: str = ""
    outputs: Mapping[str, str] = MappingProxyType({})

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


@dataclass(frozen=True)
class DecodedRuns:
    """The runs of an event: see the attributes of `Event`; ``facts`` are by run id."""

    facts: dict[str, RunFacts] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def add(self, run: Mapping[str, Any], source: str, phase: Phase, where: str = "") -> str:
        """Decode the object of a run, and return the run's id. Of several runs with one id the first counts.

        Raises:
          RejectedInput: it has no valid identity, without which the event cannot be accounted for.
        """
        identity = run_identity(run, source, where)
        run_id = identity.encode()
        try:
            facts, address, output = facts_from_run(run, identity, phase, where)
        except RejectedInput as rejected:
            self.rejections.append((RunFacts(run_id, identity.native_id, "", phase, source=source), rejected))
            return run_id
        if self.facts.setdefault(run_id, facts) is facts:
            if address != facts.log_url:
                self.addresses[run_id] = address
            if output != facts.output_url:
                self.outputs[run_id] = output
        return run_id


def envelope(event_id: str, source: str, event_type: str, when_us: int | None) -> dict[str, str]:
    """Return the attributes of a CloudEvent in JSON."""
    attributes = {"specversion": "1.0", "id": event_id, "source": source, "type": event_type}
    attributes["datacontenttype"] = "application/json"
    if when_us is not None:
        attributes["time"] = iso_time(when_us)
    return attributes


def decode_message(message: Message, names: Mapping[str, str] | None = None) -> Event:
    """Decode the CloudEvent in a Kafka message: structured, binary or bare JSON.

    Args:
      message: the message as it was read.
      names: CloudEvent source -> source name in the run ids, as `ciml.events.run_id.source_name` takes them.

    Raises:
      RejectedInput: with one of `REASONS`, where no run can be identified. A fault in a run that has an id goes into
        `Event.rejections` instead: the fault belongs to that run, and the event's other runs are not lost.
    """
    attributes, data = open_cloudevent(checked_value(message), message.headers)
    ce_source = required_text_field(attributes, "source", limit=MAX_ID_CHARACTERS)
    ce_id = id_field(attributes, "id")
    if not ce_id:
        raise RejectedInput("missing_field", "id")
    ce_type = required_text_field(attributes, "type", limit=256)
    phase = PHASES.get(ce_type)
    if phase is None:
        raise RejectedInput("unknown_type", f"type: {shown(ce_type)}")
    ce_source = _redact_source(ce_source)
    if not ce_source or " " in ce_source:
        raise RejectedInput("bad_field", "source: want a URI reference")
    when_us = time_field(attributes, "time")
    source = source_name(ce_source, names)
    if data is None:
        raise RejectedInput("missing_field", "data")
    if type(data) is not dict:
        raise RejectedInput("bad_field", f"data: want an object, not {kind_of(data)}")
    runs = DecodedRuns()
    objects: dict[str, Mapping[str, Any]] = {}
    for where, run in run_objects(data):
        run_id = runs.add(run, source, phase, where)
        if run_id in objects:
            raise RejectedInput("bad_field", f"{where}id: the run appears twice in the event")
        objects[run_id] = run
    return Event(
        key=f"{ce_source} {ce_id}",
        source=ce_source,
        id=ce_id,
        type=ce_type,
        time_us=when_us,
        run_facts=tuple(runs.facts.values()),
        rejections=tuple(runs.rejections),
        addresses=runs.addresses,
        runs=objects if "runs" in data else {},
        outputs=runs.outputs,
    )


def checked_value(message: Message) -> bytes:
    """Return the value of a message. Raises `RejectedInput`: it has none, is too large, or has an unreadable header."""
    if not message.value:
        raise RejectedInput("tombstone", "the message has no value")
    if fault := excess(message):
        raise RejectedInput("too_large", fault)
    if message.headers == UNREADABLE_HEADERS:
        raise RejectedInput("not_an_event", "a header name is not UTF-8")
    return message.value


def run_objects(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return each run of an event: the prefix of its fields' names in errors, and its object.

    Raises:
      RejectedInput: the list is not a list of objects, is empty, or has too many.
    """
    if "runs" not in data:
        return [("", data)]
    runs = data["runs"]
    if type(runs) is not list or not runs:
        kind = "an empty list" if runs == [] else kind_of(runs)
        raise RejectedInput("bad_field", f"runs: want a list of runs, not {kind}")
    if len(runs) > MAX_EVENT_RUNS:
        raise RejectedInput("too_many_runs", f"runs: {len(runs)} runs, at most {MAX_EVENT_RUNS}")
    for index, run in enumerate(runs):
        if type(run) is not dict:
            raise RejectedInput("bad_field", f"runs[{index}]: want an object, not {kind_of(run)}")
    return [(f"runs[{index}].", run) for index, run in enumerate(runs)]


def open_cloudevent(value: bytes, headers: Iterable[tuple[str, bytes | None]]) -> tuple[Mapping[str, Any], Any]:
    """Return (the CloudEvent's attributes, its data) of a structured, binary or bare message.

    Neither is checked, but for ``specversion`` 1.0.

    Raises:
      RejectedInput: ``not_an_event``, ``bad_field`` or ``broken_json``.
    """
    ce_headers: dict[str, bytes] = {}
    for header, content in headers:
        name = header.lower()
        if content is None or not (name == "content-type" or name.startswith("ce_")):
            continue
        if name in ce_headers:
            raise RejectedInput("not_an_event", f"header {shown(name)} appears twice")
        ce_headers[name] = content
    media = ce_headers.pop("content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if media.startswith("application/cloudevents"):
        if media not in ("application/cloudevents", "application/cloudevents+json"):
            raise RejectedInput("not_an_event", f"content-type: {shown(media)} is not a single CloudEvent in JSON")
    elif ce_headers:
        return _open_binary(value, ce_headers, media)
    document = parse_json(value)
    if type(document) is not dict:
        raise RejectedInput("not_an_event", f"want an object, not {kind_of(document)}")
    if document.get("specversion") != "1.0":
        raise RejectedInput("not_an_event", "specversion: want 1.0")
    if "data_base64" in document:
        raise RejectedInput("bad_field", "data_base64: want data as JSON")
    return document, document.get("data")


def _open_binary(value: bytes, headers: Mapping[str, bytes], media: str) -> tuple[Mapping[str, Any], Any]:
    if media not in ("", "application/json", "text/json"):
        raise RejectedInput("not_an_event", f"content-type: {shown(media)} is not JSON")
    try:
        attributes = {name[3:]: content.decode() for name, content in headers.items()}
    except UnicodeDecodeError:
        raise RejectedInput("bad_field", "a ce_ header is not UTF-8") from None
    if attributes.get("specversion") != "1.0":
        raise RejectedInput("not_an_event", "ce_specversion: want 1.0")
    return attributes, parse_json(value)


def run_event(
    event_type: str,
    *run_facts: RunFacts,
    event_id: str | None = None,
    time_us: int | None = None,
    mode: Literal["structured", "binary", "bare"] = "structured",
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return a Kafka message that reports runs.

    Args:
      event_type: `FINISHED`, `STARTED` or `QUEUED`.
      run_facts: one run or several, all of one `source`, which becomes the CloudEvent's.
      event_id: the CloudEvent's id; the default follows from type and data, so the same event sent again is the same.
      time_us: the CloudEvent's time, epoch microseconds; by default the latest start or end of the runs.
      mode: content mode of the CloudEvent.

    Returns:
      (value, headers) for a producer.

    Raises:
      CimlError: no run, runs of several sources, or an unknown ``event_type``.
    """
    sources = {facts.source for facts in run_facts}
    if len(sources) != 1 or event_type not in PHASES:
        raise CimlError("an event needs a known type and at least one run, all runs of one source")
    runs = [run_from_facts(facts) for facts in run_facts]
    data: dict[str, Any] = runs[0] if len(runs) == 1 else {"runs": runs}
    if time_us is None:
        times = [moment for facts in run_facts for moment in (facts.start_us, facts.end_us) if moment is not None]
        time_us = max(times, default=None)
    attributes = envelope(event_id or sha256_json([event_type, data])[:32], sources.pop(), event_type, time_us)
    if mode == "binary":
        del attributes["datacontenttype"]
        headers = [("content-type", b"application/json")]
        headers += [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
        return json.dumps(data).encode(), headers
    return json.dumps({**attributes, "data": data}).encode(), list(STRUCTURED) if mode == "structured" else []


#: Returns a message (value, headers) that reports finished runs. The arguments are those of `run_event`.
finished_event = partial(run_event, FINISHED)

"""The registry of adapters and review systems, and the decoding of a message by the adapter that its headers name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata

from ciml.errors import CimlError, RejectedInput
from ciml.events.cloudevents import DecodedRuns, Event, checked_value, decode_message
from ciml.events.fields import id_field, is_proof, time_field
from ciml.events.records import Message
from ciml.events.redaction import shown
from ciml.events.run_id import source_name
from ciml.events.updates import fact_update
from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading
from ciml.integrations.systems import System
from ciml.limits import MAX_EVENT_RUNS

#: The entry point group of adapters in other packages. Their metadata names it, so it never changes.
GROUP = "ciml.adapters"

#: Headers of a message that a receiver produced. `HEADER` precedes the name of a header that the adapter needs.
ADAPTER = "ciml_adapter"
SOURCE = "ciml_source"
AUTH = "ciml_auth"
ID = "ciml_id"
HEADER = "ciml_header_"


@cache
def adapters() -> Mapping[str, Adapter]:
    """Return the adapters by name: ciml's own, then those of installed packages.

    Raises:
      CimlError: an installed adapter cannot be imported, is not an adapter, or has another's name.
    """
    by_name = dict(_own_adapters())
    for entry in metadata.entry_points(group=GROUP):
        try:
            adapter = entry.load()
        except Exception as error:
            raise CimlError(f"the adapter {entry.name} ({entry.value}) cannot be imported: {error}") from error
        if not isinstance(adapter, Adapter):
            raise CimlError(f"the adapter {entry.name}: {entry.value} is not an adapters.Adapter")
        if adapter.name in by_name:
            raise CimlError(f"two adapters have the name {adapter.name!r}; uninstall one")
        by_name[adapter.name] = adapter
    return by_name


def kinds() -> Mapping[str, type[System]]:
    """Return the class of each kind of review system, by the value of its key ``kind``."""
    from ciml.integrations.gerrit.review import GerritSystem
    from ciml.integrations.github.review import GitHubSystem
    from ciml.integrations.gitlab.review import GitLabSystem

    return {system.kind: system for system in (GitHubSystem, GerritSystem, GitLabSystem)}


def _own_adapters() -> Mapping[str, Adapter]:
    from ciml.integrations import cloudevents, jenkins, tekton, zuul
    from ciml.integrations.gerrit import adapter as gerrit
    from ciml.integrations.github import adapter as github
    from ciml.integrations.gitlab import adapter as gitlab

    modules = (cloudevents, gerrit, github, gitlab, jenkins, tekton, zuul)
    return {adapter.name: adapter for adapter in (cloudevents.CDEVENTS, *(module.ADAPTER for module in modules))}


def find_adapter(name: str) -> Adapter:
    """Return an adapter. Raises `CimlError` for an unknown name."""
    if name not in adapters():
        raise CimlError(f"there is no adapter {name!r:.80}; choose from {', '.join(sorted(adapters()))}")
    return adapters()[name]


def delivered(
    adapter: Adapter, source: str, body: bytes, headers: Mapping[str, str], auth: str = "", delivery_id: str = ""
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the Kafka message (value, headers) of a delivery that a receiver verified.

    Args:
      adapter: reads the delivery later.
      source: the configured name of the source, as in run ids.
      body: the raw bytes, unchanged.
      headers: of the request; only those that the adapter needs are passed on.
      auth: how the sender was proved, such as ``hmac-sha256``; "" for not at all.
      delivery_id: the delivery's id, "" for none.
    """
    named = {ADAPTER: adapter.name, SOURCE: source, AUTH: auth, ID: delivery_id}
    passed_on = {f"{HEADER}{name}": value for name, value in headers.items() if name in adapter.headers}
    return body, [(name, value.encode()) for name, value in (named | passed_on).items() if value]


def read_event(message: Message, names: Mapping[str, str] | None = None) -> Event:
    """Decode a message by the adapter that its headers name; without one it is a CloudEvent of ciml's own.

    Args:
      message: the message as it was read.
      names: see `ciml.events.cloudevents.decode_message`; they apply to the configured sources of receivers too.

    Raises:
      RejectedInput: no run can be identified. A fault in a run that has an id goes into `Event.rejections` instead.
    """
    if not any(name == ADAPTER for name, _ in message.headers):
        return decode_message(message, names)
    value = checked_value(message)
    headers = _texts(message)
    name = headers.get(ADAPTER, "")
    auth = headers.get(AUTH, "")
    if name not in adapters():
        raise RejectedInput("unknown_type", f"{ADAPTER}: no adapter {shown(name)} is installed")
    if auth and not is_proof(auth):
        raise RejectedInput("bad_field", f"{AUTH}: want the name of a proof, such as hmac-sha256")
    source = source_name(headers.get(SOURCE, ""), names)
    needed = {key.removeprefix(HEADER): value for key, value in headers.items() if key.startswith(HEADER)}
    reading = _read(adapters()[name], Delivery(value, needed, headers.get(ID, "")))
    return _event(reading, source, name, auth)


def _read(adapter: Adapter, delivery: Delivery) -> Reading | Ignored:
    try:
        return adapter.read(delivery)
    except RejectedInput:
        raise
    except (CimlError, OSError, ImportError) as error:
        # Elsewhere such errors stop the batch, as no input causes them. An adapter is pure: here an input did.
        raise RuntimeError(f"the adapter {adapter.name}: {type(error).__name__}: {error}") from error


def _texts(message: Message) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in message.headers:
        if not name.startswith("ciml_") or value is None:
            continue
        if name in texts:
            raise RejectedInput("not_an_event", f"header {shown(name)} appears twice")
        try:
            texts[name] = value.decode()
        except UnicodeDecodeError:
            raise RejectedInput("bad_field", f"header {shown(name)} is not UTF-8") from None
    return texts


def _event(reading: Reading | Ignored, source: str, adapter: str, auth: str) -> Event:
    event_id = id_field({"id": reading.id}, "id")
    if not event_id:
        raise RejectedInput("missing_field", "id")
    key = f"{source}+{auth} {event_id}" if auth else f"{source} {event_id}"
    if isinstance(reading, Ignored):
        return Event(key, source, event_id, reading.type, None, (), (), {}, {}, ignored=reading.rule)
    for name, statements in (("runs", reading.runs), ("updates", reading.updates)):
        if len(statements) > MAX_EVENT_RUNS:
            raise RejectedInput("too_many_runs", f"{len(statements)} {name}, at most {MAX_EVENT_RUNS}")
    runs = DecodedRuns()
    for run in reading.runs:
        runs.add(run.fields, source, run.phase)
    facts = tuple(facts.replace(adapter=adapter, auth=auth) for facts in runs.facts.values())
    when_us = time_field({"time": reading.time}, "time")
    updates = tuple(
        fact_update(source, update.subject, update.facts, auth, when_us, update.only, update.by)
        for update in reading.updates
    )
    rejections = tuple(runs.rejections)
    fields = (key, source, event_id, reading.type, when_us, facts, rejections)
    return Event(*fields, runs.addresses, {}, updates, outputs=runs.outputs)

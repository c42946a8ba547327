"""The interface of an adapter: one delivery of a CI system in, its runs and what it says of other runs out.

An adapter is a value, not a class to derive from:

    ADAPTER = Adapter("buildkite", ("x-buildkite-event",), read)

Its function ``read`` is pure. It maps the system's fields to those of a run in docs/formats/events.md, and raises
`ciml.errors.RejectedInput` for what it does not understand. ciml checks every field of the result afterwards: types,
lengths, times and secrets. So an adapter only says where a fact is found. Another package registers its adapter under
the entry point group ``ciml.adapters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ciml.errors import RejectedInput
from ciml.events.fields import kind_of, parse_json
from ciml.events.records import Phase


class Delivery(NamedTuple):
    """One message of a CI system, as a receiver verified it.

    Attributes:
      body: the raw bytes.
      headers: the headers that the adapter asked for, by lower-case name. An MQTT message has ``topic``.
      id: the delivery's id, where the proof of its sender covers it, such as webhook-id; else "".
    """

    body: bytes
    headers: Mapping[str, str]
    id: str = ""

    def json(self) -> Mapping[str, Any]:
        """Return the body as a JSON object, within ciml's limits.

        Raises:
          RejectedInput: ``broken_json``, or ``bad_field`` where it is not an object.
        """
        value = parse_json(self.body)
        if type(value) is not dict:
            raise RejectedInput("bad_field", f"want an object, not {kind_of(value)}")
        return value


@dataclass(frozen=True, slots=True)
class Run:
    """One run that a delivery reports.

    Attributes:
      phase: how far it is.
      fields: the run object of docs/formats/events.md, not yet checked: ``id``, ``job``, ``result``, ``log_url``, …
    """

    phase: Phase
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """Facts about runs that other deliveries report, such as whether a change comes from a fork, or was merged.

    Attributes:
      subject: the runs concerned: each run whose field ``subjects`` holds this text.
      facts: names of `ciml.events.updates.UPDATABLE` -> text, such as ``{"fork": "yes"}``.
      only: the condition of a review: facts that a run must have, such as ``{"change": "12", "branch": "main"}``. Of a
        commit (subject ``sha:…``) a review counts with a condition alone. Without facts, it says that the condition
        is one of the subject: conditions that differ contradict each other, and no review counts.
      by: the account whose review it is.
    """

    subject: str
    facts: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, str] = field(default_factory=dict)
    by: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a delivery says.

    Attributes:
      id: the event's id, unique within the source: a delivery that is sent again has the same id.
      type: the event's type, for people.
      time: the event's own time, ISO 8601 or epoch seconds; None if it has none.
      runs: the runs that it reports.
      updates: facts about runs that other deliveries report.
    """

    id: str
    type: str
    time: str | float | None = None
    runs: tuple[Run, ...] = ()
    updates: tuple[RunUpdate, ...] = ()


@dataclass(frozen=True, slots=True)
class Ignored:
    """A delivery that says nothing of a run, by a rule with a name.

    Attributes:
      id, type: as in `Reading`.
      rule: why, for people: ``a push starts no run``. The same words for the same rule.
    """

    id: str
    type: str
    rule: str


#: What an event says of runs, or the rule by which it is ignored.
Said = tuple[Run | RunUpdate, ...] | str
NOTHING = "the event holds no fact of a run"


def reading(event_id: str, kind: str, time: str | float | None, said: Said) -> Reading | Ignored:
    """Return what an event says; one that says nothing is ignored by the rule `NOTHING`."""
    if isinstance(said, str):
        return Ignored(event_id, kind, said)
    if not said:
        return Ignored(event_id, kind, NOTHING)
    runs = tuple(statement for statement in said if isinstance(statement, Run))
    return Reading(
        event_id, kind, time, runs, tuple(statement for statement in said if isinstance(statement, RunUpdate))
    )


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of one CI system.

    Attributes:
      name: of the system: lower-case letters, digits and dashes.
      headers: lower-case names of the headers that ``read`` needs; a receiver passes on no others.
      read: see the module. Raises `RejectedInput`; any other exception becomes a dead letter ``internal_error``.
      signature: how its webhooks are signed, a scheme of `ciml.integrations.webhooks.signatures`; "" for none.
    """

    name: str
    headers: tuple[str, ...]
    read: Callable[[Delivery], Reading | Ignored]
    signature: str = field(default="", kw_only=True)

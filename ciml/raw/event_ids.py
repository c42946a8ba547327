"""Which event is a repeat of an earlier one: ids are compared within a standing.

Senders choose the ids of their events. An event that is believed less could name a run by the id of a later event that
is believed more, and so make that a repeat. So an id counts for events of its own standing and of lower ones. An event
that is equal in all facts is a repeat whatever its standing: updates and policies change that.

The ids of trusted events are plain, as those of all events in tables of older versions. These stay repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ciml.digest import sha256_hex
from ciml.events.standing import STANDINGS, TRUSTED
from ciml.raw.known_ids import Event


def recorded_ids(event_key: str, run_id: str, facts: Mapping[str, Any], standing: int) -> list[Event]:
    """Return the ids to remember of an event and one of its runs.

    Args:
      event_key: of the event, not empty.
      run_id: of the run, "" without one.
      facts: of the run, as in the raw manifest; empty without one.
      standing: of the event, as recorded.
    """
    if not run_id or standing == TRUSTED:
        return [(event_key, run_id)]
    return [_of_standing(event_key, run_id, standing), _of_facts(event_key, run_id, facts)]


def ids_of_repeats(event_key: str, run_id: str, facts: Mapping[str, Any], standing: int) -> list[Event]:
    """Return the ids of which one is remembered if the event is a repeat. The arguments are those of `recorded_ids`."""
    if not run_id:
        return [(event_key, run_id)]
    ids = [(event_key, run_id), _of_facts(event_key, run_id, facts)]
    return ids + [_of_standing(event_key, run_id, level) for level in STANDINGS[standing:TRUSTED]]


def _of_standing(event_key: str, run_id: str, standing: int) -> Event:
    return event_key, f"{run_id}\0{standing}"


def _of_facts(event_key: str, run_id: str, facts: Mapping[str, Any]) -> Event:
    return event_key, f"{run_id}\0{sha256_hex(msgspec.json.encode(facts, order='sorted'))}"

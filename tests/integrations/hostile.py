"""Hostile changes of deliveries, and what holds for whatever an adapter makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ciml.digest import canonical_json
from ciml.errors import RejectedInput
from ciml.events.cloudevents import REASONS
from ciml.events.fields import is_clean
from ciml.events.records import RunFacts
from ciml.events.reviews import QUALIFIERS
from ciml.events.run_id import RunId
from ciml.events.updates import UPDATABLE
from ciml.integrations.adapter import Delivery
from tests.integrations.deliveries import event_of

#: In each secret; it may be in no fact.
CANARY = "CANARY5e70d239"
#: A change that leaves a field out.
DROP = object()
#: What replaces a field.
VALUES: Sequence[Any] = (
    DROP, None, True, False, 0, -1, 7, 1 << 62, 1 << 70, 0.5, -1e300, "", " ", "7", "\u202e", "\ud800", "\0", "a/../b",
    "[::1", "http://[", "x" * 5000, "2026-11-24T12:00:00", "0001-01-01T00:00:00+14:00", [], [[]], [None], [{}], {},
    {"": 1}, {"id": {}}, f"https://bot:{CANARY}@ci.example/?token={CANARY}", "ghp_" + CANARY + "a1B2" * 8,
)  # fmt: skip

Path = tuple[str | int, ...]


def paths(body: Any) -> Iterator[Path]:
    """Yield the path of each field, of objects and lists too."""
    inside: list[tuple[Path, Any]] = [((), body)]
    while inside:
        path, found = inside.pop()
        entries = found.items() if type(found) is dict else enumerate(found) if type(found) is list else ()
        for name, one in entries:
            yield (*path, name)
            inside.append(((*path, name), one))


def changed(body: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``body`` with ``value`` in one field, or without it; ``body`` where there is no such field."""
    first, *rest = path
    in_list = type(body) is list and isinstance(first, int) and first < len(body)
    if not in_list and not (type(body) is dict and first in body):
        return body
    copy = body.copy()
    if rest:
        copy[first] = changed(copy[first], tuple(rest), value)
    elif value is DROP:
        del copy[first]
    else:
        copy[first] = value
    return copy


def encoded(delivery: Delivery, body: Any) -> Delivery:
    """Return the delivery with another body."""
    return delivery._replace(body=json.dumps(body).encode())


def outcome(adapter: str, delivery: Delivery) -> str:
    """Decode a delivery, check all of the result, and return what it became: ``run``, ``update``, … or a reason.

    Raises whatever an adapter may not raise.
    """
    try:
        event = event_of(adapter, delivery)
    except RejectedInput as rejected:
        _check_rejected(rejected)
        return rejected.reason
    for facts in (*event.run_facts, *(facts for facts, _ in event.rejections)):
        _check_facts(facts)
    for _, fault in event.rejections:
        _check_rejected(fault)
    for update in event.updates:
        assert update.source == "ci"
        assert set(update.facts) <= {*UPDATABLE, *QUALIFIERS}
        assert CANARY not in repr(update)
        canonical_json(update.to_json())
    assert CANARY not in repr(event)
    assert is_clean(event.ignored)
    found = [bool(event.ignored), bool(event.run_facts), bool(event.rejections), bool(event.updates)]
    assert any(found), "a delivery has to become something"
    assert not event.ignored or sum(found) == 1
    return ("ignored", "run", "rejected", "update")[found.index(True)]


def _check_facts(facts: RunFacts) -> None:
    assert facts.source == "ci"
    assert facts.auth in ("", "token")  # as the receiver said, or not yet known to a rejected run
    canonical_json(facts.to_json())
    assert RunFacts.from_json(facts.to_json()) == facts
    assert RunId.decode(facts.run_id).native_id == facts.build_uuid
    assert all(map(is_clean, (facts.build_name, facts.project, facts.branch, *facts.subjects, *facts.labels.values())))


def _check_rejected(rejected: RejectedInput) -> None:
    assert rejected.reason in REASONS
    assert len(rejected.detail) < 1000
    assert CANARY not in rejected.detail

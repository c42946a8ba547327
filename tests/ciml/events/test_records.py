"""Records of runs keep every fact that was stored, or are not read at all."""

from __future__ import annotations

import msgspec
import pytest

from ciml.events.records import FactUpdate, Outcome, RawFile, Record, RunFacts, Trust, facts_of_row, rows_of

MENTION = {"run_id": "zuul~a~1", "build_uuid": "a", "build_name": "unit"}
FILE = {"path": "job=unit/date=2026-11-29/a.parquet", "digest": "d", "rows": 1, "size": 2}
TRUST = {"trusted": True, "rule": "gate", "policy": "p"}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (RunFacts, MENTION),
        (Trust, TRUST),
        (RawFile, FILE),
        (FactUpdate, {"subject": "s", "name": "merged", "value": "yes", "at_us": 1, "key": "k"}),
        (Outcome, {"origin": ["topic", 0, 1], "mention": MENTION, "trust": TRUST, "file": FILE}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fact_that_a_later_version_added_is_not_dropped_silently(
    kind: type[Record], stored: dict[str, object]
) -> None:
    known = {name: value for name, value in stored.items() if name in kind.__struct_fields__}
    with pytest.raises(msgspec.ValidationError, match="unknown field `embargo`"):
        kind.from_json({**known, "embargo": "yes"})


def test_outcomes_share_their_payload_and_equal_decisions() -> None:
    stored = {"kind": "dead_letter", "origin": ["topic", 0, 1], "payload": {"value": ""}, "trust": TRUST}
    first = Outcome.from_json(stored)
    second = Outcome.from_json({**stored, "trust": dict(TRUST)})
    assert first.payload is second.payload is stored["payload"]
    assert first.trust is second.trust
    assert first.trust == Trust(True, "gate", "p")


def test_rows_are_runs_first_and_have_the_facts_that_earlier_updates_joined() -> None:
    run = {"mention": MENTION, "joined": {"branch": "main"}}
    reclaim = {"mention": {**MENTION, "branch": "fix", "review": "own"}, "joined": {"branch": "main"}}
    assert rows_of({"reclaims": [reclaim], "runs": [run]}) == [run, reclaim]
    assert rows_of({"runs": [run]}) == [run]
    assert [(facts.branch, facts.review) for facts in map(facts_of_row, (run, reclaim))] == [
        ("main", ""),
        ("main", "own"),
    ]

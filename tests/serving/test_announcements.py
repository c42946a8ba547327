"""Announcements name a run and its facts; a field that is no fact makes one bad, and older ones have none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.events.records import Message, RunFacts
from ciml.pipelines.ingest.committer import render_runs
from ciml.serving.predict.log import prediction_id
from ciml.serving.predict.predictor import read_announcement
from tests.fuzz.strategies.announcements import DIGEST, FACTS, GOOD


def read(**changes: Any) -> RunFacts | None:
    value = {name: item for name, item in {**GOOD, **changes}.items() if item is not ...}
    return read_announcement(Message(7, json.dumps(value).encode())).facts


def test_the_facts_are_those_of_the_stored_row_with_what_updates_said() -> None:
    facts = RunFacts.from_json({**FACTS, "log_url": "https://logs.example.org/a"})
    row = {
        "kind": "run",
        "mention": facts.to_json(),
        "file": {"path": GOOD["path"], "digest": DIGEST, "rows": 1, "size": 1},
        "joined": {"review": "approved"},
    }
    ((key, value, _),) = render_runs({"version": 3, "runs": [row]})
    assert key == b"zuul~a~1"
    found = read_announcement(Message(7, value))
    assert found.facts == facts.replace(review="approved")
    assert (found.run_id, found.build_name, found.path) == (GOOD["run_id"], GOOD["build_name"], GOOD["path"])


def test_an_announcement_of_an_earlier_version_has_no_facts_and_one_of_a_later_version_may_have_more() -> None:
    assert read(facts=...) is None
    assert read(facts={**FACTS, "mood": "fine"}) == RunFacts.from_json(FACTS)


@pytest.mark.parametrize("value", [True, False, 1, "true", None, ...])
def test_only_a_reclaim_is_predicted_again(value: object) -> None:
    announced = GOOD if value is ... else {**GOOD, "reclaim": value}
    found = read_announcement(Message(7, json.dumps(announced).encode()))
    assert found.reclaim == (DIGEST if value is True else "")
    once, again = (prediction_id(found.run_id, "m", 1, reclaim) for reclaim in ("", found.reclaim))
    assert (once != again) is (value is True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outcome": "exploded"}, "facts.outcome: unknown 'exploded'"),
        ({"outcome": ["failure"]}, "facts.outcome: unknown"),
        ({"phase": None}, "facts.phase: unknown None"),
        ({"run_id": "zuul~b~1"}, "facts: of run 'zuul~b~1', not of zuul~a~1"),
        ({"build_name": "other"}, "facts: of run"),
        ({"change": "x" * 1025}, "facts.change: 1025 characters"),
        ({"project": "a\u202eb"}, "facts.project: holds an unprintable character"),
        ({"start_us": 1.5}, "facts.start_us: want microseconds"),
        ({"end_us": 10}, "facts.end_us: want microseconds"),
        ({"labels": {str(number): "" for number in range(65)}}, "facts.labels: 65 labels"),
        ({"subjects": ["a"] * 5}, "facts.subjects: want a list of at most 4"),
        ({"subjects": [{}]}, "facts.subjects: want a text"),
    ],
)
def test_a_field_that_is_no_fact_makes_the_announcement_bad(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RejectedInput, match=message) as error:
        read(facts={**FACTS, **changes})
    assert error.value.reason == "bad_announcement"
    with pytest.raises(RejectedInput, match="facts: want an object, not a list"):
        read(facts=[])

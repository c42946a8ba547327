"""Which runs and statements an erasure concerns."""

from __future__ import annotations

from typing import Any

import pytest

from ciml.runs.erased import RunCriteria

RUN = {"run_id": "zuul~a~1", "owner": "ann", "change": "7", "project": "p", "start_us": 20, "end_us": 30}


@pytest.mark.parametrize(
    ("criteria", "changes", "joined", "matches"),
    [
        ({"run_id": "zuul~a~1"}, {}, {}, True),
        ({"run_id": "zuul~a~2"}, {}, {}, False),
        ({"owner": "ann"}, {}, {"owner": "bob"}, True),  # by its event, and by an update
        ({"owner": "bob"}, {}, {"owner": "bob"}, True),
        ({"owner": "bob"}, {}, {}, False),
        ({"change": "7", "project": "p"}, {}, {}, True),
        ({"change": "8", "project": "p"}, {}, {"change": "8", "project": "q"}, True),  # the change by an update
        ({"change": "7", "project": "other"}, {}, {}, False),  # another system's change of this number
        ({"change": "7", "owner": "bob"}, {}, {}, False),  # each criterion must match
        ({"before_us": 31}, {}, {}, True),
        ({"before_us": 30}, {}, {}, False),  # it ended then
        ({"before_us": 21}, {"end_us": None}, {}, True),  # of a run without an end, its start counts
        ({"before_us": 41}, {"end_us": None, "start_us": None}, {}, True),  # else its event
        ({"before_us": 40}, {"end_us": None, "start_us": None}, {}, False),
    ],
)
def test_the_runs_to_erase(criteria: Any, changes: Any, joined: Any, matches: bool) -> None:
    assert RunCriteria(**criteria).matches({**RUN, **changes}, joined, 40) is matches


@pytest.mark.parametrize(
    ("update", "concerns"),
    [
        ({"by": "ann", "facts": {"approved": "yes"}}, True),
        ({"facts": {"owner": "ann"}}, True),
        ({"by": "bob", "facts": {"owner": "bob"}}, False),
        ({}, False),
    ],
)
def test_the_statements_of_and_about_an_owner(update: Any, concerns: bool) -> None:
    assert RunCriteria(owner="ann").concerns(update) is concerns
    assert not RunCriteria(change="7").concerns(update)

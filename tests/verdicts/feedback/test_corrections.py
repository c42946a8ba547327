"""Corrections by reviewers: the last of each reviewer counts, repeats are stored once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.verdicts.feedback.truths import Correction, add_corrections, corrections_log, corrections_of


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


def test_a_data_root_without_feedback_has_no_corrections(data: DataRoot) -> None:
    assert corrections_of(data) == {}


def test_of_several_reviewers_the_one_read_last_counts(data: DataRoot) -> None:
    first = Correction("zuul~1~1", "code", "review:alice", 10)
    second = Correction("zuul~1~1", "machine", "review:bob", 20)
    other = Correction("zuul~2~1", "code", "review:bob", 20)
    assert add_corrections(data, [second, other]) == 2
    assert add_corrections(data, [first]) == 1
    later = other.replace(by="review:alice", cause="machine", time_us=30)
    assert add_corrections(data, [later]) == 1
    assert corrections_of(data) == {"zuul~1~1": second, "zuul~2~1": later}  # in either order of the reading


def test_a_reviewer_may_change_their_mind_and_a_repeat_is_stored_once(data: DataRoot) -> None:
    once = Correction("zuul~1~1", "code", "review:alice", 10)
    assert [add_corrections(data, [once]), add_corrections(data, [once.replace(time_us=11)])] == [1, 0]
    assert corrections_log(data).end() == 1
    assert add_corrections(data, [once.replace(cause="machine", time_us=12)]) == 1
    assert corrections_of(data)["zuul~1~1"].cause == "machine"


def test_a_damaged_record_is_an_error(data: DataRoot) -> None:
    corrections_log(data).try_append(1, {"corrections": [{"run_id": "a", "cause": "weather", "by": "b", "time_us": 1}]})
    with pytest.raises(IntegrityError, match=r"version 1: malformed record: Invalid enum value 'weather'"):
        corrections_of(data)

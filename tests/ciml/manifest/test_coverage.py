"""The covered offsets of a manifest's state, compared with plain sets of offsets."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ciml.errors import IntegrityError
from ciml.events.records import OffsetRange
from ciml.manifest.coverage import NewCoverage, TopicState
from ciml.manifest.id_index import Rows
from ciml.manifest.log import Delta


class State(TopicState):
    """A state of nothing but offsets."""

    def apply(self, version: int, delta: Delta) -> None:
        self.cover(delta["offsets"])

    def snapshot(self) -> dict[str, Any]:
        return self.coverage()

    def recent(self) -> dict[str, Rows]:
        return {}


def offsets(state: TopicState) -> dict[tuple[str, int], set[int]]:
    return {
        (topic, partition): {number for start, end in ranges for number in range(start, end)}
        for topic, partition, ranges in state.partitions()
    }


@pytest.mark.parametrize("seed", range(40))
def test_a_delta_covers_each_offset_once(seed: int) -> None:
    choose, state = random.Random(seed), State()
    known: dict[tuple[str, int], set[int]] = {}
    for version in range(1, 6):
        draft = NewCoverage(state)
        for _ in range(choose.randrange(1, 6)):
            topic, partition, start = choose.choice("ab"), choose.randrange(2), choose.randrange(30)
            end = start + choose.randrange(12)
            mine = known.setdefault((topic, partition), set())
            fresh = draft.add(OffsetRange(topic, f"id of {topic}", partition, start, end))
            assert {number for first, last in fresh for number in range(first, last)} == set(range(start, end)) - mine
            mine |= set(range(start, end))
        state.apply(version, {"offsets": draft.to_json()})
        assert offsets(state) == {key: numbers for key, numbers in known.items() if numbers}
        other = State()
        other.restore_coverage(state.version, state.snapshot())
        assert (other.snapshot(), offsets(other)) == (state.snapshot(), offsets(state))
        again = NewCoverage(state)
        for (topic, partition), numbers in known.items():
            for number in numbers:
                assert not again.add(OffsetRange(topic, f"id of {topic}", partition, number, number + 1))
        assert again.to_json() == {}


def test_a_recreated_topic_is_an_error_in_a_state_and_in_a_delta() -> None:
    state = State()
    state.apply(1, {"offsets": {"a": {"id": "", "partitions": {"0": [[0, 5]]}}}})
    state.apply(2, {"offsets": {"a": {"id": "1", "partitions": {"0": [[5, 6]]}}}})  # an unknown id matches any
    with pytest.raises(IntegrityError, match="topic a was deleted and created again"):
        state.apply(3, {"offsets": {"a": {"id": "2", "partitions": {"0": [[6, 7]]}}}})
    with pytest.raises(IntegrityError, match="read under the id 1, but the broker reports 2"):
        NewCoverage(state).add(OffsetRange("a", "2", 0, 6, 7))


def test_an_adopted_topic_is_a_generation_of_its_own() -> None:
    state = State()
    state.apply(1, {"offsets": {"a": {"id": "1", "partitions": {"0": [[0, 5]]}}}})
    with pytest.raises(IntegrityError, match=r"created again.*: ciml topics adopt a"):
        NewCoverage(state).add(OffsetRange("a", "2", 0, 0, 3))
    state.apply(2, {"offsets": state.next_generation("a", "2")})
    assert (state.generation("a"), state.topic_id("a"), list(state.covered("a", 0))) == ("a@2", "2", [])
    draft = NewCoverage(state)
    assert list(draft.add(OffsetRange("a", "2", 0, 0, 3))) == [(0, 3)]
    assert list(draft.add(OffsetRange("a", "1", 0, 0, 7))) == [(5, 7)]  # a batch of the old topic, read before
    assert draft.to_json() == {
        "a@2": {"id": "2", "partitions": {"0": [[0, 3]]}}, "a": {"id": "1", "partitions": {"0": [[5, 7]]}},
    }  # fmt: skip
    state.apply(3, {"offsets": draft.to_json()})
    assert offsets(state) == {("a", 0): set(range(7)), ("a@2", 0): {0, 1, 2}}
    other = State()
    other.restore_coverage(state.version, state.snapshot())
    assert (other.generation("a"), list(other.covered("a", 0))) == ("a@2", [(0, 3)])
    assert list(other.next_generation("a", "2")) == ["a@3"]
    with pytest.raises(IntegrityError, match="created again"):
        NewCoverage(other).add(OffsetRange("a", "3", 0, 0, 1))


def test_of_generations_with_equal_ids_the_last_one_counts() -> None:
    """Brokers without topic ids give all generations the id ""."""
    state = State()
    state.apply(1, {"offsets": {"a": {"id": "", "partitions": {"0": [[0, 5]]}}}})
    for version in (2, 3):
        state.apply(version, {"offsets": state.next_generation("a", "")})
    draft = NewCoverage(state)
    assert list(draft.add(OffsetRange("a", "", 0, 0, 3))) == [(0, 3)]
    assert list(draft.to_json()) == ["a@3"]

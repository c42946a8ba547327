from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciml.transforms.examples.prepare import split_of


def test_shares_are_the_weights() -> None:
    counts = Counter(split_of("", "", f"zuul~{number}~1", "ciml", (7, 1, 2)) for number in range(20_000))
    assert sum(counts.values()) == 20_000
    # four standard deviations
    assert abs(counts["train"] - 14_000) < 4 * (20_000 * 0.7 * 0.3) ** 0.5
    assert abs(counts["dev"] - 2_000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    assert abs(counts["test"] - 4_000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5


def test_the_split_is_the_same_for_ever() -> None:
    # stored data sets depend on it: a change here moves runs between train and test
    found = [split_of("", "", f"zuul~{number}~1", "ciml", (7, 0, 3)) for number in range(8)]
    assert found == EXPECTED_RUNS
    found = [split_of("nova", str(number), "zuul~x~1", "ciml", (7, 0, 3)) for number in range(8)]
    assert found == EXPECTED_CHANGES


def test_runs_of_a_change_stay_together_and_projects_number_their_own() -> None:
    of_change = {split_of("nova", "17", f"zuul~{number}~1", "ciml") for number in range(50)}
    assert len(of_change) == 1
    assert len({split_of(f"project-{number}", "17", "zuul~1~1", "ciml") for number in range(50)}) == 2


def test_another_salt_is_another_split() -> None:
    runs = [f"zuul~{number}~1" for number in range(200)]
    assert [split_of("", "", run, "one") for run in runs] != [split_of("", "", run, "two") for run in runs]


@given(
    run=st.text(),
    change=st.text(),
    weights=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
    more=st.integers(1, 9),
)
def test_more_weight_for_train_takes_nothing_out_of_it(
    run: str, change: str, weights: tuple[int, int, int], more: int
) -> None:
    before = split_of("p", change, run, "salt", weights)
    assert before in [name for name, weight in zip(("train", "dev", "test"), weights, strict=True) if weight]
    if before == "train":
        assert split_of("p", change, run, "salt", (weights[0] + more, *weights[1:])) == "train"


def test_no_weights_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one must be above 0"):
        split_of("", "", "zuul~1~1", "ciml", (0, 0, 0))


EXPECTED_RUNS = ["train", "train", "train", "test", "train", "train", "train", "train"]
EXPECTED_CHANGES = ["train", "train", "test", "test", "train", "test", "train", "test"]

"""Rows of texts: computed once for each, whatever the order and the number of texts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ciml.transforms.logs.text_arrays import RowOfText, sizes_of, strings


class Lengths:
    def __init__(self) -> None:
        self.computed: list[list[str]] = []

    def __call__(self, texts: pa.StringArray) -> npt.NDArray[np.int32]:
        if len(texts):
            self.computed.append(texts.to_pylist())
        return sizes_of(texts)


def test_each_text_is_computed_once() -> None:
    compute = Lengths()
    lengths = RowOfText(compute)
    assert lengths(strings(["error", "ok", "error"])).tolist() == [5, 2, 5]
    assert lengths(strings(["ok", "no", "error"])).tolist() == [2, 2, 5]
    assert lengths(strings([])).tolist() == []
    assert compute.computed == [["error", "ok"], ["no"]]


def test_rows_are_forgotten_before_there_are_too_many() -> None:
    compute = Lengths()
    lengths = RowOfText(compute, most=3)
    lengths(strings(["a", "bb"]))
    assert lengths(strings(["ccc", "dddd"])).tolist() == [3, 4]
    assert lengths(strings(["ccc", "a"])).tolist() == [3, 1]
    assert lengths(strings(["1", "22", "333", "22"])).tolist() == [1, 2, 3, 2]
    assert lengths(strings(["ccc"])).tolist() == [3]
    assert compute.computed == [["a", "bb"], ["ccc", "dddd"], ["a"], ["1", "22", "333", "22"]]


@given(st.lists(st.lists(st.text(max_size=3), max_size=6), max_size=6))
def test_rows_are_those_that_would_be_computed(batches: list[list[str]]) -> None:
    lengths = RowOfText(sizes_of, most=8)
    for texts in batches:
        assert lengths(strings(texts)).tolist() == sizes_of(strings(texts)).tolist()

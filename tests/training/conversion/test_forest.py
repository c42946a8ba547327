from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ciml.training.conversion.forest import Nodes, largest_left

NUMBERS = st.floats(allow_nan=False)
NARROW = st.floats(allow_nan=False, width=32)


@given(threshold=NUMBERS, distance=st.integers(-2, 2), other=NARROW, narrow=st.booleans(), strict=st.booleans())
def test_a_value_goes_left_up_to_the_bound_and_the_bound_is_of_its_type(
    threshold: float, distance: int, other: float, narrow: bool, strict: bool
) -> None:
    kind = np.float32 if narrow else np.float64
    one, zero = np.ones(1, int), np.zeros(1, int)
    nodes = Nodes(zero, np.array([threshold]), one, one, zero, np.zeros((1, 1)), zero, narrow, strict)
    (bound,) = largest_left(nodes)
    assert kind(bound) == bound
    with np.errstate(over="ignore"):
        near = kind(threshold)
        for _ in range(abs(distance)):
            near = np.nextafter(near, kind(np.copysign(np.inf, distance)))
    for value in (float(near), other):
        if np.isfinite(value):
            assert (value > bound) == (value >= threshold if strict else value > threshold)

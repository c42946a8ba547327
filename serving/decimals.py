"""Float32 values as JSON numbers: the shortest decimals that read back as the same float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Values that are rendered together, so that their texts take little memory.
_BLOCK = 65_536


def shortest_decimals(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return an array as float64, whose decimals are the shortest that read back as the same float32."""
    numbers = np.empty(array.size)
    flat = array.ravel()
    for start in range(0, array.size, _BLOCK):
        numbers[start : start + _BLOCK] = flat[start : start + _BLOCK].astype("U32").astype(np.float64)
    return numbers.reshape(array.shape)

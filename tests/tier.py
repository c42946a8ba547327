"""How much is tried: all by default and in ``make test``, always the same; a part with ``CIML_TESTS=quick``, as in
``make check``; ten times as much, at random, with ``CIML_TESTS=random``, as in ``make fuzz``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_TIER = os.environ.get("CIML_TESTS", "")
QUICK, RANDOM = _TIER == "quick", _TIER == "random"


def tries(full: int) -> int:
    """Return how many inputs of a generator to try: ``full``, or what the tier makes of it."""
    return max(1, full // 4) if QUICK else 10 * full if RANDOM else full


def part(values: Sequence[T], number: int, share: int = 4) -> Sequence[T]:
    """Return the values of a table to try with the input of a number: all, or a quarter of them in the quick tier.

    Inputs with ``share`` successive numbers are tried with all values.
    """
    return values[number % share :: share] if QUICK else values

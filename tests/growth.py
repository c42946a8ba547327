"""CPU time of a hostile shape as it grows: linear work takes as many times longer as its input is larger."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TRIES = 6
_ENOUGH_S = 0.01  # CPU time below which timer steps and interrupts count; shorter work is repeated
_MOST_REPEATS = 1000


def assert_linear(
    make_input: Callable[[int], T], work: Callable[[T], object], size: int, factor: int = 8, most: float = 20.0
) -> None:
    """Asserts that an input grown by ``factor`` takes at most ``most`` times the CPU time, in one of six tries.

    Both are measured in turn: other work on the machine slows both. Quadratic work fails in each try.

    Args:
      make_input: gives the input of a size; not measured.
      work: what is measured, with all threads of this process. It clears the caches that would answer for it.
      size: of the small input.
      factor: how much larger the large input is.
      most: the largest ratio of CPU times that is accepted. Quadratic work has the ratio ``factor`` squared.
    """
    small, large = make_input(size), make_input(size * factor)
    once = _cpu_s(work, small, 1)
    repeats = min(max(1, round(_ENOUGH_S / max(once, 1e-6))), _MOST_REPEATS)
    fewer = -(-repeats // factor)  # of the large input, which then takes as long, or longer
    short = long = ratio = float("inf")
    for _ in range(_TRIES):
        short, long = _cpu_s(work, small, repeats) / repeats, _cpu_s(work, large, fewer) / fewer
        ratio = min(ratio, long / short)
        if ratio <= most:
            return
    raise AssertionError(
        f"size {size} takes {short:.6f} s, size {size * factor} takes {long:.6f} s: "
        f"{ratio:.1f} times at best, at most {most:g}"
    )


def _cpu_s(work: Callable[[T], object], given: T, repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        work(given)
    return time.process_time() - began

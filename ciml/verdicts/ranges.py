"""Whether a run is like those that a model learned. Outside of their ranges a model extrapolates, and is often sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ciml.events.records import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Outside(Record, frozen=True, gc=False):
    """The feature by which a run is farthest outside of the runs that a model learned.

    Attributes:
      feature: its name.
      value: its mean over the run's windows, to six digits.
      low, high: the least and the largest mean among the runs that the model learned, to six digits.
    """

    feature: str
    value: float
    low: float
    high: float


class LearnedRanges(Record, frozen=True, gc=False):
    """The ranges of the runs that a model learned, or was calibrated on. A run's value of a feature is its mean.

    Attributes:
      runs: number of them.
      features: names of the F features.
      low, high: F values each.
      limit: a run may be outside of a range by this part of the range's width (`parts_outside`).
    """

    runs: int
    features: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    limit: float

    def outside(self, means: NDArray[np.floating]) -> Outside | None:
        """Return by which feature a run is outside of the ranges; None for a run within the limit.

        Args:
          means: float [F], the means of its windows.
        """
        import numpy as np

        parts = parts_outside(means, np.array(self.low), np.array(self.high))
        worst = int(parts.argmax())
        if not parts[worst] > self.limit:
            return None
        value, low, high = (float(f"{each:.6g}") for each in (means[worst], self.low[worst], self.high[worst]))
        return Outside(self.features[worst], value, low, high)


def parts_outside(
    means: NDArray[np.floating], low: NDArray[np.floating], high: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return how far values are outside of ranges, float64 [..., F]: in widths of the range, 0 inside.

    The width of a range of one value is that value's size, at least 1.

    Args:
      means: float [..., F].
      low, high: float [..., F].
    """
    import numpy as np

    widths = np.where(high > low, high - low, np.maximum(np.abs(low), 1.0))
    beyond: NDArray[np.float64] = np.maximum(np.maximum(low - means, means - high), 0.0) / widths
    return beyond


def check_ranges(ranges: LearnedRanges, features: Sequence[str]) -> str:
    """Return what is wrong with ranges for a model of these features; "" where nothing is."""
    if ranges.features != tuple(features):
        return f"ranges of {len(ranges.features)} features, but the model has {len(features)}, or others"
    if not len(ranges.low) == len(ranges.high) == len(features):
        return "want a low and a high of each feature"
    if any(low > high for low, high in zip(ranges.low, ranges.high, strict=True)):
        return "a low is above its high"
    return "" if ranges.limit >= 0 else "the limit of the ranges is negative"

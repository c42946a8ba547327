"""The share of padding in a data set's examples, and what to set where it is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ciml.datasets.state import DatasetState

#: The share from which a warning says what to set.
LARGE = 0.5


def padding_text(state: DatasetState) -> str:
    """Return the share of padding as text; "" without examples, or with aggregations."""
    share = state.padding()
    return "" if share is None or state.resolved is None else f"{share:.1%} of {state.resolved.windows} windows"


def warn_of_padding(state: DatasetState) -> None:
    """Print a warning on standard error where more than half of the windows are padding."""
    share, resolved = state.padding(), state.resolved
    if share is None or resolved is None or share <= LARGE:
        return
    from ciml.datasets.definition import AUTO, auto_windows

    lengths = [run.n_windows for span in state.latest() for run in span.runs]
    usual = auto_windows(resolved.definition, lengths)
    if resolved.definition.max_windows != AUTO and usual < resolved.windows:
        advice = (
            f"99 % of the runs have at most {usual} of {resolved.windows} windows; define it under another name with "
            f'max_windows = "auto", or {usual}'
        )
    else:
        length, left, cut = halved(lengths, resolved.windows)
        advice = (
            f"the runs differ in length; max_windows = {length} leaves {left:.1%} and cuts {cut:.1%} of the runs, "
            "aggregation_functions need no padding"
        )
    click.echo(f"warning: {share:.1%} of the examples is padding: {advice}", err=True)


def halved(lengths: Sequence[int], windows: int) -> tuple[int, float, float]:
    """Return the longest length of examples of which at most half is padding.

    Args:
      lengths: number of windows of each run, 1 to ``windows``.
      windows: the present length.

    Returns:
      (the length, the share of padding then, the share of runs that it cuts).
    """
    import numpy as np

    counts = np.bincount(np.asarray(lengths, np.int64), minlength=windows + 1)
    filled = len(lengths) - np.cumsum(counts)[:-1]  # runs with more than 0, 1, … windows
    kept = np.cumsum(filled)  # windows of all runs that are no padding, for the lengths 1, 2, …
    slots = len(lengths) * np.arange(1, windows + 1)
    length = int(np.flatnonzero(2 * kept >= slots)[-1]) + 1
    cut = 0.0 if length == windows else float(filled[length]) / len(lengths)
    return length, 1 - float(kept[length - 1] / slots[length - 1]), cut

"""The share of padding in a data set's examples, and what to set where it is large."""

from __future__ import annotations

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
        half = sorted(lengths)[(len(lengths) - 1) // 2]
        advice = (
            f"half of the runs have at most {half} of {resolved.windows} windows; a lower max_windows cuts the longest "
            "runs, aggregation_functions need no padding"
        )
    click.echo(f"warning: {share:.1%} of the examples is padding: {advice}", err=True)

"""The text and JSON of data sets: spans, contents and padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ciml.cli.output import print_table
from ciml.datasets.definition import SPLITS

if TYPE_CHECKING:
    from ciml.datasets.state import DatasetState, SpanVersion

#: The share of padding above which a warning gives advice.
_LARGE = 0.5


def state_lines(state: DatasetState) -> Iterator[tuple[str, str]]:
    """Yield the definition and the contents of a data set, as (name, text) for people."""
    definition = state.definition
    resolved = state.resolved
    if definition is None:
        return
    yield "data set", f"{definition.name}, definition version {definition.version}"
    yield "jobs", ", ".join(definition.build_name)
    parts = ", ".join(definition.aggregation_functions) or "windows"
    length = f"{definition.most_windows if resolved is None else resolved.windows} {parts}"
    if definition.max_windows == "auto":
        length = f"at most {length}, not resolved yet," if resolved is None else f"{length} (auto)"
    yield "examples", f"{length} of {definition.sample_statistic} at {definition.sample_interval}"
    if resolved is None:
        yield "features", f"not resolved yet; pattern {definition.features_regex!r}"
        yield "classes", f"not resolved yet; label {definition.class_label}"
    yield from contents(state)


def contents(state: DatasetState) -> Iterator[tuple[str, str]]:
    """Yield the features, splits, classes, padding and exclusions of a resolved data set, for people."""
    counts = state.counts()
    splits = Counter[str]()
    for (split, _), count in counts.items():
        splits[split] += count
    if state.resolved is not None:
        yield "features", ", ".join(state.resolved.features)
        yield "splits", ", ".join(f"{split} {splits[split]:,}" for split in SPLITS)
        for name in state.resolved.classes:
            yield "class", f"{name}: {', '.join(f'{split} {counts[split, name]:,}' for split in SPLITS)}"
    if padding := padding_text(state):
        yield "padding", padding
    if excluded := state.excluded():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(excluded.items()))
        yield "excluded", f"{sum(excluded.values()):,} runs: {reasons}"


def padding_text(state: DatasetState) -> str:
    """Return the share of padding as text; "" without examples, or with aggregations."""
    share = state.padding()
    return "" if share is None or state.resolved is None else f"{share:.1%} of {state.resolved.windows} windows"


def state_json(state: DatasetState) -> dict[str, Any]:
    """Return a data set as JSON: definition, columns, classes, spans and counts."""
    return {
        "definition": state.definition.to_json() if state.definition else None,
        "resolved": state.resolved.to_json() if state.resolved else None,
        "manifest_version": state.version,
        "cursor": list(state.cursor),
        "spans": [
            {
                "span": span.span,
                "version": span.version,
                "examples": len(span.runs),
                "excluded": dict(Counter(exclusion["reason"] for exclusion in span.excluded)),
                "classes": dict(Counter(run.label_name for run in span.runs)),
                "splits": dict(Counter(run.split for run in span.runs)),
            }
            for span in state.latest()
        ],
        "padding": state.padding(),
        "excluded": dict(state.excluded()),
    }


def span_json(span: SpanVersion) -> dict[str, Any]:
    """Return a version of a span as JSON: examples by split and class, exclusions by reason, files."""
    by_split: dict[str, Counter[str]] = {}
    for run in span.runs:
        by_split.setdefault(run.split, Counter())[run.label_name] += 1
    return {
        "span": span.span,
        "version": span.version,
        "examples": len(span.runs),
        "splits": {split: dict(sorted(by_split[split].items())) for split in SPLITS if split in by_split},
        "excluded": dict(sorted(Counter(exclusion["reason"] for exclusion in span.excluded).items())),
        "files": {split: [file.to_json() for file in files] for split, files in span.files.items()},
    }


def print_spans(title: str, spans: Iterable[tuple[SpanVersion, bool]]) -> None:
    """Print a table of span versions, each with whether it is the latest of its span."""
    spans = list(spans)
    runs = [run for span, _ in spans for run in sorted(span.runs, key=lambda run: run.label)]
    classes = list(dict.fromkeys(run.label_name for run in runs))
    rows = []
    for span, is_last in spans:
        by_class = Counter(run.label_name for run in span.runs)
        by_split = Counter(run.split for run in span.runs)
        version = f"{span.version}" if is_last else f"{span.version} old"
        counts = [*(by_class[name] for name in classes), *(by_split[name] for name in SPLITS)]
        rows.append([span.span, version, len(span.runs), *counts, len(span.excluded)])
    headings = ["span", "version", "examples", *classes, *SPLITS, "excluded"]
    print_table(headings, rows, title=title, right=headings)


def warn_of_padding(state: DatasetState) -> None:
    """Print a warning on standard error where more than half of the windows are padding."""
    share = state.padding()
    resolved = state.resolved
    if share is None or resolved is None or share <= _LARGE:
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
        shorter = longest_half_padded(lengths, resolved.windows)
        advice = (
            f"the runs differ in length; max_windows = {shorter.windows} leaves {shorter.padding:.1%} and cuts "
            f"{shorter.cut:.1%} of the runs, aggregation_functions need no padding"
        )
    click.echo(f"warning: {share:.1%} of the examples is padding: {advice}", err=True)


class Length(NamedTuple):
    """A length of examples in windows, the share of padding then, and the share of runs that it cuts."""

    windows: int
    padding: float
    cut: float


def longest_half_padded(lengths: Sequence[int], windows: int) -> Length:
    """Return the longest length of examples of which at most half is padding.

    Args:
      lengths: number of windows of each run, 1 to ``windows``.
      windows: the present length.
    """
    import numpy as np

    counts = np.bincount(np.asarray(lengths, np.int64), minlength=windows + 1)
    longer = len(lengths) - np.cumsum(counts)[:-1]  # runs with more than 0, 1, … windows
    data_windows = np.cumsum(longer)  # windows of all runs that are not padding, for the lengths 1, 2, …
    all_windows = len(lengths) * np.arange(1, windows + 1)
    length = int(np.flatnonzero(2 * data_windows >= all_windows)[-1]) + 1
    cut = 0.0 if length == windows else float(longer[length]) / len(lengths)
    return Length(length, 1 - float(data_windows[length - 1] / all_windows[length - 1]), cut)

"""Draw a data set as plots and one page."""

from __future__ import annotations

import os

import numpy as np

from ciml.data_root import StoredDataset
from ciml.errors import CimlError
from ciml.progress import Progress, no_progress
from ciml.reports.dataset import plots
from ciml.reports.dataset.read import Runs, read_runs
from ciml.reports.dataset.views import calendar, grouped, unit_of, unsuccessful, value_range
from ciml.reports.page import Page, Section, Table, Tile, cells, save
from ciml.storage import open_store
from ciml.telemetry import select_columns
from ciml.transforms.examples.prepare import SPLITS

#: Number of jobs with a row of their own in a plot; the rest share one row.
MOST_JOBS = 20
#: Number of courses drawn without ``features_regex``.
MOST_COURSES = 30


def plot_dataset(
    dataset: StoredDataset,
    folder: str | os.PathLike[str],
    *,
    features_regex: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> str:
    """Draw a data set into a folder: each plot as SVG and PNG, and ``index.html`` with all of them.

    Args:
      dataset: a data set.
      folder: a folder or an ``s3://`` prefix; files of the same names are overwritten.
      features_regex: features whose courses are drawn, as in a definition. Default: the first 30.
      seed: random seed of the sample, if not all runs fit in memory.
      progress: called with the number of files read and the total.

    Returns:
      Address of the page.

    Raises:
      CimlError: when there is no such data set, no example in it, or no such feature.
      IntegrityError: when a file differs from the manifest.
    """
    runs = read_runs(dataset, seed=seed, progress=progress)
    return save(open_store(folder), dataset_page(runs, _features(runs, features_regex)))


def dataset_page(runs: Runs, features: list[int]) -> Page:
    """Return the page of a data set. ``features``: indices of the features whose courses are drawn."""
    groups = grouped(runs.class_name)
    resolved = runs.resolved
    definition = resolved.definition
    outcomes = calendar(runs, grouped(runs.outcome))
    by_job = grouped(runs.build_name, MOST_JOBS)
    jobs = calendar(runs, by_job)
    total = len(resolved.features)
    chosen = f"{len(features)} of {total} features {'is' if len(features) == 1 else 'are'} drawn."
    sections = (
        Section(
            "Classes",
            _excluded(runs),
            plots.classes_plot(runs, groups),
            None if runs.aggregated else plots.lengths_plot(runs, groups),
        ),
        Section(
            "Runs over time",
            "Runs by start, UTC." if outcomes else "No run has a time.",
            plots.calendar_plot(outcomes) if outcomes else None,
            plots.jobs_plot(jobs, unsuccessful(runs, by_job)) if jobs else None,
        ),
        Section(
            "Features" if runs.aggregated else "Features over time",
            plots.courses_caption(runs, chosen if len(features) < total else ""),
            *plots.course_plots(runs, groups, features),
        ),
        Section("Examples", plots.examples_plot(runs, groups), plots.image_plot(runs, groups)),
        _columns(runs),
    )
    counts = [f"{split} {np.count_nonzero(runs.split == split):,}" for split in SPLITS]
    windows = ", ".join(definition.aggregation_functions) or f"windows of {definition.sample_interval}"
    tiles = (
        Tile("runs", f"{len(runs):,}", " · ".join(counts)),
        Tile("classes", f"{len(resolved.classes)}", f"label: {definition.class_label}"),
        Tile("features", f"{total} × {resolved.windows}", windows),
        Tile("jobs", f"{len(set(runs.build_name.tolist())):,}", f"build_name: {', '.join(definition.build_name)}"),
    )
    lead = f"Definition version {definition.version}; {definition.sample_statistic} of the samples of each window."
    if len(runs.drawn) < len(runs):
        lead += f" Counts are of all runs; courses and examples of an even sample of {len(runs.drawn):,}."
    return Page(f"Data set {runs.dataset}", lead, tiles, sections)


def _features(runs: Runs, pattern: str | None) -> list[int]:
    columns = runs.resolved.columns
    if pattern is None:
        return list(range(len(columns)))[:MOST_COURSES]
    matches = select_columns(columns, pattern)
    if not matches:
        names = ", ".join(runs.resolved.features)
        raise CimlError(f"--features-regex {pattern!r} selects none of the features {names}")
    return [columns.index(column) for column in matches]


def _excluded(runs: Runs) -> Table | None:
    rows = tuple(cells(reason.replace("_", " "), count) for reason, count in sorted(runs.excluded.items()))
    return Table(("why selected runs are no examples", "runs"), rows) if rows else None


def _columns(runs: Runs) -> Section:
    """Return minimum, mean and maximum of each column over the windows of the sampled runs, without padding."""
    inside = np.arange(runs.resolved.windows)[None, :] < runs.n_windows[runs.drawn][:, None]
    rows = []
    constant = []
    for index, (name, column) in enumerate(zip(runs.resolved.telemetry_features, runs.resolved.columns, strict=True)):
        values = runs.inputs[:, :, index][inside].astype(np.float64)
        rows.append((name, column, unit_of(column), *value_range(values)))
        constant += [name] if values.min() == values.max() else []
    text = f"Constant in all runs: {', '.join(constant)}." if constant else ""
    return Section("Columns", text, Table(("feature", "column", "unit", "min", "mean", "max"), tuple(rows), words=3))

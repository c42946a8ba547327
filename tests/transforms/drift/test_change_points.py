from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ciml.transforms.drift.change_points import change_point, with_change_points
from ciml.transforms.drift.compare import Side, compare
from ciml.transforms.drift.statistics import Statistics, merge
from tests.transforms.drift.test_drift import cell, side


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([0.5, 0.4, 0.9, 0.8], 2),
        ([0.9, 0.4, 0.5, 0.45], 1),
        ([0.4, 0.5, 0.45, 0.9], 3),
        ([np.nan, 0.5, 0.4, np.nan, 0.9, np.nan, 0.8], 4),
        ([np.nan, 0.5, np.nan, 0.9], 3),
        ([np.nan, 0.5], None),
        ([], None),
    ],
)
def test_the_change_point_divides_the_known_values(values: list[float], index: int | None):
    assert change_point(np.array(values)) == index


def spans(shifted_from: int) -> list[Statistics]:
    """Eight spans of two jobs in a changing mix: the values of one are five times those of the other, and shift."""
    random = np.random.default_rng(1)
    parts = []
    for span in range(1, 9):
        small, large = random.normal(10, 2, 20 + 10 * (span % 3)), random.normal(50, 2, 50 - 10 * (span % 3))
        shift = 5 * (span >= shifted_from)
        parts.append(side({cell("small"): small, cell("large"): large + shift}).statistics)
    return parts


@pytest.mark.parametrize("shifted_from", [5, 6, 7])
def test_a_drift_is_dated_among_the_spans_of_both_sides(shifted_from: int):
    parts = spans(shifted_from)
    report = compare(Side("before", merge(parts[:4])), Side("after", merge(parts[4:])))
    (finding,) = report.findings
    assert (finding.kind, finding.build_name, finding.since) == ("shift", "large", None)
    (dated,) = with_change_points(report, enumerate(parts, 1)).findings
    assert dated.since == shifted_from
    # Comparing too late does not hide when it began.
    late = compare(Side("before", merge(parts[:7])), Side("after", merge(parts[7:])))
    (dated,) = with_change_points(late, enumerate(parts, 1)).findings
    assert dated.since == shifted_from


def test_a_span_without_runs_of_the_job_is_left_out():
    parts = spans(6)
    parts[4] = side({cell("small"): np.full(30, 10.0)}).statistics
    report = compare(Side("before", merge(parts[:4])), Side("after", merge(parts[4:])))
    (dated,) = [
        finding for finding in with_change_points(report, enumerate(parts, 1)).findings if finding.build_name == "large"
    ]
    assert dated.since == 6


def test_without_a_drift_no_span_is_read():
    def unread() -> Iterator[tuple[int, Statistics]]:
        raise AssertionError
        yield

    parts = spans(9)
    report = compare(Side("before", merge(parts[:4])), Side("after", merge(parts[4:])))
    assert with_change_points(report, unread()) == report


def test_another_mix_of_jobs_is_no_change_point():
    random = np.random.default_rng(2)
    parts = []
    for span in range(1, 9):
        shift = 2 * (span >= 6)
        small, large = (80, 20) if span < 3 else (20, 80)
        values = {"small": random.normal(10 + shift, 2, small), "large": random.normal(50 + shift, 2, large)}
        parts.append(side({cell(job): runs for job, runs in values.items()}).statistics)
    report = compare(Side("before", merge(parts[:5])), Side("after", merge(parts[5:])))
    dated = [finding for finding in with_change_points(report, enumerate(parts, 1)).findings if finding.kind == "shift"]
    assert [(finding.build_name, finding.since) for finding in dated] == [(None, 6)]

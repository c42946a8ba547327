"""A soak finds what grows, and takes a saw for what it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.soak import Look, judge
from tests.faults.verdict import Verdict


def judged(
    *, rss_mb: Callable[[float], float] = lambda at: 330.0, checkpoint_mb: Callable[[float], float] = lambda at: 1.0,
    latency_s: Callable[[float], float] = lambda at: 5.0,
) -> list[str]:  # fmt: skip
    """The failures of half an hour, looked at every ten seconds, by what each figure is at a second."""
    times = [10.0 * n for n in range(1, 181)]
    looks = [Look(at, rss_mb(at), 47, checkpoint_mb(at), latency_s(at), 2, int(at * 20), 90) for at in times]
    verdict = Verdict()
    judge(looks, verdict)
    return verdict.failures


@pytest.mark.parametrize("period_s", [300.0, 1020.0])
def test_a_size_that_is_reset_before_it_is_large_is_flat(period_s: float) -> None:
    assert judged(checkpoint_mb=lambda at: 0.15 + at % period_s * 2.0 / 1020) == []


def test_what_grows_is_found() -> None:
    (found,) = judged(checkpoint_mb=lambda at: 0.15 + at * 2.0 / 1020)
    assert found == "I6: the checkpoint's peak grew from 2.5 to 3.7 MB"
    (found,) = judged(rss_mb=lambda at: 300 + at / 20)
    assert found.startswith("I6: rss_mb grew by 60.0 ")
    (found,) = judged(latency_s=lambda at: 4 + at / 900)
    assert found.startswith("I6: latency_s grew by 1.3")


def test_what_settles_at_first_is_no_growth() -> None:
    assert judged(rss_mb=lambda at: min(300 + at / 5, 400)) == []

"""`tests.growth` tells linear from quadratic work."""

import pytest

from tests.growth import assert_linear


def test_linear_work_passes() -> None:
    assert_linear(lambda size: list(range(size)), sum, 20_000)


@pytest.mark.whole
def test_quadratic_work_fails() -> None:
    def pairs(values: list[int]) -> int:
        return sum(1 for each in values for other in values if each < other)

    with pytest.raises(AssertionError, match="times at best, at most 20"):
        assert_linear(lambda size: list(range(size)), pairs, 100)

"""The limits of outgoing requests: of time and number, together for all that one fetch asks for."""

from __future__ import annotations

import pytest

from ciml.errors import RejectedInput
from ciml.http.outgoing import FetchLimits
from ciml.limits import MAX_LOG_REQUESTS


def test_a_block_within_another_has_the_limits_of_the_outer_one() -> None:
    limits = FetchLimits()
    with limits.within(50):
        deadline_s = limits.deadline_s
        limits.count_request()
        for _ in range(2):
            with limits.within(5000):
                assert limits.deadline_s == deadline_s
            assert limits.deadline_s == deadline_s
        for _ in range(MAX_LOG_REQUESTS - 1):
            limits.count_request()
        with limits.within(5000), pytest.raises(RejectedInput, match=f"more than {MAX_LOG_REQUESTS} requests"):
            limits.count_request()
    assert limits.remaining(7) == 7
    with limits.within(50):
        limits.count_request()
        assert limits.deadline_s > deadline_s

"""The window of acknowledged deliveries, and the rate of a source, by a clock that the test sets."""

from __future__ import annotations

import pytest

from ciml.integrations.webhooks.app import Bucket, Replays


def test_a_delivery_is_known_for_the_window() -> None:
    replays = Replays(300.0, 10)
    assert not replays.has(b"a", 0.0)
    replays.add(b"a", 0.0)
    assert replays.has(b"a", 300.0)
    assert not replays.has(b"a", 300.1)
    replays.add(b"b", 301.0)
    assert len(replays) == 1


def test_the_oldest_is_forgotten_beyond_the_limit() -> None:
    replays = Replays(300.0, 3)
    for number in range(5):
        replays.add(b"%d" % number, float(number))
    assert [replays.has(b"%d" % number, 5.0) for number in range(5)] == [False, False, True, True, True]
    replays.add(b"2", 6.0)  # again: the newest now
    replays.add(b"5", 7.0)
    assert [replays.has(b"%d" % number, 7.0) for number in (2, 3, 4, 5)] == [True, False, True, True]
    assert len(replays) == 3


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3)
    assert [bucket.take(1000.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(1000.0) == pytest.approx(0.5)
    assert bucket.take(1000.25) == pytest.approx(0.25)
    assert bucket.take(1000.5) == 0.0
    taken = sum(bucket.take(1000.5 + step / 100) == 0.0 for step in range(1, 1001))
    assert taken == 20  # ten seconds at two a second
    assert [bucket.take(5000.0) for _ in range(4)].count(0.0) == 3

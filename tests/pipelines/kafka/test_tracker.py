"""The restriction of a partition: claims, checkpoints, progress, pauses, the end by a drain; and its watermark."""

from __future__ import annotations

import base64
import sys
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from apache_beam.coders import FastPrimitivesCoder
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.pipelines.kafka import source as kafka_tracker
from ciml.pipelines.kafka.plan import PartitionRead
from ciml.pipelines.kafka.source import (
    FOREVER,
    Claim,
    KnownTopic,
    Observation,
    OffsetTracker,
    Pause,
    Restriction,
    accept_earlier_modules,
    count_remaining,
    defer,
    detect_drain,
    next_watermark,
)
from ciml.storage import LocalStore
from tests.tier import tries


def test_a_claim_goes_no_further_than_the_restriction() -> None:
    tracker = OffsetTracker(Restriction(10, 20))
    assert tracker.try_claim((10, 15))
    with pytest.raises(ValueError, match="15 to 20"):
        tracker.check_done()
    assert tracker.try_claim((15, 25))
    tracker.check_done()
    assert not tracker.try_claim((20, 25))
    assert tracker.try_split(0) is None
    assert tracker.is_bounded()
    assert not OffsetTracker(Restriction(10, FOREVER)).is_bounded()


@pytest.mark.parametrize("claim", [(11, 15), (9, 15), (10, 9)])
def test_a_claim_that_leaves_out_or_repeats_is_an_error(claim: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="10 is the next"):
        OffsetTracker(Restriction(10, FOREVER)).try_claim(claim)


_steps = st.lists(st.one_of(st.integers(0, 9), st.just("checkpoint"), st.floats(0.01, 1)), max_size=30)


@given(_steps, st.one_of(st.just(FOREVER), st.integers(0, 60)))
def test_the_parts_of_any_split_cover_all_once(steps: list, stop: int) -> None:
    """A runner that checkpoints and goes on with the rest at any time gets each offset once, in order."""
    tracker, claimed = OffsetTracker(Restriction(0, stop)), []
    for step in steps:
        now = tracker.current_restriction()
        position = claimed[-1][1] if claimed else 0
        if step == "checkpoint":
            parts = tracker.try_split(0)
            if parts is None:
                assert position == now.stop
                tracker.check_done()
                continue
            primary, rest = parts
            assert (primary.stop, rest.start, rest.stop) == (position, position, stop)
            assert not tracker.try_claim((position, position + 1))
            tracker.check_done()
            tracker = OffsetTracker(rest)
        elif isinstance(step, float):
            assert tracker.try_split(step) is None
        elif tracker.try_claim((position, position + step)):
            claimed.append((position, min(position + step, stop)))
    assert all(before[1] == after[0] for before, after in pairwise(claimed))


def test_progress_is_what_is_left_up_to_the_end_that_was_seen() -> None:
    tracker = OffsetTracker(Restriction(10, FOREVER))
    assert tracker.current_progress().remaining_work == 0
    tracker.try_claim(Claim(10, 30, reaches=100))
    assert (tracker.current_progress().completed_work, tracker.current_progress().remaining_work) == (20, 70)
    tracker.try_claim(Claim(30, 120, reaches=100))  # what was known is older than what came
    assert (tracker.current_progress().completed_work, tracker.current_progress().remaining_work) == (110, 0)
    bounded = OffsetTracker(Restriction(0, 50))
    bounded.try_claim(Claim(0, 20, reaches=1000))
    assert (bounded.current_progress().completed_work, bounded.current_progress().remaining_work) == (20, 30)


def test_the_size_of_what_is_left() -> None:
    assert count_remaining(Restriction(10, 30), None) == 20
    assert count_remaining(Restriction(10, FOREVER), 250) == 240
    assert count_remaining(Restriction(10, FOREVER), None) == count_remaining(Restriction(10, FOREVER), 4) == 1


# --- pauses, and the end by a drain


class Runner:
    """A runner with a clock: it goes on with what was put off, when it is due or, when it drains, at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.draining, self.rest = 1000.0, False, Restriction(0, FOREVER)
        self.due_s = self.now_s
        monkeypatch.setattr(kafka_tracker.time, "time", lambda: self.now_s)

    def resume(self, pause_s: float) -> bool:
        """One call of a reader that finds nothing and rests; False when it ended instead."""
        self.now_s += 0.01 if self.draining else max(self.due_s - self.now_s, 0) + 0.01
        safe = ThreadsafeRestrictionTracker(OffsetTracker(self.rest))
        view = RestrictionTrackerView(safe)
        if detect_drain(view):
            safe.check_done()
            assert safe.deferred_status() is None
            return False
        defer(view, pause_s)
        safe.check_done()
        status = safe.deferred_status()
        assert status is not None
        self.rest, delay = status
        assert self.rest.start == 0
        self.due_s = self.now_s + delay.micros // 1_000_000  # Flink's runner takes the whole seconds
        return True


def test_a_runner_that_keeps_to_the_pauses_is_never_taken_for_one_that_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(monkeypatch)
    assert all(runner.resume(pause_s) for _ in range(50) for pause_s in (1, 2, 5, 0, 10, 0.2))
    runner.now_s -= 3600  # a clock is set back
    assert all(runner.resume(5) for _ in range(50))


def test_early_resumes_count_only_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(monkeypatch)
    for number in range(20):
        runner.draining = number % 3 != 0
        assert runner.resume(5)
    runner = Runner(monkeypatch)
    runner.draining = True
    assert all(runner.resume(pause_s) for _ in range(50) for pause_s in (1, 0))  # a slice that ends at once resets it
    assert [runner.resume(1) for _ in range(4)] == [True, True, True, False]


def test_a_pause_is_whole_seconds_and_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_tracker.time, "time", lambda: 1000.0)
    for asked, whole in ((0.2, 1), (1, 1), (1.6, 2), (10, 10)):
        safe = ThreadsafeRestrictionTracker(OffsetTracker(Restriction(0, FOREVER)))
        defer(RestrictionTrackerView(safe), asked)
        status = safe.deferred_status()
        assert status is not None
        rest, delay = status
        assert whole < delay.micros / 1e6 < whole + 0.2
        assert rest[2:] == Pause(1000 + whole / 2, 0)


# --- savepoints of the version before

#: Elements and restrictions of the Kafka source, and a key of deferred work, in a savepoint of 0.2: by Beam's
#: FastPrimitivesCoder.
STORED = (
    "/4AFlUgAAAAAAAAAjBRwaXBlbGluZXMua2Fma2EucGxhbpSMDVBhcnRpdGlvblJlYWSUk5QpgZRdlCiMCWNpLWV2ZW50c5SMAVSUSwBLBU4pZWIu",
    "/4AFlUsAAAAAAAAAjB5waXBlbGluZXMua2Fma2EubmV3X3BhcnRpdGlvbnOUjApLbm93blRvcGljlJOUKYGUXZQojAljaS1ldmVudHOUjAFUlEsCZWIu",
    "/4AFlT8AAAAAAAAAjBdwaXBlbGluZXMua2Fma2EudHJhY2tlcpSMC1Jlc3RyaWN0aW9ulJOUKEsDSwpHAAAAAAAAAABLAHSUgZQu",
    "/4AFlUYAAAAAAAAAjBJjaW1sLnN0b3JhZ2UubG9jYWyUjApMb2NhbFN0b3JllJOUKYGUfZSMBHJvb3SUjBAvdG1wL3NwL2RhdGEvcmF3lHNiLg==",
)


def test_a_worker_reads_what_savepoints_of_0_2_hold() -> None:
    accept_earlier_modules()
    try:
        found = [FastPrimitivesCoder().decode(base64.b64decode(text)) for text in STORED]
    finally:
        for name in kafka_tracker._EARLIER_MODULES:
            sys.modules.pop(name, None)
    assert found == [
        PartitionRead("ci-events", "T", 0, 5, None),
        KnownTopic("ci-events", "T", 2),
        Restriction(3, 10),
        LocalStore("/tmp/sp/data/raw"),
    ]


# --- the watermark, against a simulated partition: never ahead of what is unread, not held back by silence


SLACK_S = 10.0
EPOCH_S = 1_000_000.0


@dataclass
class Sent:
    """A message: when the broker took it in, and the timestamp that its producer gave it."""

    appended_s: float
    stamp_s: float


@dataclass
class Partition:
    """What a broker has, what a reader has read, and the broker's answers to it.

    Attributes:
      visible_s: until when what was appended can be read: an open transaction, or a connection that is slow.
    """

    log: list[Sent]
    position: int = 0
    visible_s: float = float("inf")
    watermarks: list[float | None] = field(default_factory=lambda: [None])

    def end(self, now_s: float) -> int:
        return sum(each.appended_s <= now_s for each in self.log)

    def observe(self, asked_s: float, took_s: float, most: int, answers: bool) -> None:
        """Observe like the source: read; without messages, query the end."""
        readable = self.end(min(asked_s + took_s, self.visible_s))
        found = self.log[self.position : min(readable, self.position + most)]
        self.position += len(found)
        if found:
            observation = Observation(asked_s, min(each.stamp_s for each in found))
        elif answers:
            observation = Observation(asked_s, None, self.position >= self.end(asked_s))
        else:
            observation = Observation(asked_s)
        self.watermarks.append(next_watermark(self.watermarks[-1], observation, SLACK_S))

    @property
    def watermark(self) -> float:
        return self.watermarks[-1] or 0.0

    def oldest_unread(self) -> float:
        return min((each.stamp_s for each in self.log[self.position :]), default=float("inf"))


_gaps = st.floats(0, 30)
#: (s since the message before was appended, s from its timestamp to the broker): any order of timestamps within that.
_messages = st.lists(st.tuples(_gaps, st.floats(0, SLACK_S)), max_size=40)
#: (s until the next look, s that it takes, the most messages, whether the broker answers for the end)
_looks = st.lists(st.tuples(_gaps, st.floats(0, 5), st.integers(1, 5), st.booleans()), min_size=1, max_size=40)


def a_log(messages: list[tuple[float, float]]) -> list[Sent]:
    now, log = EPOCH_S, []
    for gap, delay in messages:
        now += gap
        log.append(Sent(now, now - delay))
    return log


@given(_messages, _looks, st.floats(0, 300))
@settings(max_examples=tries(300))
def test_it_is_never_ahead_of_what_is_unread_and_never_goes_back(
    messages: list, looks: list, hidden_for_s: float
) -> None:
    """Out of order, late, in backlog or live; a connection that is slow; a transaction that stays open."""
    partition = Partition(a_log(messages), visible_s=EPOCH_S + hidden_for_s)
    now = EPOCH_S
    for gap, took, most, answers in looks:
        now += gap
        partition.observe(now, took, most, answers)
        now += took
        assert partition.watermark <= partition.oldest_unread() + 1e-6
    seen = [each for each in partition.watermarks if each is not None]
    assert seen == sorted(seen)


@given(_messages, st.floats(1, 10_000))
def test_an_idle_partition_holds_nothing_back(messages: list, idle_s: float) -> None:
    log = a_log(messages)
    partition = Partition(log)
    now = (log[-1].appended_s if log else EPOCH_S) + idle_s
    while partition.position < len(log):
        partition.observe(now, 0.0, 5, True)
    partition.observe(now, 0.0, 5, True)
    assert partition.watermark == pytest.approx(now - SLACK_S)


@given(_messages, _looks, st.floats(1, 1e8), st.integers(1, 39))
@settings(max_examples=tries(200))
def test_a_clock_in_the_future_does_not_drive_it(messages: list, looks: list, ahead_s: float, every: int) -> None:
    """Beside a good message in the same look it does nothing; alone, it leads no further than the look's own time."""
    log = a_log(messages)
    for each in log[::every]:
        each.stamp_s = each.appended_s + ahead_s
    partition = Partition(log)
    now = EPOCH_S
    for gap, took, most, answers in looks:
        now += gap + took
        partition.observe(now, 0.0, most, answers)
        assert partition.watermark <= now - SLACK_S


@pytest.mark.parametrize("observation", [Observation(EPOCH_S), Observation(5.0, None, True), Observation(EPOCH_S, 0.0)])
def test_what_says_nothing_changes_nothing(observation: Observation) -> None:
    """Nothing came and nobody answered; a clock near the epoch; a message without a timestamp."""
    assert next_watermark(None, observation, SLACK_S) is None
    assert next_watermark(EPOCH_S, observation, SLACK_S) == EPOCH_S

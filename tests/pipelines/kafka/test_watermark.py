"""The watermark of a partition, against a simulated one: never ahead of what is unread, not held back by silence."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.pipelines.kafka.source import Observation, next_watermark
from tests.tier import tries

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

"""The watermark of a partition, a pure function of observations."""

from __future__ import annotations

from typing import NamedTuple


class Observation(NamedTuple):
    """One observation of a partition. Times are epoch seconds.

    Attributes:
      asked_s: just before the broker was queried.
      oldest_s: lowest timestamp of the received messages; None without messages.
      nothing_unread: whether the broker confirmed that nothing is unread. An empty read alone does not show that: the
        broker may be slow, unreachable, or hold an open transaction.
    """

    asked_s: float
    oldest_s: float | None = None
    nothing_unread: bool = False


def advance(watermark_s: float | None, observation: Observation, slack_s: float) -> float | None:
    """Return the watermark after an observation: no unread message is older.

    This holds for messages whose timestamp is at most ``slack_s`` before the broker received them, and not after. A
    timestamp in the future cannot advance it beyond the time of the observation less the slack, nor beyond a good
    message beside it.

    Args:
      watermark_s: the previous one; None at first.
      observation: the present one.
      slack_s: largest delay from a message's timestamp to the broker, seconds.

    Returns:
      The new watermark, never lower than before.
    """
    if observation.nothing_unread:
        reached = observation.asked_s - slack_s  # later messages are received after the query
    elif observation.oldest_s is not None:
        reached = min(observation.oldest_s, observation.asked_s) - slack_s  # later messages are received after these
    else:
        return watermark_s
    if reached <= 0:
        return watermark_s
    return reached if watermark_s is None else max(watermark_s, reached)

"""The watermark of a partition, as a pure function of what was observed."""

from __future__ import annotations

from typing import NamedTuple


class Look(NamedTuple):
    """What one look at a partition showed. Times are epoch seconds.

    Attributes:
      asked_s: when the broker was asked: right before.
      oldest_s: the least timestamp of the messages that came; None where none came.
      nothing_unread: whether the broker said that there is nothing beyond what was read. That no message came does not
        say so: the broker may be slow, or away, or hold a transaction that is open.
    """

    asked_s: float
    oldest_s: float | None = None
    nothing_unread: bool = False


def advance(watermark_s: float | None, look: Look, slack_s: float) -> float | None:
    """Return the watermark after a look: no message that is unread then is older than it.

    That holds for messages whose timestamp is at most ``slack_s`` before the time when the broker took them in, and
    not after it. A timestamp in the future cannot drive it beyond the time of the look less the slack, nor, with one
    good message beside it, beyond that.

    Args:
      watermark_s: as it was; None at first.
      look: what was seen.
      slack_s: how long a message may take from its timestamp to the broker.

    Returns:
      The new one, which is never less than before.
    """
    if look.nothing_unread:
        reached = look.asked_s - slack_s  # what comes now was taken in later than the broker was asked
    elif look.oldest_s is not None:
        reached = min(look.oldest_s, look.asked_s) - slack_s  # what comes now was taken in later than these
    else:
        return watermark_s
    if reached <= 0:
        return watermark_s
    return reached if watermark_s is None else max(watermark_s, reached)

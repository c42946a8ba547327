"""What is kept of a run beside its samples: how it stands, and when it is to be looked at."""

from __future__ import annotations

import math
import secrets
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

import orjson

from ciml.manifest.offsets import RangeSet
from transforms.live.messages import Standing
from transforms.live.samples import Part, unseen
from transforms.live.windows import LivePolicy

_LENGTH = struct.Struct("<I")
_MOST_RANGES = 1000  # that are remembered of a run that is over


class Wake(Enum):
    """What is due when a run's timer rings."""

    ENDED = "its grace is over"
    SILENT = "it was silent for too long"
    FORGET = "nobody asks for it any more"


class RunState:
    """The head of a run's state. Times are epoch seconds of this machine's clock.

    Attributes:
      run_id: whose it is.
      columns: which columns its samples have: the digest of their names.
      standing: whether it is running; else its samples are gone.
      token: what the samples are known by: another after each change.
      newer: its newest samples, as packed parts: to read and to write them with the head is one question to the runner
        each, and a question takes longer than anything that is done here.
    """

    def __init__(self, run_id: str, columns: str) -> None:
        self.run_id, self.columns = run_id, columns
        self.standing: Standing = "running"
        self.token = ""
        self.newer: list[bytes] = []
        self._heard_s = self._ended_s = self._over_s = self._wake_s = 0.0
        self._seen: dict[str, list[list[int]]] = {}

    def is_heard(self, now_s: float, ended: bool) -> None:
        """A message came."""
        self._heard_s = now_s
        self.token = secrets.token_hex(8)
        if ended and not self._ended_s:
            self._ended_s = now_s

    def is_over(self, standing: Standing, seen: Mapping[int, RangeSet], now_s: float) -> None:
        """The run's samples are let go of; which there were is remembered."""
        self.standing, self._over_s, self.newer = standing, now_s, []
        ranges = {str(recorder): [list(each) for each in numbers] for recorder, numbers in seen.items()}
        self._seen = ranges if sum(map(len, ranges.values())) <= _MOST_RANGES else {}

    def unseen(self, part: Part) -> Part | None:
        """Of a part that comes after the end, the samples that were not there before; None where all were."""
        seen = {int(recorder): RangeSet((start, end) for start, end in kept) for recorder, kept in self._seen.items()}
        rows = unseen(part, seen)
        return part.take(rows, ()) if rows.size else None

    def _due_s(self, policy: LivePolicy) -> tuple[float, Wake]:
        if self.standing != "running":
            return self._over_s + policy.remember_s, Wake.FORGET
        silent = self._heard_s + policy.silence_s
        grace = self._ended_s + policy.grace_s if self._ended_s else math.inf
        return (grace, Wake.ENDED) if grace <= silent else (silent, Wake.SILENT)

    def due(self, now_s: float, policy: LivePolicy) -> Wake | None:
        """What is due now, if anything."""
        at_s, what = self._due_s(policy)
        return what if at_s <= now_s else None

    def woken(self) -> None:
        """The timer rang: none is set now."""
        self._wake_s = 0.0

    def sets_wake(self, policy: LivePolicy) -> float | None:
        """When the timer is to ring, where it has to be set: one that rings too early is set again when it does."""
        at_s, _ = self._due_s(policy)
        if self._wake_s and self._wake_s <= at_s:
            return None  # samples come every second, and a timer that is left alone costs nothing
        self._wake_s = at_s
        return at_s

    def to_bytes(self) -> bytes:
        """As state keeps it: a line of JSON, then the newer samples, each after its length."""
        fields = {name: value for name, value in vars(self).items() if name != "newer"}
        sized = (part for data in self.newer for part in (_LENGTH.pack(len(data)), data))
        return b"".join((orjson.dumps(fields), b"\n", *sized))

    @classmethod
    def of(cls, data: bytes) -> RunState:
        """Return the inverse of `to_bytes`."""
        state, at = cls("", ""), data.index(b"\n") + 1
        fields: dict[str, Any] = orjson.loads(data[:at])
        vars(state).update(fields)
        while at < len(data):
            begin = at + _LENGTH.size
            at = begin + _LENGTH.unpack_from(data, at)[0]
            state.newer.append(data[begin:at])
        return state

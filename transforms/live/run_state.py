"""The state of a live run beside its older samples: its standing, and when its timer is due."""

from __future__ import annotations

import math
import secrets
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any

import orjson

from ciml.manifest.coverage import RangeSet
from ciml.messages import Standing
from ciml.transforms.live.samples import Part, unseen
from ciml.transforms.live.windows import LivePolicy

_LENGTH = struct.Struct("<I")
_MOST_RANGES = 1000  # ranges of samples remembered of a closed run


class Wake(Enum):
    """The action that is due when a run's timer fires."""

    ENDED = "close it after its grace"
    SILENT = "close it after its silence"
    FORGET = "forget it"


class RunState:
    """The head of a run's state. Times are epoch seconds of this machine's clock.

    Attributes:
      run_id: of the run.
      columns: digest of the names of its samples' columns.
      standing: whether it is running; else its samples are released.
      token: identifies the samples; changes with them.
      newer: its newest samples, as packed parts. They are read and written with the head, since each request to the
        runner takes longer than anything that is done here.
    """

    def __init__(self, run_id: str, columns: str) -> None:
        self.run_id = run_id
        self.columns = columns
        self.standing: Standing = "running"
        self.token = ""
        self.newer: list[bytes] = []
        self._heard_s = self._ended_s = self._over_s = self._wake_s = 0.0
        self._seen: dict[str, list[list[int]]] = {}

    def received(self, now_s: float, ended: bool) -> None:
        """Record that a message was received."""
        self._heard_s = now_s
        self.token = secrets.token_hex(8)
        if ended and not self._ended_s:
            self._ended_s = now_s

    def is_over(self, standing: Standing, seen: Mapping[int, RangeSet], now_s: float) -> None:
        """Close the run: release its samples, and remember their numbers."""
        self.standing = standing
        self._over_s = now_s
        self.newer = []
        ranges = {str(recorder): [list(part) for part in numbers] for recorder, numbers in seen.items()}
        self._seen = ranges if sum(map(len, ranges.values())) <= _MOST_RANGES else {}

    def unseen(self, part: Part) -> Part | None:
        """Return the samples of a late part that the run did not have; None if it had all."""
        numbers = {
            int(recorder): RangeSet((start, end) for start, end in ranges) for recorder, ranges in self._seen.items()
        }
        rows = unseen(part, numbers)
        return part.take(rows, ()) if rows.size else None

    def _due_s(self, policy: LivePolicy) -> tuple[float, Wake]:
        if self.standing != "running":
            return self._over_s + policy.remember_s, Wake.FORGET
        silent = self._heard_s + policy.silence_s
        grace = self._ended_s + policy.grace_s if self._ended_s else math.inf
        return (grace, Wake.ENDED) if grace <= silent else (silent, Wake.SILENT)

    def due(self, now_s: float, policy: LivePolicy) -> Wake | None:
        """Return the action that is due now, if any."""
        at_s, action = self._due_s(policy)
        return action if at_s <= now_s else None

    def woken(self) -> None:
        """Record that the timer has fired and none is set."""
        self._wake_s = 0.0

    def next_wake(self, policy: LivePolicy) -> float | None:
        """Return the time to set the timer to, or None to keep it: an early timer is set again when it fires."""
        at_s, _ = self._due_s(policy)
        if self._wake_s and self._wake_s <= at_s:
            return None  # setting it for every sample would cost time
        self._wake_s = at_s
        return at_s

    def to_bytes(self) -> bytes:
        """Return the state's encoding: a line of JSON, then the newer samples, each after its length."""
        fields = {name: value for name, value in vars(self).items() if name != "newer"}
        sized = (part for data in self.newer for part in (_LENGTH.pack(len(data)), data))
        return b"".join((orjson.dumps(fields), b"\n", *sized))

    @classmethod
    def of(cls, data: bytes) -> RunState:
        """Return the inverse of `to_bytes`."""
        state = cls("", "")
        position = data.index(b"\n") + 1
        fields: dict[str, Any] = orjson.loads(data[:position])
        vars(state).update(fields)
        while position < len(data):
            begin = position + _LENGTH.size
            position = begin + _LENGTH.unpack_from(data, position)[0]
            state.newer.append(data[begin:position])
        return state

"""State and timers of one key, as a runner gives them to a stateful stage."""

from __future__ import annotations

from apache_beam.utils.timestamp import Timestamp


class Cell:
    """State of one key; and a timer."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.rings: list[float] = []

    def add(self, data: bytes) -> None:
        self.held.append(data)

    def write(self, data: bytes) -> None:
        self.held = [data]

    def clear(self) -> None:
        self.held = []
        self.rings = []

    def set(self, at: Timestamp) -> None:
        self.rings = [float(at)]


class Bag(Cell):
    def read(self) -> list[bytes]:
        return self.held


class One(Cell):
    def read(self) -> bytes | None:
        return self.held[0] if self.held else None


class Count(Cell):
    def add(self, number: int) -> None:  # type: ignore[override]
        self.held.append(b"x" * number)

    def read(self) -> int:
        return len(b"".join(self.held))

"""What a trial found."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """The outcome of one trial. Green when there are no ``failures`` and it was not ``skipped``.

    Attributes:
      failures: a line for each thing that did not hold, beginning with the invariant: ``I1: …``.
      measures: figures by name, several where the trial injected several faults: ``commit_s`` (from a kill to the next
        commit), ``lag_s`` (from the end of the fault until nothing is left to read), ``rss_mb``, ``open_files``.
      counts: how much there was: events, rows, kills, versions, polls.
      skipped: why the fault could not be injected here.
    """

    failures: list[str] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    skipped: str = ""

    @property
    def ok(self) -> bool:
        return not self.failures and not self.skipped

    def fail(self, *lines: str) -> None:
        self.failures.extend(lines)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Notes ``otherwise`` as a failure unless it holds."""
        if not holds:
            self.failures.append(otherwise)

    def measure(self, name: str, value: float) -> None:
        self.measures[name].append(round(float(value), 3))

    def count(self, name: str, value: int = 1) -> None:
        self.counts[name] += value

    def merge(self, other: Verdict) -> None:
        """Takes in what another found."""
        self.failures += other.failures
        for name, values in other.measures.items():
            self.measures[name] += values
        for name, value in other.counts.items():
            self.counts[name] += value
        self.skipped = self.skipped or other.skipped

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "failures": self.failures[:50],
            "measures": dict(self.measures),
            "counts": dict(self.counts),
            "skipped": self.skipped,
        }

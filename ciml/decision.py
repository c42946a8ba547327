"""The gate's decision on a candidate: what training computes and the registry records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Decision:
    """The gate's decision on a candidate.

    Attributes:
      blessed: whether it may be pushed and served.
      reasons: against the candidate, a line each; for a blessed one, those in favour.
      metrics: the figures behind the decision.
    """

    blessed: bool
    reasons: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"blessed": self.blessed, "reasons": list(self.reasons), "metrics": dict(self.metrics)}

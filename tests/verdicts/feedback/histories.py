"""Recorded verdicts for tests of the history."""

from __future__ import annotations

from typing import Any

from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.standing import RERUNS, RecordedVerdict, Standings

DAY_US = 86_400_000_000
NOW_US = 100 * DAY_US


def recorded(number: int, cause: str = "machine", settled: str = "", **more: Any) -> RecordedVerdict:
    """A recorded claim on a change of its own; ``settled`` is what reruns say."""
    given: dict[str, Any] = {
        "id": f"{number:032x}", "run_id": f"zuul~{number}~1", "model": "cause", "version": 1, "project": "org/project",
        "change": str(number), "job": "unit", "cause": cause, "claim": True, "probability": 0.9, "seconds": 60.0,
        "time_us": NOW_US - DAY_US, "trusted": True, "settled": settled, "by": RERUNS if settled else "",
        "settled_us": NOW_US - DAY_US + number if settled else 0,
    }  # fmt: skip
    return RecordedVerdict(**{**given, **more})


def settled_verdicts(
    right: int, wrong: int, first: int = 0, cause: str = "machine", **more: Any
) -> list[RecordedVerdict]:
    """Claims of a cause of which so many are right and wrong, each on a change of its own."""
    other = "code" if cause == "machine" else "machine"
    outcomes = [cause] * right + [other] * wrong
    return [recorded(first + number, cause, outcome, **more) for number, outcome in enumerate(outcomes)]


def background(code: int, machine: int, first: int = 5000, **more: Any) -> list[RecordedVerdict]:
    """Settled failed runs on which the verdict was unknown: they count for the base rate alone."""
    causes = ["code"] * code + ["machine"] * machine
    return [recorded(first + number, "unknown", cause, claim=False, **more) for number, cause in enumerate(causes)]


def mode_of(
    verdicts: list[RecordedVerdict], cause: str = "machine", project: str = "org/project", **policy: Any
) -> str:
    """Whether the model may say a verdict."""
    return Standings(verdicts, Policy(**policy), NOW_US).of("cause", project, cause).mode

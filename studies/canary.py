"""How many labelled runs the rule of canaries and shadows needs, and how often it is wrong: `python -m studies.canary`.

Runs of different changes are drawn, since one of a change counts: a canary and a stable version that are right with
given probabilities, and a share of the runs for the canary; or a shadow on the same runs. Each run is a look. The
figures are in docs/serving.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ciml.intervals import wilson
from ciml.training.evaluation.sequential import PairedComparison, SequentialComparison

TRIALS = 100
MOST_RUNS = 60_000


class Case(NamedTuple):
    """How often the stable version and the canary are right, and the canary's share of the runs."""

    stable: float
    canary: float
    share: float


CASES = (
    Case(0.9, 0.85, 0.1),
    Case(0.9, 0.85, 0.5),
    Case(0.8, 0.75, 0.1),
    Case(0.9, 0.88, 0.1),
    Case(0.9, 0.9, 0.1),
    Case(0.9, 0.9, 0.5),
    Case(0.9, 0.92, 0.1),
)


class PairedCase(NamedTuple):
    """How often the stable version and the shadow are right, and how often the shadow alone is."""

    stable: float
    shadow: float
    alone: float


PAIRED = (
    PairedCase(0.9, 0.85, 0.03),
    PairedCase(0.9, 0.85, 0.0),
    PairedCase(0.8, 0.75, 0.03),
    PairedCase(0.9, 0.88, 0.03),
    PairedCase(0.9, 0.9, 0.03),
    PairedCase(0.9, 0.9, 0.01),
    PairedCase(0.9, 0.92, 0.04),
)


def decide(case: Case, seed: int, most: int = MOST_RUNS) -> tuple[str, int]:
    """Return the decision, "" without one, and the labelled runs until then, at most ``most``."""
    random = np.random.default_rng(seed)
    is_canary = random.random(most) < case.share
    is_right = random.random(most) < np.where(is_canary, case.canary, case.stable)
    comparison = SequentialComparison()
    for index, (of_canary, right) in enumerate(zip(is_canary.tolist(), is_right.tolist(), strict=True)):
        comparison.add(is_canary=of_canary, is_right=right)
        if comparison.decision:
            return comparison.decision, index + 1
    return "", most


def decide_pairs(case: PairedCase, seed: int, most: int = MOST_RUNS) -> tuple[str, int]:
    """Do as `decide` for a shadow."""
    place = np.random.default_rng(seed).random(most)
    both = case.shadow - case.alone
    shadow = place < case.shadow
    stable = (place < both) | ((place >= case.shadow) & (place < case.shadow + case.stable - both))
    comparison = PairedComparison()
    for index, (of_shadow, of_stable) in enumerate(zip(shadow.tolist(), stable.tolist(), strict=True)):
        comparison.add(canary_is_right=of_shadow, stable_is_right=of_stable)
        if comparison.decision:
            return comparison.decision, index + 1
    return "", most


def main() -> None:
    """Print a line for each case."""
    for case in CASES:
        _print(f"{case.stable} {case.canary} share {case.share}", [decide(case, seed) for seed in range(TRIALS)])
    for pair in PAIRED:
        results = [decide_pairs(pair, seed) for seed in range(TRIALS)]
        _print(f"{pair.stable} shadow {pair.shadow}, alone right {pair.alone}", results)


def _print(name: str, results: list[tuple[str, int]]) -> None:
    counts = {decision: sum(outcome == decision for outcome, _ in results) for decision in ("rollback", "promote", "")}
    low, high = wilson(counts["rollback"], TRIALS)
    middle, highest = np.quantile([runs for _, runs in results], [0.5, 0.9])
    print(
        f"{name}: rollback {counts['rollback']} ({low:.2f} to {high:.2f}), promote {counts['promote']}, "
        f"open {counts['']}; runs: median {middle:,.0f}, 90 % {highest:,.0f}"
    )


if __name__ == "__main__":
    main()

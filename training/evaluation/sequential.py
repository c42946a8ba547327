"""Compare two models that predict different runs, again and again as labels arrive: a test that is valid at each look.

A canary predicts a share of the runs, the stable version the others. A fixed test that is repeated until it succeeds
succeeds by chance at some time. An e-process does not: it is the wealth of someone who bets against a hypothesis, and
if the hypothesis holds, it reaches 1 / level at any time with a probability of at most the level (Ville's inequality).

The bet is that of Turner, Ly and Grünwald ("Generic E-variables for exact sequential k-sample tests that allow for
optional stopping", 2021, and their exact intervals for contingency tables, 2023): the likelihood of a block of runs by
the shares of right predictions that were seen before it, over its likelihood by the closest shares of the hypothesis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Right and wrong predictions that each model is taken to have had before: Jeffreys' prior.
_PRIOR = 0.5
_NEAR_0 = 1e-6
_STEPS = 60  # of a bisection: as exact as float64


@dataclass
class Arm:
    """The labelled predictions of a model.

    Attributes:
      right: number of right ones.
      runs: number of all.
    """

    right: int = 0
    runs: int = 0

    @property
    def estimate(self) -> float:
        """The expected share of right ones."""
        return (self.right + _PRIOR) / (self.runs + 2 * _PRIOR)

    def add(self, is_right: bool) -> None:
        """Count a labelled prediction."""
        self.right += is_right
        self.runs += 1


@dataclass
class Bet:
    """A bet against the hypothesis that the share of the canary is on one side of that of the stable version.

    Attributes:
      shift: the boundary of the hypothesis is the line where the canary's share is the stable one's plus the shift.
      sign: 1 if the hypothesis is that the canary's share is at least that; -1 if it is at most that.
      log_wealth: natural logarithm of the wealth, 0 at first.
    """

    shift: float
    sign: int
    log_wealth: float = 0.0

    def add(self, canary: Arm, stable: Arm, is_right: bool, block: Arm) -> None:
        """Bet on a block: one run of the canary, and the runs of the stable version since the block before.

        Args:
          canary, stable: all runs before the block.
          is_right: whether the canary was right.
          block: the runs of the stable version; no bet is possible without one.
        """
        share, other = canary.estimate, stable.estimate
        if not block.runs or self.sign * (share - other - self.shift) >= 0:
            return  # the past speaks for the hypothesis: do not bet
        null = _closest(share, other, block.runs, self.shift)
        if null is None:
            return
        self.log_wealth += _log_likelihood(share, is_right, 1) - _log_likelihood(null + self.shift, is_right, 1)
        self.log_wealth += _log_likelihood(other, block.right, block.runs)
        self.log_wealth -= _log_likelihood(null, block.right, block.runs)


def _closest(share: float, other: float, runs: int, shift: float) -> float | None:
    """Return the stable version's share on the boundary that is closest to two shares, by relative entropy of a block.

    Args:
      share: of the canary, one run.
      other: of the stable version, ``runs`` runs.
      shift: the canary's share on the boundary is that of the stable version plus this.
    """
    if not shift:
        return (share + runs * other) / (1 + runs)
    low, high = max(0.0, -shift) + _NEAR_0, min(1.0, 1 - shift) - _NEAR_0
    if low >= high:
        return None

    def slope(x: float) -> float:
        y = x + shift
        return -share / y + (1 - share) / (1 - y) + runs * (-other / x + (1 - other) / (1 - x))

    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2


def _log_likelihood(share: float, right: int, runs: int) -> float:
    return right * math.log(share) + (runs - right) * math.log1p(-share)


@dataclass
class SequentialComparison:
    """A canary beside a stable version, run by run in the order of their predictions.

    Attributes:
      margin: by how much less often right the canary may be to be promoted.
      level: largest probability of a wrong promotion, and of a wrong rollback.
      canary, stable: the labelled predictions of each.

    Example:
      >>> comparison = SequentialComparison()
      >>> for _ in range(200):
      ...     comparison.add(is_canary=True, is_right=False)
      ...     comparison.add(is_canary=False, is_right=True)
      >>> comparison.decision
      'rollback'
    """

    margin: float = 0.02
    level: float = 0.05
    canary: Arm = field(default_factory=Arm)
    stable: Arm = field(default_factory=Arm)

    def __post_init__(self) -> None:
        self._block = Arm()
        self._decision = ""
        self._not_worse = Bet(0.0, 1)
        self._too_bad = Bet(-self.margin, -1)

    def add(self, *, is_canary: bool, is_right: bool) -> None:
        """Add a labelled prediction. After a decision, it is only counted."""
        if not is_canary:
            self._block.add(is_right)
            return
        if not self._decision:
            for bet in (self._not_worse, self._too_bad):
                bet.add(self.canary, self.stable, is_right, self._block)
            self._decision = self._decide()
        self.canary.add(is_right)
        self.stable = Arm(self.stable.right + self._block.right, self.stable.runs + self._block.runs)
        self._block = Arm()

    def _decide(self) -> str:
        enough = -math.log(self.level)
        if self._not_worse.log_wealth >= enough:
            return "rollback"
        return "promote" if self._too_bad.log_wealth >= enough else ""

    @property
    def decision(self) -> str:
        """``rollback``: the canary is worse. ``promote``: it is not worse by the margin. "" while neither is shown."""
        return self._decision

    @property
    def evidence(self) -> tuple[float, float]:
        """The wealth of the bets that it is worse, and that it is not worse by the margin; decided at 1 / level."""
        return math.exp(min(self._not_worse.log_wealth, 700)), math.exp(min(self._too_bad.log_wealth, 700))

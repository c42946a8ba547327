"""Tests that are valid at each look, as labels arrive: of two models, and of one model.

A canary predicts a share of the runs, the stable version the others (`SequentialComparison`). A shadow predicts the
same runs as the stable version (`PairedComparison`). A fixed test that is repeated until it succeeds
succeeds by chance at some time. An e-process does not: it is the wealth of someone who bets against a hypothesis, and
if the hypothesis holds, it reaches 1 / level at any time with a probability of at most the level (Ville's inequality).

The bet is that of Turner, Ly and Grünwald ("Generic E-variables for exact sequential k-sample tests that allow for
optional stopping", 2021, and their exact intervals for contingency tables, 2023): the likelihood of a block of runs by
the shares of right predictions that were seen before it, over its likelihood by the closest shares of the hypothesis.
For pairs, that ratio is 1 + λ (difference - boundary), with the λ whose expected growth was largest so far.

`AccuracyDrop` bets in the same way on the runs of one version against the accuracy that it had at the gate.

Runs must be independent of each other. Runs of a change are not, so the caller adds one of each change.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

#: Right and wrong predictions that each model is taken to have had before: Jeffreys' prior.
_PRIOR = 0.5
_NEAR_0 = 1e-6
_STEPS = 60  # of a bisection: as exact as float64
#: A drop of the accuracy is taken to begin with any of these runs.
_STARTS = 20


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
        share = canary.estimate
        stable_share = stable.estimate
        if not block.runs or self.sign * (share - stable_share - self.shift) >= 0:
            return  # the past speaks for the hypothesis: do not bet
        null = _closest(share, stable_share, block.runs, self.shift)
        if null is None:
            return
        self.log_wealth += _log_likelihood(share, is_right, 1) - _log_likelihood(null + self.shift, is_right, 1)
        self.log_wealth += _log_likelihood(stable_share, block.right, block.runs)
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
    low = max(0.0, -shift) + _NEAR_0
    high = min(1.0, 1 - shift) - _NEAR_0
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
class PairedBet:
    """A bet against the hypothesis that the mean difference of pairs is on one side of a boundary.

    The difference of a pair is 1 if only the shadow is right, -1 if only the stable version is, else 0.

    Attributes:
      shift: the boundary.
      sign: 1 if the hypothesis is that the mean is at least that; -1 if it is at most that.
      log_wealth: natural logarithm of the wealth, 0 at first.
    """

    shift: float
    sign: int
    log_wealth: float = 0.0

    def add(self, counts: Mapping[int, int], difference: int) -> None:
        """Bet on a pair, given the number of earlier pairs by their difference."""
        total = sum(counts.values()) + 3 * _PRIOR
        gains = {d: self.sign * (self.shift - d) for d in (-1, 0, 1)}
        shares = {d: (counts.get(d, 0) + _PRIOR) / total for d in gains}
        if sum(shares[d] * gains[d] for d in gains) <= 0:
            return  # the past speaks for the hypothesis: do not bet
        low = 0.0
        high = (1 - _NEAR_0) / -min(gains.values())
        for _ in range(_STEPS):
            middle = (low + high) / 2
            slope = sum(shares[d] * gains[d] / (1 + middle * gains[d]) for d in gains)
            low, high = (middle, high) if slope > 0 else (low, middle)
        self.log_wealth += math.log1p(low * gains[difference])


class _Comparison:
    """What a comparison decides from a bet that the version is not worse, and one that it is too bad.

    Attributes:
      level: largest probability of a wrong promotion, and of a wrong rollback.
      canary, stable: the labelled predictions of the canary or shadow, and of the stable version.
    """

    def __init__(self, not_worse: Bet | PairedBet, too_bad: Bet | PairedBet, level: float) -> None:
        self.level = level
        self.canary = Arm()
        self.stable = Arm()
        self._decision = ""
        self._not_worse = not_worse
        self._too_bad = too_bad

    def _decide(self) -> str:
        enough = -math.log(self.level)
        if self._not_worse.log_wealth >= enough:
            return "rollback"
        return "promote" if self._too_bad.log_wealth >= enough else ""

    @property
    def decision(self) -> str:
        """``rollback``: the version is worse. ``promote``: it is not worse by the margin. "" while neither is shown."""
        return self._decision

    @property
    def evidence(self) -> tuple[float, float]:
        """The wealth of the bets that it is worse, and that it is not worse by the margin; decided at 1 / level."""
        return math.exp(min(self._not_worse.log_wealth, 700)), math.exp(min(self._too_bad.log_wealth, 700))


class PairedComparison(_Comparison):
    """A shadow next to a stable version: both predict each run.

    Args:
      margin: by how much less often right the shadow may be to be promoted.
      level: as the attribute.

    Example:
      >>> comparison = PairedComparison()
      >>> for _ in range(20):
      ...     comparison.add(canary_is_right=False, stable_is_right=True)
      >>> comparison.decision
      'rollback'
    """

    def __init__(self, margin: float = 0.02, level: float = 0.05) -> None:
        self._bets = (PairedBet(0.0, 1), PairedBet(-margin, -1))
        super().__init__(*self._bets, level)
        self._counts: Counter[int] = Counter()

    def add(self, *, canary_is_right: bool, stable_is_right: bool) -> None:
        """Add a labelled run that both predicted. After a decision, it is only counted."""
        difference = int(canary_is_right) - int(stable_is_right)
        if not self._decision:
            for bet in self._bets:
                bet.add(self._counts, difference)
            self._decision = self._decide()
        self._counts[difference] += 1
        self.canary.add(canary_is_right)
        self.stable.add(stable_is_right)


class SequentialComparison(_Comparison):
    """A canary next to a stable version, run by run in the order of their predictions.

    Args:
      margin: by how much less often right the canary may be to be promoted.
      level: as the attribute.

    Example:
      >>> comparison = SequentialComparison()
      >>> for _ in range(200):
      ...     comparison.add(is_canary=True, is_right=False)
      ...     comparison.add(is_canary=False, is_right=True)
      >>> comparison.decision
      'rollback'
    """

    def __init__(self, margin: float = 0.02, level: float = 0.05) -> None:
        self._bets = (Bet(0.0, 1), Bet(-margin, -1))
        super().__init__(*self._bets, level)
        self._block = Arm()

    def add(self, *, is_canary: bool, is_right: bool) -> None:
        """Add a labelled prediction. After a decision, it is only counted."""
        if not is_canary:
            self._block.add(is_right)
            return
        if not self._decision:
            for bet in self._bets:
                bet.add(self.canary, self.stable, is_right, self._block)
            self._decision = self._decide()
        self.canary.add(is_right)
        self.stable = Arm(self.stable.right + self._block.right, self.stable.runs + self._block.runs)
        self._block = Arm()


@dataclass
class AccuracyDrop:
    """The labelled predictions of a served version, in their order, compared with its held-out runs at the gate.

    A model may be as good as at the gate for months, and then get worse. So a bet begins with every twentieth run, and
    after 400 runs whenever the runs have grown by a twentieth: of n runs, there are about 20 ln(n / 400) more bets. The
    share of the stake decreases: 1/2, 1/6, 1/12, … The sum of such bets is an e-process, too. Half of the level
    is that of the bets, and half that of the accuracy at the gate, which is known from few runs: the hypothesis is that
    the version is right at least as often as the lower end of an exact interval says (Clopper and Pearson), of as many
    independent runs as the held-out runs are worth.

    Attributes:
      gate: the held-out runs at the gate.
      independent: number of independent runs that the held-out runs are worth (`ciml.training.changes`); None for all.
      level: largest probability of a decision for a version that is as good as at the gate, at any number of looks.
      served: the labelled predictions.

    Example:
      >>> drop = AccuracyDrop(Arm(right=95, runs=100))
      >>> for _ in range(60):
      ...     drop.add(is_right=False)
      >>> drop.is_shown
      True
    """

    gate: Arm
    independent: float | None = None
    level: float = 0.05
    served: Arm = field(default_factory=Arm)

    def __post_init__(self) -> None:
        self._right = np.zeros(0)
        self._runs = np.zeros(0)
        self._log_wealth = np.zeros(0)
        self._most = 1.0
        self._next_start = 0

    @cached_property
    def least(self) -> float:
        """The lower end of the accuracy at the gate."""
        from scipy.stats import beta

        if not self.gate.right:
            return 0.0
        worth = 1.0 if self.independent is None else self.independent / self.gate.runs
        wrong = self.gate.runs - self.gate.right
        return float(beta.ppf(self.level / 2, self.gate.right * worth, wrong * worth + 1))

    def add(self, *, is_right: bool) -> None:
        """Add a labelled prediction."""
        if self.served.runs == self._next_start:
            self._next_start += max(_STARTS, self.served.runs // _STARTS)
            self._right, self._runs, self._log_wealth = (
                np.append(values, 0.0) for values in (self._right, self._runs, self._log_wealth)
            )
        if self.least > 0:
            shares = (self._right + _PRIOR) / (self._runs + 2 * _PRIOR)
            likelihoods, null = (shares, self.least) if is_right else (1 - shares, 1 - self.least)
            self._log_wealth += np.where(shares < self.least, np.log(likelihoods) - math.log(null), 0.0)
        self._right += is_right
        self._runs += 1
        self.served.add(is_right)
        self._most = max(self._most, self.evidence)

    @property
    def evidence(self) -> float:
        """The wealth of the bets; a drop is shown where it reaches 2 / level."""
        starts = np.arange(1, len(self._log_wealth) + 1)
        reserve = 1 / (len(starts) + 1)  # the stakes of bets that have not begun
        return float(reserve + (np.exp(np.minimum(self._log_wealth, 700)) / (starts * (starts + 1))).sum())

    @property
    def is_shown(self) -> bool:
        """Whether the version was shown to be worse than at the gate, at this look or an earlier one."""
        return self._most >= 2 / self.level

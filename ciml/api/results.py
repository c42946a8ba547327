"""Results of trainings: figures with intervals, next to the base rate and the baselines of one run statistic."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from ciml.training.trainer import TrainResult


class Figure(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
      value: None where it is undefined, for example if the runs have a single class.
      low: lower bound, or None.
      high: upper bound, or None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Figure:
        """Return the figure of a stored result."""
        return cls(stored["value"], stored.get("low"), stored.get("high"))

    def __str__(self) -> str:
        from ciml.training.evaluation.text import figure_text

        return figure_text(*self)


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """The result of an experiment on a data set: its figures on the held-out test runs.

    ``print(result)`` prints it as ``ciml experiment train`` does.

    Attributes:
      experiment: name of the experiment, for `ciml.Data.compare`.
      dataset: name of the data set.
      new: whether this call trained; False if the result was stored before.
      figures: the stored result, described in docs/experiments.md.
    """

    experiment: str
    dataset: str
    new: bool
    figures: Mapping[str, Any]

    @property
    def runs(self) -> int:
        """Number of test runs."""
        return int(self.figures["test"]["runs"])

    @property
    def accuracy(self) -> Figure:
        """Share of the test runs whose class is predicted correctly."""
        return Figure.of(self.figures["test"]["accuracy"])

    @property
    def f1(self) -> Figure:
        """Mean of the classes' F1 scores."""
        return Figure.of(self.figures["test"]["macro"]["f1"])

    @property
    def roc_auc(self) -> Figure:
        """Mean of the classes' areas under the ROC curve."""
        return Figure.of(self.figures["test"]["macro"]["roc_auc"])

    @property
    def base_rate(self) -> Figure:
        """Accuracy of always predicting the most frequent class of the training runs."""
        return Figure.of(self.figures["test"]["base_rate"])

    @property
    def baselines(self) -> dict[str, Figure]:
        """Accuracy of predicting from one run statistic, ``duration`` or ``memory``, by its name."""
        return {name: Figure.of(scores["accuracy"]) for name, scores in self.figures["baselines"].items()}

    def __repr__(self) -> str:
        from ciml.training.experiments.text import result_lines

        return "\n".join(result_lines(self.figures))


class _Outcome(str):
    """An outcome whose former name still works."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if other == "refused":
            warnings.warn("the outcome 'refused' is now 'rejected'", DeprecationWarning, stacklevel=2)
            other = "rejected"
        return str.__eq__(self, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other


@dataclass(frozen=True, repr=False)
class RefreshResult:
    """The result of a refresh: whether a new version was pushed, and why.

    ``print(result)`` prints it as ``ciml refresh`` does.

    Attributes:
      model: name of the model.
      outcome: ``pushed``; ``rejected`` by the gate or by the checks before a push; or ``nothing_new`` without new runs.
        It compares equal to ``refused``, the former name of ``rejected``, with a `DeprecationWarning`.
      version: number of the pushed version, or None.
      reasons: one line for each reason of the outcome.
      metrics: figures of the candidate; empty if nothing was trained.
    """

    model: str
    outcome: Literal["pushed", "rejected", "nothing_new"]
    version: int | None
    reasons: tuple[str, ...]
    metrics: Mapping[str, Any]
    _result: TrainResult

    @classmethod
    def of(cls, model: str, result: TrainResult) -> RefreshResult:
        """Return the public form of a trainer's result."""
        outcome: Any = _Outcome(result.outcome)
        return cls(model, outcome, result.version, result.reasons, result.metrics, result)

    def __repr__(self) -> str:
        return "\n".join(self._result.lines(self.model))

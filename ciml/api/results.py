"""Results of trainings: figures with intervals, beside the base rate and the one-number baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ciml.training.trainer import TrainResult


class Figure(NamedTuple):
    """A figure with its interval of 95 %.

    Attributes:
      value: None where it is undefined, such as with one class among the runs.
      low: lower bound; None where it is undefined.
      high: upper bound; None where it is undefined.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Figure:
        """Return the figure of a stored result."""
        return cls(found["value"], found.get("low"), found.get("high"))

    def __str__(self) -> str:
        from ciml.training.evaluation.gate import figure_text

        return figure_text(*self)


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """The result of an experiment on a data set: its figures on the held-out test runs.

    ``print(result)`` shows what ``ciml experiment train`` prints.

    Attributes:
      experiment: the experiment's name, for `ciml.Data.compare`.
      dataset: the data set's name.
      new: whether this call trained; False for a result that was stored before.
      figures: the stored result, as docs/experiments.md describes it.
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
        """Share of the test runs whose class is right."""
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
        """Accuracy of always answering the most frequent class of the training runs."""
        return Figure.of(self.figures["test"]["base_rate"])

    @property
    def baselines(self) -> dict[str, Figure]:
        """Accuracy of a prediction from one number alone, ``duration`` or ``memory``, by that number."""
        return {name: Figure.of(found["accuracy"]) for name, found in self.figures["baselines"].items()}

    def __repr__(self) -> str:
        from ciml.training.experiments.text import result_lines

        return "\n".join(result_lines(self.figures))


@dataclass(frozen=True, repr=False)
class RefreshResult:
    """The result of a refresh: whether the gate let a new version be pushed, and why.

    ``print(result)`` shows what ``ciml refresh`` prints.

    Attributes:
      model: the model's name.
      outcome: ``pushed``; ``refused`` by the gate or the checks before a push; ``nothing_new`` without new runs.
      version: number of the pushed version; None without one.
      reasons: of the outcome, a line each.
      metrics: the candidate's figures; empty if nothing was trained.
    """

    model: str
    outcome: str
    version: int | None
    reasons: tuple[str, ...]
    metrics: Mapping[str, Any]
    _result: TrainResult

    @classmethod
    def of(cls, model: str, result: TrainResult) -> RefreshResult:
        """Return the public form of a trainer's result."""
        return cls(model, result.outcome, result.version, result.reasons, result.metrics, result)

    def __repr__(self) -> str:
        return "\n".join(self._result.lines(self.model))

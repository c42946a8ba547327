"""The stored outcome of a sweep's trial: JSON, created once; a sweep has no other state."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from ciml.settings import Settings

State = Literal["complete", "pruned", "failed"]


class Outcome(Settings, frozen=True, kw_only=True):
    """The outcome of a trial.

    Attributes:
      format: version of the file format.
      number: the trial's number, from 0.
      question: index of the sweep's question.
      parameters: value by axis.
      state: ``pruned`` trials were worse than earlier ones, ``failed`` ones could not be trained.
      reason: why a trial failed, one line.
      value: the metric over all held-out runs; for a pruned trial, over those scored last.
      low: lower bound of its 95 % interval, or None.
      high: upper bound, or None.
      steps: reported (step, value): for folds, over the folds so far; for epochs, on dev.
      scores: further figures of a complete trial: ``accuracy``, ``f1`` and ``base_rate``.
      dataset: name of the data set.
      experiment: the experiment, as JSON.
      snapshot: digest of the runs.
      trained_on: training runs of the last fold.
      held_out: scored runs.
      same_as: number of an earlier trial with the same parameters, whose outcome is reused.
      seconds: wall clock of training and scoring.
      attrs: attributes of optuna's pruner.
    """

    what: ClassVar[str] = "outcome of a trial"

    format: Literal[1] = 1
    number: Annotated[int, Meta(ge=0)]
    question: Annotated[int, Meta(ge=0)]
    parameters: dict[str, str | int | float]
    state: State
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    steps: tuple[tuple[int, float], ...] = ()
    scores: dict[str, float | None] = field(default_factory=dict)
    dataset: str = ""
    experiment: dict[str, Any] = field(default_factory=dict)
    snapshot: str = ""
    trained_on: int = 0
    held_out: int = 0
    same_as: int | None = None
    seconds: float = 0.0
    attrs: dict[str, str | int | float | None] = field(default_factory=dict)

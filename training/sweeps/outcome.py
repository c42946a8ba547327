"""What a trial of a sweep came to, as it is stored: JSON, created once, and all the state that a sweep has."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, field

from ciml.settings import Settings

State = Literal["complete", "pruned", "failed"]


class Outcome(Settings, frozen=True, kw_only=True):
    """What a trial came to.

    Attributes:
      format: of this file.
      number: of the trial, from 0.
      question: which of the sweep's questions it answers.
      parameters: by axis its value.
      state: ``pruned`` trials were ended for being worse than earlier ones, ``failed`` ones could not be trained.
      reason: why a trial failed, one line.
      value: of the metric, of all held-out runs; of a pruned trial, of those that were looked at last.
      low: of its 95 % interval; None where there is none.
      high: the same.
      steps: (step, value) as they were reported: of folds, the value over the folds so far; of epochs, on dev.
      scores: further figures of a complete trial: ``accuracy``, ``f1`` and ``base_rate``.
      dataset: name of the data set.
      experiment: what was trained, as JSON.
      snapshot: digest of which runs.
      trained_on: runs, at the last fold.
      held_out: runs that were scored.
      same_as: the number of an earlier trial of the same parameters, which was not trained again.
      seconds: wall clock of training and scoring.
      attrs: what optuna's pruner notes.
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

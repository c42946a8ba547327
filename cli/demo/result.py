"""The result of a demo as one JSON document, which the tables and the page render."""

from __future__ import annotations

from msgspec import Struct, field


class AccountingLine(Struct, frozen=True, kw_only=True):
    """(event, run) pairs of one class, reason and damage: the number that the producer expects, and the manifest's."""

    kind: str
    reason: str = ""
    trick: str = ""
    expected: int
    counted: int


class SpanLine(Struct, frozen=True, kw_only=True):
    """One span version of a data set: examples by split and by class, and excluded runs by reason."""

    dataset: str
    span: int
    version: int
    splits: dict[str, int]
    classes: dict[str, int]
    excluded: dict[str, int]


class Share(Struct, frozen=True):
    """A share with its 95 % interval."""

    value: float = 0.0
    low: float = 0.0
    high: float = 1.0


class Evaluation(Struct, frozen=True):
    """The evaluation of a model on ``runs`` held-out runs."""

    accuracy: Share = Share()
    base_rate: Share = Share()
    runs: int = 0
    trained_on: int = 0


class SnapshotId(Struct, frozen=True):
    digest: str = ""


class Metrics(Struct, frozen=True):
    """The metrics of a candidate, as far as the demo reads them; all have defaults, for a refresh without a candidate.

    Attributes:
      evaluation: of the candidate.
      snapshot: its training and test runs.
      champion: of the version that was served before, on the same runs.
      baselines: accuracy of single numbers of a run, such as its duration, on the same runs.
      disagreement: largest difference of a probability between the exported model and the one in memory.
    """

    evaluation: Evaluation = Evaluation()
    snapshot: SnapshotId = SnapshotId()
    champion: Evaluation | None = None
    baselines: dict[str, Share] = {}
    disagreement: float | None = None


class Refresh(Struct, frozen=True):
    """One refresh, as ``ciml refresh --json`` prints it.

    Attributes:
      version: the pushed version; None if the gate rejected the candidate, for ``reasons``.
      seconds: duration by step.
      metrics: of the candidate.
    """

    model: str
    version: int | None
    reasons: list[str]
    seconds: dict[str, float]
    metrics: Metrics


class PredictionLine(Struct, frozen=True, kw_only=True):
    """The predictions of one model: the number by version, and the time from reading a run to its probabilities."""

    model: str
    by_version: dict[str, int]
    untrusted: int = 0
    p50_ms: float
    p99_ms: float


class AnswerLine(Struct, kw_only=True):
    """A failed run of a change in a real Gerrit, and ciml's answer on the change.

    Attributes:
      cause: the recorded cause.
      verdict: ciml's verdict, with its calibrated ``probability``; "" before the prediction.
      silent: the reason for which the policy of feedback posts no message; None before the prediction.
      took_s: time from the run's event to the message on the change, in seconds.
    """

    change: str
    job: str
    outcome: str
    cause: str
    verdict: str = ""
    probability: float | None = None
    silent: str | None = None
    took_s: float | None = None
    messages: list[str] = field(default_factory=list)


class Check(Struct, frozen=True, kw_only=True):
    name: str
    passed: bool
    detail: str = ""


class StepLine(Struct, frozen=True, kw_only=True):
    """One step: its begin after the start of the demo and its duration, in seconds."""

    name: str
    began_s: float
    took_s: float


class DemoResult(Struct, frozen=True, kw_only=True):
    """The result of a demo."""

    started: str
    took_s: float
    engines: dict[str, str]
    runs: int
    messages: int
    accounting: list[AccountingLine] = field(default_factory=list)
    spans: list[SpanLine] = field(default_factory=list)
    refreshes: list[Refresh] = field(default_factory=list)
    predictions: list[PredictionLine] = field(default_factory=list)
    answers: list[AnswerLine] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    steps: list[StepLine] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

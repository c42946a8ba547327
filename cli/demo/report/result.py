"""The result of a demo as one JSON document, which the tables and the report render."""

from __future__ import annotations

from msgspec import Struct, field


class _Record(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class AccountingLine(_Record, frozen=True, kw_only=True):
    """(event, run) of one class and reason: how many the producer's list expects, and how many the manifest counts."""

    kind: str
    reason: str = ""
    expected: int
    counted: int


class SpoiltLine(_Record, frozen=True, kw_only=True):
    """One kind of damaged event, and the outcomes."""

    trick: str
    messages: int
    became: str


class SpanLine(_Record, frozen=True, kw_only=True):
    """One span version of a data set: rows by split and by class."""

    dataset: str
    span: int
    version: int
    splits: dict[str, int]
    classes: dict[str, int]


class ExclusionLine(_Record, frozen=True, kw_only=True):
    dataset: str
    reason: str
    runs: int


class VersionLine(_Record, frozen=True, kw_only=True):
    """One refresh of a model: its accuracy on held-out runs, beside the baselines.

    ``low`` and ``high`` bound the accuracy at 95 %. ``base_rate`` is the share of the commonest class. ``one_number``
    is the accuracy of a single ``number`` on the same runs: ``duration``, or ``memory`` of the first sample.
    ``champion`` is the accuracy of the model served before, on the same runs. ``verdict`` is ``pushed`` or ``kept``.
    """

    model: str
    version: int
    verdict: str
    why: str = ""
    accuracy: float
    low: float
    high: float
    tested: int
    trained: int
    base_rate: float
    number: str = ""
    one_number: float | None = None
    one_number_low: float | None = None
    one_number_high: float | None = None
    champion: float | None = None
    took_s: float = 0.0


class Confusion(_Record, frozen=True, kw_only=True):
    """``counts[i][j]``: held-out runs of class i that the model called class j."""

    model: str
    version: int
    classes: list[str]
    counts: list[list[int]]


class PredictionLine(_Record, frozen=True, kw_only=True):
    """The predictions of one model: the number by version, and the time from reading a run to its probabilities."""

    model: str
    by_version: dict[str, int]
    untrusted: int = 0
    p50_ms: float
    p99_ms: float
    latencies_ms: list[float]


class Profile(_Record, frozen=True, kw_only=True):
    """The mean of one telemetry column over the first windows of the runs of a provider."""

    provider: str
    runs: int
    means: list[float]


class AnswerLine(_Record, frozen=True, kw_only=True):
    """A failed run of a change in a real Gerrit, and what was said on the change.

    ``cause`` is the recorded one. ``verdict`` is ciml's, with its calibrated probability; ``silent`` is why
    nothing is said of it; "" where there is a message.
    ``took_s`` is the time from the run's message to the message on the change, in seconds.
    """

    change: str
    job: str
    outcome: str
    cause: str
    verdict: str
    probability: float | None = None
    silent: str = ""
    took_s: float | None = None
    messages: list[str] = field(default_factory=list)


class Check(_Record, frozen=True, kw_only=True):
    name: str
    passed: bool
    detail: str = ""


class StepLine(_Record, frozen=True, kw_only=True):
    """One step: its begin after the start of the demo and its duration, in seconds."""

    name: str
    began_s: float
    took_s: float


class DemoResult(_Record, frozen=True, kw_only=True):
    """The result of a demo."""

    started: str
    took_s: float
    engines: dict[str, str]
    runs: int
    messages: int
    accounting: list[AccountingLine] = field(default_factory=list)
    spoilt: list[SpoiltLine] = field(default_factory=list)
    spans: list[SpanLine] = field(default_factory=list)
    exclusions: list[ExclusionLine] = field(default_factory=list)
    versions: list[VersionLine] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    predictions: list[PredictionLine] = field(default_factory=list)
    profile_column: str = "total cpu usage:usr"
    profile_interval_s: float = 10.0
    profiles: list[Profile] = field(default_factory=list)
    answers: list[AnswerLine] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    steps: list[StepLine] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def one_number_line(self) -> str:
        """Return what one number alone would do, on the held-out runs of each model's last refresh; "" if unknown."""
        last = {line.model: line for line in self.versions}
        parts = [
            f"{line.number} alone is right for {100 * line.one_number:.1f} % "
            f"({100 * line.one_number_low:.1f}–{100 * line.one_number_high:.1f}) of {model}"
            for model, line in last.items()
            if line.one_number is not None and line.one_number_low is not None and line.one_number_high is not None
        ]
        return f"On the same held-out runs, {', and '.join(parts)}." if parts else ""

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

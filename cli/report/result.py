"""What a run of the whole chain found, as one JSON document: the table, the checks and the report all render this."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AccountingLine(_Record):
    """(event, run) of one class and reason: how many the producer's list expects, and how many the manifest counts."""

    kind: str
    reason: str = ""
    expected: int
    counted: int


class SpoiltLine(_Record):
    """One way in which events were spoilt on purpose, and what became of them."""

    trick: str
    messages: int
    became: str


class SpanLine(_Record):
    """One span version of a data set: rows by split and by class."""

    dataset: str
    span: int
    version: int
    splits: dict[str, int]
    classes: dict[str, int]


class ExclusionLine(_Record):
    dataset: str
    reason: str
    runs: int


class VersionLine(_Record):
    """One refresh of a model: its accuracy on runs that it did not learn from, beside what needs no network.

    ``low`` and ``high`` bound the accuracy at 95 %. ``base_rate`` is the share of the commonest class, ``one_number``
    the accuracy of the sum of used, free, buff and cach of the first sample (nearest neighbour), on the same runs.
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
    one_number: float | None = None
    one_number_low: float | None = None
    one_number_high: float | None = None
    champion: float | None = None
    took_s: float = 0.0


class Confusion(_Record):
    """``counts[i][j]``: held-out runs of class i that the model called class j."""

    model: str
    version: int
    classes: list[str]
    counts: list[list[int]]


class PredictionLine(_Record):
    """The predictions of one model: how many by each version, and the time from reading a run to its probabilities."""

    model: str
    by_version: dict[str, int]
    untrusted: int = 0
    p50_ms: float
    p99_ms: float
    latencies_ms: list[float]


class Profile(_Record):
    """The mean of one telemetry column over the first windows of the runs of a provider."""

    provider: str
    runs: int
    means: list[float]


class Check(_Record):
    name: str
    passed: bool
    detail: str = ""


class StepLine(_Record):
    """One step: when it began, counted from the start of the whole run, and how long it took, in seconds."""

    name: str
    began_s: float
    took_s: float


class DemoResult(_Record):
    """Everything that a run of the demo found."""

    started: str
    took_s: float
    engines: dict[str, str]
    runs: int
    messages: int
    accounting: list[AccountingLine] = []
    spoilt: list[SpoiltLine] = []
    spans: list[SpanLine] = []
    exclusions: list[ExclusionLine] = []
    versions: list[VersionLine] = []
    confusions: list[Confusion] = []
    predictions: list[PredictionLine] = []
    profile_column: str = "total cpu usage:usr"
    profile_interval_s: float = 10.0
    profiles: list[Profile] = []
    checks: list[Check] = []
    steps: list[StepLine] = []
    notes: list[str] = []

    @property
    def passed(self) -> bool:
        """Whether there are checks and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

"""Decides which verdicts are said (pure): a prediction becomes a verdict on a patch set, or a reason for silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ciml.events.records import Record
from ciml.globs import glob_pattern
from services.feedback.client import ChangeRef
from services.feedback.config import Feedback

#: Reasons for silence, a closed set: labels of a metric.
SILENT = (
    "no_verdict", "bad_record", "not_failed", "unknown", "unlikely", "not_selected", "muted_project", "no_change",
    "no_system", "late",
)  # fmt: skip
_FAILED = frozenset({"failure", "timeout"})
#: Fields of a prediction that its evidence and its text do not need.
_LEFT_OUT = frozenset({"prepare_ms", "server_ms", "batch", "latency_ms", "n_windows", "offset"})
_MAX_ITEM_BYTES = 32 << 10


class _Verdict(msgspec.Struct, frozen=True):
    """What a message says of a verdict; the types are checked, since a topic may hold anything."""

    cause: str
    probability: float
    set: tuple[str, ...] = ()
    coverage: float = 0.0
    group: str = ""
    runs: int = 0
    base_rate: dict[str, float] = {}  # msgspec copies it
    retry: str = "unsure"


class _Run(msgspec.Struct, frozen=True):
    source: str
    build_name: str
    outcome: str | None = None
    result: str = ""
    project: str = ""
    branch: str = ""
    pipeline: str = ""
    change: str = ""
    patchset: str = ""
    head: str = ""
    provider: str = ""
    start_us: int | None = None
    end_us: int | None = None


class _Prediction(msgspec.Struct, frozen=True):
    run_id: str
    model: str
    version: int
    run: _Run
    verdict: _Verdict
    time_us: int = 0


class Item(Record, frozen=True, gc=False):
    """A verdict that is to be said, with its prediction's record. All texts in it are hostile.

    Attributes:
      system: name of the review system.
      project, change, patchset, head: of the change; see `ChangeRef`.
      job, run_id: of the run.
      cause, probability, retry: the verdict.
      end_us: the run's end, or the time of its prediction, epoch microseconds.
      prediction: the record on the topic, without measurements.
    """

    system: str
    project: str
    change: str
    patchset: str
    head: str
    job: str
    run_id: str
    cause: str
    probability: float
    retry: str
    end_us: int
    prediction: dict[str, Any]

    @property
    def ref(self) -> ChangeRef:
        """The patch set."""
        return ChangeRef(self.project, self.change, self.patchset, self.head)

    @property
    def verdict(self) -> _Verdict:
        """The verdict, its types checked."""
        return msgspec.convert(self.prediction["verdict"], _Verdict)


def judge(record: Mapping[str, Any], feedback: Feedback, muted: Iterable[str], now_us: int) -> Item | str:
    """Return the verdict that is to be said of a run, or one of `SILENT`.

    Args:
      record: a prediction, as on the topic.
      feedback: the configuration.
      muted: globs of projects that were muted at run time.
      now_us: the present, epoch microseconds.
    """
    if not isinstance(record.get("verdict"), dict) or not isinstance(record.get("run"), dict):
        return "no_verdict"
    try:
        found = msgspec.convert(record, _Prediction)
    except msgspec.ValidationError:
        return "bad_record"
    run, verdict, policy = found.run, found.verdict, feedback.policy
    rates = (verdict.probability, verdict.coverage, *verdict.base_rate.values())
    if not all(0.0 <= rate <= 1.0 for rate in rates) or verdict.runs < 0:  # nor NaN
        return "bad_record"
    if run.outcome not in _FAILED:
        return "not_failed"
    if verdict.cause not in policy.causes:
        return "unknown"
    if verdict.probability < policy.min_probability:
        return "unlikely"
    if not policy.answers(found.model, run.project, run.branch, run.pipeline, run.build_name):
        return "not_selected"
    if is_muted(run.project, (*policy.muted_projects, *muted)):
        return "muted_project"
    if not run.project or not (run.change or run.head) or not (run.patchset or run.head):
        return "no_change"
    system = feedback.system_of(run.source, run.project)
    if system is None:
        return "no_system"
    end_us = run.end_us or run.start_us or found.time_us
    if now_us - end_us > policy.max_age_s * 1e6:
        return "late"
    item = Item(
        system.name, run.project, run.change, run.patchset, run.head, run.build_name, found.run_id, verdict.cause,
        verdict.probability, verdict.retry, end_us,
        {key: value for key, value in record.items() if key not in _LEFT_OUT},
    )  # fmt: skip
    return item if len(msgspec.json.encode(item)) <= _MAX_ITEM_BYTES else "bad_record"


def is_muted(project: str, globs: Iterable[str]) -> bool:
    """Return whether a project gets no messages."""
    return any(glob_pattern((glob,)).fullmatch(project) for glob in globs)

"""Decides which verdicts could be said (pure): a prediction becomes a verdict on a patch set, or a reason for silence.

Whether the model has the history to say it is decided afterwards (`ciml.verdicts.feedback.standing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ciml.events.outcomes import FAILED
from ciml.events.records import Record, RunFacts
from ciml.globs import glob_pattern
from ciml.integrations.review import ChangeRef
from ciml.intervals import wilson
from ciml.serving.predict.log import prediction_id
from ciml.verdict_rules import Verdict
from ciml.verdicts.feedback.config import Feedback, Policy
from ciml.verdicts.feedback.standing import RecordedVerdict

#: Reasons for silence, a closed set: labels of a metric.
SILENT = (
    *"no_verdict bad_record not_failed not_selected".split(),  # the prediction
    *"unknown outside unlikely base_rate".split(),  # the verdict
    *"no_evidence not_comparable".split(),  # its evidence
    *"muted_project no_change no_system late".split(),  # the change
    *"shadow precision".split(),  # the model
)
#: Fields of a prediction that its evidence and its text do not need.
_LEFT_OUT = frozenset({"prepare_ms", "server_ms", "batch", "latency_ms", "n_windows", "offset"})
_MAX_RECORD_BYTES = 30 << 10
_ID_CHARACTERS = 64
_DAY_US = 86_400_000_000


class _Prediction(msgspec.Struct, frozen=True):
    """The fields of a prediction that feedback reads; their types are checked, since a topic may hold anything."""

    run_id: str
    model: str
    version: int
    run: RunFacts
    verdict: Verdict
    id: str = ""
    time_us: int = 0


class Item(Record, frozen=True, gc=False):
    """A verdict that is to be said, with its prediction's record. All texts in it are hostile.

    Attributes:
      system: name of the review system.
      project, change, patchset, head, head_project, head_branch: of the change; see `ChangeRef`.
      job, run_id: of the run.
      cause, probability, retry: the verdict.
      end_us: the run's end, or the time of its prediction, epoch microseconds.
      prediction: the record on the topic, without measurements.
      right, settled: of the last settled verdicts of this cause, those that were right, and their number.
      passed, reruns: of those that reruns settled, the runs that passed, and their number.
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
    right: int = 0
    settled: int = 0
    passed: int = 0
    reruns: int = 0
    head_project: str = ""
    head_branch: str = ""

    @property
    def ref(self) -> ChangeRef:
        """The patch set."""
        return ChangeRef(self.project, self.change, self.patchset, self.head, self.head_project, self.head_branch)

    @property
    def verdict(self) -> Verdict:
        """The verdict, its types checked."""
        return Verdict.from_json(self.prediction["verdict"])


class Silence(NamedTuple):
    """Why nothing is said.

    Attributes:
      reason: one of `SILENT`.
      detail: for people; "" where the reason says it.
    """

    reason: str
    detail: str = ""


class Judgement(NamedTuple):
    """The decision on a prediction, before the history of its model counts.

    Attributes:
      item: what is to be said; None for silence.
      silence: the reason; None with an item.
      verdict: what the history records; None where it records nothing.
      is_recorded: whether the history records the verdict; not of a run whose cause is known already.
    """

    item: Item | None
    silence: Silence | None = None
    verdict: RecordedVerdict | None = None
    is_recorded: bool = True


#: Returns why the evidence of a prediction's record is not enough; None where it is.
Compare = Callable[[Mapping[str, Any]], Silence | None]


def decide_feedback(
    record: Mapping[str, Any],
    feedback: Feedback,
    muted: Iterable[str],
    now_us: int,
    compare: Compare = lambda record: None,
) -> Judgement:
    """Judge a prediction by the verdict, its evidence and the change. The history of the model comes after that.

    Args:
      record: a prediction, as on the topic.
      feedback: the configuration.
      muted: globs of projects that were muted at run time.
      now_us: the present, epoch microseconds.
      compare: see `Compare`; called for verdicts that could be said, or could have been.
    """
    if not isinstance(record.get("verdict"), dict) or not isinstance(record.get("run"), dict):
        return Judgement(None, Silence("no_verdict"))
    prediction = _read_prediction(record)
    if prediction is None:
        return Judgement(None, Silence("bad_record"))
    run = prediction.run
    policy = feedback.policy
    if run.outcome not in FAILED:
        return Judgement(None, Silence("not_failed"))
    if not policy.answers(prediction.model, run.project, run.branch, run.pipeline, run.build_name):
        return Judgement(None, Silence("not_selected"))
    end_us = run.end_us or run.start_us or prediction.time_us
    age_us = now_us - end_us
    if age_us > policy.settled_days * _DAY_US:
        return Judgement(None, Silence("late"))
    doubt = _doubt(prediction.verdict, policy) or compare(record)
    verdict = recorded_verdict(record, now_us, claim=doubt is None)
    if doubt is not None:
        return Judgement(None, doubt, verdict)
    if is_muted(run.project, (*policy.muted_projects, *muted)):
        return Judgement(None, Silence("muted_project"), verdict)
    if not run.project or not (run.change or run.head) or not (run.patchset or run.head):
        return Judgement(None, Silence("no_change"), verdict)
    system = feedback.system_of(run.source, run.project)
    if system is None:
        return Judgement(None, Silence("no_system"), verdict)
    if age_us > policy.max_age_s * 1e6:
        return Judgement(None, Silence("late"), verdict)
    return Judgement(_item(system.name, prediction, record, end_us), None, verdict)


def _read_prediction(record: Mapping[str, Any]) -> _Prediction | None:
    """Return the typed prediction; None for a record with an invalid type or share, or one that is too large."""
    try:
        prediction = msgspec.convert(record, _Prediction)
    except msgspec.ValidationError:
        return None
    verdict = prediction.verdict
    shares = (verdict.probability, verdict.coverage, *verdict.base_rate.values())
    is_valid = all(0.0 <= share <= 1.0 for share in shares) and verdict.runs >= 0  # NaN is not
    return prediction if is_valid and len(msgspec.json.encode(record)) <= _MAX_RECORD_BYTES else None


def _item(system: str, prediction: _Prediction, record: Mapping[str, Any], end_us: int) -> Item:
    run = prediction.run
    return Item(
        system=system,
        project=run.project,
        change=run.change,
        patchset=run.patchset,
        head=run.head,
        head_project=run.head_project,
        head_branch=run.labels.get("head_branch", ""),
        job=run.build_name,
        run_id=prediction.run_id,
        cause=prediction.verdict.cause,
        probability=prediction.verdict.probability,
        retry=prediction.verdict.retry,
        end_us=end_us,
        prediction={key: value for key, value in record.items() if key not in _LEFT_OUT},
    )


def _doubt(verdict: Verdict, policy: Policy) -> Silence | None:
    if verdict.outside is not None:
        return Silence("outside", "the run is unlike those that the model learned")
    return doubt_of(verdict.cause, verdict.probability, verdict.base_rate, verdict.runs, policy)


def doubt_of(
    cause: str, probability: float, base_rates: Mapping[str, float], runs: int, policy: Policy
) -> Silence | None:
    """Return why a verdict alone is not certain enough; None where it is.

    The probability was calibrated on some runs, so it is known as well as a share of so many: the lower end of Wilson's
    interval of that share must be above the base rate.

    Args:
      cause: the verdict.
      probability: of the cause.
      base_rates: the share of each cause among the calibration runs.
      runs: number of the calibration runs.
      policy: the conditions.
    """
    if cause not in policy.causes:
        return Silence("unknown")
    if probability < policy.min_probability:
        return Silence("unlikely", f"probability {probability:.2f}; {policy.min_probability:g} is needed")
    base_rate = base_rates.get(cause)
    low, _ = wilson(probability * runs, runs)
    if base_rate is None or low <= base_rate:
        base = "unknown" if base_rate is None else f"{base_rate:.2f}"
        detail = f"probability {probability:.2f} (at least {low:.2f} by {runs} runs); base rate {base}"
        return Silence("base_rate", detail)
    return None


def recorded_verdict(record: Mapping[str, Any], now_us: int, *, claim: bool) -> RecordedVerdict:
    """Return the verdict of a prediction as the history records it.

    Args:
      record: a prediction whose types are valid.
      now_us: the present, epoch microseconds.
      claim: whether all conditions of a message hold that do not concern the history and the change.
    """
    prediction = msgspec.convert(record, _Prediction)
    run = prediction.run
    verdict = prediction.verdict
    seconds = None if run.start_us is None or run.end_us is None else (run.end_us - run.start_us) / 1e6
    identity = prediction.id or prediction_id(prediction.run_id, prediction.model, prediction.version)
    return RecordedVerdict(
        id=identity[:_ID_CHARACTERS],
        run_id=prediction.run_id,
        model=prediction.model,
        version=prediction.version,
        project=run.project,
        change=run.change or run.head,
        job=run.build_name,
        cause=verdict.cause,
        claim=claim,
        probability=verdict.probability,
        seconds=seconds,
        time_us=now_us,
    )


def is_muted(project: str, globs: Iterable[str]) -> bool:
    """Return whether a project gets no messages."""
    return any(glob_pattern((glob,)).fullmatch(project) for glob in globs)

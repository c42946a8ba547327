"""Judges a prediction on its own (pure): the result is a verdict to send on a patch set, or a reason for silence.

An operator's note on the failure is sent even if the verdict is not; then the item's cause is `UNKNOWN`.
`ciml.verdicts.feedback.standing` decides afterwards whether the history of the model permits the message.
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
from ciml.serving.predict.log import is_served, prediction_id
from ciml.verdict_rules import UNKNOWN, Verdict
from ciml.verdicts.feedback.config import Feedback, Policy
from ciml.verdicts.feedback.standing import RecordedVerdict

#: Reasons for silence, a closed set: labels of a metric.
SILENT = (
    *("candidate", "no_verdict", "bad_record", "not_failed", "not_selected"),  # the prediction
    *("unknown", "outside", "unlikely", "base_rate"),  # the verdict
    *("no_evidence", "not_comparable"),  # its evidence
    *("muted_project", "no_change", "no_system", "late"),  # the change; "late" is also for the history
    *("shadow", "precision"),  # the model
)
#: Fields of a prediction that its evidence and its text do not need.
_LEFT_OUT = frozenset(
    {"prepare_ms", "server_ms", "batch", "latency_ms", "n_windows", "offset", "output", "definition", "snapshot"}
)
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
    """A verdict to send, with its prediction's record. Treat all its text as untrusted.

    Attributes:
      system: name of the review system.
      project, change, patchset, head, head_project, head_branch: of the change; see `ChangeRef`.
      job, run_id: of the run.
      cause: the cause to send. It differs from ``verdict.cause`` if an operator's note alone is sent: it is `UNKNOWN`.
      probability: of the verdict.
      end_us: the run's end, or the time of its prediction, epoch microseconds.
      prediction: the record on the topic, without measurements.
      right, settled: among the last settled verdicts of this cause, the number of right ones, and the number of all.
      passed, reruns: among those settled by reruns, the number whose rerun passed, and the number of all.
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
        """The verdict of the prediction, with checked types."""
        return Verdict.from_json(self.prediction["verdict"])


class Silence(NamedTuple):
    """The reason why no message is sent.

    Attributes:
      reason: one of `SILENT`.
      detail: an explanation for people; "" if the reason needs none.
    """

    reason: str
    detail: str = ""


class Judgement(NamedTuple):
    """The decision on a prediction, before the history of its model is considered.

    Attributes:
      item: the verdict to send; None for silence.
      silence: the reason for silence; None with an item.
      verdict: the verdict as the history stores it; None for a prediction that must not be in the history.
      is_recorded: whether the history records ``verdict``; see `with_run`.
    """

    item: Item | None
    silence: Silence | None = None
    verdict: RecordedVerdict | None = None
    is_recorded: bool = True

    def with_run(self, *, is_trusted: bool, is_known: bool) -> Judgement:
        """Return the judgement with facts about its run; unchanged if it has no verdict.

        Args:
          is_trusted: whether the run is trusted.
          is_known: whether the cause of the run is known already. The history does not record a verdict on such a run:
            it is not evidence about the model, which may have learned from the run.
        """
        if self.verdict is None:
            return self
        return self._replace(verdict=self.verdict.replace(trusted=is_trusted), is_recorded=not is_known)


#: Returns why the evidence in a prediction's record is not sufficient; None if it is.
Compare = Callable[[Mapping[str, Any]], Silence | None]
#: Returns whether an operator has a note on the failure of a run, given its id.
IsNoted = Callable[[str], bool]


def decide_feedback(
    record: Mapping[str, Any],
    feedback: Feedback,
    muted: Iterable[str],
    now_us: int,
    compare: Compare = lambda record: None,
    is_noted: IsNoted = lambda run_id: False,
) -> Judgement:
    """Judge a prediction. The first reason for silence decides, in this order:

    1. the prediction and its run: served, with a verdict, valid, failed, selected, and not too old for the history,
    2. the verdict and its evidence, unless an operator has a note on the failure,
    3. the project and change: not muted, named, of a configured system, and not too old for a message.

    A verdict that passes the first step can be part of the history of its model, even if it is not sent. Predictions of
    candidates and shadows never are.

    Args:
      record: a prediction, as on the topic.
      feedback: the configuration.
      muted: globs of projects that were muted at run time.
      now_us: the present, epoch microseconds.
      compare: see `Compare`; called for verdicts that are certain enough, even if they are too late for a message.
      is_noted: see `IsNoted`; called for the other verdicts.
    """
    if not is_served(record):
        return Judgement(None, Silence("candidate"))
    if not isinstance(record.get("verdict"), dict) or not isinstance(record.get("run"), dict):
        return Judgement(None, Silence("no_verdict"))
    prediction = _read_prediction(record)
    if prediction is None:
        return Judgement(None, Silence("bad_record"))
    run = prediction.run
    policy = feedback.policy
    if run.outcome not in FAILED:
        return Judgement(None, Silence("not_failed"))
    if not policy.selects(
        model=prediction.model, project=run.project, branch=run.branch, pipeline=run.pipeline, job=run.build_name
    ):
        return Judgement(None, Silence("not_selected"))
    end_us = run.end_us or run.start_us or prediction.time_us
    age_us = now_us - end_us
    if age_us > policy.settled_days * _DAY_US:
        return Judgement(None, Silence("late"))  # too old for the history, so no verdict is returned
    doubt = doubt_of(prediction.verdict, policy)
    if doubt is None:
        doubt = compare(record)
    verdict = _to_history(prediction, now_us, claim=doubt is None)
    if doubt is not None and not is_noted(prediction.run_id):
        return Judgement(None, doubt, verdict)
    if is_muted(run.project, (*policy.muted_projects, *muted)):
        return Judgement(None, Silence("muted_project"), verdict)
    names_patchset = bool(run.head) or bool(run.change and run.patchset)
    if not (run.project and names_patchset):
        return Judgement(None, Silence("no_change"), verdict)
    system = feedback.system_of(run.source, run.project)
    if system is None:
        return Judgement(None, Silence("no_system"), verdict)
    if age_us > policy.max_age_s * 1e6:
        return Judgement(None, Silence("late"), verdict)  # too old for a message, but not for the history
    item = _item(system.name, prediction, record, end_us)
    return Judgement(item if doubt is None else item.replace(cause=UNKNOWN), None, verdict)


def _read_prediction(record: Mapping[str, Any]) -> _Prediction | None:
    """Return the typed prediction; None for a record with an invalid type or number, or one that is too large."""
    try:
        prediction = msgspec.convert(record, _Prediction)
    except msgspec.ValidationError:
        return None
    verdict = prediction.verdict
    shares = (verdict.probability, verdict.coverage, *verdict.base_rate.values())
    if not all(0.0 <= share <= 1.0 for share in shares) or verdict.runs < 0:  # NaN is not a share
        return None
    return prediction if len(msgspec.json.encode(record)) <= _MAX_RECORD_BYTES else None


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
        end_us=end_us,
        prediction={key: value for key, value in record.items() if key not in _LEFT_OUT},
    )


def doubt_of(verdict: Verdict, policy: Policy) -> Silence | None:
    """Return why a verdict alone is not certain enough; None if it is.

    The probability was calibrated on a number of runs, so it is only as precise as a share of so many runs. The lower
    end of Wilson's interval of that share must be above the base rate of the cause.
    """
    if verdict.outside is not None:
        return Silence("outside", "the run is unlike those that the model learned")
    if verdict.cause not in policy.causes:
        return Silence("unknown")
    probability = verdict.probability
    if probability < policy.min_probability:
        return Silence("unlikely", f"probability {probability:.2f}; {policy.min_probability:g} is needed")
    base_rate = verdict.base_rate.get(verdict.cause)
    low, _ = wilson(probability * verdict.runs, verdict.runs)
    if base_rate is None or low <= base_rate:
        base = "unknown" if base_rate is None else f"{base_rate:.2f}"
        detail = f"probability {probability:.2f} (at least {low:.2f} by {verdict.runs} runs); base rate {base}"
        return Silence("base_rate", detail)
    return None


def recorded_claim(record: Mapping[str, Any], now_us: int) -> RecordedVerdict:
    """Return the verdict of a prediction that was sent, in the form of the history.

    Args:
      record: a prediction whose types are valid.
      now_us: the present, epoch microseconds.
    """
    return _to_history(msgspec.convert(record, _Prediction), now_us, claim=True)


def _to_history(prediction: _Prediction, now_us: int, *, claim: bool) -> RecordedVerdict:
    """Return a verdict as the history stores it. ``claim``: it is certain enough for a message (`RecordedVerdict`)."""
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
        change=run.tested,
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

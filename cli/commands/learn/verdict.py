"""``ciml verdict``: what ciml says of a failed run, and the evidence for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.errors import CimlError, IntegrityError, UnknownRunError
from ciml.events.outcomes import CODE, FAILED, MACHINE
from ciml.options import argument, flag, option, repeated
from ciml.verdict_rules import UNKNOWN, VERDICTS, Verdict

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.verdicts.evidence import Evidence

#: The meaning of each verdict.
_MEANING = {
    CODE: "the same code would fail again",
    MACHINE: "the same code would pass elsewhere, or at another time",
    UNKNOWN: "no cause alone is certain enough",
}
#: Whether to retry, for people.
_RETRY = {
    "yes": "yes, if the verdict is right",
    "no": "no, if the verdict is right",
    "unsure": "unsure: it depends on the cause",
}

#: Why a model gives no verdicts.
_NO_RULES = 'they need a data set with class_label = "cause" and an experiment with a calibration'
_OR_CANDIDATE = ". A candidate that the gate rejected gives them by --candidate"


class VerdictOptions(Data, Json):
    """Options of ``ciml verdict``.

    Attributes:
      model: Model whose verdict to show. [default: the last that gave one, or the only one that can]
      candidate: Ask the last candidate of the model, even if the gate rejected it.
      allow_modules: Module that a candidate's estimator may import; may be repeated.
    """

    run_id: str = argument()
    model: str | None = option(metavar="NAME")
    candidate: bool = flag()
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")


@make_command("verdict")
def command(options: VerdictOptions) -> int:
    """Show the verdict on a failed run.

    RUN_ID is a run of ciml runs list. The last prediction of a served model with a verdict is shown, with its evidence,
    computed from the stored run, and the path of its picture. Without such a prediction, a model of causes is loaded
    in this process and asked about the stored run. A verdict is code (the same code would fail again), machine (it
    would pass elsewhere, or at another time) or unknown. The exit code is 4 if that run is damaged or missing.

    \b
    Example:
      ciml verdict zuul~5f0c~1 --data-path data
      ciml verdict zuul~5f0c~1 --model cause --json --data-path data
      ciml verdict zuul~5f0c~1 --model cause --candidate --data-path data
    """
    report = _report(options.root, _stored_prediction(options) or _computed_prediction(options))
    options.show(report, _print, _Report.to_json)
    return IntegrityError.exit_code if report.fault else 0


@dataclass(frozen=True, slots=True)
class _Report:
    """A verdict and its evidence.

    Attributes:
      prediction: the record of the prediction that has the verdict.
      verdict: the same verdict, decoded.
      evidence: computed from the stored run; empty if that is damaged or missing.
      picture: URL of the evidence's picture; "" if there is none.
      fault: how the stored run is damaged; "" if it is not.
    """

    prediction: Mapping[str, Any]
    verdict: Verdict
    evidence: Evidence
    picture: str
    fault: str

    def to_json(self) -> dict[str, Any]:
        names = ("run_id", "build_name", "model", "version", "time_us", "run", "verdict")
        observations = list(self.evidence.observations)
        compared = {"job": self.evidence.job, "runs": self.evidence.runs}
        evidence = {"observations": observations, "picture": self.picture, "compared_with": compared}
        computed = {name: self.prediction[name] for name in ("candidate", "stored") if name in self.prediction}
        values = {name: self.prediction[name] for name in names}
        return {**values, **computed, "evidence": {**evidence, "fault": self.fault}}


def _stored_prediction(options: VerdictOptions) -> Mapping[str, Any] | None:
    """Return the record of the last prediction of the run that has a verdict; None without one.

    It is one of a served version; with --candidate one of the candidate that would be asked now.
    """
    from ciml.serving.predict.log import is_of_candidate, predictions_of_run

    of_run = predictions_of_run(options.root.predictions, options.run_id)
    of_model = [prediction for prediction in of_run if options.model in (None, prediction["model"])]
    with_verdict = [prediction for prediction in of_model if "verdict" in prediction]
    if options.candidate:
        usable = [prediction for prediction in with_verdict if _is_of_last_candidate(options.root, prediction)]
    else:
        usable = [prediction for prediction in with_verdict if not is_of_candidate(prediction)]
    return usable[-1] if usable else None


def _is_of_last_candidate(data: DataRoot, prediction: Mapping[str, Any]) -> bool:
    """Return whether a prediction is one of the last candidate of its model."""
    from ciml.serving.predict.log import is_of_candidate
    from ciml.serving.registry import Registry

    if not is_of_candidate(prediction):
        return False
    return bool(Registry(data, prediction["model"]).state.last_candidate == prediction["candidate"]["id"])


def _computed_prediction(options: VerdictOptions) -> Mapping[str, Any]:
    """Return the record of a prediction that a model of causes makes now in this process; it is not stored.

    Raises:
      CimlError: the run is unknown, did not fail or cannot be predicted, or no model gives verdicts.
    """
    from ciml.api.data import Data as ApiData
    from ciml.manifest.log import ManifestLog
    from ciml.runs.run_log import find_facts
    from ciml.serving.predict.answers import recorded_facts

    root = options.root
    facts = find_facts(ManifestLog(root.raw), [options.run_id]).get(options.run_id)
    if facts is None:
        raise UnknownRunError(f"no run {options.run_id!r} in {options.data_path}; list runs by ciml runs list")
    if facts.outcome not in FAILED:
        raise CimlError(
            f"run {options.run_id!r} has the outcome {facts.outcome or 'unknown'}; verdicts are given on failed runs"
        )
    name = options.model or _model_of_causes(root, candidate=options.candidate)
    with ApiData(root).model(name, candidate=options.candidate, allow_modules=options.allow_modules) as model:
        prediction = model.predict(options.run_id)
    if prediction.verdict is None:
        raise CimlError(f"model {name!r} gives no verdicts: {_NO_RULES} (docs/verdicts.md)")
    return {
        "run_id": options.run_id,
        "build_name": facts.build_name,
        "model": name,
        "version": model.version,
        "time_us": time.time_ns() // 1000,
        "run": recorded_facts(facts),
        "verdict": prediction.verdict.to_json(),
        "candidate": model.candidate and model.candidate.to_json(),
        "stored": False,
    }


def _model_of_causes(root: DataRoot, *, candidate: bool) -> str:
    """Return the only model of a data root that gives verdicts. Raises `CimlError` unless there is exactly one."""
    from ciml.serving.registry import STABLE, known_registries

    names: list[str] = []
    for name, registry in known_registries(root).items():
        state = registry.state
        files: Mapping[str, str] = {}
        if candidate and state.last_candidate:
            files = state.candidates[state.last_candidate].files
        elif not candidate and STABLE in state.labels:
            files = state.files(state.labels[STABLE])
        if f"assets/{VERDICTS}" in files:
            names.append(name)
    if len(names) == 1:
        return names[0]
    kind = "candidate" if candidate else "served model"
    if names:
        raise CimlError(f"several models give verdicts; choose one by --model: {', '.join(names)}")
    raise CimlError(f"no {kind} in {root.url} gives verdicts: {_NO_RULES}{_OR_CANDIDATE if not candidate else ''}")


def _report(data: DataRoot, prediction: Mapping[str, Any]) -> _Report:
    from ciml.verdicts.evidence import Evidence, evidence_of, profiles_of_candidate

    evidence = Evidence(observations=())
    fault = ""
    try:
        candidate = prediction.get("candidate")
        profiles = profiles_of_candidate(data, prediction["model"], candidate["id"]) if candidate else None
        evidence = evidence_of(data, prediction, profiles)
    except IntegrityError as error:
        fault = str(error)
    picture = data.predictions.url(evidence.picture) if evidence.picture else ""
    return _Report(prediction, Verdict.from_json(prediction["verdict"]), evidence, picture, fault)


def _print(report: _Report) -> None:
    for title, text in _rows(report):
        click.echo(f"{title:<12} {text}")


def _rows(report: _Report) -> Iterator[tuple[str, str]]:
    prediction = report.prediction
    run = prediction["run"]
    verdict = report.verdict
    group = verdict.group or "all jobs"
    base_rate = _shares_text(verdict.base_rate)
    yield "run", prediction["run_id"]
    yield "job", f"{run['build_name']} ({run.get('outcome', 'failure')})"
    yield "verdict", f"{verdict.cause}: {_MEANING.get(verdict.cause, '')}".rstrip(" :")
    yield "retry", _RETRY[verdict.retry]
    yield "probability", _shares_text(verdict.probabilities)
    yield "base rate", f"{base_rate}, of {verdict.runs} failed runs of {group} whose cause is known"
    yield "possible", _possible_text(verdict)
    yield from _model_rows(prediction)
    for number, text in enumerate([report.fault] if report.fault else report.evidence.observations):
        yield "" if number else "evidence", text
    if report.picture:
        yield "picture", report.picture


def _model_rows(prediction: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield which model gave the verdict, and what is missing if it was computed now."""
    from ciml.serving.registry import CandidateNotice

    candidate = prediction.get("candidate")
    if candidate:
        notice = CandidateNotice(candidate["id"], candidate["blessed"], tuple(candidate["reasons"]))
        yield "model", f"{prediction['model']}, {notice}"
        for number, reason in enumerate(notice.reasons):
            yield "" if number else "gate", reason
    else:
        yield "model", f"{prediction['model']}, version {prediction['version']}"
    if not prediction.get("stored", True):
        yield "computed", "now, from the stored run; no prediction of it is stored, and none was published"


def _shares_text(by_cause: Mapping[str, float]) -> str:
    """Return the shares of causes, the largest first."""
    by_share = sorted(by_cause.items(), key=lambda cause: -cause[1])
    return ", ".join(f"{name} {_share_text(share)}" for name, share in by_share)


def _share_text(share: float) -> str:
    """Return a share in per cent, never 0 or 100: no number of runs shows that."""
    if share < 0.01:
        return "under 1%"
    return "over 99%" if share > 0.99 else f"{share:.0%}"


def _possible_text(verdict: Verdict) -> str:
    """Return the causes that the run may have, and how often the true one is among them."""
    causes = " and ".join(verdict.set)
    if outside := verdict.outside:
        difference = f"by {outside.feature}: {outside.value:g}, theirs are {outside.low:g} to {outside.high:g}"
        return f"{causes}: it is unlike the runs that the model learned, {difference}"
    if not causes:
        return "none: it is unlike the runs that calibrated the model"
    return f"{causes}; the true cause is among the possible ones in {verdict.coverage:.0%} of runs"

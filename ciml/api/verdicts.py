"""The verdict on a stored run: that of the last prediction, or of a model that is asked now, with its evidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError, UnknownRunError
from ciml.events.outcomes import FAILED
from ciml.verdict_rules import VERDICTS, Verdict

if TYPE_CHECKING:
    from ciml.api.model import Model
    from ciml.verdicts.evidence import Evidence

#: Why a model gives no verdicts.
_NO_RULES = 'they need a data set with class_label = "cause" and an experiment with a calibration'
_OR_CANDIDATE = ". A candidate that the gate rejected gives them by --candidate"
_COPIED = ("run_id", "build_name", "model", "version", "time_us", "run", "verdict")


@dataclass(frozen=True, repr=False)
class RunVerdict:
    """A [verdict](verdicts.md) on a failed run, and the [evidence](evidence.md) for it.

    Attributes:
      verdict: the model's.
      evidence: computed from the stored run; empty if the run is damaged. ``observations`` are its sentences.
        ``output`` is what the output shows: the quoted line, failed tests, the failure signature and the operator's
        note.
      picture: address of the evidence's picture; "" if there is none.
      fault: how the stored run is damaged; "" if it is not.
      prediction: the record of the prediction, as on the topic. ``stored`` is False in it if it was made now.
    """

    verdict: Verdict
    evidence: Evidence
    picture: str
    fault: str
    prediction: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as ``ciml verdict --json`` prints them."""
        computed = {name: self.prediction[name] for name in ("candidate", "stored") if name in self.prediction}
        values = {name: self.prediction[name] for name in _COPIED}
        evidence = {
            "observations": list(self.evidence.observations),
            "picture": self.picture,
            "compared_with": {"job": self.evidence.job, "runs": self.evidence.runs},
            "output": None if self.evidence.output is None else self.evidence.output.to_json(),
            "fault": self.fault,
        }
        return {**values, **computed, "evidence": evidence}

    def __repr__(self) -> str:
        return f"RunVerdict({self.prediction['run_id']!r}: {self.verdict.cause})"


def find_verdict(
    data: DataRoot,
    run_id: str,
    model: str | None,
    candidate: bool,
    allow_modules: Collection[str],
    load: Callable[..., Model],
) -> RunVerdict:
    """Return the verdict on a run; see `ciml.Data.verdict`, whose ``model`` is ``load``."""
    prediction = _stored_prediction(data, run_id, model, candidate)
    if prediction is None:
        chosen = partial(load, candidate=candidate, allow_modules=allow_modules)
        prediction = _computed_prediction(data, run_id, model, candidate, chosen)
    return run_verdict(data, prediction)


def _stored_prediction(data: DataRoot, run_id: str, model: str | None, candidate: bool) -> Mapping[str, Any] | None:
    """Return the record of the last prediction of the run that has a verdict; None without one.

    It is one of a served version; with ``candidate`` one of the candidate that would be asked now.
    """
    from ciml.serving.predict.log import is_served, predictions_of_run

    of_run = predictions_of_run(data.predictions, run_id)
    of_model = [prediction for prediction in of_run if model in (None, prediction["model"])]
    with_verdict = [prediction for prediction in of_model if "verdict" in prediction]
    if candidate:
        usable = [prediction for prediction in with_verdict if _is_of_last_candidate(data, prediction)]
    else:
        usable = [prediction for prediction in with_verdict if is_served(prediction)]
    return usable[-1] if usable else None


def _computed_prediction(
    data: DataRoot, run_id: str, name: str | None, candidate: bool, load: Callable[[str], Model]
) -> Mapping[str, Any]:
    """Return the record of a prediction that a model of causes makes now in this process; it is not stored."""
    from ciml.manifest.log import ManifestLog
    from ciml.runs.run_log import find_rows
    from ciml.serving.predict.answers import recorded_facts

    row = find_rows(ManifestLog(data.raw), [run_id]).get(run_id)
    if row is None:
        raise UnknownRunError(f"no run {run_id!r} in {data.url}; list runs by ciml runs list")
    facts = row.mention
    if facts.outcome not in FAILED:
        raise CimlError(
            f"run {run_id!r} has the outcome {facts.outcome or 'unknown'}; verdicts are given on failed runs"
        )
    name = name or _model_of_causes(data, candidate=candidate)
    with load(name) as model:
        prediction = model.predict(run_id)
    if prediction.verdict is None:
        raise CimlError(f"model {name!r} gives no verdicts: {_NO_RULES} (docs/verdicts.md)")
    return {
        "run_id": run_id,
        "build_name": facts.build_name,
        "model": name,
        "version": model.version,
        "time_us": time.time_ns() // 1000,
        "run": recorded_facts(facts),
        "verdict": prediction.verdict.to_json(),
        "candidate": model.candidate and model.candidate.to_json(),
        "stored": False,
    }


def run_verdict(data: DataRoot, prediction: Mapping[str, Any]) -> RunVerdict:
    """Return the verdict in the record of a prediction, with its evidence."""
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
    return RunVerdict(Verdict.from_json(prediction["verdict"]), evidence, picture, fault, prediction)


def _is_of_last_candidate(data: DataRoot, prediction: Mapping[str, Any]) -> bool:
    """Return whether a prediction is one of the last candidate of its model."""
    from ciml.serving.predict.log import is_of_candidate
    from ciml.serving.registry import Registry

    if not is_of_candidate(prediction):
        return False
    return bool(Registry(data, prediction["model"]).state.last_candidate == prediction["candidate"]["id"])


def _model_of_causes(root: DataRoot, *, candidate: bool) -> str:
    """Return the only model of a data root that gives verdicts. Raises `CimlError` unless there is exactly one."""
    from ciml.serving.registries import known_registries
    from ciml.serving.registry import STABLE

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

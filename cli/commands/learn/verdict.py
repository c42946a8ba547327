"""``ciml verdict``: what ciml says of a failed run, and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.errors import CimlError, IntegrityError
from ciml.events.outcomes import CODE, MACHINE
from ciml.options import argument, option
from ciml.verdict_rules import UNKNOWN, Verdict

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


class VerdictOptions(Data, Json):
    """Options of ``ciml verdict``.

    Attributes:
      model: Model whose verdict to show. [default: the last that gave one]
    """

    run_id: str = argument()
    model: str | None = option(metavar="NAME")


@make_command("verdict")
def command(options: VerdictOptions) -> int:
    """Show the verdict on a failed run.

    RUN_ID is a run of ciml runs list. The last prediction with a verdict is shown, with its evidence, which is
    computed from the stored run, and the path of its picture. A verdict is code (the same code would fail again),
    machine (it would pass elsewhere, or at another time) or unknown. The exit code is 4 if that run is damaged or
    missing.

    \b
    Example:
      ciml verdict zuul~5f0c~1 --data-path data
      ciml verdict zuul~5f0c~1 --model cause --json --data-path data
    """
    report = _report(options.root, _find_prediction(options))
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
        return {**{name: self.prediction[name] for name in names}, "evidence": {**evidence, "fault": self.fault}}


def _find_prediction(options: VerdictOptions) -> Mapping[str, Any]:
    """Return the record of the last prediction of the run that has a verdict."""
    from ciml.serving.predict.log import predictions_of_run

    of_run = predictions_of_run(options.root.predictions, options.run_id)
    of_model = [prediction for prediction in of_run if options.model in (None, prediction["model"])]
    with_verdict = [prediction for prediction in of_model if "verdict" in prediction]
    if not with_verdict:
        raise CimlError(_missing(options, predicted=bool(of_model)))
    return with_verdict[-1]


def _report(data: DataRoot, prediction: Mapping[str, Any]) -> _Report:
    from ciml.verdicts.evidence import Evidence, evidence_of

    evidence = Evidence(observations=())
    fault = ""
    try:
        evidence = evidence_of(data, prediction)
    except IntegrityError as error:
        fault = str(error)
    picture = data.predictions.url(evidence.picture) if evidence.picture else ""
    return _Report(prediction, Verdict.from_json(prediction["verdict"]), evidence, picture, fault)


def _missing(options: VerdictOptions, *, predicted: bool) -> str:
    run_id = options.run_id
    by_model = f" of model {options.model!r}" if options.model else ""
    if predicted:
        hint = 'verdicts are given on failed runs, by models of data sets with class_label = "cause"'
        return f"no verdict{by_model} on run {run_id!r}: {hint} (docs/verdicts.md)"
    hint = "list runs by ciml runs list, predict them by ciml predict stream"
    return f"no prediction{by_model} of run {run_id!r} in {options.data_path}; {hint}"


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
    yield "model", f"{prediction['model']}, version {prediction['version']}"
    for number, text in enumerate([report.fault] if report.fault else report.evidence.observations):
        yield "" if number else "evidence", text
    if report.picture:
        yield "picture", report.picture


def _shares_text(by_cause: Mapping[str, float]) -> str:
    """Return the shares of causes, the largest first."""
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(by_cause.items(), key=lambda cause: -cause[1]))


def _possible_text(verdict: Verdict) -> str:
    """Return the causes that the run may have, and how often the true one is among them."""
    causes = " and ".join(verdict.set)
    if outside := verdict.outside:
        difference = f"by {outside.feature}: {outside.value:g}, theirs are {outside.low:g} to {outside.high:g}"
        return f"{causes}: it is unlike the runs that the model learned, {difference}"
    if not causes:
        return "none: it is unlike the runs that calibrated the model"
    return f"{causes}; the true cause is among the possible ones in {verdict.coverage:.0%} of runs"

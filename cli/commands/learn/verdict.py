"""``ciml verdict``: what ciml says of a failed run, and the evidence for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.cli.output import print_lines
from ciml.errors import IntegrityError
from ciml.events.outcomes import CODE, MACHINE
from ciml.options import argument, flag, option, repeated
from ciml.verdict_rules import UNKNOWN, Verdict

if TYPE_CHECKING:
    from ciml.api.verdicts import RunVerdict

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
      model: Model whose verdict to show. [default: the last that gave one, or the only one that can]
      candidate: Ask the last candidate of the model, even if the gate rejected it.
      allow_modules: Module that a candidate's estimator may import; may be repeated.
      page: Folder or s3:// prefix for a page of the run.
    """

    run_id: str = argument()
    model: str | None = option(metavar="NAME")
    candidate: bool = flag()
    allow_modules: tuple[str, ...] = repeated(metavar="MODULE")
    page: str | None = option(kind="place", metavar="FOLDER")


@make_command("verdict")
def command(options: VerdictOptions) -> int:
    """Show the verdict on a failed run.

    RUN_ID is a run of ciml runs list. The last prediction of a served model with a verdict is shown, with its evidence,
    computed from the stored run, and the path of its picture. Without such a prediction, a model of causes is loaded
    in this process and predicts the stored run. A verdict is code (the same code would fail again), machine (it
    would pass elsewhere, or at another time) or unknown. --page writes index.html: the verdict, its evidence, and the
    lines that explain the failure. The exit code is 4 if that run is damaged or missing.

    \b
    Example:
      ciml verdict zuul~5f0c~1 --data-path data
      ciml verdict zuul~5f0c~1 --model cause --json --data-path data
      ciml verdict zuul~5f0c~1 --model cause --candidate --data-path data
      ciml verdict zuul~5f0c~1 --page run-page --data-path data
    """
    from ciml.api.data import Data as ApiData
    from ciml.api.verdicts import RunVerdict

    data = ApiData(options.root)
    report = data.verdict(
        options.run_id, model=options.model, candidate=options.candidate, allow_modules=options.allow_modules
    )
    options.show(report, _print, RunVerdict.to_json)
    if options.page is not None:
        _save_page(options, report)
    return IntegrityError.exit_code if report.fault else 0


def _save_page(options: VerdictOptions, report: RunVerdict) -> None:
    from ciml.reports.verdict import save_verdict
    from ciml.storage import open_store

    assert options.page is not None
    folder = open_store(options.page)
    page = save_verdict(options.root, folder, report.prediction, report.verdict, report.evidence)
    if not options.json:
        click.echo(f"{'page':<12} {page}")


def _print(report: RunVerdict) -> None:
    print_lines(f"{title:<12} {text}" for title, text in _rows(report))


def _rows(report: RunVerdict) -> Iterator[tuple[str, str]]:
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
    if verdict.without_telemetry:
        yield "telemetry", "none: the verdict follows from the run's outcome and output alone"
    yield from _model_rows(prediction)
    for number, text in enumerate([report.fault] if report.fault else report.evidence.observations):
        yield "" if number else "evidence", text
    output = report.evidence.output
    if output is not None and output.url:
        yield "output", output.url
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

"""``ciml verdict``: what ciml says of a failed run, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.errors import CimlError, IntegrityError
from ciml.events.outcomes import CODE, MACHINE
from ciml.options import argument, option
from ciml.verdict_rules import UNKNOWN

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.verdicts.evidence import Evidence

#: The meaning of each verdict.
_MEANING = {
    CODE: "the same code would fail again",
    MACHINE: "the same code would pass elsewhere, or at another time",
    UNKNOWN: "no cause alone is certain enough",
}
#: Whether to retry, in words.
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
    from ciml.serving.predict.log import predictions_of_run
    from ciml.verdicts.evidence import evidence_of

    data = options.root
    predictions = predictions_of_run(data.predictions, options.run_id)
    records = [prediction for prediction in predictions if options.model in (None, prediction["model"])]
    record = next((prediction for prediction in reversed(records) if "verdict" in prediction), None)
    if record is None:
        raise CimlError(_missing(options, predicted=bool(records)))
    evidence = None
    fault = ""
    try:
        evidence = evidence_of(data, record)
    except IntegrityError as error:
        fault = str(error)
    facts = {name: record[name] for name in ("run_id", "build_name", "model", "version", "time_us", "run", "verdict")}
    options.show({**facts, "evidence": {**_evidence_json(data, evidence), "fault": fault}}, _print)
    return IntegrityError.exit_code if fault else 0


def _evidence_json(data: DataRoot, evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {"observations": [], "picture": "", "compared_with": {"job": "", "runs": 0}}
    return {
        "observations": list(evidence.observations),
        "picture": data.predictions.url(evidence.picture) if evidence.picture else "",
        "compared_with": {"job": evidence.job, "runs": evidence.runs},
    }


def _missing(options: VerdictOptions, *, predicted: bool) -> str:
    run_id = options.run_id
    by_model = f" of model {options.model!r}" if options.model else ""
    if predicted:
        return (
            f"no verdict{by_model} on run {run_id!r}: verdicts are given on failed runs, by models of data sets with "
            'class_label = "cause" (docs/verdicts.md)'
        )
    return (
        f"no prediction{by_model} of run {run_id!r} in {options.data_path}; list runs by ciml runs list, predict them "
        "by ciml predict stream"
    )


def _print(record: Mapping[str, Any]) -> None:
    verdict = record["verdict"]
    evidence = record["evidence"]
    run = record["run"]
    group = f"of {verdict['group']}" if verdict["group"] else "of all jobs"
    lines = [
        ("run", record["run_id"]),
        ("job", f"{run['build_name']} ({run.get('outcome', 'failure')})"),
        ("verdict", f"{verdict['cause']}: {_MEANING.get(verdict['cause'], '')}".rstrip(" :")),
        ("retry", _RETRY.get(verdict["retry"], verdict["retry"])),
        ("probability", _shares_text(verdict["probabilities"])),
        (
            "base rate",
            f"{_shares_text(verdict['base_rate'])}, of {verdict['runs']} failed runs {group} whose cause is known",
        ),
        ("possible", _possible_text(verdict)),
        ("model", f"{record['model']}, version {record['version']}"),
    ]
    observations = [evidence["fault"]] if evidence["fault"] else evidence["observations"]
    lines += [("" if number else "evidence", text) for number, text in enumerate(observations)]
    if evidence["picture"]:
        lines.append(("picture", evidence["picture"]))
    for name, text in lines:
        click.echo(f"{name:<12} {text}")


def _shares_text(by_cause: Mapping[str, float]) -> str:
    """Return the shares of causes, the largest first."""
    return ", ".join(f"{name} {share:.0%}" for name, share in sorted(by_cause.items(), key=lambda cause: -cause[1]))


def _possible_text(verdict: Mapping[str, Any]) -> str:
    """Return the causes that the run may have, and how often the true one is among them."""
    causes = " and ".join(verdict["set"])
    if outside := verdict.get("outside"):
        known = f"theirs are {outside['low']:g} to {outside['high']:g}"  # the JSON of `ciml.verdict_rules.Outside`
        difference = f"by {outside['feature']}: {outside['value']:g}, {known}"
        return f"{causes}: it is unlike the runs that the model learned, {difference}"
    if not causes:
        return "none: it is unlike the runs that calibrated the model"
    return f"{causes}; the true cause is among the possible ones in {verdict['coverage']:.0%} of runs"

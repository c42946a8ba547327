"""``ciml verdict``: what ciml says of a failed run, and the evidence for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from cli.options import data_path_option

if TYPE_CHECKING:
    from serving.evidence import Evidence

#: Exit code where stored data contradict each other.
_DAMAGED = 4
_RETRY = {
    "yes": "yes: it may pass unchanged",
    "no": "no: it is unlikely to pass unchanged",
    "unsure": "unsure",
}


@click.command("verdict")
@click.argument("run_id")
@click.option("--model", metavar="NAME", help="Model whose verdict to show.  [default: the last that gave one]")
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def command(run_id: str, model: str | None, data_path: str, as_json: bool) -> int:
    """Show the verdict on a failed run.

    RUN_ID is a run of ciml runs list. The last prediction with a verdict is shown, with its evidence, which is
    computed from the stored run, and the path of its picture. The exit code is 4 if that run is damaged or missing.

    \b
    Example:
      ciml verdict zuul~5f0c~1 --data-path data
      ciml verdict zuul~5f0c~1 --model cause --json --data-path data
    """
    from serving.evidence import evidence_of
    from serving.predict.log import predictions_of

    data = DataRoot.open(data_path)
    records = [one for one in predictions_of(data.predictions, run_id) if model in (None, one["model"])]
    record = next((one for one in reversed(records) if "verdict" in one), None)
    if record is None:
        raise CimlError(_missing(run_id, data_path, model, predicted=bool(records)))
    evidence, fault = None, ""
    try:
        evidence = evidence_of(data, record)
    except IntegrityError as error:
        fault = str(error)
    picture = data.predictions.url(evidence.picture) if evidence and evidence.picture else ""
    if as_json:
        click.echo(json.dumps(_json(record, evidence, picture, fault), indent=2))
    else:
        _print(record, evidence, picture, fault)
    return _DAMAGED if fault else 0


def _missing(run_id: str, data_path: str, model: str | None, *, predicted: bool) -> str:
    of = f" of model {model!r}" if model else ""
    if predicted:
        return (
            f"no verdict{of} on run {run_id!r}: verdicts are given on failed runs, by models whose data set has the "
            "label cause (docs/verdicts.md)"
        )
    return (
        f"no prediction{of} of run {run_id!r} in {data_path}; list runs by ciml runs list, predict them by "
        "ciml predict stream"
    )


def _json(record: Mapping[str, Any], evidence: Evidence | None, picture: str, fault: str) -> dict[str, Any]:
    kept = {name: record[name] for name in ("run_id", "build_name", "model", "version", "time_us", "run", "verdict")}
    found = {"observations": [], "picture": "", "compared_with": {"job": "", "runs": 0}, "fault": fault}
    if evidence is not None:
        found["observations"] = list(evidence.observations)
        found["picture"] = picture
        found["compared_with"] = {"job": evidence.job, "runs": evidence.runs}
    return {**kept, "evidence": found}


def _print(record: Mapping[str, Any], evidence: Evidence | None, picture: str, fault: str) -> None:
    verdict, run = record["verdict"], record["run"]
    rates = ", ".join(f"{name} {share:.0%}" for name, share in verdict["base_rate"].items())
    shares = ", ".join(f"{name} {share:.0%}" for name, share in verdict["probabilities"].items())
    of = f"of {verdict['group']}" if verdict["group"] else "of all jobs"
    lines = [
        ("run", record["run_id"]),
        ("job", f"{run['build_name']} ({run.get('outcome', 'failure')})"),
        ("verdict", verdict["cause"]),
        ("model", f"{record['model']}, version {record['version']}"),
        ("probability", f"{shares}; base rate of {verdict['runs']} failed runs {of}: {rates}"),
        ("possible", f"{', '.join(verdict['set']) or 'none'} (right for {verdict['coverage']:.0%} of runs)"),
        ("retry", _RETRY.get(verdict["retry"], verdict["retry"])),
    ]
    said = evidence.observations if evidence is not None else (fault,)
    lines += [("" if number else "evidence", text) for number, text in enumerate(said)]
    if picture:
        lines.append(("picture", picture))
    for name, text in lines:
        click.echo(f"{name:<12} {text}")

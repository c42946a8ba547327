"""``ciml load``: own logs and a table of their results into the raw store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import stop_on_signals
from ciml.cli.options import data_path_option, jobs_option, s3_options, s3_place, trust_policy_option
from ciml.cli.tables import print_table
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.pipelines.backfill.load_report import LoadReport

_INTERRUPTED = 130


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.rpartition("=") for text in value]
    for text, (theirs, _, ours) in zip(value, pairs, strict=True):
        if not theirs or not ours:
            raise CimlError(f"--map {text!r:.80}: not COLUMN=FIELD, such as --map ci_job=build_name")
    return {theirs: ours for theirs, _, ours in pairs}


@click.command("load")
@click.argument("logs", metavar="LOGS", callback=s3_place)
@click.option(
    "--results",
    required=True,
    metavar="FILE",
    callback=s3_place,
    help="Table of the runs, a row a run: CSV, Parquet or JSON lines; a file or an s3:// object.",
)
@click.option(
    "--map",
    "mapping",
    multiple=True,
    metavar="COLUMN=FIELD",
    callback=_pairs,
    help="Field of a column, such as build_name or result, or - to leave it out; may be repeated.  [default: guessed]",
)
@click.option("--zone", metavar="ZONE", help="Time zone of times without one, such as UTC or Europe/Berlin.")
@click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.1,
    metavar="SHARE",
    help="Largest share of bad rows and missing logs; beyond it nothing is loaded.",
)
@click.option(
    "--source", default="backfill", metavar="NAME", help="Name of the table in the trust policy and in run ids."
)
@jobs_option("Jobs to load")
@data_path_option(creates=True)
@trust_policy_option
@click.option("--dry-run", is_flag=True, help="Survey the table and the logs; load nothing.")
@s3_options
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def command(
    logs: str, results: str, data_path: str, trust_policy: str | None, dry_run: bool, as_json: bool, **options: Any
) -> int:
    """Load your own logs and results.

    LOGS is the folder or s3:// prefix of the logs. The table has a row for each run: id, job, result, start or end,
    path of the log; other columns become labels. Columns are found by their names; the report shows how. Nothing is
    loaded if too many rows are bad. The same table again changes nothing; one that grew adds its new rows.

    \b
    Example:
      ciml load logs --results results.csv --data-path data
      ciml load logs --results results.csv --map ci_job=build_name --zone Europe/Berlin --data-path data --dry-run

    Exit codes: 0 loaded, 130 interrupted, 2 wrong use or too many bad rows, 3 a store does not answer.
    """
    from ciml.cli.progress import bars
    from ciml.data_root import DataRoot
    from ciml.pipelines.backfill.load import load
    from ciml.pipelines.backfill.load_report import RejectedTableError
    from ciml.trust import TrustPolicy

    stop = stop_on_signals()
    try:
        with bars() as progress:
            report = load(
                DataRoot.open(data_path),
                logs,
                results,
                trust=TrustPolicy.load(trust_policy),
                dry_run=dry_run,
                stop=stop,
                progress=progress,
                **options,
            )
    except RejectedTableError as rejected:
        _print_json(rejected.report) if as_json else _print(rejected.report)
        raise CimlError(rejected.summary) from None
    if as_json:
        _print_json(report)
    else:
        _print(report)
        _print_ending(report, data_path, dry_run)
    return 0 if dry_run or report.complete else _INTERRUPTED


def _print_json(report: LoadReport) -> None:
    click.echo(json.dumps(report.to_json(), indent=2))


def _print(report: LoadReport) -> None:
    """Print the meaning of the columns, and the reasons of unusable rows."""
    for line in report.column_lines():
        click.echo(line)
    if not report.unusable:
        return
    table = []
    for reason, count, rows, _ in report.reasons():
        first = rows[0]
        where = f"{first.number:,}" + (f", {first.column}" if first.column else "")
        table.append((f"{count:,}", reason, where, first.value, first.detail))
    headings = ("rows", "reason", "first row", "value", "fault")
    print_table(headings, table, title="Unusable rows", right=["rows"])
    for reason, _, _, remedy in report.reasons():
        click.echo(f"{reason}: {remedy}")


def _print_ending(report: LoadReport, data_path: str, dry_run: bool) -> None:
    """Print what became of the rows, and the next command."""
    for line in (report.counts_line(), *report.fact_lines()):
        click.echo(line)
    if report.untrusted:
        click.echo(f"{report.untrusted:,} rows are not trusted, so no model learns from them: see --trust-policy.")
    if dry_run:
        return
    if not report.complete:
        click.echo("Interrupted: run the same command to continue.")
        return
    if report.dead_letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.dead_letters.items())
        click.echo(f"Dead letters: {reasons}: ciml dead-letters list --data-path {data_path}")
    click.echo(f"Next: ciml dataset build --dataset first --class-label status --data-path {data_path}")

"""``ciml load``: own logs and a table of their results into the raw store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from ciml.cli.command import call_with_options, make_command
from ciml.cli.options import Json, NewData, S3Environment, assignments
from ciml.cli.output import print_lines, print_table
from ciml.cli.running import INTERRUPTED, stop_on_signals
from ciml.errors import CimlError
from ciml.options import TrustOptions, argument, flag, option, repeated

if TYPE_CHECKING:
    from ciml.pipelines.backfill.load_report import LoadReport


class LoadOptions(S3Environment, Json, TrustOptions, NewData):
    """Options of ``ciml load``.

    Attributes:
      results: Table of the runs, a row a run: CSV, Parquet or JSON lines; a file or an s3:// object.
      mapping: Field of a column, such as build_name or result, or - to leave it out; may be repeated. [default:
        guessed]
      zone: Time zone of times without one, such as UTC or Europe/Berlin.
      max_bad: Largest share of bad rows and missing logs; beyond it nothing is loaded.
      source: Name of the table in the trust policy and in run ids.
      jobs: Jobs to load; may be repeated. [default: all]
      dry_run: Survey the table and the logs; load nothing.
    """

    logs: str = argument("LOGS", "place")
    results: str = option(kind="place", metavar="FILE", required=True)
    mapping: dict[str, str] = repeated(assignments, flags="--map", metavar="COLUMN=FIELD")
    zone: str | None = option(metavar="ZONE")
    max_bad: float = option(0.1, "share", metavar="SHARE")
    source: str = option("backfill", metavar="NAME")
    jobs: tuple[str, ...] = repeated(metavar="GLOB")
    dry_run: bool = flag()


@make_command("load")
def command(options: LoadOptions) -> int:
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
    from ciml.cli.output import bars
    from ciml.pipelines.backfill.load import load
    from ciml.pipelines.backfill.load_report import LoadReport, RejectedTableError

    trust = options.trust_of(options.root)
    arguments = {"data": options.root, "table": options.results, "trust": trust, "stop": stop_on_signals()}
    try:
        with bars() as progress:
            report = call_with_options(load, options, **arguments, progress=progress)
    except RejectedTableError as rejected:
        options.show(rejected.report, _print, LoadReport.to_json)
        raise CimlError(rejected.summary) from None
    options.show(report, partial(_print_all, options), LoadReport.to_json)
    return 0 if options.dry_run or report.complete else INTERRUPTED


def _print(report: LoadReport) -> None:
    """Print the meaning of the columns, and the reasons of unusable rows."""
    print_lines(report.column_lines())
    if not report.unusable:
        return
    table = []
    for reason, count, rows, _ in report.reasons():
        first = rows[0]
        where = f"{first.number:,}" + (f", {first.column}" if first.column else "")
        table.append((count, reason, where, first.value, first.detail))
    headings = ("rows", "reason", "first row", "value", "fault")
    print_table(headings, table, title="Unusable rows")
    for reason, _, _, remedy in report.reasons():
        click.echo(f"{reason}: {remedy}")


def _print_all(options: LoadOptions, report: LoadReport) -> None:
    """Print the meaning of the columns, what became of the rows, and the next command."""
    _print(report)
    print_lines([report.counts_line(), *report.fact_lines()])
    if report.untrusted:
        click.echo(f"{report.untrusted:,} rows are not trusted, so no model learns from them: see --trust-policy.")
    if options.dry_run:
        return
    if not report.complete:
        click.echo("Interrupted: run the same command to continue.")
        return
    if report.dead_letters:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.dead_letters.items())
        click.echo(f"Dead letters: {reasons}: ciml dead-letters list --data-path {options.data_path}")
    click.echo(f"Next: ciml dataset build --dataset first --class-label status --data-path {options.data_path}")

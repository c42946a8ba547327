"""``ciml backfill``: historical logs of a listing into the raw store."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.batch_options import (
    DATAFLOW,
    DataflowJob,
    as_s3,
    collecting_rarely,
    dataflow_options,
    logs_option,
    print_launched,
    runner_option,
)
from ciml.cli.foreground import stop_on_signals
from ciml.cli.options import (
    beam_option,
    data_path_option,
    fetch_policy_option,
    gathered,
    jobs_option,
    s3_options,
    s3_place,
    trust_policy_option,
)
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.events.listing import Listing
    from ciml.pipelines.backfill.plan import BackfillConfig, Tally
    from ciml.pipelines.backfill.survey import Survey

_INTERRUPTED = 130


@dataclass(frozen=True)
class BackfillOptions:
    """Options of the command that configure the backfill; see ``ciml backfill --help``."""

    data_path: str
    logs: str
    source: str = "backfill"
    runs_of: str | None = None
    jobs: tuple[str, ...] = ()
    trust_policy: str | None = None
    fetch_policy: str | None = None
    limit: int | None = None
    skip_known: bool = False
    take_missing: bool = False

    def open(self) -> BackfillConfig:
        """Open what the options name.

        Raises:
          CimlError: an unreadable policy, an invalid source, a missing folder of logs, an unknown scheme.
        """
        from ciml.data_root import DataRoot
        from ciml.events.listing import Reading
        from ciml.pipelines.backfill.plan import BackfillConfig, fetch_below, logs_root
        from ciml.transforms.ingest.decode import ALL_JOBS
        from ciml.trust import TrustPolicy

        logs = logs_root(self.logs)
        return BackfillConfig(
            DataRoot.open(self.data_path).raw,
            Reading(self.source, self.runs_of or self.source, logs),
            selection=self.jobs or ALL_JOBS,
            trust=TrustPolicy.load(self.trust_policy),
            fetch=fetch_below(logs, self.fetch_policy),
            limit=self.limit,
            skip_known=self.skip_known,
            take_missing=self.take_missing,
        )


@click.command("backfill")
@click.argument("listing", metavar="LISTING", callback=s3_place)
@logs_option(required=True)
@data_path_option(creates=True)
@runner_option
@dataflow_options()
@click.option("--source", default="backfill", metavar="NAME", help="Name of the listing in the trust policy.")
@click.option(
    "--runs-of",
    metavar="NAME",
    help="CI system of the runs, as named by ciml ingest --source; identifies them with runs of events.  [default: "
    "--source]",
)
@jobs_option("Jobs to load", "--build-name")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Maximum number of lines.  [default: all]")
@click.option("--dry-run", is_flag=True, help="Survey the lines; load nothing.")
@click.option("--skip-known", is_flag=True, help="Skip the logs of stored runs, for a listing that grew.")
@click.option("--take-missing", is_flag=True, help="Continue if none of the first logs exists.")
@trust_policy_option
@fetch_policy_option
@beam_option
@s3_options
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
@gathered("options", [field.name for field in fields(BackfillOptions)], BackfillOptions)
def command(
    listing: str,
    runner: tuple[str | None, str],
    job: DataflowJob,
    dry_run: bool,
    beam_options: tuple[str, ...],
    as_json: bool,
    options: BackfillOptions,
) -> int:
    """Load historical logs into the raw store.

    LISTING is a file or s3:// object of JSON lines, optionally gzip: build_uuid, build_name, result, start_time,
    end_time, log_path, and further fields, which become labels. Each line is settled exactly once: as a raw run, a
    repeat, a correction, ignored, or a dead letter. An interrupted backfill continues from the last commit.

    \b
    Example:
      ciml backfill builds.jsonl --logs . --data-path data --dry-run
      ciml backfill s3://ci-logs/builds.jsonl.gz --logs s3://ci-logs --runs-of zuul --data-path s3://cimlrawdata
      ciml backfill s3://ci-logs/builds.jsonl --logs s3://ci-logs --data-path s3://cimlrawdata
        --runner dataflow --dataflow dataflow.toml --template gs://ci-dataflow/backfill.json

    Exit codes: 0 all selected lines are settled, 130 interrupted, 2 wrong use or no such listing or logs, 3 a store or
    Flink does not answer, 4 stored data is inconsistent.
    """
    from ciml.cli.progress import Bar
    from ciml.events.listing import open_listing
    from ciml.pipelines.backfill.backfill import backfill
    from ciml.pipelines.backfill.survey import survey

    if runner[0] == DATAFLOW and not dry_run:
        _launch(listing, job, beam_options, options)
        return 0
    job.check_unused()
    config = options.open()
    opened = open_listing(listing)
    if dry_run:
        surveyed = survey(config, opened)
        _print_json(surveyed.to_json()) if as_json else _print_survey(surveyed, opened, config)
        return 0
    stop = stop_on_signals()
    with Bar(f"{Path(opened.url).name}") as bar:
        tally = backfill(
            config,
            opened,
            runner=runner[0],
            job_endpoint=runner[1],
            extra=tuple(beam_options),
            stop=stop,
            report=lambda tally: bar.show(tally.passed, tally.lines - tally.before, tally.totals()),
        )
    if as_json:
        _print_json({**tally.to_json(), "seconds": round(bar.seconds, 3)})
    else:
        click.echo(summary(opened, tally, bar.seconds, hint=f"ciml dead-letters list --data-path {options.data_path}"))
    return 0 if tally.complete else _INTERRUPTED


def _launch(listing: str, job: DataflowJob, beam_options: tuple[str, ...], options: BackfillOptions) -> None:
    """Write or submit the backfill as one job on Dataflow."""
    as_s3((options.data_path, "--data-path"), (options.logs, "--logs"), (listing, "LISTING"))
    settings = job.settings()
    name = job.name_or(f"ciml-backfill-{Path(listing).name.partition('.')[0]}")
    from ciml.events.listing import open_listing
    from ciml.pipelines.backfill.backfill import plan_backfill
    from ciml.pipelines.dataflow.job import launch
    from ciml.pipelines.dataflow.settings import check_fetch, secrets_here

    config = options.open()
    check_fetch(config.fetch)
    opened = open_listing(listing)
    with collecting_rarely():
        planned = plan_backfill(config, opened)
    if not planned.works:
        click.echo(f"{opened.url}: all selected lines are settled already")
        return
    launched = launch(
        planned.build,
        settings,
        name,
        streaming=False,
        template=job.template,
        extra=beam_options,
        hidden=secrets_here(fetch=config.fetch),
    )
    click.echo(f"{opened.url}: {planned.lines:,} of {opened.lines:,} lines to settle")
    check = shlex.join(["ciml", "backfill", listing, "--logs", options.logs, "--data-path", options.data_path])
    print_launched(launched, settings, streaming=False, then=f"{check} --dry-run")


def summary(listing: Listing, tally: Tally, seconds: float, hint: str = "") -> str:
    """Return the result as a few lines; ``hint`` is the command that lists dead letters."""
    from ciml.cli.progress import counts_text

    name = Path(listing.url).name
    totals = tally.totals()
    new = tally.settled - tally.before
    remaining = tally.lines - tally.settled
    if not remaining and not new:
        return f"{name}: all {tally.lines:,} lines are settled already."
    rate = f", {new / seconds:,.0f} lines/s" if seconds > 0 else ""
    text = f"{name}: {new:,} lines settled in {seconds:.1f} s{rate}: {counts_text(totals, 'run')}."
    unsettled = f" {remaining:,} of {tally.lines:,} lines are left."
    text += unsettled if remaining else f" All {tally.lines:,} lines are settled."
    if not tally.complete:
        text += " Interrupted: run the same command to continue."
    if totals["dead_letter"]:
        reasons = [(-count, reason) for (kind, reason), count in tally.counts.items() if kind == "dead_letter"]
        reasons_text = ", ".join(f"{reason} {-count:,}" for count, reason in sorted(reasons))
        text += f"\nDead letters by reason: {reasons_text}" + (f"; see: {hint}" if hint else "")
    return text


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_survey(survey: Survey, listing: Listing, config: BackfillConfig) -> None:
    jobs = sorted({job for job, _ in survey.take})
    results = sorted({result for _, result in survey.take})
    if jobs:
        rows = []
        for job in jobs:
            counts = [survey.take[job, result] for result in results]
            rows.append((job, *(f"{count:,}" if count else "" for count in counts), f"{sum(counts):,}"))
        sums = [sum(survey.take[job, result] for job in jobs) for result in results]
        rows.append(("all", *(f"{count:,}" for count in sums), f"{sum(sums):,}"))
        numbers = [*results, "all"]
        print_table(["job", *numbers], rows, title="Lines that would be loaded", right=numbers, last_apart=True)
    lines = [
        (survey.settled, "settled already"),
        (sum(survey.take.values()), "to be loaded"),
        (survey.known, "  of runs that are in the raw store: repeats or corrections"),
        *((count, f"  {'' if trusted else 'not '}trusted: {rule}") for (trusted, rule), count in survey.trust.items()),
        *((count, f"ignored: {reason}") for reason, count in sorted(survey.ignored.items())),
        *((count, f"bad: {reason}") for reason, count in sorted(survey.bad.items())),
        (survey.blank, "blank"),
        (survey.others, "of jobs that are not selected, or beyond the limit"),
    ]
    click.echo(f"{listing.url}: {survey.lines:,} lines")
    for count, word in lines:
        if count:
            click.echo(f"{count:>10,} {word}")
    for number, reason, detail in survey.faults:
        click.echo(f"line {number}: {reason}: {detail}")
    click.echo(f"run ids begin with {config.reading.runs_of}; nothing was done")

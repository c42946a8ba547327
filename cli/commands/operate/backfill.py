"""``ciml backfill``: historical logs of a listing into the raw store."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.cli.options import Json, NewData, S3Environment
from ciml.cli.output import by_frequency, counted_bar, counts_text, print_table
from ciml.cli.running import INTERRUPTED, BatchRunning, collecting_rarely, require_s3, stop_on_signals
from ciml.options import PolicyOptions, argument, flag, option, repeated

if TYPE_CHECKING:
    from ciml.events.listing import Listing
    from ciml.pipelines.backfill.plan import BackfillConfig, Tally
    from ciml.pipelines.backfill.survey import Survey


class BackfillOptions(PolicyOptions, NewData):
    """Options of a backfill and of its listing.

    Attributes:
      logs: Folder or s3:// prefix of the listing's log paths.
      source: Name of the listing in the trust policy.
      runs_of: CI system of the runs, as named by ciml ingest --source; identifies them with runs of events. [default:
        --source]
      jobs: Jobs to load; may be repeated. [default: all]
      limit: Maximum number of lines. [default: all]
      skip_known: Skip the logs of stored runs, for a listing that grew.
      take_missing: Continue if none of the first logs exists.
    """

    logs: str = option(kind="place", metavar="ROOT", required=True)
    source: str = option("backfill", metavar="NAME")
    runs_of: str | None = option(metavar="NAME")
    jobs: tuple[str, ...] = repeated(flags="--job --build-name", metavar="GLOB")
    limit: int | None = option(kind="count", metavar="N")
    skip_known: bool = flag()
    take_missing: bool = flag()

    def load_config(self) -> BackfillConfig:
        """Load the configuration of these options: it reads the policies and opens the raw store.

        Raises:
          CimlError: for an unreadable policy, an invalid source, a missing folder of logs, or an unknown URL scheme.
        """
        from ciml.events.listing import Reading, logs_root
        from ciml.pipelines.backfill.plan import BackfillConfig, load_fetch_policy
        from ciml.transforms.ingest.decode import ALL_JOBS

        logs = logs_root(self.logs)
        return BackfillConfig(
            self.root.raw,
            Reading(self.source, self.runs_of or self.source, logs),
            selection=self.jobs or ALL_JOBS,
            trust=self.trust_of(self.root),
            fetch=load_fetch_policy(logs, self.fetch_policy),
            limit=self.limit,
            skip_known=self.skip_known,
            take_missing=self.take_missing,
        )


class CommandOptions(S3Environment, Json, BackfillOptions):
    """Options of ``ciml backfill``.

    Attributes:
      dry_run: Survey the lines; load nothing.
    """

    listing: str = argument("LISTING", "place")
    dry_run: bool = flag()


@make_command("backfill")
def command(options: CommandOptions, running: BatchRunning) -> int:
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
    from ciml.events.listing import open_listing
    from ciml.pipelines.backfill.backfill import backfill
    from ciml.pipelines.backfill.survey import Survey, survey

    if running.launches and not options.dry_run:
        _launch(options, running)
        return 0
    running.check_unused()
    config = options.load_config()
    listing = open_listing(options.listing)
    if options.dry_run:
        options.show(survey(config, listing), partial(_print_survey, listing, config), Survey.to_json)
        return 0
    runner, job_endpoint = running.runner
    stop = stop_on_signals()
    start_s = time.monotonic()
    with counted_bar(Path(listing.url).name) as show:
        tally = backfill(
            config,
            listing,
            runner=runner,
            job_endpoint=job_endpoint,
            extra=running.beam_options,
            stop=stop,
            report=lambda tally: show(tally.handled, tally.lines - tally.before, tally.totals()),
        )
    seconds = time.monotonic() - start_s
    options.show(
        tally,
        lambda tally: click.echo("\n".join(summary_lines(listing, tally, seconds, options.data_path))),
        lambda tally: {**tally.to_json(), "seconds": round(seconds, 3)},
    )
    return 0 if tally.complete else INTERRUPTED


def _launch(options: CommandOptions, running: BatchRunning) -> None:
    """Write or submit the backfill as one job on Dataflow."""
    require_s3((options.data_path, "--data-path"), (options.logs, "--logs"), (options.listing, "LISTING"))
    settings = running.settings()
    from ciml.events.listing import open_listing
    from ciml.pipelines.backfill.backfill import plan_backfill
    from ciml.pipelines.dataflow.checks import check_fetch

    config = options.load_config()
    check_fetch(config.fetch)
    listing = open_listing(options.listing)
    with collecting_rarely():
        planned = plan_backfill(config, listing)
    if not planned.works:
        click.echo(f"{listing.url}: all selected lines are settled already")
        return
    check = shlex.join(["ciml", "backfill", options.listing, "--logs", options.logs, "--data-path", options.data_path])
    running.launch(
        settings,
        planned.build,
        f"ciml-backfill-{Path(options.listing).name.partition('.')[0]}",
        work=f"{listing.url}: {planned.lines:,} of {listing.lines:,} lines to settle",
        then=f"{check} --dry-run",
        fetch=config.fetch,
    )


def summary_lines(listing: Listing, tally: Tally, seconds: float, data_path: str) -> Iterator[str]:
    """Yield the result for people: the settled lines, and the dead letters by reason if there are any."""
    name = Path(listing.url).name
    new = tally.settled - tally.before
    remaining = tally.lines - tally.settled
    if not remaining and not new:
        yield f"{name}: all {tally.lines:,} lines are settled already."
        return
    totals = tally.totals()
    rate = f", {new / seconds:,.0f} lines/s" if seconds > 0 else ""
    settled = f"{new:,} lines settled in {seconds:.1f} s{rate}: {counts_text(totals, 'run')}."
    if remaining:
        progress = f"{remaining:,} of {tally.lines:,} lines are left."
    else:
        progress = f"All {tally.lines:,} lines are settled."
    interrupted = "" if tally.complete else " Interrupted: run the same command to continue."
    yield f"{name}: {settled} {progress}{interrupted}"
    if totals["dead_letter"]:
        counts = {reason: count for (kind, reason), count in tally.counts.items() if kind == "dead_letter"}
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in by_frequency(counts))
        yield f"Dead letters by reason: {reasons}; see: ciml dead-letters list --data-path {data_path}"


def _print_survey(listing: Listing, config: BackfillConfig, survey: Survey) -> None:
    jobs = sorted({job for job, _ in survey.take})
    results = sorted({result for _, result in survey.take})
    if jobs:
        counts = [(job, [survey.take[job, result] for result in results]) for job in jobs]
        sums = [sum(survey.take[job, result] for job in jobs) for result in results]
        # Not keyed by job, so that a job named `all` keeps its row.
        rows = [
            (name, *(number or "" for number in numbers), sum(numbers)) for name, numbers in [*counts, ("all", sums)]
        ]
        print_table(["job", *results, "all"], rows, title="Lines that would be loaded", last_apart=True)
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

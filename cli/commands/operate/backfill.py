"""``ciml backfill``: historical logs, by a listing, to raw runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.batch_options import logs_place, runner_option
from cli.options import beam_option, data_path_option, home_option, s3_place
from cli.s3_options import s3_options
from cli.signals import stop_on_signals

if TYPE_CHECKING:
    from ciml.events.listing_files import Listing
    from pipelines.backfill.dry_run import Survey
    from pipelines.backfill.plan import BackfillConfig, Tally

_INTERRUPTED = 130


@click.command("backfill", short_help="Bring historical logs into the raw store.")
@click.argument("listing", metavar="LISTING", callback=s3_place)
@click.option(
    "--logs",
    required=True,
    metavar="ROOT",
    callback=s3_place,
    help="The folder or s3:// prefix below which the listing's log paths lie.",
)
@data_path_option()
@home_option
@runner_option
@click.option(
    "--source",
    default="backfill",
    show_default=True,
    metavar="NAME",
    help="The name that the trust policy knows this listing by.",
)
@click.option(
    "--runs-of",
    metavar="NAME",
    help="The CI system whose runs these are, as ciml ingest names it (--source there): a run that also comes as an "
    "event is then the same run.  [default: as --source]",
)
@click.option(
    "--job",
    "--build-name",
    "jobs",
    multiple=True,
    metavar="GLOB",
    help="Take only these jobs; may be repeated.  [default: all]",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take at most so many lines.")
@click.option("--dry-run", is_flag=True, help="Say what would be taken, and do nothing.")
@click.option(
    "--skip-known",
    is_flag=True,
    help="Do not read the logs of runs that are in the raw store: for a listing that grew.",
)
@click.option("--take-missing", is_flag=True, help="Go on even if not one of the first logs is there.")
@click.option(
    "--trust-policy",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="TOML: which runs are trusted.  [default: reviewed, gated or merged work, and listings as backfill]",
)
@click.option(
    "--fetch-policy",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="TOML: the limits of logs, and further places that they may be in.",
)
@beam_option
@s3_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON for programs.")
def command(
    listing: str,
    runner: tuple[str | None, str],
    dry_run: bool,
    beam_options: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Bring historical logs into the raw store.

    LISTING is a file of JSON lines, which may be gzip and may be s3://…: build_uuid, build_name, result, start_time,
    end_time, log_path and any further fields, which become labels. Each line is settled exactly once, as a raw run, a
    repeat, a correction, ignored, or a dead letter with its reason. Stop it at any time, by Ctrl-C or harder, and say
    it again: it goes on from what is committed.

    \b
    Example:
      ciml backfill builds.jsonl --logs . --data-path data --dry-run
      ciml backfill s3://ci-logs/builds.jsonl.gz --logs s3://ci-logs --runs-of zuul --data-path s3://cimlrawdata

    Exit codes: 0 every line that was to be taken is settled, 130 stopped before, 2 wrong use, or no such listing or
    logs, 3 a store or Flink does not answer, 4 what is stored contradicts itself.
    """  # fmt: skip
    from ciml.events.listing_files import open_listing
    from cli.progress_counts import Bar
    from pipelines.backfill.backfill import backfill
    from pipelines.backfill.dry_run import survey

    options.pop("home")
    config = make_config(**options)
    opened = open_listing(listing)
    if dry_run:
        found = survey(config, opened)
        _print_json(found.to_json()) if as_json else _print_survey(found, opened, config)
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
        click.echo(summary(opened, tally, bar.seconds, letters=f"ciml letters list --data-path {options['data_path']}"))
    return 0 if tally.whole else _INTERRUPTED


def make_config(
    data_path: str,
    logs: str,
    *,
    source: str = "backfill",
    runs_of: str | None = None,
    jobs: tuple[str, ...] = (),
    limit: int | None = None,
    skip_known: bool = False,
    take_missing: bool = False,
    trust_policy: str | None = None,
    fetch_policy: str | None = None,
) -> BackfillConfig:
    """The configuration that the command's options mean.

    Raises:
      CimlError: a policy that cannot be read, a name of no source, no folder of logs, a scheme that no store has.
    """
    from ciml.events.listing import Reading
    from ciml.storage.open import open_store
    from pipelines.backfill.plan import BackfillConfig
    from transforms.fetch.policy import FetchPolicy
    from transforms.ingest.decode import ALL_JOBS
    from transforms.ingest.trust import TrustPolicy

    logs = logs_place(logs)
    # Several blocks of lines are under way at once, so each has a share of the memory that ingest gives to one batch.
    fetch = FetchPolicy.load(fetch_policy) if fetch_policy else FetchPolicy(max_batch_bytes=128 << 20)
    fetch = fetch.allowing(roots=(logs,))
    return BackfillConfig(
        open_store(data_path),
        Reading(source, runs_of or source, logs),
        selection=jobs or ALL_JOBS,
        limit=limit,
        skip_known=skip_known,
        take_missing=take_missing,
        trust=TrustPolicy.load(trust_policy),
        fetch=fetch,
    )


def summary(listing: Listing, tally: Tally, seconds: float, letters: str = "") -> str:
    """What was done, in a few lines."""
    from cli.progress_counts import WORDS

    name, totals = Path(listing.url).name, tally.totals()
    new = tally.settled - tally.before
    left = tally.lines - tally.settled
    if not listing.lines:
        return f"{name} holds no line."
    if not left and not new:
        return f"{name}: all {tally.lines:,} lines are settled already."
    said = [f"{totals[kind]:,} {word}" for kind, word in WORDS.items() if totals[kind] or kind == "run"]
    rate = f", {new / seconds:,.0f} lines/s" if seconds > 0 else ""
    text = f"{name}: {new:,} lines settled in {seconds:.1f} s{rate}: {', '.join(said)}."
    text += f" {left:,} of {tally.lines:,} lines are left." if left else f" All {tally.lines:,} lines are settled."
    if not tally.whole:
        text += " It was stopped: say it again, and it goes on."
    if totals["dead_letter"]:
        reasons = [(-count, reason) for (kind, reason), count in tally.counts.items() if kind == "dead_letter"]
        listed = ", ".join(f"{reason} {-count:,}" for count, reason in sorted(reasons))
        text += f"\nDead letters by reason: {listed}" + (f"; see: {letters}" if letters else "")
    return text


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_survey(found: Survey, listing: Listing, config: BackfillConfig) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    jobs = sorted({job for job, _ in found.take})
    results = sorted({result for _, result in found.take})
    if jobs:
        table = Table("job", title="Lines that would be taken", title_justify="left")
        for result in [*results, "all"]:
            table.add_column(Text(result), justify="right")
        for job in jobs:
            counts = [found.take[job, result] for result in results]
            table.add_row(Text(job), *(f"{count:,}" if count else "" for count in counts), f"{sum(counts):,}")
        table.add_section()
        sums = [sum(count for (_, each), count in found.take.items() if each == result) for result in results]
        table.add_row("all", *(f"{count:,}" for count in sums), f"{sum(sums):,}")
        console.print(table)
    lines = [
        (found.settled, "settled already"),
        (sum(found.take.values()), "to be taken"),
        (found.known, "  of runs that are in the raw store: repeats or corrections"),
        *((count, f"  {'' if trusted else 'not '}trusted: {rule}") for (trusted, rule), count in found.trust.items()),
        *((count, f"ignored: {reason}") for reason, count in sorted(found.ignored.items())),
        *((count, f"bad: {reason}") for reason, count in sorted(found.bad.items())),
        (found.blank, "blank"),
        (found.others, "of jobs that are not selected, or beyond the limit"),
    ]
    console.print(Text(f"{listing.url}: {found.lines:,} lines"), soft_wrap=True)
    for count, word in lines:
        if count:
            console.print(Text(f"{count:>10,} {word}"), soft_wrap=True)
    for number, reason, detail in found.faults:
        console.print(Text(f"line {number}: {reason}: {detail}"), soft_wrap=True)
    console.print(Text(f"run ids begin with {config.reading.runs_of}; nothing was done"), soft_wrap=True)

"""``ciml runs``: the accounting of events and runs, single runs, and maintenance of the raw store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import DAY, Data, Json, JsonLines
from ciml.cli.output import print_lines, print_table, print_warnings
from ciml.errors import IntegrityError, UnknownRunError
from ciml.options import argument, flag, option, repeated

if TYPE_CHECKING:
    from ciml.manifest.log import ManifestLog
    from ciml.runs.compact import Compaction
    from ciml.runs.state import RawState
    from ciml.runs.verify import Verification
    from ciml.storage import Store


class ListOptions(JsonLines, Data):
    """Options of ``ciml runs list``.

    Attributes:
      jobs: Jobs of the runs; may be repeated. [default: all]
      outcomes: Outcome of the runs, such as failure; may be repeated. [default: all]
      date: Start day (UTC) or month (2026-11) of the runs. [default: all]
      trusted: Trust of the runs, as last decided. [default: both]
      last: Maximum number of runs.
    """

    jobs: tuple[str, ...] = repeated(metavar="GLOB")
    outcomes: tuple[str, ...] = repeated(metavar="WORD")
    date: str | None = option(metavar="YYYY-MM-DD")
    trusted: bool | None = flag("--trusted/--untrusted", default=None)
    last: int = option(50, "count")


@make_command("list")
def list_runs(options: ListOptions) -> None:
    """List runs, the latest first.

    The order is that of the commits to DATA/raw; the outcome includes corrections.

    \b
    Example:
      ciml runs list --data-path data
      ciml runs list --job 'tempest-*' --outcome failure --date 2026-11-24 --data-path data
      ciml runs list --last 100000 --json --data-path data > runs.jsonl
    """
    from itertools import islice

    from ciml.runs.latest_runs import RunSelection, latest_runs
    from ciml.runs.state import open_raw

    selection = RunSelection(options.jobs, options.outcomes, trusted=options.trusted)
    day = "" if options.date is None else f"/date={options.date}"
    selected = (run for run in latest_runs(*open_raw(options.root.raw)) if selection.matches(run))
    runs = (run.summary() for run in selected if day in run.file.path)
    options.show_all(islice(runs, options.last), print_runs)


def print_runs(runs: Sequence[dict[str, Any]], title: str = "") -> None:
    """Print a table of runs."""
    rows = [
        (run["run_id"], run["build_name"], run["outcome"], "yes" if run["trusted"] else "no", run["rows"])
        for run in runs
    ]
    print_table(("run", "job", "outcome", "trusted", "samples"), rows, title=title)


class ShowOptions(Json, Data):
    """Options of ``ciml runs show``."""

    run_id: str = argument()


@make_command("show")
def show(options: ShowOptions) -> int:
    """Show a run and its records in the manifest.

    It shows the run's object, columns and metadata, the other attempts of its job, and each record with its RUN_ID. The
    exit code is 4 if the stored telemetry is not as committed.

    \b
    Example:
      ciml runs show zuul~5f0c~1 --data-path data
    """
    from ciml.cli.output import bars
    from ciml.progress import renamed
    from ciml.runs.latest_runs import attempts_of, entries_of, row_of
    from ciml.runs.state import open_raw

    run_id = options.run_id
    raw = options.root.raw
    log, state = open_raw(raw)
    with bars() as progress:
        search = renamed(progress, "searching the manifest")
        records = entries_of(log, state.version, run_id, search)
        attempts = attempts_of(log, state, records, search)
    if not records:
        raise UnknownRunError(f"no run {run_id!r} in {raw.url()}; list the runs by ciml runs list")
    entry = state.index.run(run_id)
    description: dict[str, Any] = {"run_id": run_id, "outcome": entry.outcome if entry else None}
    if stored := row_of(records):
        description |= _object_json(raw, run_id, stored.record["file"])
        description |= {"output": stored.record["output"]} if "output" in stored.record else {}
    if attempts:
        description["attempts"] = [attempt._asdict() for attempt in attempts]
    description["records"] = [{"version": version, "kind": kind, **record} for version, kind, record in records]
    options.show(description, _print_run)
    return IntegrityError.exit_code if description.get("fault") else 0


def _object_json(raw: Store, run_id: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return the object or pack of a run, its columns and its fault, if any."""
    from ciml.events.records import RawFile
    from ciml.runs.pack_index import split_path
    from ciml.runs.reader import load_packs, read_run, verify_run

    raw_file = RawFile.from_json(file)
    parts = split_path(raw_file.path)
    pack = load_packs(raw, parts[0]).runs.get(parts[1]) if parts is not None else None
    description: dict[str, Any] = {"path": raw_file.path, "pack": pack[0].file.path if pack else None}
    description |= {"rows": raw_file.rows, "digest": raw_file.digest, "fault": verify_run(raw, run_id, raw_file)}
    try:
        table = read_run(raw, raw_file)
    except IntegrityError:
        return description
    description["columns"] = table.column_names
    description["metadata"] = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    return description


def _print_run(description: dict[str, Any]) -> None:
    from ciml.events.fields import iso_time
    from ciml.events.records import KIND_WORDS
    from ciml.runs.latest_runs import TRUST_CHANGE

    for key in ("run_id", "outcome", "path", "pack", "rows", "digest"):
        if description.get(key) is not None:
            click.echo(f"{key:<10} {description[key]}")
    if "columns" in description:
        click.echo(f"{'columns':<10} {', '.join(description['columns'])}")
        click.echo(f"{'recorded':<10} {', '.join(f'{key}={value}' for key, value in description['metadata'].items())}")
    if "fault" in description:
        click.echo(f"{'telemetry':<10} {description['fault'] or 'as it was committed'}")
    if "output" in description:
        click.echo(f"{'output':<10} {_output_text(description['output'])}")
    for attempt in description.get("attempts", ()):
        this = " (this run)" if attempt["run_id"] == description["run_id"] else ""
        started = "" if attempt["start_us"] is None else f", started {iso_time(attempt['start_us'])}"
        outcome = attempt["outcome"] or KIND_WORDS[attempt["kind"]]
        click.echo(f"{'attempt':<10} {attempt['attempt']} {attempt['run_id']} {outcome}{started}{this}")
    for record in description["records"]:
        if record["kind"] == TRUST_CHANGE:
            trusted = "trusted" if record["trust"]["trusted"] else "not trusted"
            click.echo(f"{'trust':<16} version {record['version']}, {trusted} by an update: {record['trust']['rule']}")
            continue
        topic, partition, offset = record["origin"]
        reason = f" ({record['reason']})" if record.get("reason") else ""
        click.echo(
            f"{KIND_WORDS[record['kind']]:<16}{reason} version {record['version']}, {topic}[{partition}] {offset}"
        )


def _output_text(output: dict[str, Any]) -> str:
    """Return what is stored of the output of a run's job, or why there is none."""
    if reason := output.get("missing"):
        return f"missing: {reason}"
    dropped = f", {output['dropped_lines']:,} of them dropped" if output.get("dropped_lines") else ""
    return f"{output['lines']:,} lines{dropped}: {output['path']}"


class VerifyOptions(Json, Data):
    """Options of ``ciml runs verify``.

    Attributes:
      sample: Number of runs to read, chosen at random. [default: all]
      seed: Random seed of --sample.
      grace: Age from which an unreferenced object is a finding.
    """

    sample: int | None = option(kind=click.IntRange(0), metavar="N")
    seed: int = option(0)
    grace: float = option(3 * DAY, "time")


@make_command("verify")
def verify(options: VerifyOptions) -> int:
    """Verify all counts and digests of the raw store.

    It replays the manifest from the first delta, compares it with segments, checkpoints and index, and recounts the
    accounting. It reads each run, alone or in a pack, and reports unreferenced objects. It can run during ingest and
    compaction. The exit code is 4 with findings.

    \b
    Example:
      ciml runs verify --data-path data
      ciml runs verify --sample 1000 --json --data-path s3://bucket/data
    """
    from ciml.cli.output import bars
    from ciml.runs.verify import verify_raw

    raw = options.root.raw
    with bars() as progress:
        report = verify_raw(raw, sample=options.sample, seed=options.seed, grace_s=options.grace, progress=progress)
    options.show(report, partial(_print_verified, options.sample is not None), msgspec.to_builtins)
    return IntegrityError.exit_code if report.number else 0


def _print_verified(sampled: bool, report: Verification) -> None:
    print_lines(report.lines())
    counted = f"{report.records:,} records of {report.runs:,} runs in {report.version:,} versions"
    read = f"{report.packed:,} runs in {report.packs:,} packs and {report.single:,} objects read"
    if sampled:
        read = f"{report.read:,} of {report.objects:,} raw objects read"
    if report.outputs:
        read += f", {report.outputs:,} outputs of jobs"
    click.echo(f"{counted}; {read}: {f'{report.number:,} findings' if report.number else 'all as committed'}.")


class CompactOptions(Json, Data):
    """Options of ``ciml runs compact``.

    Attributes:
      older_than: Age after a day's end (UTC) from which it is packed.
      grace: Time for which unneeded objects are kept.
      min_runs: Minimum runs of a job and day to pack.
      pack_size: Approximate maximum size of a pack, in MiB.
      keep_outputs: Age after a day's end (UTC) up to which the text of outputs is kept; their templates stay. [default:
        keep of [logs] in --fetch-policy, else 30d]
      fetch_policy: TOML file of the fetch policy; only [logs] is read.
      everything: Collect garbage in all folders, and renew packs of older versions.
    """

    older_than: float = option(DAY, "time")
    grace: float = option(DAY, "time")
    min_runs: int = option(2, "count")
    pack_size: int = option(32, click.IntRange(1, 1024), metavar="MIB")
    keep_outputs: float | None = option(kind="time")
    fetch_policy: str | None = option(kind="file")
    everything: bool = flag()


@make_command("compact")
def compact(options: CompactOptions) -> int:
    """Pack runs of past days and collect garbage.

    Each job and day becomes a pack, and unneeded objects are removed. Interrupted and concurrent compactions are safe;
    runs stay readable throughout. The exit code is 4 if runs or packs are broken; those are left in place.

    \b
    Example:
      ciml runs compact --data-path data
      ciml runs compact --older-than 7d --grace 2d --json --data-path s3://bucket/data
    """
    from ciml.cli.output import bars
    from ciml.runs.compact import compact as run
    from ciml.runs.tables import update_tables
    from ciml.transforms.fetch.policy import FetchPolicy
    from ciml.verdicts.signatures.stored import read_signatures

    data = options.root
    keep_s = options.keep_outputs
    if keep_s is None:
        keep_s = FetchPolicy.of(options.fetch_policy).logs.keep_s
    read_signatures(data)  # before the texts that they quote are removed
    with bars() as progress:
        result = run(
            data.raw,
            older_than_s=options.older_than,
            grace_s=options.grace,
            min_runs=options.min_runs,
            pack_bytes=options.pack_size << 20,
            keep_outputs_s=keep_s,
            everything=options.everything,
            progress=progress,
        )
    print_warnings(update_tables(data, ("raw", "runs", "dead_letters")))
    options.show(result, _print_compacted, asdict)
    return IntegrityError.exit_code if result.packing.faults or result.swept.faults else 0


def _print_compacted(result: Compaction) -> None:
    packing = result.packing
    swept = result.swept
    for line in dict.fromkeys((*packing.faults, *swept.faults)):
        click.echo(f"BROKEN {line}")
    click.echo(
        f"{packing.runs:,} runs packed into {packing.packs:,} packs ({packing.packs_bytes:,} bytes), "
        f"{packing.merged:,} packs merged, {packing.alone:,} runs left alone; up to version {result.to_version:,}, "
        f"{result.waiting:,} folders of days that are not over"
    )
    click.echo(
        f"removed: {swept.objects:,} objects of packed runs ({swept.objects_bytes:,} bytes), {swept.packs:,} packs, "
        f"{swept.gone:,} unnamed objects; {swept.unnamed:,} more moved aside"
    )
    if swept.outputs:
        click.echo(f"removed: {swept.outputs:,} outputs of jobs")
    if swept.held:
        click.echo(f"kept: {swept.held:,} replaced packs for readers of the table raw")


class SummaryOptions(Json, Data):
    """Options of ``ciml runs`` without a command.

    Attributes:
      count: Print only the number of raw runs.
      last: Number of latest runs to show.
      verify: Verify rows and digest of each raw object; exit code 4 on a difference.
    """

    count: bool = flag()
    last: int = option(10, click.IntRange(0))
    verify: bool = flag()


@make_command("summary")
def summary(options: SummaryOptions) -> int:
    """Show the accounting and the latest runs.

    It counts the events and runs of DATA/raw by class and reason. It is the default of ciml runs.

    \b
    Example:
      ciml runs --data-path data
      ciml runs --data-path data --verify
    """
    from itertools import islice

    from ciml.runs.latest_runs import latest_runs
    from ciml.runs.state import open_raw

    raw = options.root.raw
    log, state = open_raw(raw)
    if options.count:
        click.echo(state.index.run_count())
        return 0
    latest = [run.summary() for run in islice(latest_runs(log, state), options.last)]
    faults = verify_all(raw, log, state.index.run_count()) if options.verify else []
    verified = {"latest": latest, **({"faults": faults} if options.verify else {})}
    options.show(state, partial(_print_summary, latest), lambda state: state_json(state) | verified)
    if options.verify and not options.json:
        for fault in faults:
            click.echo(f"BROKEN {fault}", err=True)
        if not faults:
            click.echo(f"Verified {state.index.run_count():,} raw objects: rows and digests are as committed.")
    return IntegrityError.exit_code if faults else 0


def state_json(state: RawState) -> dict[str, Any]:
    """Return the accounting as JSON: totals by kind, counts by kind and reason, covered ranges of offsets."""
    from ciml.events.records import reasons_of

    return {
        "version": state.version,
        "runs": state.index.run_count(),
        "totals": state.totals(),
        "reasons": reasons_of(state.counts),
        "trust": _rules_json(state.trust),
        "trust_changes": _rules_json(state.trust_changes),
        "covered": {
            f"{topic}[{partition}]": [list(part) for part in ranges] for topic, partition, ranges in state.partitions()
        },
    }


def _rules_json(counts: Mapping[tuple[bool, str], int]) -> list[dict[str, Any]]:
    return [{"trusted": trusted, "rule": rule, "runs": number} for (trusted, rule), number in sorted(counts.items())]


def verify_all(raw: Store, log: ManifestLog, total: int) -> list[str]:
    """Return the faults of all runs in the manifest, one line each. ``total``: their number, for the progress."""
    from ciml.cli.output import bars
    from ciml.runs.reader import verify_runs
    from ciml.runs.run_log import StoredRunLog

    files = ((row.mention.run_id, row.file) for _, delta in StoredRunLog(log).since(0) for row in delta.rows)
    faults: list[str] = []
    with bars() as progress:
        for number_verified, fault in enumerate(verify_runs(raw, files), 1):
            progress("verifying", number_verified, total)
            if fault:
                faults.append(fault)
    return faults


def _print_summary(latest: list[dict[str, Any]], state: RawState) -> None:
    from ciml.events.records import KIND_WORDS

    if not state.version:
        click.echo("Nothing has been committed yet.")
        return
    rows = [
        (word, reason, number)
        for kind, word in KIND_WORDS.items()
        for (counted_kind, reason), number in sorted(state.counts.items())
        if counted_kind == kind
    ]
    for word, counts in (("  of the runs", state.trust), ("  later", state.trust_changes)):
        for (trusted, rule), number in sorted(counts.items(), reverse=True):
            rows.append((word, f"{'trusted' if trusted else 'not trusted'}: {rule}", number))
    print_table(("class", "reason", "events x runs"), rows, title=f"Raw manifest, version {state.version}")
    if latest:
        print_runs(latest, "Latest runs")


@click.group("runs", cls=DefaultGroup, default="summary", commands=[summary, list_runs, show, verify, compact])
def command() -> None:
    """Show, verify and compact stored runs.

    Without a COMMAND it shows the accounting of DATA/raw by class and reason, and the latest runs.

    \b
    Example:
      ciml runs --data-path data
      ciml runs list --job 'tempest-*' --last 20 --data-path data
      ciml runs verify --sample 1000 --data-path data
      ciml runs compact --data-path data
    """

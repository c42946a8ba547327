"""``ciml runs list`` and ``ciml runs show``: single runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.options import data_path_option, jobs_option
from ciml.cli.tables import print_table
from ciml.data_root import DataRoot
from ciml.errors import CimlError

if TYPE_CHECKING:
    from ciml.storage import Store


@click.command("list")
@data_path_option()
@jobs_option("Jobs of the runs")
@click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    metavar="WORD",
    help="Outcome of the runs, such as failure; may be repeated.  [default: all]",
)
@click.option("--date", metavar="YYYY-MM-DD", help="Start day (UTC) or month (2026-11) of the runs.  [default: all]")
@click.option("--trusted/--untrusted", default=None, help="Trust of the runs, as last decided.  [default: both]")
@click.option("--last", default=50, type=click.IntRange(1), help="Maximum number of runs.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def list_runs(
    data_path: str,
    jobs: tuple[str, ...],
    outcomes: tuple[str, ...],
    date: str | None,
    trusted: bool | None,
    last: int,
    as_json: bool,
) -> None:
    """List runs, the latest first.

    The order is that of the commits to DATA/raw; the outcome includes corrections.

    \b
    Example:
      ciml runs list --data-path data
      ciml runs list --job 'tempest-*' --outcome failure --date 2026-11-24 --data-path data
      ciml runs list --last 100000 --json --data-path data > runs.jsonl
    """
    from itertools import islice

    from ciml.globs import glob_pattern
    from ciml.runs.latest_runs import latest_runs
    from ciml.runs.state import open_raw

    log, state = open_raw(DataRoot.open(data_path).raw)
    wanted = glob_pattern(jobs or ("all",)).fullmatch

    def selected(run: dict[str, Any]) -> bool:
        return (
            wanted(run["build_name"]) is not None
            and (not outcomes or run["outcome"] in outcomes)
            and (date is None or f"/date={date}" in run["path"])
            and (trusted is None or run["trusted"] is trusted)
        )

    found = islice((run for one in latest_runs(log, state) if selected(run := one.summary())), last)
    if as_json:
        for run in found:
            click.echo(json.dumps(run))
    else:
        print_runs(list(found), "")


def print_runs(runs: list[dict[str, Any]], title: str) -> None:
    """Print a table of runs."""
    rows = [
        (run["run_id"], run["build_name"], run["outcome"], "yes" if run["trusted"] else "no", f"{run['rows']:,}")
        for run in runs
    ]
    print_table(("run", "job", "outcome", "trusted", "samples"), rows, title=title)


@click.command("show")
@click.argument("run_id")
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def show(run_id: str, data_path: str, as_json: bool) -> int:
    """Show a run and its records in the manifest.

    It shows the run's object, columns and metadata, the other attempts of its job, and each record with its RUN_ID. The
    exit code is 4 if the stored telemetry is not as committed.

    \b
    Example:
      ciml runs show zuul~5f0c~1 --data-path data
    """
    from functools import partial

    from ciml.cli.progress import bars
    from ciml.runs.latest_runs import attempts_of, entries_of, row_of
    from ciml.runs.state import open_raw

    raw = DataRoot.open(data_path).raw
    log, state = open_raw(raw)
    with bars() as progress:
        search = partial(progress, "searching the manifest")
        records = entries_of(log, state.version, run_id, search)
        attempts = attempts_of(log, state, records, search)
    if not records:
        raise CimlError(f"no run {run_id!r} in {raw.url()}; list the runs by ciml runs list")
    known = state.index.run(run_id)
    found: dict[str, Any] = {"run_id": run_id, "outcome": known.outcome if known else None}
    if stored := row_of(records):
        found |= _object(raw, run_id, stored.record["file"])
    if attempts:
        found["attempts"] = [attempt._asdict() for attempt in attempts]
    found["records"] = [{"version": version, "kind": kind, **record} for version, kind, record in records]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    return 4 if found.get("fault") else 0


def _object(raw: Store, run_id: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return the object or pack of a run, its columns and its fault, if any."""
    from ciml.errors import IntegrityError
    from ciml.events.records import RawFile
    from ciml.runs.pack_index import split_path
    from ciml.runs.reader import load_packs, read_run, verify_run

    named = RawFile.from_json(file)
    parts = split_path(named.path)
    pack = load_packs(raw, parts[0]).find(parts[1]) if parts is not None else None
    found: dict[str, Any] = {"path": named.path, "pack": pack[0].file.path if pack else None}
    found |= {"rows": named.rows, "digest": named.digest, "fault": verify_run(raw, run_id, named)}
    try:
        table = read_run(raw, named)
    except IntegrityError:
        return found
    found["columns"] = table.column_names
    found["metadata"] = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }
    return found


def _print(found: dict[str, Any]) -> None:
    from ciml.events.fields import iso_time
    from ciml.events.records import KIND_WORDS
    from ciml.runs.latest_runs import TRUST_CHANGE

    for key in ("run_id", "outcome", "path", "pack", "rows", "digest"):
        if found.get(key) is not None:
            click.echo(f"{key:<10} {found[key]}")
    if "columns" in found:
        click.echo(f"{'columns':<10} {', '.join(found['columns'])}")
        click.echo(f"{'recorded':<10} {', '.join(f'{key}={value}' for key, value in found['metadata'].items())}")
    if "fault" in found:
        click.echo(f"{'telemetry':<10} {found['fault'] or 'as it was committed'}")
    for attempt in found.get("attempts", ()):
        this = " (this run)" if attempt["run_id"] == found["run_id"] else ""
        started = "" if attempt["start_us"] is None else f", started {iso_time(attempt['start_us'])}"
        what = attempt["outcome"] or KIND_WORDS[attempt["kind"]]
        click.echo(f"{'attempt':<10} {attempt['attempt']} {attempt['run_id']} {what}{started}{this}")
    for record in found["records"]:
        if record["kind"] == TRUST_CHANGE:
            trusted = "trusted" if record["trust"]["trusted"] else "not trusted"
            click.echo(f"{'trust':<16} version {record['version']}, {trusted} by an update: {record['trust']['rule']}")
            continue
        topic, partition, offset = record["origin"]
        reason = f" ({record['reason']})" if record.get("reason") else ""
        click.echo(
            f"{KIND_WORDS[record['kind']]:<16}{reason} version {record['version']}, {topic}[{partition}] {offset}"
        )

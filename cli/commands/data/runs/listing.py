"""``ciml runs list`` and ``ciml runs show``: single runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ciml.data_root import DataRoot
from ciml.errors import CimlError
from cli.options import data_path_option, jobs_option
from cli.tables import print_table

if TYPE_CHECKING:
    from ciml.manifest.log import ManifestLog
    from ciml.storage.open import Store


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
@click.option("--trusted/--untrusted", default=None, help="Trust of the runs when they were ingested.  [default: both]")
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

    from ciml.events.globs import glob_pattern
    from ciml.raw.latest_runs import latest_runs
    from ciml.raw.state import open_raw

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

    It shows the run's object, columns and metadata, and each record with its RUN_ID. The exit code is 4 if the stored
    telemetry is not as committed.

    \b
    Example:
      ciml runs show zuul~5f0c~1 --data-path data
    """
    from ciml.raw.state import open_raw

    raw = DataRoot.open(data_path).raw
    log, state = open_raw(raw)
    records = list(_records(log, state.version, run_id))
    if not records:
        raise CimlError(f"no run {run_id!r} in {raw.url()}; list the runs by ciml runs list")
    known = state.index.run(run_id)
    found: dict[str, Any] = {"run_id": run_id, "outcome": known.outcome if known else None}
    stored = next((record for _, kind, record in reversed(records) if kind in ("run", "reclaim")), None)
    if stored is not None:
        found |= _object(raw, run_id, stored["file"])
    found["records"] = [{"version": version, "kind": kind, **record} for version, kind, record in records]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print(found)
    return 4 if found.get("fault") else 0


def _records(log: ManifestLog, until: int, run_id: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    from ciml.events.records import records_of
    from cli.progress_bar import bars

    needle = json.dumps(run_id, ensure_ascii=False).encode()  # as the manifest encodes it: most deltas are not parsed
    with bars() as progress:
        for version, data in log.raw_since(0):
            if version > until:
                return
            progress("searching the manifest", version, until)
            if needle not in data:
                continue
            delta = log.parse(version, data)
            for kind, record in records_of(delta):
                if record.get("mention", {}).get("run_id") == run_id:
                    yield version, kind, record


def _object(raw: Store, run_id: str, file: dict[str, Any]) -> dict[str, Any]:
    """Return the object or pack of a run, its columns and its fault, if any."""
    from ciml.errors import IntegrityError
    from ciml.events.records import RawFile
    from ciml.raw.packs import split_path
    from transforms.raw.reader import load_packs, read_run, verify_run

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
    from cli.progress_counts import WORDS

    for key in ("run_id", "outcome", "path", "pack", "rows", "digest"):
        if found.get(key) is not None:
            click.echo(f"{key:<10} {found[key]}")
    if "columns" in found:
        click.echo(f"{'columns':<10} {', '.join(found['columns'])}")
        click.echo(f"{'recorded':<10} {', '.join(f'{key}={value}' for key, value in found['metadata'].items())}")
    if "fault" in found:
        click.echo(f"{'telemetry':<10} {found['fault'] or 'as it was committed'}")
    for record in found["records"]:
        topic, partition, offset = record["origin"]
        reason = f" ({record['reason']})" if record.get("reason") else ""
        click.echo(f"{WORDS[record['kind']]:<16}{reason} version {record['version']}, {topic}[{partition}] {offset}")

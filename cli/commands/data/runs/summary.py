"""``ciml runs summary``, the default of ``ciml runs``: the accounting and the latest runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.data.runs.listing import print_runs
from ciml.cli.options import data_path_option
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.manifest.log import ManifestLog
    from ciml.runs.state import RawState
    from ciml.storage import Store


@click.command("summary")
@data_path_option()
@click.option("--count", is_flag=True, help="Print only the number of raw runs.")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
@click.option("--last", default=10, type=click.IntRange(0), help="Number of latest runs to show.")
@click.option("--verify", is_flag=True, help="Verify rows and digest of each raw object; exit code 4 on a difference.")
def summary(data_path: str, count: bool, as_json: bool, last: int, verify: bool) -> int:
    """Show the accounting and the latest runs.

    It counts the events and runs of DATA/raw by class and reason. It is the default of ciml runs.

    \b
    Example:
      ciml runs --data-path data
      ciml runs --data-path data --verify
    """
    from itertools import islice

    from ciml.data_root import DataRoot
    from ciml.runs.latest_runs import latest_runs
    from ciml.runs.state import open_raw

    raw = DataRoot.open(data_path).raw
    log, state = open_raw(raw)
    if count:
        click.echo(state.index.run_count())
        return 0
    latest = [run.summary() for run in islice(latest_runs(log, state), last)]
    faults = verify_all(raw, log, state.version, state.index.run_count()) if verify else []
    if as_json:
        click.echo(json.dumps({**as_dict(state), "latest": latest, **({"faults": faults} if verify else {})}, indent=2))
    else:
        _print(state, latest)
        for fault in faults:
            click.echo(f"BROKEN {fault}", err=True)
        if verify and not faults:
            click.echo(f"Verified {state.index.run_count():,} raw objects: rows and digests are as committed.")
    return 4 if faults else 0


def as_dict(state: RawState) -> dict[str, Any]:
    """Return the accounting as JSON: totals by kind, counts by kind and reason, covered ranges of offsets."""
    from ciml.events.records import reasons_of

    return {
        "version": state.version,
        "runs": state.index.run_count(),
        "totals": state.totals(),
        "reasons": reasons_of(state.counts),
        "trust": [{"trusted": trusted, "rule": rule, "runs": n} for (trusted, rule), n in sorted(state.trust.items())],
        "trust_changes": [
            {"trusted": trusted, "rule": rule, "runs": n} for (trusted, rule), n in sorted(state.trust_changes.items())
        ],
        "covered": {
            f"{topic}[{partition}]": [list(part) for part in ranges] for topic, partition, ranges in state.partitions()
        },
    }


def verify_all(raw: Store, log: ManifestLog, version: int, total: int) -> list[str]:
    """Return the faults of the runs in the manifest up to ``version``, one line each."""
    from ciml.cli.progress import bars
    from ciml.events.records import RawFile, rows_of
    from ciml.runs.reader import verify_runs

    def named() -> Iterator[tuple[str, RawFile]]:
        for number, delta in log.since(0):
            if number > version:
                return
            for record in rows_of(delta):
                yield record["mention"]["run_id"], RawFile.from_json(record["file"])

    faults: list[str] = []
    with bars() as progress:
        for done, fault in enumerate(verify_runs(raw, named()), 1):
            progress("verifying", done, total)
            if fault:
                faults.append(fault)
    return faults


def _print(state: RawState, latest: list[dict[str, Any]]) -> None:
    from ciml.events.records import KIND_WORDS

    if not state.version:
        click.echo("Nothing has been committed yet.")
        return
    rows = [
        (word, reason, f"{number:,}")
        for kind, word in KIND_WORDS.items()
        for (found, reason), number in sorted(state.counts.items())
        if found == kind
    ]
    for (trusted, rule), number in sorted(state.trust.items(), reverse=True):
        rows.append(("  of the runs", f"{'trusted' if trusted else 'not trusted'}: {rule}", f"{number:,}"))
    for (trusted, rule), number in sorted(state.trust_changes.items(), reverse=True):
        rows.append(("  later", f"{'trusted' if trusted else 'not trusted'}: {rule}", f"{number:,}"))
    numbers = "events x runs"
    print_table(("class", "reason", numbers), rows, title=f"Raw manifest, version {state.version}", right=[numbers])
    if latest:
        print_runs(latest, "Latest runs")

"""``ciml exclude``: runs that no model may learn from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.default_group import DefaultGroup
from ciml.cli.options import data_path_option
from ciml.cli.param_types import Instant
from ciml.data_root import DataRoot

if TYPE_CHECKING:
    from ciml.training.exclusions import Exclusion


@click.group("exclude", cls=DefaultGroup, default="add")
def command() -> None:
    """Exclude runs from training, list and revert exclusions.

    Without a COMMAND it adds an exclusion. Every later training honours it: refreshes, experiments and sweeps. It
    deletes nothing: excluded runs stay stored and are predicted.

    \b
    Example:
      ciml exclude --run zuul~5f0c~1 --reason "disk was full" --data-path data
      ciml exclude list --data-path data
      ciml exclude revert 1 --data-path data
    """


@command.command("add")
@click.option("--run", "run_id", metavar="ID", help="Run id, source~native id~attempt.")
@click.option("--job", metavar="GLOB", help="Job of the runs, or a glob of jobs.")
@click.option("--source", metavar="NAME", help="Source of the runs, such as zuul.")
@click.option(
    "--since",
    "since_us",
    type=Instant(),
    metavar="TIME",
    help="Runs that ran at or after TIME, ISO 8601; UTC without a zone.",
)
@click.option("--until", "until_us", type=Instant(), metavar="TIME", help="Runs that began before TIME; needs --since.")
@click.option("--reason", required=True, metavar="TEXT", help="Reason, for readers of the list and of metrics.")
@data_path_option()
def add(reason: str, data_path: str, **runs: Any) -> None:
    """Exclude runs from training.

    It excludes one run by --run, or all runs that match each of --job, --source, --since and --until, present and
    future ones. A served model that learned from such a run stays, with a warning.

    \b
    Example:
      ciml exclude --run zuul~5f0c~1 --reason "disk was full" --data-path data
      ciml exclude --job 'tempest-*' --since 2026-11-01 --until 2026-11-03T12:00Z --reason "bad mirror" --data-path data
    """
    from ciml.training.exclusions import Exclusion
    from ciml.training.exclusions import add as store

    data = DataRoot.open(data_path)
    exclusion = Exclusion(reason, **{key: value for key, value in runs.items() if value is not None})
    (stored,) = store(data.exclusions, [exclusion])
    matching = _matching(data, exclusion)
    note = "" if matching is None else f"; stored runs that match: {matching:,}"
    click.echo(f"exclusion {stored.id}: {exclusion.describe()}: {reason}{note}")
    if matching == 0:
        click.echo("warning: no stored run matches; later ones may", err=True)
    _warn(data)


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Reverted exclusions too.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, an array of all exclusions.")
@data_path_option()
def list_exclusions(everything: bool, as_json: bool, data_path: str) -> None:
    """List the exclusions in force.

    \b
    Example:
      ciml exclude list --data-path data
      ciml exclude list --all --data-path data
    """
    from ciml.training.exclusions import read_state

    data = DataRoot.open(data_path)
    state = read_state(data.exclusions)
    exclusions = list(state.kept.values()) if everything or as_json else state.active()
    if as_json:
        click.echo(json.dumps([stored.to_json() for stored in exclusions], indent=2))
        return
    for stored in exclusions:
        since = datetime.fromtimestamp(stored.time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
        note = "" if stored.reverted_us is None else "  (reverted)"
        click.echo(f"{stored.id:>4}  {since}  {stored.exclusion.describe()}: {stored.exclusion.reason}{note}")
    if not exclusions:
        click.echo("no exclusions")
    _warn(data)


@command.command("revert")
@click.argument("ids", nargs=-1, required=True, type=click.IntRange(1), metavar="ID…")
@data_path_option()
def revert(ids: tuple[int, ...], data_path: str) -> None:
    """Revert exclusions by their IDs.

    Later trainings may learn from their runs again, unless another exclusion matches.

    \b
    Example:
      ciml exclude revert 3 --data-path data
    """
    from ciml.training.exclusions import revert as store

    for stored in store(DataRoot.open(data_path).exclusions, ids):
        click.echo(f"reverted {stored.id}: {stored.exclusion.describe()}: {stored.exclusion.reason}")


def _matching(data: DataRoot, exclusion: Exclusion) -> int | None:
    """Return the number of stored runs that an exclusion matches; None without a raw store."""
    from ciml.pipelines.datasets.run_source import StoredRuns

    runs = StoredRuns(data.raw)
    if runs.is_empty():
        return None
    matching: dict[str, bool] = {}
    for _, delta in runs.log.since(0):
        for record in delta.rows:  # a later row of a run reclaims it
            matching[record.mention.run_id] = exclusion.matches(record.mention)
    return sum(matching.values())


def _warn(data: DataRoot) -> None:
    from ciml.training.trainer import learned_excluded

    for line in learned_excluded(data):
        click.echo(f"warning: {line}", err=True)

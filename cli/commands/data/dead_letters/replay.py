"""``ciml dead-letters replay``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.data.dead_letters.filters import FILTERS, choice_of, choice_options
from ciml.cli.foreground import stop_on_signals
from ciml.cli.options import data_path_option, fetch_options, s3_place, sources_option, trust_policy_option
from ciml.events.records import reasons_of, totals_of
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.pipelines.ingest.replay import Preview, ReplayConfig, Replayed
    from ciml.runs.dead_letters import Choice

_INTERRUPTED, _SOME_LEFT = 130, 5
_REMEDIES = {
    "address_not_allowed": "allow it by --allow-root or --allow-host; for a listing by --logs",
    "log_not_found": "for a listing, name the present folder of the logs by --logs",
}


@click.command("replay")
@data_path_option()
@choice_options
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Maximum number of dead letters, the oldest first.  [default: all]",
)
@click.option("--dry-run", is_flag=True, help="Count the dead letters; replay nothing.")
@click.option(
    "--logs",
    metavar="ROOT",
    callback=s3_place,
    help="Present folder or s3:// prefix of a listing's logs; it becomes an allowed root.",
)
@sources_option
@click.option(
    "--select",
    "selection",
    multiple=True,
    metavar="GLOB",
    help="Jobs of ciml ingest (--job there); others are ignored.  [default: all]",
)
@fetch_options
@trust_policy_option
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
def replay_command(data_path: str, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Replay open dead letters.

    It applies the present policies and program. The commit of a result closes its dead letter; a dead letter that fails
    again stays open. Interrupted and concurrent replays are safe.

    \b
    Example:
      ciml dead-letters replay --reason address_not_allowed --allow-host logs.example.org --data-path data
      ciml dead-letters replay --topic 'listing:*' --logs /srv/logs --data-path data

    Exit codes: 0 all closed, 5 some stay open, 130 interrupted, 2 wrong use, 3 a store does not answer.
    """
    from ciml.cli.progress import Bar
    from ciml.pipelines.ingest.replay import preview, replay

    config = make_config(data_path, choice_of(**{name: options.pop(name) for name in FILTERS}), **options)
    if dry_run:
        _print_preview(preview(config), as_json)
        return 0
    stop = stop_on_signals()
    with Bar("replay", "dead letters") as bar:
        found = replay(config, stop=stop, report=lambda each: bar.show(each.tried, each.total, totals_of(each.became)))
    _print_replayed(found, as_json)
    return _INTERRUPTED if not found.complete else _SOME_LEFT if found.still else 0


def make_config(
    data_path: str,
    choice: Choice,
    *,
    limit: int | None = None,
    logs: str | None = None,
    sources: tuple[str, ...] = (),
    selection: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    roots: tuple[str, ...] = (),
    fetch_policy: str | None = None,
    trust_policy: str | None = None,
) -> ReplayConfig:
    """Return the configuration of the options.

    Raises:
      CimlError: an unreadable policy, an option that is not a pair, a missing folder of logs, an unknown scheme.
    """
    from ciml.data_root import DataRoot
    from ciml.events.run_facts import source_names
    from ciml.pipelines.backfill.plan import logs_root
    from ciml.pipelines.ingest.replay import ReplayConfig
    from ciml.transforms.fetch.policy import FetchPolicy
    from ciml.transforms.ingest.decode import ALL_JOBS
    from ciml.trust import TrustPolicy

    root = logs_root(logs) if logs else ""
    roots = (*roots, root) if root else roots
    fetch = FetchPolicy.load(fetch_policy).check().allowing(hosts=hosts, roots=roots)
    return ReplayConfig(
        DataRoot.open(data_path).raw,
        choice,
        limit=limit,
        selection=selection or ALL_JOBS,
        names=source_names(pairs("--source", sources)),
        trust=TrustPolicy.load(trust_policy),
        fetch=fetch,
        logs=root,
    )


def _print_replayed(found: Replayed, as_json: bool) -> None:
    if as_json:
        value = {
            "tried": found.tried, "closed": found.closed, "became": reasons_of(found.became),
            "still_open": dict(found.still), "closed_by_others": found.elsewhere, "whole": found.complete,
        }  # fmt: skip
        click.echo(json.dumps(value, indent=2))
        return
    from ciml.cli.progress import counts_text

    counts = counts_text(totals_of(found.became))
    click.echo(f"{found.tried:,} dead letters replayed: {found.closed:,} closed{f' ({counts})' if counts else ''}")
    if found.elsewhere:
        click.echo(f"{found.elsewhere:,} were closed by a concurrent replay")
    for reason, number in sorted(found.still.items(), key=lambda entry: (-entry[1], entry[0])):
        detail = found.details.get(reason, "")
        click.echo(f"{number:>10,} stay open: {reason}{f' ({detail})' if detail else ''}")
        if reason in _REMEDIES:
            click.echo(f"{'':>11}{_REMEDIES[reason]}")


def _print_preview(found: Preview, as_json: bool) -> None:
    if as_json:
        value = {"letters": found.total, "reasons": dict(found.reasons), "untried": dict(found.untried)}
        click.echo(json.dumps(value, indent=2))
        return
    for reason, number in sorted(found.reasons.items(), key=lambda entry: (-entry[1], entry[0])):
        click.echo(f"{number:>10,} {reason}")
    click.echo(f"{found.total:>10,} dead letters would be replayed")
    for reason, number in found.untried.items():
        click.echo(f"{number:>10,} of them cannot be replayed: {reason}")

"""``ciml feedback list``, ``mute`` and ``unmute``: the messages that were sent or wait, and projects without any."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from ciml.cli.options import data_path_option
from ciml.cli.tables import print_table

_MOST = 20


@click.command("list")
@data_path_option()
@click.option("--last", type=click.IntRange(0), default=_MOST, help="Number of patch sets, the latest last; 0 for all.")
@click.option("--waiting", is_flag=True, help="Only messages that wait, or whose outcome is unknown.")
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def list_command(data_path: str, last: int, waiting: bool, as_json: bool) -> None:
    """List messages of the last three days.

    For each patch set: the jobs, their verdicts, what became of the message, and reactions to it.

    \b
    Example:
      ciml feedback list --data-path data
      ciml feedback list --data-path data --waiting --json
    """
    from ciml.data_root import DataRoot
    from ciml.services.feedback import replica

    with replica(DataRoot.open(data_path)).state() as state:
        entries = [entry for entry in state.entries.values() if entry.is_open or not waiting]
        found = [_shown(entry) for entry in (entries[-last:] if last else entries)]
        muted = sorted(state.muted)
    if as_json:
        for one in found:
            click.echo(json.dumps(one, ensure_ascii=False))
        return
    if muted:
        click.echo(f"muted projects: {', '.join(map(repr, muted))}")
    if not found:
        click.echo("no messages")
        return
    header = ("system", "project", "change", "patch set", "jobs", "verdict", "state", "age", "reactions", "message")
    print_table(header, [_row(one) for one in found])


def _shown(entry: Any) -> dict[str, Any]:
    change = entry.change
    state = "unsettled" if entry.intent else "waiting" if entry.is_open else entry.outcome
    return {
        "system": entry.system, "project": change.project, "change": change.change,
        "patchset": change.patchset or change.head, "jobs": sorted(entry.items),
        "runs": sorted(item.run_id for item in entry.items.values()),
        "causes": sorted({item.cause for item in entry.items.values()}), "state": state, "detail": entry.detail,
        "url": entry.posted.url if entry.posted else "", "time_us": entry.touched_us,
        "reactions": {kind: len(accounts) for kind, accounts in entry.reactions.items()},
    }  # fmt: skip


def _row(one: dict[str, Any]) -> list[str]:
    def visible(text: str, most: int = 60) -> str:
        return repr(text)[1:-1][:most]

    reactions = ", ".join(f"{number} {kind}" for kind, number in one["reactions"].items() if number)
    jobs = one["jobs"][0] if len(one["jobs"]) == 1 else f"{len(one['jobs'])} jobs"
    age_min = max(int(time.time() - one["time_us"] / 1e6) // 60, 0)
    return [
        one["system"], visible(one["project"]), visible(one["change"] or "–"), visible(one["patchset"], 12),
        visible(jobs), "+".join(one["causes"]), one["state"], f"{age_min} min", reactions or "–",
        visible(one["url"] or one["detail"] or "–", 200),
    ]  # fmt: skip


_GLOB = click.argument("project", metavar="PROJECT")


@click.command("mute")
@_GLOB
@data_path_option()
def mute(project: str, data_path: str) -> None:
    """Send no more messages to a project.

    PROJECT is a name or a glob. It takes effect at once, also in a running service: new verdicts are counted as
    muted_project, messages that wait become muted. Messages that were sent stay.

    \b
    Example:
      ciml feedback mute openstack/nova --data-path data
      ciml feedback mute 'sandbox/*' --data-path data
    """
    _commit(data_path, "muted", project)
    click.echo(f"muted: {project!r}")


@click.command("unmute")
@_GLOB
@data_path_option()
def unmute(project: str, data_path: str) -> None:
    """Revert ciml feedback mute.

    PROJECT is the name or the glob that was muted.

    \b
    Example:
      ciml feedback unmute openstack/nova --data-path data
    """
    if not _commit(data_path, "unmuted", project):
        click.echo(f"{project!r} is not muted")
        return
    click.echo(f"not muted any more: {project!r}")


def _commit(data_path: str, key: str, project: str) -> bool:
    """Store a change of the muted projects; return False if it changes nothing."""
    from ciml.data_root import DataRoot
    from ciml.errors import CimlError
    from ciml.events.fields import is_clean
    from ciml.services.feedback import replica

    if not project.strip() or len(project) > 200 or not is_clean(project):
        raise CimlError(f"PROJECT: {project!r:.120} is not a project's name or a glob")
    delta = {"time_us": int(time.time() * 1e6), key: [project]}
    done = replica(DataRoot.open(data_path)).append(
        lambda state: delta if (project in state.muted) == (key == "unmuted") else None
    )
    return done is not None

"""``ciml feedback report``: how often recorded verdicts were right, by model, project and cause."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.commands.serve.feedback.options import config_option
from ciml.cli.options import data_path_option
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.verdicts.feedback.standing import Share
    from ciml.verdicts.feedback.truths import Row


@click.command("report")
@config_option
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def command(config: str, data_path: str, as_json: bool) -> None:
    """Report the precision of verdicts.

    Reruns of the same code and reviewers settle verdicts, also the unpublished ones of a model in shadow mode. For each
    model, project and cause: whether ciml says such verdicts, how many are settled and open, and how many of the
    settled ones were right, beside the base rate and the duration of the run alone, with 95 % intervals.

    \b
    Example:
      ciml feedback report --config feedback.toml --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.services.feedback import replica
    from ciml.verdicts.feedback.config import load_feedback
    from ciml.verdicts.feedback.truths import report

    policy = load_feedback(config).policy
    with replica(DataRoot.open(data_path)).state() as state:
        rows = report(list(state.history), policy, int(time.time() * 1e6))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row.to_json(), ensure_ascii=False))
        return
    if not rows:
        click.echo("no verdicts yet; ciml service start feedback records them")
        return
    numbers = ("settled", "open", "precision", "base rate", "duration alone", "reruns passed")
    print_table(("model", "project", "verdict", "state", *numbers), [_cells(row) for row in rows], right=numbers)
    click.echo("intervals of 95 %; runs of one change count once")
    for row in rows:
        if row.detail:
            where = f"{row.model}, {_visible(row.project) or 'all projects'}, {row.cause}"
            click.echo(f"{where}: {row.mode}: {row.detail}")


def _cells(row: Row) -> list[Any]:
    return [
        row.model, _visible(row.project) or "all", row.cause, row.mode, f"{row.precision.runs:,}", f"{row.open:,}",
        _share(row.precision), _share(row.base_rate), _share(row.duration), _share(row.reruns),
    ]  # fmt: skip


def _share(share: Share) -> str:
    if share.value is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f}\n{low:.2f} to {high:.2f}"


def _visible(text: str) -> str:
    return repr(text)[1:-1][:60]

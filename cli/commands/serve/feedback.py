"""``ciml feedback``: post verdicts on changes, try messages without sending them, and report what was sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import PATIENCE_S, Running, service_options, topic_options
from ciml.cli.options import data_path_option, metrics_options
from ciml.cli.param_types import Duration
from ciml.cli.tables import print_table
from ciml.errors import CimlError
from ciml.services.options import FeedbackOptions

if TYPE_CHECKING:
    from ciml.integrations.review import Rendered
    from ciml.services.decide import ServiceProgress
    from ciml.verdicts.feedback.standing import Share
    from ciml.verdicts.feedback.state import Entry
    from ciml.verdicts.feedback.truths import Row

#: ``--config``, as ``config``: an absolute path.
config_option = click.option(
    "--config",
    required=True,
    metavar="FILE",
    envvar="CIML_FEEDBACK",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    help="TOML file of the policy and its review systems.",
)


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
    from ciml.pipelines.feedback import replica

    with replica(DataRoot.open(data_path)).state() as state:
        entries = [entry for entry in state.entries.values() if entry.is_open or not waiting]
        rows = [_shown(entry) for entry in (entries[-last:] if last else entries)]
        muted = sorted(state.muted)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    if muted:
        click.echo(f"muted projects: {', '.join(map(repr, muted))}")
    if not rows:
        click.echo("no messages")
        return
    header = ("system", "project", "change", "patch set", "jobs", "verdict", "state", "age", "reactions", "message")
    print_table(header, [_row(row) for row in rows])


def _shown(entry: Any) -> dict[str, Any]:
    change = entry.change
    state = "unsettled" if entry.intent else "waiting" if entry.is_open else entry.outcome
    return {
        "system": entry.system,
        "project": change.project,
        "change": change.change,
        "patchset": change.patchset or change.head,
        "jobs": sorted(entry.items),
        "runs": sorted(item.run_id for item in entry.items.values()),
        "causes": sorted({item.cause for item in entry.items.values()}),
        "state": state,
        "detail": entry.detail,
        "url": entry.posted.url if entry.posted else "",
        "time_us": entry.touched_us,
        "reactions": {kind: len(accounts) for kind, accounts in entry.reactions.items()},
    }


def _row(entry: dict[str, Any]) -> list[str]:
    def visible(text: str, limit: int = 60) -> str:
        return repr(text)[1:-1][:limit]

    reactions = ", ".join(f"{number} {kind}" for kind, number in entry["reactions"].items() if number)
    jobs = entry["jobs"][0] if len(entry["jobs"]) == 1 else f"{len(entry['jobs'])} jobs"
    age_min = max(int(time.time() - entry["time_us"] / 1e6) // 60, 0)
    return [
        entry["system"],
        visible(entry["project"]),
        visible(entry["change"] or "–"),
        visible(entry["patchset"], 12),
        visible(jobs),
        "+".join(entry["causes"]),
        entry["state"],
        f"{age_min} min",
        reactions or "–",
        visible(entry["url"] or entry["detail"] or "–", 200),
    ]


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
    from ciml.events.fields import is_clean
    from ciml.pipelines.feedback import replica

    if not project.strip() or len(project) > 200 or not is_clean(project):
        raise CimlError(f"PROJECT: {project!r:.120} is not a project's name or a glob")
    delta = {"time_us": int(time.time() * 1e6), key: [project]}
    version = replica(DataRoot.open(data_path)).append(
        lambda state: delta if (project in state.muted) == (key == "unmuted") else None
    )
    return version is not None


@click.command("report")
@config_option
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def report(config: str, data_path: str, as_json: bool) -> None:
    """Report the precision of verdicts.

    Reruns of the same code and reviewers settle verdicts, also the unpublished ones of a model in shadow mode. For each
    model, project and cause: whether ciml says such verdicts, how many are settled and open, and how many of the
    settled ones were right, beside the base rate and the duration of the run alone, with 95 % intervals.

    \b
    Example:
      ciml feedback report --config feedback.toml --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.pipelines.feedback import replica
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
        row.model,
        _visible(row.project) or "all",
        row.cause,
        row.mode,
        f"{row.precision.runs:,}",
        f"{row.open:,}",
        _share(row.precision),
        _share(row.base_rate),
        _share(row.duration),
        _share(row.reruns),
    ]


def _share(share: Share) -> str:
    if share.value is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f}\n{low:.2f} to {high:.2f}"


def _visible(text: str) -> str:
    return repr(text)[1:-1][:60]


@click.command("stream")
@topic_options()
@config_option
@click.option("--predictions-topic", default="predictions", metavar="TOPIC", help="Topic of predictions.")
@click.option("--once", is_flag=True, help="Stop at the present end of the topic; what settles stays for the next run.")
@click.option(
    "--until-idle",
    type=Duration(),
    metavar="TIME",
    help="Time without new verdicts and waiting messages after which it stops.  [default: never]",
)
@metrics_options
@service_options(FeedbackOptions)
def stream(
    once: bool,
    until_idle: float | None,
    metrics_port: int | None,
    metrics_address: str,
    options: FeedbackOptions,
) -> None:
    """Answer failed runs as their verdicts arrive.

    Offsets, verdicts, calls and outcomes are committed to DATA/feedback. A call of unknown outcome is settled by
    reading the message on the change, so an interrupted stream sends nothing twice. A dry run prints each message
    instead. To keep it at work under a supervisor: ciml service start feedback.

    \b
    Example:
      ciml feedback stream --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data --until-idle 1min
    """
    from ciml.services.feedback import FeedbackService

    shown = ""

    def show(entry: Entry, message: Rendered) -> None:
        change = entry.change
        click.echo(f"--- {entry.system}: {change.project!r}, change {change.change or change.head!r}")
        click.echo(f"{message.body}\n")

    def report(progress: ServiceProgress, word: str) -> None:
        nonlocal shown
        counts = ", ".join(f"{number:,} {unit}" for unit, number in progress.facts.get("counts", {}).items())
        waits = f"; {word}" if word.startswith("waits: ") else ""
        line = f"{counts or 'no verdicts yet'}; {progress.behind:,} predictions to go{waits}"
        if line != shown:
            shown = line
            click.echo(line, err=True)

    running = Running(once=once, until_idle=until_idle, metrics_port=metrics_port, metrics_address=metrics_address)
    service = FeedbackService(options.open(), show)
    running.run(service, report, patience_s=PATIENCE_S if running.until is None else 0.0)


@click.command("try")
@click.argument("predictions", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--run", "run_id", metavar="RUN", help="Run id whose stored predictions are tried instead of a file.")
@config_option
@data_path_option()
@click.option("--json", "as_json", is_flag=True, help="JSON output, one object a line.")
def trial(predictions: Path | None, run_id: str | None, config: str, data_path: str, as_json: bool) -> None:
    """Show messages without sending them.

    PREDICTIONS is a file of JSON lines as on the topic. It applies the policy, computes the evidence from the stored
    runs and prints each message, or the reason for silence; of a model in shadow both. It reads no secret and calls no
    system, so changes that are merged, outdated or muted by a word are not recognised.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback try predictions.jsonl --config feedback.toml --data-path data
    """
    from ciml.data_root import DataRoot
    from ciml.services.feedback import try_messages
    from ciml.verdicts.feedback.config import load_feedback

    if (predictions is None) == (run_id is None):
        raise click.UsageError("give either a file of PREDICTIONS or --run")
    data = DataRoot.open(data_path)
    feedback = load_feedback(config)
    records = _stored(data_path, run_id) if run_id is not None else _lines(predictions or Path())
    for trial in try_messages(data, feedback, records):
        _print(trial, as_json)


def _print(trial: Any, as_json: bool) -> None:
    import json

    if as_json:
        click.echo(json.dumps(trial.to_json(), ensure_ascii=False))
        return
    if trial.reason:
        detail = f" ({trial.detail})" if trial.detail else ""
        click.echo(f"{', '.join(trial.runs)}: silent: {trial.reason}{detail}")
    if trial.reason and trial.message is not None:
        click.echo(f"\nThis message is recorded and not sent:\n\n{trial.message}\n")
    elif trial.message is not None:
        click.echo(
            f"{', '.join(trial.runs)}: a message of {trial.system} on {trial.project!r}, change {trial.change!r}:"
        )
        click.echo(f"\n{trial.message}\n")


def _stored(data_path: str, run_id: str) -> list[dict[str, Any]]:
    from ciml.data_root import DataRoot
    from ciml.serving.predict.log import predictions_of_run

    predictions = predictions_of_run(DataRoot.open(data_path).predictions, run_id)
    if not predictions:
        raise CimlError(f"there is no prediction of run {run_id!r:.120} in {data_path}; list runs with ciml runs")
    return predictions


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    from ciml.errors import RejectedInput
    from ciml.events.fields import parse_json

    with path.open("rb") as lines:
        for number, line in enumerate(_bounded(lines), 1):
            try:
                record = parse_json(line)
            except RejectedInput as rejected:
                raise CimlError(f"{path}, line {number}: {rejected.detail}") from None
            if not isinstance(record, dict):
                raise CimlError(f"{path}, line {number}: expected a JSON object")
            yield record


def _bounded(lines: Any) -> Iterable[bytes]:
    from ciml.limits import MAX_MESSAGE_BYTES

    while line := lines.readline(MAX_MESSAGE_BYTES + 1):
        if line.strip():
            yield line


@click.group("feedback", commands=[stream, trial, report, list_command, mute, unmute])
def command() -> None:
    """Answer failed runs on their changes.

    A verdict becomes one quiet message on the change in Gerrit, GitHub or GitLab. The configuration says which
    verdicts, and where; without dry_run = false nothing is sent.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data
    """

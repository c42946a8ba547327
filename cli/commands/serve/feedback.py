"""``ciml feedback``: post verdicts on changes, try messages without sending them, and report the sent ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, JsonLines
from ciml.cli.output import age_text, print_table
from ciml.cli.running import PATIENCE_S, Foreground
from ciml.errors import CimlError
from ciml.options import argument, flag, option
from ciml.services.options import FeedbackOptions

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.integrations.review import Rendered
    from ciml.services.decide import ServiceProgress
    from ciml.services.feedback import Trial
    from ciml.verdicts.feedback.standing import Row, Share
    from ciml.verdicts.feedback.state import Entry


class ListOptions(JsonLines, Data):
    """Options of ``ciml feedback list``.

    Attributes:
      last: Number of patch sets, the latest last; 0 for all.
      waiting: Only pending messages, and those with an unknown outcome.
    """

    last: int = option(20, click.IntRange(0))
    waiting: bool = flag()


@make_command("list")
def list_command(options: ListOptions) -> None:
    """List messages of the last three days.

    For each patch set: the jobs, their verdicts, the outcome of the message, and reactions to it.

    \b
    Example:
      ciml feedback list --data-path data
      ciml feedback list --data-path data --waiting --json
    """
    from ciml.pipelines.feedback import feedback_replica

    with feedback_replica(options.root).state() as state:
        entries = [entry for entry in state.entries.values() if entry.is_open or not options.waiting]
        messages = [_entry_json(entry) for entry in entries[-options.last :]]
        muted = sorted(state.muted)
    options.show_all(messages, partial(_print_messages, muted))


def _entry_json(entry: Entry) -> dict[str, Any]:
    change = entry.change
    state = entry.outcome
    if entry.intent:
        state = "unsettled"
    elif entry.is_open:
        state = "waiting"
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


def _print_messages(muted: list[str], messages: list[dict[str, Any]]) -> None:
    if muted:
        click.echo(f"muted projects: {', '.join(map(repr, muted))}")
    if not messages:
        click.echo("no messages")
        return
    header = ("system", "project", "change", "patch set", "jobs", "verdict", "state", "age", "reactions", "message")
    print_table(header, map(_message_cells, messages))


def _message_cells(entry: dict[str, Any]) -> list[str]:
    reactions = ", ".join(f"{number} {kind}" for kind, number in entry["reactions"].items() if number)
    jobs = entry["jobs"][0] if len(entry["jobs"]) == 1 else f"{len(entry['jobs'])} jobs"
    return [
        entry["system"],
        _visible(entry["project"]),
        _visible(entry["change"] or "–"),
        _visible(entry["patchset"], 12),
        _visible(jobs),
        "+".join(entry["causes"]),
        entry["state"],
        age_text(int(time.time() - entry["time_us"] / 1e6)),
        reactions or "–",
        _visible(entry["url"] or entry["detail"] or "–", 200),
    ]


def _visible(text: str, limit: int = 60) -> str:
    """Return the first characters of a text, with control characters escaped."""
    return repr(text)[1:-1][:limit]


class MuteOptions(Data):
    """Options of ``ciml feedback mute`` and ``unmute``."""

    project: str = argument("PROJECT")


@make_command("mute")
def mute(options: MuteOptions) -> None:
    """Send no more messages to a project.

    PROJECT is a name or a glob. Muting takes effect immediately, even in a running service: new verdicts are counted as
    muted_project, and pending messages are closed as muted. Messages that were sent stay. The globs * and all mute
    every project; it prints how many of the projects with a verdict match.

    \b
    Example:
      ciml feedback mute openstack/nova --data-path data
      ciml feedback mute 'sandbox/*' --data-path data
    """
    from ciml.pipelines.feedback import feedback_replica
    from ciml.verdicts.feedback.judgement import is_muted

    _commit(options, muted=True)
    with feedback_replica(options.root).state() as state:
        projects = {entry.change.project for entry in state.entries.values()}
        projects |= {verdict.project for verdict in state.history}
    matches = sum(is_muted(project, (options.project,)) for project in projects)
    click.echo(f"muted: {options.project!r} ({matches} of {len(projects)} projects with a verdict)")


@make_command("unmute")
def unmute(options: MuteOptions) -> None:
    """Revert ciml feedback mute.

    PROJECT is the name or the glob that was muted.

    \b
    Example:
      ciml feedback unmute openstack/nova --data-path data
    """
    is_new = _commit(options, muted=False)
    click.echo(f"no longer muted: {options.project!r}" if is_new else f"{options.project!r} is not muted")


def _commit(options: MuteOptions, *, muted: bool) -> bool:
    """Mute a project, or no longer; return whether that changes anything."""
    from ciml.events.fields import is_clean
    from ciml.pipelines.feedback import feedback_replica

    project = options.project
    if not project.strip() or len(project) > 200 or not is_clean(project):
        raise CimlError(f"PROJECT: {project!r:.120} is not a project's name or a glob")
    delta = {"time_us": int(time.time() * 1e6), "muted" if muted else "unmuted": [project]}
    version = feedback_replica(options.root).append(lambda state: None if (project in state.muted) == muted else delta)
    return version is not None


class ConfigOptions(JsonLines, Data):
    """Options of commands that read the configuration.

    Attributes:
      config: TOML file of the policy and its review systems.
    """

    config: str = option(kind="absolute file", envvar="CIML_FEEDBACK", required=True)


@make_command("report")
def report(options: ConfigOptions) -> None:
    """Report the precision of verdicts.

    Reruns of the same code and reviewers settle verdicts, also the unpublished ones of a model in shadow mode. For each
    model, project and cause: whether ciml says such verdicts, how many are settled and open, and how many of the
    settled ones were right, next to the base rate and the duration of the run alone, with 95 % intervals.

    \b
    Example:
      ciml feedback report --config feedback.toml --data-path data
    """
    from ciml.pipelines.feedback import feedback_replica
    from ciml.verdicts.feedback.config import load_feedback
    from ciml.verdicts.feedback.standing import Row, report_standings

    policy = load_feedback(options.config).policy
    with feedback_replica(options.root).state() as state:
        rows = report_standings(list(state.history), policy, int(time.time() * 1e6))
    none = "no verdicts yet; ciml service start feedback records them"
    options.show_all(rows, _print_report, Row.to_json, none)


def _print_report(rows: Sequence[Row]) -> None:
    numbers = ("settled", "open", "precision", "base rate", "duration alone", "reruns passed")
    print_table(("model", "project", "verdict", "state", *numbers), map(_report_cells, rows), right=numbers)
    click.echo("intervals of 95 %; runs of one change count once")
    for row in rows:
        if row.detail:
            where = f"{row.model}, {_visible(row.project) or 'all projects'}, {row.cause}"
            click.echo(f"{where}: {row.mode}: {row.detail}")


def _report_cells(row: Row) -> list[Any]:
    return [
        row.model,
        _visible(row.project) or "all",
        row.cause,
        row.mode,
        row.precision.runs,
        row.open,
        _share_text(row.precision),
        _share_text(row.base_rate),
        _share_text(row.duration),
        _share_text(row.reruns),
    ]


def _share_text(share: Share) -> str:
    if share.value is None:
        return "–"
    low, high = share.interval
    return f"{share.value:.2f}\n{low:.2f} to {high:.2f}"


class FeedbackRunning(Foreground):
    """How ``ciml feedback stream`` runs.

    Attributes:
      once: Stop at the present end of the topic; pending messages are left for the next run.
      until_idle: Time without new verdicts and waiting messages after which it stops. [default: never]
    """

    once: bool = flag()
    until_idle: float | None = option(kind="time")


@make_command("stream")
def stream(options: FeedbackOptions, running: FeedbackRunning) -> None:
    """Comment on changes as verdicts arrive.

    Offsets, verdicts, calls and outcomes are committed to DATA/feedback. A call of unknown outcome is settled by
    reading the message on the change, so an interrupted stream sends nothing twice. A dry run prints each message
    instead. To run it under a supervisor: ciml service start feedback.

    \b
    Example:
      ciml feedback stream --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data --until-idle 1min
    """
    from ciml.services.feedback import FeedbackService

    def show(entry: Entry, message: Rendered) -> None:
        change = entry.change
        click.echo(f"--- {entry.system}: {change.project!r}, change {change.change or change.head!r}")
        click.echo(f"{message.body}\n")

    def text(progress: ServiceProgress, word: str) -> str:
        counts = ", ".join(f"{number:,} {unit}" for unit, number in progress.facts.get("counts", {}).items())
        waits = f"; {word}" if word.startswith("waits: ") else ""
        return f"{counts or 'no verdicts yet'}; {progress.behind:,} predictions to go{waits}"

    service = FeedbackService(options.open(), show)
    running.run_and_print(service, text, patience_s=PATIENCE_S if running.until is None else 0.0)


class TryOptions(ConfigOptions):
    """Options of ``ciml feedback try``.

    Attributes:
      run_id: Run id whose stored predictions are tried instead of a file.
    """

    predictions: Path | None = argument(
        "[PREDICTIONS]", click.Path(exists=True, dir_okay=False, path_type=Path), required=False
    )
    run_id: str | None = option(flags="--run", metavar="RUN")


@make_command("try")
def try_command(options: TryOptions) -> None:
    """Show messages without sending them.

    PREDICTIONS is a file of JSON lines as on the topic. It applies the policy, computes the evidence from the stored
    runs and prints each message, or the reason for silence; of a model in shadow both. It reads no secret and calls no
    system, so changes that are merged, outdated or muted by a word are not recognised.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback try predictions.jsonl --config feedback.toml --data-path data
    """
    from ciml.services.feedback import try_messages
    from ciml.verdicts.feedback.config import load_feedback

    if (options.predictions is None) == (options.run_id is None):
        raise click.UsageError("give either a file of PREDICTIONS or --run")
    data = options.root
    feedback = load_feedback(options.config)
    records = _read_predictions(options.predictions) if options.predictions else _stored_predictions(data, options)
    for trial in try_messages(data, feedback, records):
        if options.json:
            click.echo(json.dumps(trial.to_json()))
        else:
            _print_trial(trial)


def _print_trial(trial: Trial) -> None:
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


def _stored_predictions(data: DataRoot, options: TryOptions) -> list[dict[str, Any]]:
    from ciml.serving.predict.log import predictions_of_run

    predictions = predictions_of_run(data.predictions, options.run_id or "")
    if not predictions:
        raise CimlError(
            f"there is no prediction of run {options.run_id!r:.120} in {options.data_path}; list runs with ciml runs"
        )
    return predictions


def _read_predictions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the predictions of a file of JSON lines. Raises `CimlError` for a line that is not a JSON object."""
    from ciml.errors import RejectedInput
    from ciml.events.fields import parse_json
    from ciml.limits import MAX_MESSAGE_BYTES

    with path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_MESSAGE_BYTES + 1), b"")
        for number, line in enumerate(filter(bytes.strip, lines), 1):
            try:
                record = parse_json(line)
            except RejectedInput as rejected:
                raise CimlError(f"{path}, line {number}: {rejected.detail}") from None
            if not isinstance(record, dict):
                raise CimlError(f"{path}, line {number}: expected a JSON object")
            yield record


@click.group("feedback", commands=[stream, try_command, report, list_command, mute, unmute])
def command() -> None:
    """Comment on changes whose runs fail.

    A verdict becomes one quiet message on the change in Gerrit, GitHub or GitLab. The configuration says which
    verdicts, and where; without dry_run = false nothing is sent.

    \b
    Example:
      ciml feedback try --run zuul~5f0c~1 --config feedback.toml --data-path data
      ciml feedback stream --config feedback.toml --data-path data
    """

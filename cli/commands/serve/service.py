"""``ciml service``: start, stop, resume and watch supervised services."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from ciml.cli.command import command_of, make_command
from ciml.cli.options import MINUTE, Json, home_of
from ciml.cli.output import age_text
from ciml.cli.running import Foreground, OnEngine
from ciml.errors import CimlError
from ciml.options import Options, argument, flag, option
from ciml.services.files import SavepointEntry, ServiceFiles, StartOptions, Status, with_present_addresses
from ciml.services.options import KINDS, ServiceOptions, options_of
from ciml.services.status import age_s, exit_code, gather

#: By kind of service: options for an example.
_EXAMPLES = {
    "ingest": "--data-path data --allow-host logs.example.org",
    "predict": "--data-path data --model provider",
    "live": "--data-path data --dataset provider",
    "trainer": "--data-path data --dataset provider",
    "webhooks": "--config receivers.toml",
    "mqtt": "--config receivers.toml",
    "gerrit": "--config receivers.toml",
    "feedback": "--config feedback.toml --data-path data",
}
#: The colour of the health, by the exit code of ``ciml service status``: healthy, stopped, and any other.
_COLOURS = {0: "green", 1: "yellow", 2: "red"}
_MOST_RESUBMISSIONS = 5
#: Rows of the status that a service without a data root lacks.
_OF_DATA = frozenset({"data", "lag", "version", "counts", "checkpoint", "savepoint"})
_Row = tuple[str, str]  # title and text


class SupervisorOptions(Options):
    """Options of a supervisor.

    Attributes:
      name: Name of the service. [default: its kind]
      parallelism: Parallelism of the Flink job; at most one for each partition is used.
      flink_rest: REST API of Flink, for --engine flink:HOST:PORT.
      workers: Pool of Python workers, for --engine flink:HOST:PORT.
      tied_to: Pid of a process; the service stops when it ends.
    """

    name: str | None = option()
    parallelism: int = option(1, click.IntRange(1, 1024))
    flink_rest: str | None = option(metavar="URL")
    workers: str | None = option(metavar="HOST:PORT")
    tied_to: int | None = option(kind=int, hidden=True)
    #: Time to wait until the service works, in seconds; an option only in the background.
    wait: float = 0.0


class WaitOptions(Options):
    """How long a command waits.

    Attributes:
      wait: Time to wait until it works or has stopped; 0 for none.
    """

    wait: float = option(3 * MINUTE, "time")


class BackgroundOptions(WaitOptions, SupervisorOptions):
    """Options of a supervisor in the background."""


def _command_of(kind: str, *, foreground: bool) -> click.Command:
    """Return the command that starts a service of a kind, with the options of the kind."""
    verb = "run" if foreground else "start"
    options = options_of(kind)
    classes = {
        "service": options,
        "supervisor": SupervisorOptions if foreground else BackgroundOptions,
        "running": OnEngine if options.pipeline else Foreground,
    }
    example = f"Example:\n  ciml service {verb} {kind} {_EXAMPLES[kind]}"
    text = f"{verb.title()} the {kind} service.\n\n\b\n{example}"
    return command_of(kind, partial(_start, kind, foreground), classes, help=text)


def _start(
    kind: str, foreground: bool, service: ServiceOptions, supervisor: SupervisorOptions, running: Foreground
) -> int:
    """Start a service, and record its options and environment for later starts; return the exit code."""
    from ciml.engines import processes, state
    from ciml.engines.environment import record_environment
    from ciml.engines.state import ProcessId
    from ciml.services import control

    ctx = click.get_current_context()
    home = home_of(ctx)
    s3 = state.read(home).get("s3")
    local_s3 = s3 is not None and os.environ.get("AWS_ENDPOINT_URL_S3") == s3.address
    environment, secret_variables = record_environment(os.environ)
    if local_s3:  # the credentials of the local S3 are not secrets
        secret_variables = ()
    engine = running.engine if isinstance(running, OnEngine) else None
    is_named = bool(supervisor.flink_rest or supervisor.workers or (engine is not None and engine.named))
    options = StartOptions(
        service,
        engine.name if engine is not None else "",
        jobs=(engine.job_endpoint if engine is not None else "") or "",
        rest=(supervisor.flink_rest or "").rstrip("/"),
        workers=supervisor.workers or "",
        parallelism=supervisor.parallelism,
        beam=running.beam_options,
        local_kafka=_by_default(ctx, "kafka"),
        local_flink=engine is not None and engine.name == "flink" and not is_named,
        local_s3=local_s3,
        local_models=_by_default(ctx, "server"),
        environment=environment,
        secret_variables=secret_variables,
        tied=ProcessId(supervisor.tied_to, processes.start_time(supervisor.tied_to)) if supervisor.tied_to else None,
        metrics_port=running.metrics_port,
        metrics_address=running.metrics_address,
    )
    files = ServiceFiles(home, supervisor.name or kind)
    return control.start(
        files, with_present_addresses(home, options), supervisor.wait, click.echo, foreground=foreground
    )


def _by_default(ctx: click.Context, name: str) -> bool:
    """Return whether a command has a parameter whose value was not given."""
    return name in ctx.params and ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


class NameOptions(Options):
    """The service of a command."""

    name: str | None = argument("[NAME]", required=False)
    home: Path = option(kind="home")


class ResumeOptions(WaitOptions, NameOptions):
    """Options of ``ciml service resume``.

    Attributes:
      parallelism: Parallelism of the Flink job; at most one for each partition is used. [default: as before]
    """

    parallelism: int | None = option(kind=click.IntRange(1, 1024))


@make_command("resume")
def resume(options: ResumeOptions) -> None:
    """Resume a stopped service.

    It keeps the options of the start. NAME is optional for a single service. A running job is adopted. Otherwise the
    service starts from the savepoint of the last stop, or from the manifest if there is no usable savepoint.

    \b
    Example:
      ciml service resume
      ciml service resume nightly --parallelism 2
    """
    from ciml.services import control

    control.resume(choose(options.home, options.name), options.parallelism, options.wait, click.echo)


class StopOptions(WaitOptions, NameOptions):
    """Options of ``ciml service stop``.

    Attributes:
      savepoint: Take a savepoint for resume (Flink).
    """

    savepoint: bool = flag()


@make_command("stop")
def stop(options: StopOptions) -> None:
    """Stop a service.

    It stops the job or worker, then the supervisor. NAME is optional for a single service. Committed work is kept, and
    uncommitted work is read again, unless --savepoint keeps it.

    \b
    Example:
      ciml service stop ingest
      ciml service stop ingest --savepoint
    """
    from ciml.services import control

    control.stop(choose(options.home, options.name), options.wait, click.echo, savepoint=options.savepoint)


class StatusOptions(Json, NameOptions):
    """Options of ``ciml service status``.

    Attributes:
      json: JSON output, an object by name.
    """


@make_command("status")
def status(options: StatusOptions) -> int:
    """Show the health of services.

    It shows the job, the lag, the last commit, and restarts with their reasons; a dash is unknown. The exit code is 0
    if all work or start, 1 if one is stopped, 2 if one has stalled, failed, waits for an engine or has no supervisor.

    \b
    Example:
      ciml service status
      ciml service status --json
    """
    home = options.home
    services = [choose(home, options.name)] if options.name else ServiceFiles.all(home)
    if not services:
        click.echo("{}" if options.json else f"No service was started in {home}. Start one by: ciml service start KIND")
        return 1
    reports = {files.name: gather(files) for files in services}

    def show_all(reports: Mapping[str, Status]) -> None:
        for number, report in enumerate(reports.values()):
            if number:
                click.echo()
            print_status(report)

    options.show(reports, show_all)
    return max(exit_code(report) for report in reports.values())


def print_status(status: Status) -> None:
    """Print the status of one service as a table. A dash stands for an unknown value.

    Keys that are always present are indexed. Any other is read by ``get``: it is missing before its value was first
    known, and None while its value cannot be known.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    colour = _COLOURS[exit_code(status)]
    why = f": {status['why']}" if status["why"] else ""
    table.add_row(status.get("kind", "ingest"), status["name"])
    table.add_row("health", f"[{colour}]{status['health']}[/]" + escape(why + _read_note(status, "status")))
    for title, text in (*_job_rows(status), *_count_rows(status), *_history_rows(status), *_remedy_rows(status)):
        if title not in _OF_DATA or status.get("data", True):
            table.add_row(title, escape(text))
    Console().print(table)


def _job_rows(status: Status) -> list[_Row]:
    job = status.get("job") or {}
    rate = status.get("rate")
    job_texts = [job.get("state", "–"), job.get("name"), job.get("id")]
    commit = _aged(", committed {} ago", status["last_commit_age_s"])
    return [
        ("engine", f"{status.get('engine') or '–'}, parallelism {status.get('parallelism', '–')}"),
        ("topic", f"{status.get('topic') or '–'} at {status.get('kafka') or '–'}"),
        ("data", status.get("data") or "–"),
        ("job", " ".join(filter(None, job_texts)) + _read_note(status, "job")),
        ("uptime", age_text(status["uptime_s"])),
        ("lag", _lag_text(status)),
        ("rate", "–" if rate is None else f"{rate:.1f} messages a second"),
        ("version", f"{status.get('version', '–')}{commit}{_read_note(status, 'manifest')}"),
    ]


def _count_rows(status: Status) -> list[_Row]:
    counts = status.get("counts") or {}
    if status.get("kind", "ingest") != "ingest":
        return [("counts", ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "–")]
    return [
        ("runs", _number(counts.get("run"))),
        ("waiting logs", _number(status.get("deferred"))),
        ("dead letters", _number(status.get("dead_letters"))),
    ]


def _history_rows(status: Status) -> list[_Row]:
    job = status.get("job") or {}
    restarts = f"{_number(job.get('restarts'))} by the engine, {status.get('resubmitted', 0)} resubmitted"
    problems = status.get("problems") or {}
    failure = status.get("last_failure")
    return [
        ("checkpoint", _checkpoint_text(status.get("checkpoint"))),
        ("savepoint", _savepoint_text(status.get("savepoint"))),
        ("restarts", restarts),
        ("metrics", status.get("metrics") or "–"),
        ("processes", f"supervisor {_pid(status['supervisor'])}, worker {_pid(status['worker'])}"),
        *(("problem", problem) for problem in problems.values()),
        *([("last failure", _aged("{} ago: ", age_s(failure["time_us"])) + failure["why"])] if failure else ()),
    ]


def _remedy_rows(status: Status) -> Iterator[_Row]:
    if status["remedy"]:
        yield "to continue", status["remedy"]
    resubmissions = (status.get("resubmissions") or [])[-_MOST_RESUBMISSIONS:]
    for number, resubmission in enumerate(resubmissions):
        time_text = datetime.fromtimestamp(resubmission["time_us"] / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        yield "" if number else "resubmitted", f"{time_text} {resubmission['why']}"


def _checkpoint_text(checkpoint: Mapping[str, int] | None) -> str:
    return _size(checkpoint["bytes"]) + _aged(", {} old", age_s(checkpoint["time_us"])) if checkpoint else "–"


def _savepoint_text(savepoint: SavepointEntry | None) -> str:
    return f"{savepoint['path']} ({savepoint['use'] or 'kept'})" if savepoint else "–"


def _lag_text(status: Status) -> str:
    lag = status.get("lag")
    if lag is None:
        last = status.get("last_known") or {}
        if last.get("behind") is None:
            return "–"
        return f"unknown; {last['behind']:,} messages {age_text(status['ages_s']['lag'])} ago"
    text = f"{status['behind']:,} messages{_read_note(status, 'lag')}"
    if not status["behind"]:
        return text
    by_partition = ", ".join(f"[{partition}] {number:,}" for partition, number in lag.items())
    return f"{text} ({by_partition})"


def _read_note(status: Status, figures: str) -> str:
    """Return a note with the age of figures, which marks stale ones; "" if they were never read."""
    template = " (stale: read {} ago)" if figures in status["stale"] else " (read {} ago)"
    return _aged(template, status["ages_s"].get(figures))


def _aged(template: str, seconds: int | None) -> str:
    """Return the template with an age; "" for an unknown one."""
    return "" if seconds is None else template.format(age_text(seconds))


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _pid(process: Mapping[str, int] | None) -> str:
    return "–" if process is None else str(process["pid"])


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"


def choose(home: Path, name: str | None) -> ServiceFiles:
    """Return the service of that name, or the only one.

    Raises:
      CimlError: there is none, or more than one and no name.
    """
    if name:
        files = ServiceFiles(home, name)
        files.options()
        return files
    services = ServiceFiles.all(home)
    if len(services) == 1:
        return services[0]
    if not services:
        raise CimlError(f"no service was started in {home}; start one by ciml service start KIND")
    raise CimlError(f"several services; choose one: {', '.join(files.name for files in services)}")


@click.group("start", commands=[_command_of(kind, foreground=False) for kind in KINDS])
def start() -> None:
    """Start a service and its supervisor.

    Each KIND takes the options of its own command (ciml ingest, predict stream, live, refresh, receive, feedback
    stream). Work starts at the offsets of the manifest. The supervisor restarts a lost, failed or stalled service, and
    waits for unavailable engines, until ciml service stop. The command returns when the service works or has failed.

    \b
    Example:
      ciml service start ingest --data-path data --allow-host logs.example.org
      ciml service start ingest --data-path s3://ci/data --allow-root s3://ci/logs --parallelism 2 --name nightly
    """


@click.group("run", commands=[_command_of(kind, foreground=True) for kind in KINDS])
def run() -> None:
    """Run a service's supervisor in the foreground.

    It is for systemd and containers. SIGTERM stops only the supervisor; the same command adopts a running job. Each
    KIND takes the options of ciml service start.

    \b
    Example:
      ciml service run ingest --data-path s3://ci/data --allow-root s3://ci/logs --metrics-port 9464
    """


@click.group("service", commands=[start, run, resume, stop, status])
def command() -> None:
    """Start, stop and watch supervised services.

    Kinds of services are ingest, predict, live, trainer, webhooks, mqtt, gerrit and feedback.

    \b
    Example:
      ciml service start ingest --data-path data --allow-host logs.example.org
      ciml service status
      ciml service stop ingest --savepoint
    """

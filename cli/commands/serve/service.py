"""``ciml service``: start, stop, resume and watch supervised services."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import command_of, make_command
from ciml.cli.options import MINUTE, Json, home_of
from ciml.cli.running import Foreground, OnEngine
from ciml.errors import CimlError
from ciml.options import Options, argument, flag, option
from ciml.services.options import KINDS, ServiceOptions, options_of

if TYPE_CHECKING:
    from ciml.services.files import ServiceFiles, Status

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
    from ciml.services.files import ServiceFiles, StartOptions, with_present_addresses

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
    from ciml.cli.status_table import show
    from ciml.services.files import ServiceFiles
    from ciml.services.status import exit_code, gather

    home = options.home
    services = [choose(home, options.name)] if options.name else ServiceFiles.all(home)
    if not services:
        click.echo("{}" if options.json else f"No service was started in {home}. Start one by: ciml service start")
        return 1
    reports = {files.name: gather(files) for files in services}

    def show_all(reports: Mapping[str, Status]) -> None:
        for report in reports.values():
            show(report)

    options.show(reports, show_all)
    return max(exit_code(report) for report in reports.values())


def choose(home: Path, name: str | None) -> ServiceFiles:
    """Return the service of that name, or the only one.

    Raises:
      CimlError: there is none, or more than one and no name.
    """
    from ciml.services.files import ServiceFiles

    if name:
        files = ServiceFiles(home, name)
        files.options()
        return files
    services = ServiceFiles.all(home)
    if len(services) == 1:
        return services[0]
    if not services:
        raise CimlError(f"no service was started in {home}; start one by ciml service start")
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

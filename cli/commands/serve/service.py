"""``ciml service``: supervised services."""

from __future__ import annotations

import importlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.foreground import ELSEWHERE, ENDINGS
from ciml.cli.options import EngineChoice, home_of, home_option
from ciml.cli.param_types import Duration
from ciml.errors import CimlError
from ciml.services.options import options_of

if TYPE_CHECKING:
    from ciml.services.files import ServiceFiles

#: By kind of service: its command (module:attribute), which has the service's options, and options for an example.
KINDS = {
    "ingest": ("ciml.cli.commands.operate.ingest:run", "--data-path data --allow-host logs.example.org"),
    "predict": ("ciml.cli.commands.learn.predict:stream", "--data-path data --model provider"),
    "live": ("ciml.cli.commands.operate.live:command", "--data-path data --dataset provider"),
    "trainer": ("ciml.cli.commands.learn.refresh:command", "--data-path data --dataset provider"),
    "webhooks": ("ciml.cli.commands.operate.receive:webhooks", "--config receivers.toml"),
    "mqtt": ("ciml.cli.commands.operate.receive:mqtt", "--config receivers.toml"),
    "gerrit": ("ciml.cli.commands.operate.receive:gerrit", "--config receivers.toml"),
    "feedback": ("ciml.cli.commands.serve.feedback:stream", "--config feedback.toml --data-path data"),
}
_PARALLELISM = "Parallelism of the Flink job; at most one for each partition is used."
_WAIT = click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    default="3min",
    metavar="TIME",
    help="Time to wait until it works or has stopped; 0 for none.",
)
_START = (
    click.option("--name", help="Name of the service.  [default: its kind]"),
    click.option("--parallelism", type=click.IntRange(1, 1024), default=1, help=_PARALLELISM),
    click.option("--flink-rest", metavar="URL", help="REST API of Flink, for --engine flink:HOST:PORT."),
    click.option("--workers", metavar="HOST:PORT", help="Pool of Python workers, for --engine flink:HOST:PORT."),
    click.option("--tied-to", type=int, hidden=True, help="Pid of a process; the service stops when it ends."),
)


class _Kinds(click.Group):
    """A command for each kind of service, with the options of the kind's own command but those that end it."""

    foreground = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in KINDS:
            return None
        place, example = KINDS[cmd_name]
        module, _, attribute = place.partition(":")
        kind_command: click.Command = getattr(importlib.import_module(module), attribute)
        verb = "run" if self.foreground else "start"
        service_command = click.Command(
            cmd_name,
            params=[param for param in kind_command.params if param.name not in (*ENDINGS, *ELSEWHERE, "as_json")],
            callback=partial(_start, cmd_name, self.foreground),
            help=f"{verb.title()} the {cmd_name} service.\n\n\b\nExample:\n  ciml service {verb} {cmd_name} {example}",
        )
        for option in (*_START, *(() if self.foreground else (_WAIT,))):
            option(service_command)
        return service_command


class _ForegroundKinds(_Kinds):
    foreground = True


@click.group("service")
def command() -> None:
    """Start, stop and watch supervised services.

    Kinds of services are ingest, predict, live, trainer, webhooks, mqtt, gerrit and feedback.

    \b
    Example:
      ciml service start ingest --data-path data --allow-host logs.example.org
      ciml service status
      ciml service stop ingest --savepoint
    """


@command.group("start", cls=_Kinds)
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


@command.group("run", cls=_ForegroundKinds)
def run() -> None:
    """Run a service's supervisor in the foreground.

    It is for systemd and containers. SIGTERM stops only the supervisor; the same command adopts a running job. Each
    KIND takes the options of ciml service start.

    \b
    Example:
      ciml service run ingest --data-path s3://ci/data --allow-root s3://ci/logs --metrics-port 9464
    """


def _start(
    kind: str,
    foreground: bool,
    *,
    name: str | None,
    parallelism: int,
    flink_rest: str | None,
    workers: str | None,
    tied_to: int | None,
    metrics_port: int | None,
    metrics_address: str,
    wait_s: float = 0.0,
    engine: EngineChoice | None = None,
    beam_options: tuple[str, ...] = (),
    **arguments: Any,
) -> int:
    from ciml.engines import processes, state
    from ciml.engines.processes import recorded
    from ciml.services import control
    from ciml.services.files import ServiceFiles, StartOptions, located

    ctx = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    home = home_of(ctx)
    s3 = state.read(home).get("s3")
    local_s3 = s3 is not None and os.environ.get("AWS_ENDPOINT_URL_S3") == s3.address
    environment, secret_variables = recorded(os.environ)
    if local_s3:  # whose credentials are no secrets
        secret_variables = ()
    named = bool(flink_rest or workers or (engine is not None and engine.named))
    options = StartOptions(
        options_of(kind).from_json(arguments),
        engine.name if engine is not None else "",
        jobs=(engine.job_endpoint if engine is not None else "") or "",
        rest=(flink_rest or "").rstrip("/"),
        workers=workers or "",
        parallelism=parallelism,
        beam=beam_options,
        local_kafka="kafka" in arguments and ctx.get_parameter_source("kafka") is default,
        local_flink=engine is not None and engine.name == "flink" and not named,
        local_s3=local_s3,
        local_models="server" in arguments and ctx.get_parameter_source("server") is default,
        environment=environment,
        secret_variables=secret_variables,
        tied=(tied_to, processes.start_time(tied_to)) if tied_to else None,
        metrics_port=metrics_port,
        metrics_address=metrics_address,
    )
    files = ServiceFiles(home, name or kind)
    return control.start(files, located(home, options), wait_s, click.echo, foreground=foreground)


_NAME = click.argument("name", required=False)


@command.command("resume")
@_NAME
@click.option("--parallelism", type=click.IntRange(1, 1024), help=f"{_PARALLELISM}  [default: as before]")
@_WAIT
@home_option
def resume(name: str | None, parallelism: int | None, wait_s: float, home: Path) -> None:
    """Resume a stopped service.

    It keeps the options of the start. NAME is optional for a single service. A running job is adopted. Else the service
    begins with the savepoint of the last stop, or with the manifest if there is no usable savepoint.

    \b
    Example:
      ciml service resume
      ciml service resume nightly --parallelism 2
    """
    from ciml.services import control

    control.resume(choose(home, name), parallelism, wait_s, click.echo)


@command.command("stop")
@_NAME
@click.option("--savepoint", is_flag=True, help="Take a savepoint for resume (Flink).")
@_WAIT
@home_option
def stop(name: str | None, savepoint: bool, wait_s: float, home: Path) -> None:
    """Stop a service.

    It stops the job or worker, then the supervisor. NAME is optional for a single service. Committed work stays, and
    uncommitted work is read again, unless --savepoint keeps it.

    \b
    Example:
      ciml service stop ingest
      ciml service stop ingest --savepoint
    """
    from ciml.services import control

    control.stop(choose(home, name), wait_s, click.echo, savepoint=savepoint)


@command.command("status")
@_NAME
@click.option("--json", "as_json", is_flag=True, help="JSON output, an object by name.")
@home_option
def status(name: str | None, as_json: bool, home: Path) -> int:
    """Show the health of services.

    It shows the job, the lag, the last commit, and restarts with their reasons; a dash is unknown. The exit code is 0
    if all work or start, 1 if one is stopped, 2 if one has stalled, failed, waits for an engine or has no supervisor.

    \b
    Example:
      ciml service status
      ciml service status --json
    """
    import json

    from ciml.services.files import ServiceFiles
    from ciml.services.status import exit_code, gather, show

    services = [choose(home, name)] if name else ServiceFiles.all(home)
    if not services:
        click.echo("{}" if as_json else f"No service was started in {home}. Start one by: ciml service start")
        return 1
    reports = {files.name: gather(files) for files in services}
    if as_json:
        click.echo(json.dumps(reports, indent=2))
    else:
        for report in reports.values():
            show(report)
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

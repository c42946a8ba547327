"""``ciml service``: services that a supervisor keeps at work."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.errors import CimlError
from cli.foreground import ENDINGS
from cli.options import EngineChoice, home_option, metrics_options
from cli.param_types import Duration

if TYPE_CHECKING:
    from services.files import ServiceFiles

#: The command of each kind of service: its options are the service's.
KINDS = {
    "ingest": "cli.commands.operate.ingest.run:command",
    "predict": "cli.commands.learn.predict:command",
    "live": "cli.commands.operate.live:command",
    "trainer": "cli.commands.learn.refresh:command",
}
_PARALLELISM = "Of the job on Flink: at most one for each partition does anything."
_WAIT = click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    default="3min",
    show_default=True,
    metavar="TIME",
    help="How long to wait until it works, or has stopped; 0 for not at all.",
)
_START = (
    click.option("--name", help="Name of the service; one home may have several.  [default: its kind]"),
    click.option("--parallelism", type=click.IntRange(1, 1024), default=1, show_default=True, help=_PARALLELISM),
    click.option("--flink-rest", metavar="URL", help="Flink's REST API, for --engine flink:HOST:PORT."),
    click.option("--workers", metavar="HOST:PORT", help="The pool of Python workers, for --engine flink:HOST:PORT."),
    click.option("--tied-to", type=int, hidden=True, help="End with the process of this pid."),
)


class _Kinds(click.Group):
    """A command for each kind of service, with the options of the kind's own command that do not end it."""

    foreground = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in KINDS:
            return None
        module, _, attribute = KINDS[cmd_name].partition(":")
        own: click.Command = getattr(importlib.import_module(module), attribute)
        verb = "Run" if self.foreground else "Start"
        made = click.Command(
            cmd_name,
            params=[param for param in own.params if param.name not in (*ENDINGS, "as_json")],
            callback=partial(_start, cmd_name, self.foreground),
            help=f"{verb} a service of this kind: see ciml service {verb.lower()} --help.",
            short_help=f"{verb} a service: {own.short_help}",
        )
        has_metrics = any(param.name == "metrics_port" for param in own.params)
        more = () if has_metrics else (metrics_options,)
        for option in (*_START, *(() if self.foreground else (_WAIT,)), *more):
            option(made)
        return made


class _ForegroundKinds(_Kinds):
    foreground = True


@click.group("service", short_help="Start, stop and watch supervised services.")
def command() -> None:
    """Start, stop and watch supervised services.

    \b
    Example:
      ciml service start ingest --data-path data --allow-host logs.example.org
      ciml service status
      ciml service stop ingest --savepoint
    """


@command.group("start", cls=_Kinds, short_help="Start a service and its supervisor.")
def start() -> None:
    """Start a service, and leave a supervisor that keeps it at work.

    Each KIND takes the options of its own command (ciml ingest, predict, live, refresh). Work starts where the manifest
    says. The supervisor starts it again when it is gone, has failed, or commits nothing though there is something to
    read; it waits without limit for what does not answer. It ends by ciml service stop alone. The command itself ends
    when the service is seen to work, or says why it does not.

    \b
    Example:
      ciml service start ingest --data-path data --allow-host logs.example.org
      ciml service start ingest --data-path s3://ci/data --allow-root s3://ci/logs --parallelism 2 --name nightly
    """


@command.group("run", cls=_ForegroundKinds, short_help="Run a service's supervisor in the foreground.")
def run() -> None:
    """Run a service's supervisor in the foreground (systemd, containers).

    SIGTERM ends the supervisor alone; the same command takes over what still works. Each KIND takes the options of
    ciml service start.

    \b
    Example:
      ciml service run ingest --data-path s3://ci/data --allow-root s3://ci/logs --metrics-port 9464
    """


def _start(
    kind: str,
    foreground: bool,
    *,
    home: Path,
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
    from engines import processes
    from services import control
    from services.files import Options, ServiceFiles, located

    ctx, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    named = bool(flink_rest or workers or (engine is not None and engine.named))
    options = Options(
        kind,
        arguments,
        engine.name if engine is not None else "",
        jobs=(engine.job_endpoint if engine is not None else "") or "",
        rest=(flink_rest or "").rstrip("/"),
        workers=workers or "",
        parallelism=parallelism,
        beam=beam_options,
        local_kafka="kafka" in arguments and ctx.get_parameter_source("kafka") is default,
        local_flink=engine is not None and engine.name == "flink" and not named,
        tied=(tied_to, processes.start_time(tied_to)) if tied_to else None,
        metrics_port=metrics_port,
        metrics_address=metrics_address,
    )
    place = ServiceFiles(home, name or kind)
    return control.start(place, located(home, options), wait_s, click.echo, foreground=foreground)


_NAME = click.argument("name", required=False)


@command.command("resume", short_help="Resume a service that was stopped.")
@_NAME
@click.option("--parallelism", type=click.IntRange(1, 1024), help=f"{_PARALLELISM}  [default: as before]")
@_WAIT
@home_option
def resume(name: str | None, parallelism: int | None, wait_s: float, home: Path) -> None:
    """Resume a service that was stopped, or whose supervisor was killed, with the options of its start.

    NAME may be left out where there is one service. A job that still runs is taken over. Else it begins with the
    savepoint of the last stop, where there is one, and from the manifest where there is none, or Flink refuses it.

    \b
    Example:
      ciml service resume
      ciml service resume nightly --parallelism 2
    """
    from services import control

    control.resume(choose(home, name), parallelism, wait_s, click.echo)


@command.command("stop", short_help="Stop a service.")
@_NAME
@click.option("--savepoint", is_flag=True, help="On Flink: with a savepoint, from which resume goes on.")
@_WAIT
@home_option
def stop(name: str | None, savepoint: bool, wait_s: float, home: Path) -> None:
    """Stop a service: its job or worker, then its supervisor. It works without the supervisor too.

    NAME may be left out where there is one service. What is committed stays, and what was under way is read again; with
    --savepoint it is kept and not read again.

    \b
    Example:
      ciml service stop ingest
      ciml service stop ingest --savepoint
    """
    from services import control

    control.stop(choose(home, name), wait_s, click.echo, savepoint=savepoint)


@command.command("status", short_help="Show the health of services.")
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs: an object, by name.")
@home_option
def status(name: str | None, as_json: bool, home: Path) -> int:
    """Show the health of one service, or of all: the job, the lag, the last commit, what was restarted and why.

    The exit code is 0 when all are well (or starting), 1 when one is stopped, 2 when one has stalled, failed, waits for
    an engine, or has lost its supervisor. What is not known is shown as a dash.

    \b
    Example:
      ciml service status
      ciml service status --json
    """
    import json

    from services.files import ServiceFiles
    from services.status import exit_code, gather, show

    places = [choose(home, name)] if name else ServiceFiles.all(home)
    if not places:
        click.echo("{}" if as_json else f"No service was started in {home}. Start one by: ciml service start")
        return 1
    found = {place.name: gather(place) for place in places}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for one in found.values():
            show(one)
    return max(exit_code(one) for one in found.values())


def choose(home: Path, name: str | None) -> ServiceFiles:
    """The service of that name, or the only one.

    Raises:
      CimlError: there is none, or more than one and no name.
    """
    from services.files import ServiceFiles

    if name:
        place = ServiceFiles(home, name)
        place.options()
        return place
    places = ServiceFiles.all(home)
    if len(places) == 1:
        return places[0]
    if not places:
        raise CimlError(f"no service was started in {home}: ciml service start")
    raise CimlError(f"say which service: {', '.join(place.name for place in places)}")

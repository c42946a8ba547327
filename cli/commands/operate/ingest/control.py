"""``ciml ingest start``, ``stop``, ``resume``, ``status``: an ingest that a supervisor keeps at work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.errors import CimlError
from cli.commands.operate.ingest.options import ingest_options
from cli.options import EngineChoice, home_option
from cli.param_types import Duration

if TYPE_CHECKING:
    from services.files import ServiceFiles

_NAME = click.option("--name", help="Name of the ingest.  [default: the only one]")
_WAIT = click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    default="3min",
    show_default=True,
    metavar="TIME",
    help="Time to wait for the first sign of work; 0 for none.",
)
_PARALLELISM = "Parallelism of the Flink job; at most one for each partition is used."


@click.command("start")
@ingest_options(endings=False)
@click.option("--name", default="ingest", show_default=True, help="Name of the ingest.")
@click.option("--parallelism", type=click.IntRange(1, 1024), default=1, show_default=True, help=_PARALLELISM)
@click.option("--flink-rest", metavar="URL", help="Flink's REST API, for --engine flink:HOST:PORT.")
@click.option("--workers", metavar="HOST:PORT", help="Pool of Python workers, for --engine flink:HOST:PORT.")
@_WAIT
@click.option(
    "--foreground",
    is_flag=True,
    help="Run in the foreground (systemd, containers); SIGTERM stops only the supervisor.",
)
@click.option("--tied-to", type=int, hidden=True, help="End with the process of this pid.")
def start(
    engine: EngineChoice,
    home: Path,
    name: str,
    parallelism: int,
    flink_rest: str | None,
    workers: str | None,
    beam_options: tuple[str, ...],
    wait_s: float,
    foreground: bool,
    tied_to: int | None,
    metrics_port: int | None,
    metrics_address: str,
    **ingest: Any,
) -> int:
    """Start a supervised ingest.

    Reading starts at the offsets of the manifest. The supervisor resubmits a lost, failed or stalled job, and waits for
    an unavailable broker or store, until ciml ingest stop. The command returns when the ingest works or has failed.

    \b
    Example:
      ciml ingest start --data-path data --allow-host logs.example.org
      ciml ingest start --data-path s3://ci/data --allow-root s3://ci/logs --parallelism 2 --name nightly
    """
    from engines import processes
    from services import control as starting
    from services.files import Options, ServiceFiles, located

    ctx, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    named = bool(flink_rest or workers or engine.named)
    options = Options(
        ingest,
        engine.name,
        jobs=engine.job_endpoint or "",
        rest=(flink_rest or "").rstrip("/"),
        workers=workers or "",
        parallelism=parallelism,
        beam=beam_options,
        local_kafka=ctx.get_parameter_source("kafka") is default,
        local_flink=engine.name == "flink" and not named,
        tied=(tied_to, processes.start_time(tied_to)) if tied_to else None,
        metrics_port=metrics_port,
        metrics_address=metrics_address,
    )
    return starting.start(ServiceFiles(home, name), located(home, options), wait_s, click.echo, foreground=foreground)


@click.command("resume")
@_NAME
@click.option("--parallelism", type=click.IntRange(1, 1024), help=f"{_PARALLELISM}  [default: as before]")
@_WAIT
@home_option
def resume(name: str | None, parallelism: int | None, wait_s: float, home: Path) -> None:
    """Resume a stopped ingest.

    It keeps the options of the start. A running job is adopted. Else the ingest begins with the savepoint of the last
    stop, or with the manifest if there is no usable savepoint.

    \b
    Example:
      ciml ingest resume
      ciml ingest resume --name nightly --parallelism 2
    """
    from services import control as starting

    starting.resume(choose(home, name), parallelism, wait_s, click.echo)


@click.command("stop")
@_NAME
@click.option("--savepoint", is_flag=True, help="Take a savepoint for resume (Flink).")
@click.option(
    "--wait", "wait_s", type=Duration(), default="3min", show_default=True, metavar="TIME", help="Timeout of the stop."
)
@home_option
def stop(name: str | None, savepoint: bool, wait_s: float, home: Path) -> None:
    """Stop an ingest.

    It stops the job, then the supervisor. Committed work stays, and uncommitted work is read again, unless --savepoint
    keeps it.

    \b
    Example:
      ciml ingest stop
      ciml ingest stop --savepoint
    """
    from services import control as starting

    starting.stop(choose(home, name), wait_s, click.echo, savepoint=savepoint)


@click.command("status")
@_NAME
@click.option("--json", "as_json", is_flag=True, help="JSON output, an object by name.")
@home_option
def status(name: str | None, as_json: bool, home: Path) -> int:
    """Show the status of ingests.

    It shows the job, the lag, the last commit, and restarts with their reasons; a dash is unknown. The exit code is 0
    if all work or start, 1 if one is stopped, 2 if one has stalled, failed, waits for an engine or has no supervisor.

    \b
    Example:
      ciml ingest status
      ciml ingest status --json
    """
    import json

    from services.files import ServiceFiles
    from services.status import exit_code, gather, show

    places = [choose(home, name)] if name else ServiceFiles.all(home)
    if not places:
        click.echo("{}" if as_json else f"No ingest was started in {home}. Start one by: ciml ingest start")
        return 1
    found = {place.name: gather(place) for place in places}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for one in found.values():
            show(one)
    return max(exit_code(one) for one in found.values())


def choose(home: Path, name: str | None) -> ServiceFiles:
    """The ingest of that name, or the only one.

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
        raise CimlError(f"no ingest was started in {home}; start one by ciml ingest start")
    raise CimlError(f"several ingests; choose one by --name: {', '.join(place.name for place in places)}")

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

_NAME = click.option("--name", help="Which ingest.  [default: the only one]")
_WAIT = click.option(
    "--wait",
    "wait_s",
    type=Duration(),
    default="3min",
    show_default=True,
    metavar="TIME",
    help="How long to wait until it is seen to work; 0 for not at all.",
)
_PARALLELISM = "Of the job on Flink: at most one for each partition does anything."


@click.command("start", short_help="Start an ingest that is kept at work.")
@ingest_options(endings=False)
@click.option("--name", default="ingest", show_default=True, help="What it is called; one home may have several.")
@click.option("--parallelism", type=click.IntRange(1, 1024), default=1, show_default=True, help=_PARALLELISM)
@click.option("--flink-rest", metavar="URL", help="Flink's REST API, for --engine flink:HOST:PORT.")
@click.option("--workers", metavar="HOST:PORT", help="The pool of Python workers, for --engine flink:HOST:PORT.")
@_WAIT
@click.option(
    "--foreground", is_flag=True, help="Be the supervisor, for whoever keeps processes; SIGTERM ends the watch alone."
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
    """Start an ingest, and leave a supervisor that keeps it at work.

    Reading starts where the manifest says. The supervisor submits the job again when it is gone, has failed, or commits
    nothing though there is something to read; it waits for a broker or a store that is away, however long. It ends by
    ciml ingest stop alone. The command itself ends when the ingest is seen to work, or says why it is not.

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


@click.command("resume", short_help="Go on with an ingest that was stopped.")
@_NAME
@click.option("--parallelism", type=click.IntRange(1, 1024), help=f"{_PARALLELISM}  [default: as before]")
@_WAIT
@home_option
def resume(name: str | None, parallelism: int | None, wait_s: float, home: Path) -> None:
    """Go on with an ingest that was stopped, or whose supervisor was killed, with the options of its start.

    A job that still runs is taken over. Else it begins with the savepoint of the last stop, where there is one, and on
    from the manifest where there is none, or where Flink refuses it.

    \b
    Example:
      ciml ingest resume
      ciml ingest resume --name nightly --parallelism 2
    """
    from services import control as starting

    starting.resume(choose(home, name), parallelism, wait_s, click.echo)


@click.command("stop", short_help="Stop an ingest.")
@_NAME
@click.option("--savepoint", is_flag=True, help="On Flink: with a savepoint, from which resume goes on.")
@click.option(
    "--wait", "wait_s", type=Duration(), default="3min", show_default=True, metavar="TIME", help="How long it may take."
)
@home_option
def stop(name: str | None, savepoint: bool, wait_s: float, home: Path) -> None:
    """Stop an ingest: the job, then its supervisor. It works without the supervisor too.

    What is committed stays, and what was under way is read again; with --savepoint it is kept and not read again.

    \b
    Example:
      ciml ingest stop
      ciml ingest stop --savepoint
    """
    from services import control as starting

    starting.stop(choose(home, name), wait_s, click.echo, savepoint=savepoint)


@click.command("status", short_help="Show how an ingest is.")
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs: an object, by name.")
@home_option
def status(name: str | None, as_json: bool, home: Path) -> int:
    """Show how the ingests of the home are: the job, the lag, the last commit, what was mended and why.

    The exit code is 0 when all are well (or starting), 1 when one is stopped, 2 when one has stalled, failed, waits for
    an engine, or has lost its supervisor. What is not known is shown as a dash.

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
        raise CimlError(f"no ingest was started in {home}: ciml ingest start")
    raise CimlError(f"say which ingest by --name: {', '.join(place.name for place in places)}")

"""``ciml up``, ``ciml down`` and ``ciml status``: start and stop local engines, and show their status."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ciml import engines
from ciml.cli.command import call_with_options, make_command
from ciml.cli.options import Json
from ciml.cli.output import print_columns
from ciml.engines import processes
from ciml.engines.environment import use_local_s3
from ciml.engines.flink.cluster import part_rows
from ciml.engines.launcher import alive, engine_of
from ciml.errors import CimlError
from ciml.options import Options, argument, flag, option, repeated

_DEFAULT = ("kafka", "flink", "s3")
#: Topics of ciml and their partitions on a local broker.
_TOPICS = {"ci-events": 2, "samples": 2, "runs": 1, "predictions": 1, "dead-letters": 1}
_LEAST_HEAP_MB = 128
_PORT_USES = tuple(use for engine in engines.ENGINES.values() for use in engine.uses)


def _ports(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    ports = {}
    for value in values:
        use, _, number = value.partition("=")
        if use not in _PORT_USES or not number.isdecimal() or not 0 < int(number) < 65536:
            raise click.BadParameter(f"{value!r} is not USE=PORT; choose USE from {', '.join(_PORT_USES)}", ctx, param)
        ports[use] = int(number)
    return ports


class UpOptions(Options):
    """Options of ``ciml up``.

    Attributes:
      logs_root: Folder of the log server (engine logs).
      models_config: Configuration of the model server (engine models).
      ports: Fixed port, such as kafka=9092; may be repeated. [default: free ports]
      kafka_heap_mb: Java heap of Kafka, in MiB.
      flink_heap_mb: Java heap of Flink, in MiB.
      cluster: Start a standalone Flink cluster in place of the embedded Flink.
      task_managers: Number of TaskManagers of the cluster.
      slots: Number of slots of each TaskManager.
      state: Prefix of the cluster's checkpoints and savepoints. [default: the home folder]
      state_backend: State backend of the cluster: hashmap (heap) or rocksdb (disk).
      timeout_s: Start timeout of an engine, in seconds.
    """

    names: tuple[str, ...] = argument("[ENGINE]...", many=True, required=False)
    logs_root: str | None = option(metavar="FOLDER")
    models_config: str | None = option(metavar="FILE")
    ports: dict[str, int] = repeated(_ports, metavar="USE=PORT")
    kafka_heap_mb: int = option(512, click.IntRange(_LEAST_HEAP_MB), flags="--kafka-heap", metavar="MIB")
    flink_heap_mb: int = option(768, click.IntRange(_LEAST_HEAP_MB), flags="--flink-heap", metavar="MIB")
    cluster: bool = flag()
    task_managers: int = option(1, click.IntRange(1, 16))
    slots: int = option(2, click.IntRange(1, 64))
    state: str | None = option(metavar="s3://PREFIX")
    state_backend: str = option("hashmap", click.Choice(["hashmap", "rocksdb"]))
    timeout_s: float = option(90.0, flags="--timeout", metavar="SECONDS")
    home: Path = option(kind="home")


@make_command("up")
def command(options: UpOptions) -> None:
    """Start local engines: Kafka, Flink, S3 and others.

    ENGINE is kafka, flink, cluster, s3, logs, models, mosquitto or gerrit; the default is kafka, flink and s3, with
    --cluster kafka, cluster and s3. It waits until each engine answers. Running engines stay unchanged; a new broker
    gets the topics of ciml. Without Java, light engines replace Kafka and Flink and are reported as such.

    \b
    Example:
      ciml up
      ciml up kafka flink --port kafka=9092
      ciml up logs --logs-root logs
      ciml up --cluster --task-managers 2
      ciml up --cluster --state s3://ciml-flink/ingest
    """
    from rich.console import Console

    engine_names = _engine_names(options)
    if options.state is not None:
        use_local_s3(engines.read(options.home).get("s3"))
    begin_s = time.monotonic()
    with Console(stderr=True).status(f"starting {', '.join(engine_names)}") as spinner:
        settings = call_with_options(engines.Settings, options, notify=spinner.update)
        running = engines.start(engine_names, options.home, settings)
        if "kafka" in running.started:
            engines.create_topics(running.kafka, _TOPICS)
    _print_started(engine_names, running)
    if running.started:
        took_s = time.monotonic() - begin_s
        click.echo(f"All ready in {took_s:.1f} s; logs are in {options.home / 'logs'}; stop them by: ciml down")


def _engine_names(options: UpOptions) -> list[str]:
    """Return the engines to start: those that are named or the defaults, and those that other options ask for."""
    names = list(options.names) or [name for name in _DEFAULT if not (options.cluster and name == "flink")]
    if options.cluster and "cluster" not in names:
        names.append("cluster")
    if not options.names:
        names += ["logs"] * bool(options.logs_root) + ["models"] * bool(options.models_config)
    return names


def _print_started(engine_names: list[str], running: engines.Engines) -> None:
    for note in running.notes:
        click.echo(note, err=True)
    for name in engine_names:
        engine = running.states[name]
        address = f" at {engine.address}" if engine.address else ""
        if name in running.started:
            process = f" (pid {engine.pid}, ready in {running.started[name]:.1f} s)" if engine.pid else ""
            click.echo(f"{name}: {engine.what}{address}{process}")
        else:
            click.echo(f"{name}: already running: {engine.what}{address}")


class DownOptions(Options):
    """Options of ``ciml down``.

    Attributes:
      purge: Remove the engines' data: Kafka's topics, Flink's checkpoints, logs.
    """

    names: tuple[str, ...] = argument("[ENGINE]...", many=True, required=False)
    purge: bool = flag()
    home: Path = option(kind="home")


@make_command("down")
def down(options: DownOptions) -> None:
    """Stop local engines.

    The default is all engines of ciml up. Kafka's topics stay in the home folder for the next ciml up. S3's buckets are
    in memory and are lost. A running Flink job is not drained; a resubmitted job continues from the last commit.

    \b
    Example:
      ciml down
      ciml down flink
      ciml down cluster
      ciml down --purge
    """
    home = options.home
    unknown = [name for name in options.names if name not in engines.ENGINES]
    if unknown:
        raise CimlError(f"unknown engine {', '.join(unknown)}; choose from {', '.join(engines.ENGINES)}")
    stopped = engines.stop(options.names or None, home) if home.exists() else []
    click.echo(f"Stopped {', '.join(stopped)}." if stopped else "No engine was running.")
    if options.purge:
        for name in options.names or engines.ENGINES:
            shutil.rmtree(home / name, ignore_errors=True)
            for log in (home / "logs").glob(f"{name}*.log*"):
                log.unlink(missing_ok=True)


class StatusOptions(Json):
    """Options of ``ciml status``."""

    home: Path = option(kind="home")


@make_command("status")
def status(options: StatusOptions) -> int:
    """Show the status of local engines.

    It shows the kind (real or light), process, address, memory and health. The exit code is 3 if an engine does not
    answer, otherwise 0.

    \b
    Example:
      ciml status
      ciml status --json
    """
    states = engines.read(options.home)
    with ThreadPoolExecutor(max_workers=8) as pool:
        rows = dict(zip(states, pool.map(partial(_status_row, options.home), states.values()), strict=True))
    options.show(rows, partial(_show_status, options.home))
    return 0 if all(row["health"] == "ok" for row in rows.values()) else 3


def _status_row(home: Path, engine: engines.EngineState) -> dict[str, Any]:
    health = "dead"
    if alive(engine):
        health = "ok" if engine_of(engine).ready(home, engine) is not None else "no answer"
    row = {**asdict(engine), "memory_used_mb": processes.memory_mb(engine.process), "health": health}
    if engine.name == "cluster":
        row["parts"] = part_rows(home)
    return row


def _show_status(home: Path, rows: dict[str, dict[str, Any]]) -> None:
    if not rows:
        click.echo(f"No engine runs in {home}. Start engines by: ciml up")
        return
    table = [("engine", "kind", "what", "pid", "address", "memory", "health")]
    for row in [row for engine in rows.values() for row in (engine, *_parts(engine))]:
        cap = f" (cap {row['memory_mb']})" if row["memory_mb"] else ""
        memory = "–" if row["memory_used_mb"] is None else f"{row['memory_used_mb']} MiB{cap}"
        pid = f"{row['pid'] or '–'}"
        table.append((row["name"], row["kind"], row["what"], pid, row["address"] or "–", memory, row["health"]))
    print_columns(table)


def _parts(engine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of an engine as rows below its own."""
    return [
        {**row, "name": f"  {name}", "kind": f"{row['restarts']} restarts" if row["restarts"] else ""}
        for name, row in engine.get("parts", {}).items()
    ]

"""``ciml up`` and ``ciml down``: start and stop local engines."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import click

from ciml import engines
from ciml.cli.options import home_option
from ciml.engines.local_s3 import use_local_s3
from ciml.errors import CimlError

_DEFAULT = ("kafka", "flink", "s3")
#: Topics of ciml and their partitions on a local broker.
_TOPICS = {"ci-events": 2, "samples": 2, "runs": 1, "predictions": 1, "dead-letters": 1}
_PORT_USES = tuple(use for engine in engines.ENGINES.values() for use in engine.uses)


def _ports(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    ports = {}
    for value in values:
        use, _, number = value.partition("=")
        if use not in _PORT_USES or not number.isdecimal() or not 0 < int(number) < 65536:
            raise click.BadParameter(f"{value!r} is not USE=PORT; choose USE from {', '.join(_PORT_USES)}", ctx, param)
        ports[use] = int(number)
    return ports


def _state(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.startswith("s3://") and value.removeprefix("s3://").strip("/")):
        raise click.BadParameter(f"{value!r} is not s3://BUCKET/PREFIX", ctx, param)
    return value


@click.command("up")
@click.argument("names", nargs=-1, metavar="[ENGINE]...")
@click.option("--logs-root", metavar="FOLDER", help="Folder of the log server (engine logs).")
@click.option("--models-config", metavar="FILE", help="Configuration of the model server (engine models).")
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="USE=PORT",
    callback=_ports,
    help="Fixed port, such as kafka=9092; may be repeated.  [default: free ports]",
)
@click.option("--kafka-heap", "kafka_heap_mb", default=512, metavar="MIB", help="Java heap of Kafka, in MiB.")
@click.option("--flink-heap", "flink_heap_mb", default=768, metavar="MIB", help="Java heap of Flink, in MiB.")
@click.option("--cluster", is_flag=True, help="Start a standalone Flink cluster in place of the embedded Flink.")
@click.option("--task-managers", default=1, type=click.IntRange(1, 16), help="Number of TaskManagers of the cluster.")
@click.option("--slots", default=2, type=click.IntRange(1, 64), help="Number of slots of each TaskManager.")
@click.option(
    "--state",
    metavar="s3://PREFIX",
    callback=_state,
    help="Prefix of the cluster's checkpoints and savepoints.  [default: the home folder]",
)
@click.option(
    "--state-backend",
    type=click.Choice(["hashmap", "rocksdb"]),
    default="hashmap",
    help="State backend of the cluster: hashmap (heap) or rocksdb (disk).",
)
@click.option("--timeout", "timeout_s", default=90.0, metavar="SECONDS", help="Start timeout of an engine, in seconds.")
@home_option
def command(names: tuple[str, ...], cluster: bool, home: Path, **options: Any) -> None:
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

    errors = Console(stderr=True)
    engine_names = list(names) or [name for name in _DEFAULT if not (cluster and name == "flink")]
    if cluster and "cluster" not in engine_names:
        engine_names.append("cluster")
    if not names:
        engine_names += ["logs"] * bool(options["logs_root"]) + ["models"] * bool(options["models_config"])
    if min(options["kafka_heap_mb"], options["flink_heap_mb"]) < 128:
        raise CimlError("--kafka-heap and --flink-heap: an engine needs at least 128 MiB")
    if options["state"] is not None:
        use_local_s3(engines.read(home).get("s3"))
    begin_s = time.monotonic()
    with errors.status(f"starting {', '.join(engine_names)}") as spinner:
        settings = engines.Settings(**options, notify=lambda text: spinner.update(text))
        running = engines.start(engine_names, home, settings)
        if "kafka" in running.started:
            engines.create_topics(str(running.states["kafka"].address), _TOPICS)
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
    if running.started:
        click.echo(
            f"All ready in {time.monotonic() - begin_s:.1f} s; logs are in {home / 'logs'}; stop them by: ciml down"
        )


@click.command("down")
@click.argument("names", nargs=-1, metavar="[ENGINE]...")
@click.option("--purge", is_flag=True, help="Remove the engines' data: Kafka's topics, Flink's checkpoints, logs.")
@home_option
def down(names: tuple[str, ...], purge: bool, home: Path) -> None:
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
    unknown = [name for name in names if name not in engines.ENGINES]
    if unknown:
        raise CimlError(f"unknown engine {', '.join(unknown)}; choose from {', '.join(engines.ENGINES)}")
    stopped = engines.stop(names or None, home) if home.exists() else []
    click.echo(f"Stopped {', '.join(stopped)}." if stopped else "No engine was running.")
    if purge:
        for name in names or engines.ENGINES:
            shutil.rmtree(home / name, ignore_errors=True)
            for log in (home / "logs").glob(f"{name}*.log*"):
                log.unlink(missing_ok=True)

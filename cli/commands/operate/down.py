"""``ciml down``: ends local engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

import engines
from ciml.errors import CimlError
from cli.options import home_option


@click.command("down", short_help="End local engines.")
@click.argument("names", nargs=-1, metavar="[ENGINE]...")
@click.option("--purge", is_flag=True, help="Also remove what they kept: Kafka's topics, Flink's checkpoints, logs.")
@home_option
def command(names: tuple[str, ...], purge: bool, home: Path) -> None:
    """End local engines: by default all that ciml up started.

    Kafka's topics stay in the home folder and are there again after the next ciml up. S3's buckets are in memory and
    go. A Flink job that runs is not drained: its committed work stays, and it goes on from there when submitted again.

    \b
    Example:
      ciml down
      ciml down flink
      ciml down cluster
      ciml down --purge
    """
    unknown = [name for name in names if name not in engines.ENGINES]
    if unknown:
        raise CimlError(f"no engine named {', '.join(unknown)}; there are {', '.join(engines.ENGINES)}")
    ended = engines.stop(names or None, home) if home.exists() else []
    click.echo(f"Ended {', '.join(ended)}." if ended else "No engine was running.")
    if purge:
        for name in names or engines.ENGINES:
            shutil.rmtree(home / name, ignore_errors=True)
            for log in (home / "logs").glob(f"{name}*.log*"):
                log.unlink(missing_ok=True)

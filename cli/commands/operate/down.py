"""``ciml down``: stop local engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ciml import engines
from ciml.cli.options import home_option
from ciml.errors import CimlError


@click.command("down")
@click.argument("names", nargs=-1, metavar="[ENGINE]...")
@click.option("--purge", is_flag=True, help="Remove the engines' data: Kafka's topics, Flink's checkpoints, logs.")
@home_option
def command(names: tuple[str, ...], purge: bool, home: Path) -> None:
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

"""``ciml status``: the local engines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ciml import engines
from ciml.cli.command import make_command
from ciml.cli.options import Json
from ciml.cli.output import print_columns
from ciml.engines import processes
from ciml.engines.flink.cluster import part_rows
from ciml.engines.launcher import alive, healthy
from ciml.options import option


def _row(home: Path, engine: engines.EngineState) -> dict[str, Any]:
    health = "dead" if not alive(engine) else "ok" if healthy(home, engine) else "no answer"
    row = {**asdict(engine), "memory_used_mb": processes.memory_mb(engine.pid, engine.started), "health": health}
    if engine.name == "cluster":
        row["parts"] = part_rows(home)
    return row


class StatusOptions(Json):
    """Options of ``ciml status``."""

    home: Path = option(kind="home")


@make_command("status")
def command(options: StatusOptions) -> int:
    """Show the status of local engines.

    It shows the kind (real or light), process, address, memory and health. The exit code is 3 if an engine does not
    answer, else 0.

    \b
    Example:
      ciml status
      ciml status --json
    """
    home = options.home
    states = engines.read(home)
    with ThreadPoolExecutor(max_workers=8) as pool:
        rows = dict(zip(states, pool.map(partial(_row, home), states.values()), strict=True))
    options.show(rows, partial(_show, home))
    return 0 if all(row["health"] == "ok" for row in rows.values()) else 3


def _show(home: Path, rows: dict[str, dict[str, Any]]) -> None:
    if not rows:
        click.echo(f"No engine runs in {home}. Start engines by: ciml up")
        return
    table = [("engine", "kind", "what", "pid", "address", "memory", "health")]
    for row in [row for engine in rows.values() for row in (engine, *_parts(engine))]:
        cap = f" (cap {row['memory_mb']})" if row["memory_mb"] else ""
        memory = "–" if row["memory_used_mb"] is None else f"{row['memory_used_mb']} MiB{cap}"
        health = click.style(row["health"], fg="green" if row["health"] == "ok" else "red")
        table.append(
            (row["name"], row["kind"], row["what"], f"{row['pid'] or '–'}", row["address"] or "–", memory, health)
        )
    print_columns(table)


def _parts(engine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of an engine as rows below its own."""
    return [
        {**row, "name": f"  {name}", "kind": f"{row['restarts']} restarts" if row["restarts"] else ""}
        for name, row in engine.get("parts", {}).items()
    ]

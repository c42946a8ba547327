"""``ciml status``: the local engines."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ciml import engines
from ciml.cli.options import home_option
from ciml.engines import processes
from ciml.engines.flink.cluster import part_rows
from ciml.engines.launcher import alive, healthy


def _row(home: Path, engine: engines.EngineState) -> dict[str, Any]:
    health = "dead" if not alive(engine) else "ok" if healthy(home, engine) else "no answer"
    row = {**asdict(engine), "memory_used_mb": processes.memory_mb(engine.pid, engine.started), "health": health}
    if engine.name == "cluster":
        row["parts"] = part_rows(home)
    return row


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="JSON output.")
@home_option
def command(as_json: bool, home: Path) -> int:
    """Show the status of local engines.

    It shows the kind (real or light), process, address, memory and health. The exit code is 3 if an engine does not
    answer, else 0.

    \b
    Example:
      ciml status
      ciml status --json
    """
    states = engines.read(home)
    with ThreadPoolExecutor(max_workers=8) as pool:
        rows = list(pool.map(lambda row: _row(home, row), states.values()))
    if as_json:
        click.echo(json.dumps({row["name"]: row for row in rows}, indent=2))
    elif not rows:
        click.echo(f"No engine runs in {home}. Start engines by: ciml up")
    else:
        _show(rows)
    return 0 if all(row["health"] == "ok" for row in rows) else 3


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("engine", "kind", "what", "pid", "address", "memory", "health"):
        table.add_column(
            title,
            justify="right" if title in ("pid", "memory") else "left",
            overflow="fold",
            no_wrap=title in ("pid", "address", "health"),
        )
    for shown in [row for engine in rows for row in (engine, *_parts(engine))]:
        used = shown["memory_used_mb"]
        cap = shown["memory_mb"]
        memory = "–" if used is None else f"{used} MiB" + (f" (cap {cap})" if cap else "")
        colour = "green" if shown["health"] == "ok" else "red"
        pid = "–" if shown["pid"] is None else str(shown["pid"])
        table.add_row(
            *(shown["name"], shown["kind"], shown["what"], pid, shown["address"] or "–", memory),
            f"[{colour}]{shown['health']}[/]",
        )
    Console().print(table)


def _parts(engine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of an engine as rows below its own."""
    return [
        {**row, "name": f"  {name}", "kind": f"{row['restarts']} restarts" if row["restarts"] else ""}
        for name, row in engine.get("parts", {}).items()
    ]

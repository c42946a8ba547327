"""The refreshes of the demo: ``ciml refresh --watch`` of each model as a child process, and its JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ciml.cli.demo.definitions import trust_policy
from ciml.cli.demo.processes import Children
from ciml.data_root import DataRoot


def start_refreshes(children: Children, data: DataRoot, model: str, *options: str) -> None:
    """Start the command that refreshes a model whenever the data set of the same name grows."""
    command = ("refresh", "--dataset", model, "--watch", "--json", "--data-path", data.url)
    children.start(child_of(model), *command, "--trust-policy", str(trust_policy()), *options)


def child_of(model: str) -> str:
    """Return the name of the child that refreshes a model."""
    return f"refresh-{model}"


def read_refreshes(log: Path) -> list[dict[str, Any]]:
    """Return the refreshes that a command has printed: `ciml.training.trainer.TrainResult.to_json`."""
    found = []
    for line in log.read_bytes().split(b"\n")[:-1]:  # the last one may be incomplete
        if line.startswith(b"{"):
            found.append(json.loads(line))
    return found


def last_step(log: Path) -> str:
    """Return the last line of a command's log that is no result: what it is doing."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and not line.startswith("{")]
    return lines[-1].partition(": ")[2] if lines else ""


def is_current(data: DataRoot, model: str, refreshes: list[dict[str, Any]]) -> bool:
    """Return whether one of the refreshes is of the snapshot that the data set has now."""
    from ciml.training.data.snapshot import make_snapshot
    from ciml.trust import TrustPolicy

    snapshot = make_snapshot(data.dataset(model), TrustPolicy.load(trust_policy())).digest
    return any(one["metrics"].get("snapshot", {}).get("digest") == snapshot for one in refreshes)

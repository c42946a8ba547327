"""Reads the file of runs to exclude from training."""

from __future__ import annotations

from pathlib import Path


def read_exclusions(path: str | None) -> dict[str, str]:
    """Return the reason by run id. A line is a run id, optionally followed by a blank and a reason. Empty for None."""
    exclusions = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines() if path else ():
        run_id, _, reason = line.strip().partition(" ")
        if run_id and not run_id.startswith("#"):
            exclusions[run_id] = reason.strip() or "excluded"
    return exclusions

"""Runs that must not be learned from, as a file lists them."""

from __future__ import annotations

from pathlib import Path


def read_exclusions(path: str | None) -> dict[str, str]:
    """The reason by run id: a line is a run id, perhaps with a reason after a blank. Empty for None."""
    exclusions = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines() if path else ():
        run_id, _, reason = line.strip().partition(" ")
        if run_id and not run_id.startswith("#"):
            exclusions[run_id] = reason.strip() or "excluded"
    return exclusions

"""Results that last: one JSON line a trial, added to by each sitting; the newest of a seed counts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.children import ROOT
from tests.faults.plan import now_iso
from tests.faults.verdict import Verdict

RESULTS = ROOT / "docs" / "faults-results.jsonl"


@dataclass(frozen=True)
class Result:
    """One trial as it is remembered."""

    row: int
    seed: int
    engine: str
    ok: bool
    at: str
    commit: str
    seconds: float
    measures: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    name: str = ""  # of a big run

    @classmethod
    def of(cls, row: int, seed: int, engine: str, verdict: Verdict, seconds: float, name: str = "") -> Result:
        measures = {key: values for key, values in verdict.measures.items() if values}
        return cls(
            row, seed, engine, verdict.ok, now_iso(), commit(), round(seconds, 1), measures, dict(verdict.counts),
            [line[:300] for line in verdict.failures[:5]], verdict.skipped, name,
        )  # fmt: skip

    def to_line(self) -> str:
        kept = {key: value for key, value in asdict(self).items() if value not in ([], {}, "")}
        return json.dumps(kept, separators=(",", ":"), ensure_ascii=False)


def commit() -> str:
    """The checkout's commit, with a plus where files of the program differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", ":!tests")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def load(path: Path = RESULTS) -> list[Result]:
    """All results there are, oldest first."""
    if not path.exists():
        return []
    return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line]


def add(results: Iterable[Result], path: Path = RESULTS) -> None:
    """Appends results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.writelines(result.to_line() + "\n" for result in results)


def newest(results: Iterable[Result]) -> dict[tuple[int, str, str, int], Result]:
    """The last result of each (row, engine, name, seed)."""
    return {(one.row, one.engine, one.name, one.seed): one for one in results}


def summary(results: list[Result]) -> dict[str, Any]:
    """Figures of trials: how many passed, medians and maxima of what was measured."""
    values: dict[str, list[float]] = {}
    for one in results:
        for name, found in one.measures.items():
            values.setdefault(name, []).extend(found)
    return {
        "trials": len(results),
        "passed": sum(one.ok for one in results),
        "kills": sum(one.counts.get("kills", 0) for one in results),
        "events": sum(one.counts.get("events", 0) for one in results),
        **{name: (sorted(found)[len(found) // 2], max(found)) for name, found in values.items()},
    }

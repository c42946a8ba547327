"""Results of long runs: a JSON line a test, added to by each run, and the table of docs/faults.md that they give."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.results import DOCUMENT, commit, now_iso
from tests.fuzz.frame import ROOT

RESULTS = ROOT / "docs" / "fuzz-results.jsonl"
BEGIN, END = "<!-- fuzz: written by make fuzz -->", "<!-- end of fuzz -->"


@dataclass(frozen=True)
class Result:
    """One long run of one test."""

    test: str
    at: str
    commit: str
    inputs: int
    failures: int
    seconds: float

    @classmethod
    def of(cls, test: str, inputs: int, failed: bool, seconds: float) -> Result:
        return cls(test, now_iso(), commit(), inputs, int(failed), round(seconds, 1))


def load(path: Path = RESULTS) -> list[Result]:
    """Returns all results, oldest first."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line] if path.exists() else []


def add(results: Iterable[Result], path: Path = RESULTS) -> None:
    """Appends results."""
    with path.open("a") as out:
        out.writelines(json.dumps(asdict(each), separators=(",", ":")) + "\n" for each in results)


def render(results: Iterable[Result]) -> str:
    """Returns the table, in Markdown: inputs of all runs together, and how the last run ended."""
    tests: dict[str, list[Result]] = defaultdict(list)
    for each in results:
        tests[each.test].append(each)
    lines = ["| test | inputs tried | runs | failed runs | last run |", "|---|---|---|---|---|"]
    for name, runs in sorted(tests.items()):
        last = runs[-1]
        lines.append(
            f"| `{name.removeprefix('tests/fuzz/')}` | {sum(each.inputs for each in runs):,} | {len(runs)} | "
            f"{sum(each.failures for each in runs)} | {'failed' if last.failures else 'passed'}, {last.at[:10]}, at "
            f"{last.commit} |"
        )
    total = sum(each.inputs for runs in tests.values() for each in runs)
    return "\n".join([*lines, "", f"{total:,} inputs in all."])


def write(results: Iterable[Result], path: Path = DOCUMENT) -> None:
    """Puts the table between the document's markers."""
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n\n{render(results)}\n\n{END}{tail}")

"""Results of trials, kept as one JSON line a trial, and the report on them. The newest result of a seed counts."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.faults.children import ROOT
from tests.faults.rows import Row

RESULTS, DOCUMENT = ROOT / "docs" / "faults-results.jsonl", ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- results: written by make faults -->", "<!-- end of results -->"


def now_iso() -> str:
    """Return the present, for reports."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def commit() -> str:
    """Return the checkout's commit, with a plus where files of the program differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", ":!tests")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


@dataclass
class Verdict:
    """The outcome of one trial. Green when there are no ``failures`` and it was not ``skipped``.

    Attributes:
      failures: a line for each violated check, beginning with the invariant: ``I1: …``.
      measures: figures by name, several where the trial injected several faults: ``commit_s`` (from a fault to the next
        commit), ``lag_s`` (from the producer's end until nothing is left to read), ``rss_mb``, ``open_files``.
      counts: numbers of events, rows, kills, versions, polls.
      skipped: why the fault could not be injected here.
    """

    failures: list[str] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    skipped: str = ""

    def fail(self, *lines: str) -> None:
        self.failures.extend(lines)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note ``otherwise`` as a failure unless it holds."""
        if not holds:
            self.failures.append(otherwise)

    def measure(self, name: str, value: float) -> None:
        self.measures[name].append(round(float(value), 3))

    def count(self, name: str, value: int = 1) -> None:
        self.counts[name] += value


@dataclass(frozen=True)
class Result:
    """One trial as it is stored."""

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
    name: str = ""  # of a long run

    @classmethod
    def of(cls, row: int, seed: int, engine: str, verdict: Verdict, seconds: float, name: str = "") -> Result:
        measures = {key: values for key, values in verdict.measures.items() if values}
        failures = [line[:300] for line in verdict.failures[:5]]
        return cls(
            row, seed, engine, not (failures or verdict.skipped), now_iso(), commit(), round(seconds, 1), measures,
            dict(verdict.counts), failures, verdict.skipped, name,
        )  # fmt: skip

    @property
    def key(self) -> tuple[int, str, str, int]:
        return self.row, self.engine, self.name, self.seed

    @property
    def replay(self) -> str:
        """The command that plays the trial again."""
        engine = "" if self.engine == "micro-batches" else f" --engine {self.engine}"
        return f"python -m tests.faults --rows {self.row} --trials 1 --seed {self.seed}{engine}"


def load(path: Path = RESULTS) -> list[Result]:
    """Return all results, oldest first."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines() if line] if path.exists() else []


def add(result: Result, path: Path = RESULTS) -> None:
    """Append a result."""
    values = {key: value for key, value in asdict(result).items() if value not in ([], {}, "")}
    with path.open("a") as out:
        out.write(json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n")


def write(rows: Mapping[int, Row], results: list[Result], path: Path = DOCUMENT) -> None:
    """Put the tables between the document's markers."""
    head, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{head}{BEGIN}\n\n{render(rows, results)}\n{END}{rest.partition(END)[2]}")


def render(rows: Mapping[int, Row], results: list[Result]) -> str:
    """Return the tables, in Markdown."""
    newest = {one.key: one for one in results}
    groups: dict[tuple[int, str], list[Result]] = defaultdict(list)
    for one in newest.values():
        if not one.name and one.row in rows and not one.skipped:
            groups[one.row, one.engine].append(one)
    lines = [
        "| row | fault | on | trials | seeds | passed | events | kills | MiB | open files | fault → next commit, s "
        "| lag gone, s | 95 % bound | days | at |",
        "|---" * 15 + "|",
    ]
    for (number, engine), group in sorted(groups.items()):
        passed = sum(one.ok for one in group)
        commit_s = "commit_s" if any("commit_s" in one.measures for one in group) else "back_s"
        days = sorted({one.at[:10] for one in group})
        cells = [
            number, rows[number].title, engine, f"{len(group)} of {rows[number].wanted(engine)}", _seeds(group), passed,
            f"{sum(one.counts.get('events', 0) for one in group):,}",
            f"{sum(one.counts.get('kills', 0) for one in group):,}", _most(group, "rss_mb"), _most(group, "open_files"),
            _times(group, commit_s), _times(group, "lag_s"), _bound(len(group)) if passed == len(group) else "failures",
            " to ".join(days[:1] + days[1:][-1:]), ", ".join(sorted({one.commit for one in group})),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Times are median / largest.", "", *_failures(results, newest), "", *_long(newest.values())]
    return "\n".join(lines).rstrip() + "\n"


def _failures(results: list[Result], newest: Mapping[Any, Result]) -> Iterator[str]:
    """Yield the failures, also of seeds that pass now, and what could not be injected."""
    for one in results:
        last = newest[one.key]
        if one.skipped and one is last:
            yield f"- row {one.row}, seed {one.seed}: not injected: {one.skipped}"
        elif not one.ok and not one.skipped and not one.name:
            after = f"passed since, at {last.commit}" if last.ok else "not passed since"
            yield f"- row {one.row}, seed {one.seed} failed at {one.commit}: {one.failures[0][:160]} ({after})"


def _bound(trials: int) -> str:
    """Return the 95 % bound on the rate of failures after trials without one (exact; about 3 / trials)."""
    return f"{100 * (1 - 0.05 ** (1 / trials)):.1f} %" if trials else "–"


def _seeds(results: list[Result]) -> str:
    """Return ``1–20, 31``."""
    parts: list[list[int]] = []
    for number in sorted(one.seed for one in results):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}–{b}" if a != b else f"{a}" for a, b in parts)


def _times(results: list[Result], name: str) -> str:
    """Return median / largest."""
    values = sorted(value for one in results for value in one.measures.get(name, ()))
    return f"{values[len(values) // 2]:.1f} / {values[-1]:.1f}" if values else "–"


def _most(results: list[Result], name: str) -> str:
    values = [value for one in results for value in one.measures.get(name, ())]
    return f"{max(values):.0f}" if values else "–"


def _long(newest: Iterable[Result]) -> list[str]:
    lines = [
        "| run | on | seed | events | kills | result | kill → next commit, s | lag gone, s | took, s | at |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    runs = sorted((one for one in newest if one.name), key=lambda one: (one.name, one.at))
    lines += [
        f"| {one.name} | {one.engine} | {one.seed} | {one.counts.get('events', 0):,} | {one.counts.get('kills', 0)} | "
        f"{'passed' if one.ok else f'failed: {one.failures[:1]}'} | {_times([one], 'commit_s')} | "
        f"{_times([one], 'lag_s')} | {one.seconds:.0f} | {one.commit}, {one.at} |"
        for one in runs
    ]
    return lines if runs else []

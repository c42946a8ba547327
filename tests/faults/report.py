"""The report: results as tables between the markers of docs/faults.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tests.faults.children import ROOT
from tests.faults.results import Result, newest, summary
from tests.faults.rows import Row, wanted

DOCUMENT = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- results: written by make faults -->", "<!-- end of results -->"


def bound(trials: int) -> str:
    """The 95 % bound on the rate of failures after so many trials without one (exact; about 3 / trials)."""
    return f"{100 * (1 - 0.05 ** (1 / trials)):.1f} %" if trials else "–"


def seeds(results: list[Result]) -> str:
    """``1–20, 31``."""
    numbers = sorted(one.seed for one in results)
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}–{b}" if a != b else f"{a}" for a, b in parts)


def render(rows: dict[int, Row], results: list[Result]) -> str:
    """The tables, in Markdown."""
    groups: dict[tuple[int, str], list[Result]] = defaultdict(list)
    for one in newest(results).values():
        if not one.name:
            groups[one.row, one.engine].append(one)
    lines = [
        "| row | fault | on | trials | seeds | passed | holds | fault → next commit, s | lag gone, s | 95 % bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    details = []
    for (number, engine), found in sorted(groups.items()):
        if number not in rows:
            continue
        row, tried = rows[number], [one for one in found if not one.skipped]
        facts = summary(tried)
        commit_s, lag_s = facts.get("commit_s") or facts.get("back_s"), facts.get("lag_s")
        green = facts["passed"] == facts["trials"]
        lines.append(
            f"| {number} | {row.TITLE} | {engine} | {facts['trials']} of {wanted(row, engine)} | {seeds(tried)} | "
            f"{facts['passed']} | {' '.join(row.INVARIANTS)} | {_times(commit_s)} | {_times(lag_s)} | "
            f"{bound(facts['trials']) if green else 'failures'} |"
        )
        details += _detail(row, engine, found, facts, results)
    big = _big(results)
    return "\n".join([*lines, "", "Times are median / largest.", "", *details, *big]).rstrip() + "\n"


def _times(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.1f} / {pair[1]:.1f}" if pair else "–"


def _detail(row: Row, engine: str, found: list[Result], facts: dict, results: list[Result]) -> list[str]:
    commits = ", ".join(sorted({one.commit for one in found}))
    days = sorted({one.at[:10] for one in found})
    about = [f"{facts['events']:,} events"] + ([f"{facts['kills']:,} kills"] if facts["kills"] else [])
    if "rss_mb" in facts:
        about.append(f"at most {facts['rss_mb'][1]:.0f} MiB and {facts['open_files'][1]:.0f} open files")
    lines = [
        f"**{row.ROW}. {row.TITLE}** ({engine}). Injected: {row.INJECTED}. Expected: {row.EXPECTED}. "
        f"{', '.join(about)}; {' to '.join(days[:1] + days[1:][-1:])}, at {commits}."
    ]
    earlier = [one for one in results if (one.row, one.engine) == (row.ROW, engine) and not one.ok and not one.skipped]
    now = newest(results)
    for one in earlier:
        last = now[one.row, one.engine, one.name, one.seed]
        after = f"passed since, at {last.commit}" if last.ok else "not passed since"
        lines.append(f"- seed {one.seed} failed at {one.commit}: {'; '.join(one.failures[:1])[:160]} ({after})")
    for reason in sorted({one.skipped for one in found if one.skipped}):
        lines.append(f"- not injected: {reason}")
    return [*lines, ""]


def _big(results: list[Result]) -> list[str]:
    runs = [one for one in newest(results).values() if one.name]
    if not runs:
        return []
    lines = [
        "| run | on | seed | events | kills | result | kill → next commit, s | lag gone, s | took, s | at |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(runs, key=lambda one: (one.name, one.at)):
        facts = summary([one])
        said = "passed" if one.ok else f"failed: {'; '.join(one.failures[:1])[:120]}"
        lines.append(
            f"| {one.name} | {one.engine} | {one.seed} | {facts['events']:,} | {facts['kills']} | {said} | "
            f"{_times(facts.get('commit_s'))} | {_times(facts.get('lag_s'))} | {one.seconds:.0f} | "
            f"{one.commit}, {one.at} |"
        )
    return lines


def write(rows: dict[int, Row], results: list[Result], path: Path = DOCUMENT) -> None:
    """Puts the tables between the document's markers."""
    text = path.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n\n{render(rows, results)}\n{END}{tail}")

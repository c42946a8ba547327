"""``python -m tests.faults``: runs trials and writes the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults import report, results, rows
from tests.faults.children import ROOT
from tests.faults.playing import KEPT, play
from tests.faults.results import Result
from tests.faults.stage import Stage, stage
from tests.faults.verdict import Verdict


def replay(row: int, seed: int, engine: str) -> str:
    """The command that plays a trial again."""
    more = "" if engine == "micro-batches" else f" --engine {engine}"
    return f"python -m tests.faults --rows {row} --trials 1 --seed {seed}{more}"


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    found: list[int] = []
    for part in value.split(",") if value else ():
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise click.BadParameter(f"{part!r}: want numbers such as 1,5-10", ctx, param)
        found += range(int(first), int(last or first) + 1)
    return found


@click.command()
@click.option("--rows", "wanted", callback=_numbers, default="", metavar="6,7|5-10", help="Only these rows.")
@click.option("--trials", type=int, metavar="N", help="Trials of each row.  [default: what the row wants]")
@click.option("--seed", default=1, show_default=True, help="Of the first trial; the next has the next one.")
@click.option("--engine", "engines", multiple=True, default=("micro-batches",), show_default=True,
              type=click.Choice(["micro-batches", "flink"]), help="What ingest runs on; may be repeated.")  # fmt: skip
@click.option("--jobs", default=2, show_default=True, help="Trials at the same time.")
@click.option("--planted", default="", metavar="DEFECT|all", help="Plant defects; each must be found.")
@click.option("--keep/--no-keep", default=True, help="Whether results are added to those in docs/.")
@click.option("--report", "document", type=click.Path(path_type=Path), default=report.DOCUMENT, help="To be written.")
@click.option("--missing", is_flag=True, help="Only trials whose seed has not passed yet.")
def command(
    wanted: list[int], trials: int | None, seed: int, engines: tuple[str, ...], jobs: int, planted: str, keep: bool,
    document: Path, missing: bool,
) -> None:  # fmt: skip
    """Inject faults into real processes and compare what is left with the producer's own list.

    \b
    Example:
      python -m tests.faults --rows 1,6-8 --trials 5
      python -m tests.faults --planted all
    """
    if planted:
        from tests.faults.planted_trials import hunt

        sys.exit(hunt(planted, jobs))
    known = rows.load()
    if unknown := [number for number in wanted if number not in known]:
        raise click.BadParameter(f"there is no row {unknown[0]}; there are {', '.join(map(str, known))}")
    todo = [
        (number, seed + index, engine)
        for number in (wanted or known)
        for engine in engines
        if engine in known[number].ENGINES
        for index in range(trials or known[number].TRIALS)
    ]
    if missing:
        passed = {key for key, one in results.newest(results.load()).items() if one.ok}
        todo = [(row, number, engine) for row, number, engine in todo if (row, engine, "", number) not in passed]
    alone = [each for each in todo if getattr(known[each[0]], "ALONE", False)]
    together = [each for each in todo if each not in alone]
    with stage(flink="flink" in engines) as place:
        found = [*_play_all(together, place, jobs, keep), *_play_all(alone, place, 1, keep)]
    if keep and found:
        report.write(known, results.load(), document)
    failed = [one for one in found if not one.ok and not one.skipped]
    click.echo(f"{len(found) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def _play_all(todo: list[tuple[int, int, str]], place: Stage, jobs: int, keep: bool) -> Iterator[Result]:
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        bar = progress.add_task("trials", total=len(todo))
        waiting: dict[Future[tuple[Verdict, float]], tuple[int, int, str]] = {
            pool.submit(play, *each, place): each for each in todo
        }
        for future in as_completed(waiting):
            row, number, engine = waiting[future]
            verdict, seconds = future.result()
            one = Result.of(row, number, engine, verdict, seconds)
            if keep:
                results.add([one])
            said = "skipped: " + verdict.skipped if verdict.skipped else "passed" if verdict.ok else "FAILED"
            console.print(
                f"row {row} seed {number} {engine}: {said} in {seconds:.1f} s  {_figures(verdict)}", highlight=False
            )
            for line in verdict.failures[:8]:
                console.print(f"    {line}", highlight=False, markup=False)
            if verdict.failures:
                console.print(f"    kept in {KEPT}; again by: {replay(row, number, engine)}", highlight=False)
            progress.advance(bar)
            yield one


def _figures(verdict: Verdict) -> str:
    counts = " ".join(f"{name}={value}" for name, value in verdict.counts.items())
    times = " ".join(f"{name}={max(values):.1f}" for name, values in verdict.measures.items() if values)
    return f"{counts} {times}"


if __name__ == "__main__":
    os.chdir(ROOT)
    command()

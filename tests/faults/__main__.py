"""``python -m tests.faults``: runs trials and writes the report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ciml.cli.options import Duration
from tests.faults import report, results, rows
from tests.faults.children import ROOT
from tests.faults.playing import KEPT, keep_folder, play
from tests.faults.results import Result
from tests.faults.stage import Stage, stage
from tests.faults.verdict import Verdict

Todo = list[tuple[int, int, str]]  # row, seed, engine


def replay(one: Result) -> str:
    """The command that plays a trial again."""
    more = "" if one.engine == "micro-batches" else f" --engine {one.engine}"
    return f"python -m tests.faults --rows {one.row} --trials 1 --seed {one.seed}{more}"


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
@click.option("--engine", "engines", multiple=True, default=("micro-batches", "flink"), show_default=True,
              type=click.Choice(["micro-batches", "flink"]), help="What ingest runs on; may be repeated.")  # fmt: skip
@click.option("--jobs", default=2, show_default=True, help="Trials at the same time.")
@click.option("--missing", is_flag=True, help="Only trials whose seed has not passed yet.")
@click.option("--planted", default="", metavar="DEFECT|all", help="Plant defects; each must be found.")
@click.option("--big", type=click.Choice(["flink", "s3", "micro-batches"]), help="One run of very many events instead.")
@click.option("--events", default=100_000, show_default=True, help="Of a big run.")
@click.option("--kills", default=20, show_default=True, help="Of a big run.")
@click.option("--soak", type=Duration(), metavar="TIME", help="A soak of so long instead, on the last engine named.")
@click.option("--rate", default=0.0, help="Events a second of a big run or a soak.  [default: as fits; 20]")
@click.option("--keep/--no-keep", default=True, help="Whether results are added to those in docs/.")
@click.option("--report", "document", type=click.Path(path_type=Path), default=report.DOCUMENT, help="To be written.")
def command(
    wanted: list[int], trials: int | None, seed: int, engines: tuple[str, ...], jobs: int, missing: bool, planted: str,
    big: str | None, events: int, kills: int, soak: float | None, rate: float, keep: bool, document: Path,
) -> None:  # fmt: skip
    """Inject faults into real processes and compare what is left with the producer's own list.

    \b
    Example:
      python -m tests.faults --rows 1,6-8 --trials 5 --engine micro-batches
      python -m tests.faults --planted all
      python -m tests.faults --big flink --events 100000 --kills 20
      python -m tests.faults --soak 30min --engine flink
    """
    if planted:
        from tests.faults.planted_trials import hunt

        sys.exit(hunt(planted, jobs))
    known = rows.load()
    if unknown := [number for number in wanted if number not in known]:
        raise click.BadParameter(f"there is no row {unknown[0]}; there are {', '.join(map(str, known))}")
    if big:
        found = [_one_big(big, events, kills, seed, rate)]
    elif soak:
        found = [_one_soak(soak, engines[-1], seed, rate)]
    else:
        todo = [
            (number, seed + index, engine)
            for engine in engines
            for number in (wanted or known)
            if engine in known[number].ENGINES
            for index in range(trials or rows.wanted(known[number], engine))
        ]
        if missing:
            passed = {key for key, one in results.newest(results.load()).items() if one.ok}
            todo = [(row, number, engine) for row, number, engine in todo if (row, engine, "", number) not in passed]
        found = _sitting(todo, known, jobs, keep)
    if keep and found:
        if big or soak:
            results.add(found)
        report.write(known, results.load(), document)
    failed = [one for one in found if not one.ok and not one.skipped]
    click.echo(f"{len(found) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def _sitting(todo: Todo, known: dict[int, rows.Row], jobs: int, keep: bool) -> list[Result]:
    """Plays everything; what measures, and what shares the one cluster, one after the other."""
    found: list[Result] = []
    for engine in ("micro-batches", "flink"):
        mine = [each for each in todo if each[2] == engine]
        alone = [each for each in mine if engine == "flink" or getattr(known[each[0]], "ALONE", False)]
        together = [each for each in mine if each not in alone]
        if mine:
            with stage(flink=engine == "flink") as place:
                found += [*_play_all(together, place, jobs, keep), *_play_all(alone, place, 1, keep)]
    return found


def _play_all(todo: Todo, place: Stage, jobs: int, keep: bool) -> Iterator[Result]:
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
        for future in _as_they_end(waiting, pool):
            verdict, seconds = future.result()
            row, number, engine = waiting[future]
            one = Result.of(row, number, engine, verdict, seconds)
            if keep:
                results.add([one])
            _tell(console, f"row {row} seed {number} {engine}", one)
            progress.advance(bar)
            yield one


def _as_they_end(waiting: Iterable[Future[tuple[Verdict, float]]], pool: ProcessPoolExecutor) -> Iterator[Future]:
    """The trials as they end. When this is interrupted, no further one begins."""
    try:
        yield from as_completed(waiting)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _tell(console: Console, what: str, one: Result) -> None:
    said = "skipped: " + one.skipped if one.skipped else "passed" if one.ok else "FAILED"
    figures = [f"{name}={value}" for name, value in one.counts.items()]
    figures += [f"{name}={max(values):.1f}" for name, values in one.measures.items() if values]
    console.print(f"{what}: {said} in {one.seconds:.1f} s  {' '.join(figures)}", highlight=False, soft_wrap=True)
    for line in one.failures[:8]:
        console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)
    if one.failures and one.row:
        console.print(f"    kept in {KEPT}; again by: {replay(one)}", highlight=False, soft_wrap=True)


def _one_big(kind: str, events: int, kills: int, seed: int, rate: float) -> Result:
    from tests.faults import big

    began, engine = time.monotonic(), "micro-batches" if kind == "micro-batches" else "flink"
    with big.place_for(kind) as (place, data):
        scene = place.scene(place.home / f"big-{kind}-{seed}", engine=engine)
        verdict = big.run(scene, seed, events, kills, data, rate)
        keep_folder(scene.folder, verdict, heavy=True)
    one = Result.of(0, seed, engine, verdict, time.monotonic() - began, f"{kind}, {events:,} events")
    _tell(Console(), one.name, one)
    return one


def _one_soak(seconds: float, engine: str, seed: int, rate: float) -> Result:
    from tests.faults import soak

    began, out = time.monotonic(), KEPT / f"soak-{engine}-{seconds / 60:.0f}min.csv"
    with stage(flink=engine == "flink") as place:
        scene = place.scene(place.home / f"soak-{engine}-{seed}", engine=engine)
        scene.lag_limit_s = 300.0
        verdict = soak.run(scene, seed, seconds, rate or 20.0, out)
        keep_folder(scene.folder, verdict, heavy=True)
    click.echo(f"figures: {out}, {out.with_suffix('.png')}")
    one = Result.of(0, seed, engine, verdict, time.monotonic() - began, f"soak, {seconds / 60:.0f} min")
    _tell(Console(), one.name, one)
    return one


if __name__ == "__main__":
    os.chdir(ROOT)
    command()

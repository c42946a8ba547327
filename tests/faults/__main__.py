"""``python -m tests.faults``: runs trials and writes the report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click

from ciml.cli.options import Duration
from tests.faults import long, results, rows
from tests.faults.children import ROOT
from tests.faults.planted import DEFECTS
from tests.faults.results import Result
from tests.faults.scene import KEPT, Scene, Stage, hunt, keep_folder, play, stage

Trial = tuple[int, int, str]  # row, seed, engine


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    found: list[int] = []
    for part in value.split(",") if value else ():
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise click.BadParameter(f"{part!r}: want numbers such as 1,5-10", ctx, param)
        found += range(int(first), int(last or first) + 1)
    if unknown := [number for number in found if number not in rows.load()]:
        raise click.BadParameter(f"there is no row {unknown[0]}; there are {', '.join(map(str, rows.load()))}")
    return found


@click.command()
@click.option("--rows", "numbers", callback=_numbers, default="", metavar="6,7|5-10", help="Only these rows.")
@click.option("--trials", type=int, metavar="N", help="Trials of each row.  [default: as the report wants]")
@click.option("--seed", default=1, show_default=True, help="Seed of the first trial; the next has the next one.")
@click.option("--engine", "engines", multiple=True, default=("micro-batches", "flink"), show_default=True,
              type=click.Choice(["micro-batches", "flink"]), help="Engine of ingest; may be repeated.")  # fmt: skip
@click.option("--jobs", default=2, show_default=True, help="Number of concurrent trials.")
@click.option("--missing", is_flag=True, help="Only trials whose seed has not passed yet.")
@click.option("--planted", type=click.Choice([*DEFECTS, "all"]), help="Plant defects; each must be found.")
@click.option("--big", type=click.Choice(["flink", "s3", "micro-batches"]), help="One run of very many events instead.")
@click.option("--events", default=100_000, show_default=True, help="Events of a big run.")
@click.option("--kills", default=20, show_default=True, help="Kills of a big run.")
@click.option("--soak", type=Duration(), metavar="TIME", help="A soak of this length instead, on the last engine.")
@click.option("--rate", default=0.0, help="Events a second of a big run or a soak.  [default: as fits; 20]")
@click.option("--keep/--no-keep", default=True, help="Whether results are added to those in docs/.")
@click.option("--report", "document", type=click.Path(path_type=Path), default=results.DOCUMENT, help="File to write.")
def command(
    numbers: list[int], trials: int | None, seed: int, engines: tuple[str, ...], jobs: int, missing: bool,
    planted: str | None, big: str | None, events: int, kills: int, soak: float | None, rate: float, keep: bool,
    document: Path,
) -> None:  # fmt: skip
    """Inject faults into real processes and compare the result with the producer's own list.

    \b
    Example:
      python -m tests.faults --rows 1,6-8 --trials 5 --engine micro-batches
      python -m tests.faults --planted all
      python -m tests.faults --big flink --events 100000 --kills 20
      python -m tests.faults --soak 30min --engine flink
    """
    if planted:
        sys.exit(_hunt(list(DEFECTS) if planted == "all" else [planted], jobs))
    known, found = rows.load(), []
    todo = [
        (number, seed + index, engine)
        for engine in engines
        for number in (numbers or known)
        if engine in known[number].engines
        for index in range(trials or known[number].wanted(engine))
    ]
    if missing:
        passed = {one.key for one in {one.key: one for one in results.load()}.values() if one.ok}
        todo = [each for each in todo if (each[0], each[2], "", each[1]) not in passed]
    for one in [_long(big, soak, engines[-1], seed, events, kills, rate)] if big or soak else _all(todo, jobs):
        _print(one)
        found.append(one)
        if keep:
            results.add(one)
    if keep and found:
        results.write(known, results.load(), document)
    failed = [one for one in found if not one.ok and not one.skipped]
    click.echo(f"{len(found) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


def _all(todo: list[Trial], jobs: int) -> Iterator[Result]:
    """Run everything; what measures, and what shares the one cluster, one after the other."""
    for engine in ("micro-batches", "flink"):
        mine = [trial for trial in todo if trial[2] == engine]
        alone = [trial for trial in mine if engine == "flink" or rows.load()[trial[0]].alone]
        if mine:
            with stage(flink=engine == "flink", s3=engine != "flink") as place:
                yield from _run([trial for trial in mine if trial not in alone], place, jobs)
                yield from _run(alone, place, 1)


def _run(todo: list[Trial], place: Stage, jobs: int) -> Iterator[Result]:
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(play, *trial, place): trial for trial in todo}
        try:
            for future in as_completed(waiting):
                yield Result.of(*waiting[future], *future.result())
        except BaseException:  # when this is interrupted, no further trial begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _hunt(names: list[str], jobs: int) -> int:
    """Run the trials of planted defects; return the number of those that were not found for the right reason."""
    missed = 0
    with stage() as place, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for name, lines in zip(names, pool.map(hunt, names, [place] * len(names)), strict=True):
            ok = any(line.startswith(DEFECTS[name].finds) for line in lines)
            missed += not ok
            click.echo(f"{name} in row {DEFECTS[name].row}: {'found' if ok else 'NOT FOUND'}")
            for line in {line.split(":")[0]: line for line in reversed(lines)}.values():
                click.echo(f"    {line[-300:] if line.startswith('trial') else line[:160]}")
    click.echo(f"{len(names) - missed} of {len(names)} planted defects found")
    return missed


def _long(
    big: str | None, soak: float | None, engine: str, seed: int, events: int, kills: int, rate: float
) -> Result:  # fmt: skip
    began = time.monotonic()
    engine = {"s3": "flink", None: engine}.get(big, big or "")
    with long.place_for(big or engine) as (place, data):
        scene = Scene(place, place.home / f"long-{seed}", engine, lag_limit_s=300.0 if soak else 120.0)
        if big:
            name, verdict = f"{big}, {events:,} events", long.big(scene, seed, events, kills, data, rate)
        else:
            name, out = f"soak, {(soak or 0) / 60:.0f} min", KEPT / f"soak-{engine}-{(soak or 0) / 60:.0f}min.csv"
            verdict = long.soak(scene, seed, soak or 0.0, rate or 20.0, out)
            click.echo(f"figures: {out}, {out.with_suffix('.png')}")
        keep_folder(scene.folder, verdict, "job=*", "span-*")
    return Result.of(0, seed, engine, verdict, time.monotonic() - began, name)


def _print(one: Result) -> None:
    outcome = f"skipped: {one.skipped}" if one.skipped else "passed" if one.ok else "FAILED"
    figures = [f"{name}={value}" for name, value in one.counts.items()]
    figures += [f"{name}={max(values):.1f}" for name, values in one.measures.items()]
    name = one.name or f"row {one.row} seed {one.seed} {one.engine}"
    click.echo(f"{name}: {outcome} in {one.seconds:.1f} s  {' '.join(figures)}")
    for line in one.failures:
        click.echo(f"    {line}")
    if one.failures:
        click.echo(f"    kept in {KEPT}; again by: {one.replay}")


if __name__ == "__main__":
    os.chdir(ROOT)
    command()

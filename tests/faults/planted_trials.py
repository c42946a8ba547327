"""The hunt for planted defects: each row has to turn red for the right reason."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import click

from tests.faults.planted import DEFECTS
from tests.faults.playing import play
from tests.faults.stage import Stage, stage


@dataclass(frozen=True)
class Hunt:
    """Where a defect is to be found: a row's trial and the beginning of the lines that tell of it.

    What is a race's doing has three tries.
    """

    row: int
    seed: int
    finds: tuple[str, ...]
    tries: int = 1


HUNTS = {
    "stock-sink": Hunt(9, 1, ("lost",)),
    "no-deduplication": Hunt(9, 1, ("I1", "I2")),
    "row-twice": Hunt(9, 1, ("I1", "I2")),
    "dropped-repeat": Hunt(9, 1, ("gap",)),
    "other-values": Hunt(9, 1, ("row",)),
    "named-too-early": Hunt(9, 1, ("I3",)),
    "leak": Hunt(9, 1, ("I6",)),
    "offsets-first": Hunt(1, 1, ("gap",)),
    "overwriting-create": Hunt(1, 3, ("I4", "I2"), tries=3),
    "hangs-after-outage": Hunt(6, 4, ("I7",)),
    "skips-what-is-gone": Hunt(8, 1, ("alarm",)),
    "drops-late-events": Hunt(10, 1, ("gap",)),
    "no-limits": Hunt(16, 1, ("I6", "I2")),
    "stores-infinity": Hunt(17, 1, ("finite", "row")),
    "this-year": Hunt(18, 1, ("golden", "I2", "row")),
    "never-reads-its-message": Hunt(26, 1, ("I11",)),
    "forgets-while-it-says": Hunt(26, 1, ("I2",)),
    "shows-names-as-they-are": Hunt(27, 1, ("I9",)),
}


def found(name: str, place: Stage, scale: float = 1.0) -> tuple[bool, list[str], float]:
    """Plays a defect's trial: (whether it was found for the right reason, all that was found, seconds)."""
    hunt = HUNTS[name]
    lines, seconds = [], 0.0
    for seed in range(
        hunt.seed, hunt.seed + 4 * hunt.tries, 4
    ):  # each fourth trial of a row has the same kind of fault
        verdict, took = play(hunt.row, seed, "micro-batches", place, planted=name, scale=scale)
        lines, seconds = verdict.failures, seconds + took
        if any(line.split(":")[0] in hunt.finds for line in lines):
            return True, lines, seconds
    return False, lines, seconds


def hunt(name: str, jobs: int) -> int:
    """Hunts for one defect or ``all``; the number of those that were not found is the exit code."""
    if name != "all" and name not in HUNTS:
        raise click.BadParameter(f"no defect {name}; there are all, {', '.join(HUNTS)}")
    names = list(HUNTS) if name == "all" else [name]
    missed = []
    with stage() as place, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for each, (ok, lines, seconds) in zip(names, pool.map(found, names, [place] * len(names)), strict=True):
            click.echo(f"{each} in row {HUNTS[each].row}: {'found' if ok else 'NOT FOUND'} in {seconds:.1f} s")
            kinds = {line.split(":")[0]: line for line in reversed(lines)}
            for line in kinds.values():
                click.echo(f"    {line[-300:] if line.startswith('trial') else line[:160]}")
            if not ok:
                missed.append(each)
    assert set(HUNTS) == set(DEFECTS)
    click.echo(f"{len(names) - len(missed)} of {len(names)} planted defects found")
    return len(missed)

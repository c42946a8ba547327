"""``python -m tests.simulation``: worlds by their seeds, and the trace of one."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence

from tests.simulation.run import Result, replay, simulate, simulate_all

_CHUNK = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 1 where any world was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happens in it")
    parser.add_argument("--seeds", default="0-999", metavar="A-B", help="many worlds (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="worlds from A on, for so long")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        result = simulate(options.seed, keep_trace=options.trace)
        print(*result.trace, sep="\n")
        print(f"seed {result.seed}: {result.wrong or 'all holds'} ({result.steps} steps, {result.commits} commits)")
        return bool(result.wrong)
    first, _, last = options.seeds.partition("-")
    seeds = _until(int(first), options.minutes) if options.minutes else _chunks(range(int(first), int(last) + 1))
    return _many(seeds, options.workers)


def _chunks(seeds: range) -> Iterator[range]:
    for start in range(0, len(seeds), _CHUNK):
        yield seeds[start : start + _CHUNK]


def _until(first: int, minutes: float) -> Iterator[range]:
    end = time.monotonic() + minutes * 60
    for start in itertools.count(first, _CHUNK):
        if time.monotonic() > end:
            return
        yield range(start, start + _CHUNK)


def _many(chunks: Iterator[range], workers: int) -> int:
    done, wrong = 0, 0
    began = time.monotonic()
    for seeds in chunks:
        results: list[Result] = simulate_all(seeds, workers)
        for result in results:
            if result.wrong:
                wrong += 1
                print(f"seed {result.seed}: {result.wrong}\n    {replay(result.seed)}", flush=True)
        done += len(results)
    print(f"{done} worlds in {time.monotonic() - began:.0f} s, {wrong} of them wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

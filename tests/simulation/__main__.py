"""``python -m tests.simulation``: worlds by their seeds, and the trace of one."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time

from tests.simulation.run import replay, simulate, simulate_all

_CHUNK = 200


def main() -> int:
    """Run the command; return the exit code: 1 if any world was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happens in it")
    parser.add_argument("--seeds", default="0-999", metavar="A-B", help="many worlds (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="worlds from A on, for so long")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    options = parser.parse_args()
    if options.seed is not None:
        result = simulate(options.seed, keep_trace=options.trace)
        print(*result.trace, sep="\n")
        print(f"seed {result.seed}: {result.wrong or 'all holds'} ({result.steps} steps, {result.commits} commits)")
        return bool(result.wrong)
    first, _, last = options.seeds.partition("-")
    began, done, wrong = time.monotonic(), 0, 0
    for start in itertools.count(int(first), _CHUNK):
        end = start + _CHUNK if options.minutes else min(start + _CHUNK, int(last or first) + 1)
        if start >= end or (options.minutes and time.monotonic() > began + 60 * options.minutes):
            break
        for result in simulate_all(range(start, end), options.workers):
            done += 1
            wrong += bool(result.wrong)
            if result.wrong:
                print(f"seed {result.seed}: {result.wrong}\n    {replay(result.seed)}", flush=True)
    print(f"{done} worlds in {time.monotonic() - began:.0f} s, {wrong} of them wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

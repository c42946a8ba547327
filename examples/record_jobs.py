"""Records parts of real test suites by ``ciml record``, some of them broken or starved, as jobs of a CI system.

    ciml up kafka
    python examples/record_jobs.py --jobs 40 --log-dir logs
    ciml ingest --data-path data --allow-root logs --once

Installs networkx, sympy, hypothesis and pytest into an environment of its own. What follows ``--`` goes to
``ciml record``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTS = (
    "networkx.classes",
    "networkx.generators",
    "networkx.algorithms.flow",
    "networkx.algorithms.centrality",
    "networkx.algorithms.isomorphism",
    "networkx.algorithms.shortest_paths",
    "networkx.algorithms.approximation",
    "sympy.ntheory",
    "sympy.sets",
    "sympy.logic",
    "sympy.combinatorics",
    "sympy.functions.combinatorial",
    "sympy.geometry",
    "sympy.vector",
)
#: What befalls a job, in turn: most are sound. A broken patch is one line that the whole suite would not survive.
FAULTS = ("none", "patch", "none", "starved", "none", "memory", "none", "patch", "starved")
PATCHES = {
    "networkx": "import networkx as _nx; _nx.Graph.number_of_edges = lambda self, u=None, v=None: 0",
    "sympy": "import sympy.ntheory.primetest as _p; _p.isprime = lambda n: n % 2 == 1",
    "numpy": "import numpy.fft as _f; _f.helper = None; raise AssertionError('a broken patch')",
}


def environment_of(folder: Path) -> Path:
    """The interpreter of an environment that has the suites."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        suites = ("networkx==3.*", "sympy==1.*", "hypothesis", "pytest")
        subprocess.run([str(python), "-m", "pip", "install", "-q", *suites], check=True)
    return python


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that want the whole machine."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def command_of(python: Path, part: str, fault: str) -> list[str]:
    """The job: a part of a suite, with what befalls it."""
    # No settings of the folder that this is run in.
    arguments = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "--pyargs", part]
    code = f"import pytest, sys; sys.exit(pytest.main({arguments!r}))"
    if fault == "patch":
        code = f"{PATCHES[part.partition('.')[0]]}\n{code}"
    job = [str(python), "-c", code]
    if fault == "memory":  # KiB of address space: enough to begin, not to end
        return ["sh", "-c", 'ulimit -v 200000; exec "$@"', "sh", *job]
    return ["nice", "-n", "5", *job] if fault == "starved" else job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=40, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first: where to go on")
    parser.add_argument("--log-dir", default="logs", help="where the logs go")
    parser.add_argument("--python", type=Path, help="an interpreter that has the suites, else one is made")
    parser.add_argument("--part", action="append", dest="parts", help="instead of those that are listed here")
    parser.add_argument("record", nargs="*", help="options of ciml record")
    options = parser.parse_args()
    python = options.python or environment_of(Path(options.log_dir).absolute().with_name("suites"))
    parts = options.parts or PARTS
    for number in range(options.first, options.first + options.jobs):
        part, fault = parts[number % len(parts)], FAULTS[number % len(FAULTS)]
        labels = [f"--label={one}" for one in (f"fault={fault}", f"change={number}", "pipeline=gate", "project=suites")]
        began = time.monotonic()
        with neighbours(4 if fault == "starved" else 0):
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "ciml",
                    "record",
                    "--log-dir",
                    options.log_dir,
                    "--job",
                    part,
                    *labels,
                    "--timeout",
                    "5min",
                    "--flush",
                    "20s",
                    *options.record,
                    "--",
                    *command_of(python, part, fault),
                ],
                stdout=subprocess.DEVNULL,
                check=False,
            )
        print(f"{part}, {fault}: exit status {done.returncode} after {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()

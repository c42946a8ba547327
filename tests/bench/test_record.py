"""What `ciml record` costs: the same real jobs with and without it, in pairs, one after the other.

    python -m pytest tests/bench/test_record.py -m bench -s

Jobs are parts of the test suites of networkx and sympy, from `examples/record_jobs.py`. CPU time is that of the command
and of all that it started and waited for, so of the recording process too. CIML_BENCH_PAIRS says how many pairs (8),
CIML_BENCH_SUITES where the suites are installed (anew, each time).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from examples.record_jobs import command_of, environment_of
from tests.recorder.recorded import environment, recorder

pytestmark = [pytest.mark.bench, pytest.mark.engines, pytest.mark.timeout(0)]

PAIRS = int(os.environ.get("CIML_BENCH_PAIRS", "8"))
#: What takes some 40 s on one core.
PARTS = ("networkx.algorithms", "sympy.combinatorics")


class Took(NamedTuple):
    """Of one command: seconds by the clock, seconds of CPU of all its processes, and its exit status."""

    wall_s: float
    cpu_s: float
    status: int


def run(command: list[str | bytes]) -> Took:
    began = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, descriptor, "/dev/null", os.O_WRONLY, 0) for descriptor in (1, 2)]
    pid = os.posix_spawn(command[0], command, environment(), file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    return Took(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, os.waitstatus_to_exitcode(status))


def tell(what: str, shares: list[float]) -> None:
    each = ", ".join(f"{100 * one:.1f}" for one in sorted(shares))
    print(f"\n{what}: median {100 * median(shares):.2f} % ({each})", end="")


def test_with_and_without(tmp_path: Path, kafka: str, topic: Callable[..., str]) -> None:
    python = environment_of(Path(os.environ.get("CIML_BENCH_SUITES", tmp_path / "suites")))
    options = [
        "-q",
        "--kafka",
        kafka,
        "--samples-topic",
        topic(1, "samples"),
        "--topic",
        topic(1, "ci-events"),
        "--log-dir",
        str(tmp_path / "logs"),
    ]
    order = random.Random(7)
    found: list[tuple[Took, Took]] = []
    for number in range(PAIRS):
        bare: list[str | bytes] = [*command_of(python, PARTS[number % len(PARTS)], "none")]
        both = {"bare": bare, "recorded": [*recorder(tmp_path / "spool", *options), *bare]}
        took = {name: run(both[name]) for name in order.sample(list(both), 2)}
        one, other = took["bare"], took["recorded"]
        assert one.status == other.status
        found.append((one, other))
        print(
            f"\n{PARTS[number % len(PARTS)]}: bare {one.wall_s:.1f} s and {one.cpu_s:.1f} s of CPU, recorded "
            f"{other.wall_s:.1f} s and {other.cpu_s:.1f} s of CPU",
            end="",
            flush=True,
        )
    tell("more CPU, of one core", [(other.cpu_s - one.cpu_s) / other.wall_s for one, other in found])
    tell("longer by the clock", [other.wall_s / one.wall_s - 1 for one, other in found])
    assert len(list((tmp_path / "logs").glob("*/*/dstat-csv_log.txt.gz"))) == PAIRS

"""Simulated worlds, the regression seeds, and planted defects. `make interop` simulates thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.simulation import backup
from tests.simulation.defects import DEFECTS, first_found
from tests.simulation.run import replay, simulate, simulate_all
from tests.tier import tries

SEEDS = int(os.environ.get("CIML_SIMULATION_SEEDS", tries(40)))
#: Wrong orders of the passes of a copy, each with a world that showed it: a wrong hint costs only time.
ORDERS = {(2, 0, 1): 9, (1, 0, 2): 77}
_ROOT = Path(__file__).parents[2]


def regressions() -> list[int]:
    lines = (Path(__file__).parent / "regressions.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.timeout(1500)
def test_nothing_is_lost_and_nothing_twice_in_any_world() -> None:
    seeds = list(dict.fromkeys([*regressions(), *DEFECTS.values(), *range(SEEDS)]))
    wrong = [f"{result.wrong}\n    {replay(result.seed)}" for result in simulate_all(seeds) if result.wrong]
    assert wrong == []


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
@pytest.mark.timeout(1500)
def test_a_planted_defect_is_found(defect: Any) -> None:
    assert first_found(defect, 80) is not None


@pytest.mark.whole
def test_a_seed_is_one_run_in_every_process() -> None:
    command = [sys.executable, "-c", "from tests.simulation.run import simulate; print(simulate(7).digest, hash('x'))"]
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=True)
    digest, its_hash = done.stdout.split()
    assert int(its_hash) != hash("x")  # the process orders sets in another way
    assert digest == simulate(7).digest


@pytest.mark.timeout(1500)
def test_a_copy_that_is_made_under_traffic_is_whole() -> None:
    seeds = dict.fromkeys([*ORDERS.values(), *range(tries(12))])
    results = [simulate(seed, with_backup=True) for seed in seeds]
    assert [f"{result.seed}: {result.wrong}" for result in results if result.wrong] == []
    assert sum(result.copies for result in results) > len(results) / 4


@pytest.mark.timeout(1500)
def test_an_erasure_beside_ingest_leaves_no_name_and_loses_nothing_else() -> None:
    results = [simulate(seed, with_erasures=True) for seed in range(tries(20))]
    assert [f"{result.seed}: {result.wrong}" for result in results if result.wrong] == []
    assert sum(result.erased for result in results) > len(results) / 2


@pytest.mark.parametrize("order", ORDERS, ids=["objects first", "raw manifest first"])
@pytest.mark.timeout(1500)
def test_a_copy_in_another_order_is_found_to_lack_something(order: tuple[int, ...]) -> None:
    passes = tuple(backup.PASSES[number] for number in order)
    with patch.object(backup, "PASSES", passes):
        assert any("copy/" in simulate(seed, with_backup=True).wrong for seed in (ORDERS[order], *range(200)))

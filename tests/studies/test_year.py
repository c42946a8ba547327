"""The simulated year: its runs, the check of its ledger, and six weeks of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.events.records import RunFacts
from ciml.events.run_id import is_erased
from ciml.runs.latest_runs import latest_runs
from ciml.runs.state import open_raw
from ciml.services.stored.erase import read_receipts
from ciml.services.stored.examine import examine
from ciml.services.trainer import Triggers
from ciml.serving.ledger import Entry, history
from ciml.training.evaluation.gate import GatePolicy
from studies.year import ERASURE, FOREST, METHODS, Year, plot, table, unexplained_pushes
from studies.year_runs import BAD_SOURCE, DAY_US, START_US, Plan, faster, moved, year_of
from tests.transforms.samples import make_facts
from tests.transforms.samples import table as telemetry

WEEKS = 6
PLAN = Plan(
    weeks=WEEKS, label_delay_days=2, drift=2, bad=2, rollback=4, purge=5, erase=(3, 5), triggers=Triggers(new_runs=40)
)


def recorded(number: int) -> list[tuple[RunFacts, pa.Table]]:
    """Return runs of two classes, which the processor's load tells apart; their lengths do not."""
    random = np.random.default_rng(0)
    runs = []
    for index in range(number):
        name = ("hadoop", "spark")[index % 2]
        rows = int(random.integers(10, 20))
        usr = random.normal(70 if index % 2 else 30, 15, rows).clip(0, 100)
        times = [second * 1_000_000 for second in range(rows)]
        made = telemetry(times, usr=usr.tolist(), load=[float(1 + index % 2)] * rows)
        runs.append((make_facts(index, source="backfill", labels={"framework": name}, start_us=0), made))
    return runs


def test_the_year_uses_each_run_once_and_in_order_and_its_events_are_as_planned() -> None:
    runs = year_of(recorded(240), "framework", PLAN)
    assert [run.facts.run_id for run in runs] == [facts.run_id for facts, _ in recorded(240)]
    assert [run.day for run in runs] == sorted(run.day for run in runs)
    assert {run.day // 7 for run in runs} == set(range(WEEKS))
    assert all(1 <= run.stored - run.day <= 2 for run in runs)
    wrong = [run for run in runs if run.facts.labels["framework"] != run.name]
    assert {run.day // 7 for run in wrong} == {2}
    assert {run.facts.source for run in wrong} == {BAD_SOURCE}
    assert 15 < len(wrong) < 33
    assert all((run.facts.end_us or 0) - START_US < WEEKS * 7 * DAY_US for run in runs)
    first = [run.table.num_rows for run in runs if run.day < 14]
    later = [run.table.num_rows for run in runs if run.day >= 14]
    assert np.mean(later) == pytest.approx(0.6 * np.mean(first), abs=1)


def test_a_faster_machine_needs_fewer_seconds_and_has_less_load() -> None:
    before = telemetry([second * 1_000_000 for second in range(10)], usr=list(range(10)), load=[2.0] * 10)
    after = moved(faster(before, 0.5), START_US)
    assert after.column("total cpu usage:usr").to_pylist() == [0, 2, 4, 6, 8]
    assert after.column("load avg:1m").to_pylist() == [1.0] * 5
    times = after.column("time").cast(pa.int64()).to_pylist()
    assert times == [START_US + second * 1_000_000 for second in range(5)]
    assert after.schema == before.schema


def test_a_push_without_a_reason_is_found() -> None:
    trained = Entry(1, 0, "train", "c", reasons=("60 new trusted runs",))
    blessed = Entry(2, 0, "bless", "c", reasons=("better",))
    pushed = Entry(3, 0, "push", "c", 1)
    assert unexplained_pushes(iter([trained, blessed, pushed])) == []
    assert unexplained_pushes(iter([trained, pushed])) == ["push of version 1: no reason of bless"]
    unknown = Entry(1, 0, "train", "c")
    assert unexplained_pushes(iter([unknown, blessed, pushed])) == ["push of version 1: no reason of train"]
    signed = Entry(4, 0, "rollback", author="ann", reasons=("worse",))
    assert unexplained_pushes(iter([signed, Entry(5, 7, "withdraw", author="ann")])) == [
        "withdraw at 7: no author or reason"
    ]


def test_six_weeks_with_a_bad_one_a_purge_an_erasure_and_a_rollback(tmp_path: Path) -> None:
    runs = year_of(recorded(240), "framework", PLAN)
    gate = GatePolicy(min_test_runs=10, min_agreement=0.0)
    experiment = FOREST.replace(parameters={"n_estimators": 10})
    year = Year(DataRoot.open(tmp_path / "data"), runs, "framework", PLAN, experiment, gate)
    year.simulate()
    entries = list(history(year.registry))
    actions = [entry.action for entry in entries]
    assert actions.count("push") >= 3
    assert {"withdraw", "rollback"} <= set(actions)
    reasons = [entry.reasons[0] for entry in entries if entry.action == "train"]
    assert reasons[0].endswith("new trusted runs")
    assert {"purge: wrong labels", f"purge: {ERASURE}"} <= set(reasons)
    days = [(entry.time_us - START_US) // DAY_US for entry in entries]
    assert days == sorted(days)
    assert 0 <= days[0] <= days[-1] < WEEKS * 7
    receipts = read_receipts(year.data)
    assert [len(receipt.runs) > 0 for receipt in receipts] == [True, True]
    stored = [run.facts for run in latest_runs(*open_raw(year.data.raw))]
    erased = {facts.run_id for facts in stored if is_erased(facts.run_id)}
    assert erased == {run_id for receipt in receipts for run_id in receipt.runs}
    assert len(stored) == len([run for run in runs if run.stored < WEEKS * 7])
    assert not examine(year.data).broken.total()
    result = json.loads(json.dumps(year.result()))
    answered = np.array(result["answers"]["champion"]) >= 0
    assert answered.sum() > 100
    text = table({"six weeks": result})
    assert all(f"| six weeks | {name} |" in text for name in METHODS.values())
    assert plot(result).png.startswith(b"\x89PNG")

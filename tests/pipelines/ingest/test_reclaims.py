"""Reclaimed runs in data sets: the trusted row takes the place of the untrusted one, sealed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.events.records import Message, RunFacts
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.pipelines.ingest.committer import render_runs
from ciml.runs.verify import verify_raw
from ciml.serving.predict.log import prediction_id
from ciml.serving.predict.predictor import read_announcement
from ciml.transforms.examples.spans import read_span
from tests.pipelines.datasets.dataset_scenes import define, resolved_of, run_ids, runs, telemetry
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.tier import tries
from tests.transforms.samples import make_examples, make_facts


def claim(number: int, **facts: Any) -> tuple[RunFacts, pa.Table]:
    return make_facts(number, outcome="success", result="SUCCESS", pipeline="check", **facts), telemetry(number + 50)


def reclaim(number: int, outcome: str = "failure", **facts: Any) -> tuple[RunFacts, pa.Table]:
    run = make_facts(number, outcome=outcome, result=outcome.upper(), pipeline="gate", **facts)
    return run, telemetry(number)


def direct(data: DataRoot, rows: list[tuple[RunFacts, pa.Table]], name: str = "cpu") -> pa.Table:
    resolved = resolved_of(data.dataset(name).state())
    table = make_examples([facts for facts, _ in rows], [each for _, each in rows], resolved).table
    return _facts(table)


def _facts(table: pa.Table) -> pa.Table:
    """The examples without the producer's word, which a correction that changes no label leaves as it was."""
    return table.drop_columns(["result"] if "result" in table.column_names else []).sort_by("run_id")


def stored(data: DataRoot, name: str = "cpu") -> pa.Table:
    root = data.dataset(name).store
    return _facts(pa.concat_tables([read_span(root, span) for span in data.dataset(name).state().latest()]))


def test_a_run_that_is_of_another_job_leaves_the_data_set_and_comes_to_that_jobs(data: DataRoot, raw: RawStore) -> None:
    define(data, build_name=["unit"])
    define(data, "docs", build_name=["docs"], span_runs=1)
    raw.add([claim(1, build_name="unit")], trust=UNTRUSTED)
    raw.add(runs(2, 4, build_name="unit"))
    (span,) = update_dataset(data.dataset("cpu")).sealed
    assert len(span.runs) == 4
    raw.add(runs(9, 9, build_name="docs"), reclaims=[reclaim(1, build_name="docs")])
    (again,) = update_dataset(data.dataset("cpu")).sealed
    assert ([run.run_id.split("~")[1] for run in again.runs], [dict(each)["reason"] for each in again.excluded]) == (
        ["2", "3", "4"], ["other_job"],
    )  # fmt: skip
    update_dataset(data.dataset("docs"))
    assert run_ids(data.dataset("docs").state()) == [["9"], ["1"]]
    assert update_dataset(data.dataset("docs")).sealed == ()
    assert verify_dataset(data.dataset("cpu")) == verify_dataset(data.dataset("docs")) == []


@dataclass
class Known:
    """A run as it has to be."""

    facts: RunFacts
    table: pa.Table
    trusted: bool


OUTCOMES = st.sampled_from(["success", "failure", "error"])


@settings(max_examples=tries(40))
@given(
    deltas=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.booleans(),
            st.lists(
                st.tuples(st.integers(1, 12), st.sampled_from(["success", "failure", "error"]), st.booleans()),
                max_size=3,
            ),
            st.lists(st.integers(1, 12), unique=True, max_size=2),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_whenever_updates_happen_the_examples_are_those_of_the_last_rows_and_trusted_words(
    tmp_path_factory: pytest.TempPathFactory, deltas: list[tuple[int, bool, list[Any], list[int], bool]]
) -> None:
    data = DataRoot.open(tmp_path_factory.mktemp("data"))
    raw = RawStore(data)
    define(data)
    known: dict[int, Known] = {}
    for count, trusted, fixes, reclaims, update in deltas:
        fresh = [(claim, reclaim)[trusted](len(known) + 1 + at) for at in range(count)]
        taken = [number for number in reclaims if number in known and not known[number].trusted]
        known |= {int(facts.build_uuid): Known(facts, each, trusted) for facts, each in fresh}
        raw.add(fresh, trust=TRUSTED if trusted else UNTRUSTED, reclaims=[reclaim(number) for number in taken])
        known |= {number: Known(*reclaim(number), True) for number in taken}
        for number, outcome, said in fixes:
            if number in known:
                raw.add(corrections=[make_facts(number, outcome=outcome)], trust=TRUSTED if said else UNTRUSTED)
                if said or not known[number].trusted:
                    known[number].facts = known[number].facts.replace(outcome=outcome, result="")
        if update:
            update_dataset(data.dataset("cpu"))
    if not known:
        return
    update_dataset(data.dataset("cpu"), seal=True)
    update_dataset(data.dataset("cpu"))  # sealing takes in changes of what it seals; those of other spans follow
    rows = [(each.facts, each.table) for each in known.values()]
    assert stored(data).equals(direct(data, rows))
    assert verify_dataset(data.dataset("cpu")) == []
    version = sum(1 for _ in raw.log.since(0))
    pinned = DatasetDefinition.from_json(
        {"name": "pinned", "max_windows": 4, "span_runs": 4, "slicer": ":", "raw_version": version}
    )
    create_dataset(data, pinned)
    update_dataset(data.dataset("pinned"))
    assert stored(data, "pinned").equals(direct(data, rows, "pinned"))
    assert verify_dataset(data.dataset("pinned")) == []


def test_a_reclaimed_run_is_announced_and_predicted_again(raw: RawStore) -> None:
    raw.add([claim(1)], trust=UNTRUSTED)
    raw.add(runs(2, 2), reclaims=[reclaim(1)])
    found = verify_raw(raw.store)
    assert (found.findings, found.runs) == ([], 2)
    announced = [
        read_announcement(Message(0, value, (), key))
        for _, delta in raw.log.since(0)
        for key, value, _ in render_runs(delta)
    ]
    assert [each.run_id.split("~")[1] for each in announced] == ["1", "2", "1"]
    assert [each.facts for each in announced] == [claim(1)[0], runs(2, 2)[0][0], reclaim(1)[0]]
    assert [each.reclaim[:16] for each in announced] == ["", "", announced[2].path.split(".")[-2]]
    ids = [prediction_id(each.run_id, "m", 1, each.reclaim) for each in announced]
    assert len(set(ids)) == 3
    assert ids[0] == prediction_id(announced[0].run_id, "m", 1)

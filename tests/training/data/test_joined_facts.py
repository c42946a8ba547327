"""Facts that come later than their run: the next snapshot trusts by them, and no run changes its split."""

from __future__ import annotations

import json
from functools import partial

import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.digest import canonical_json
from ciml.events.records import Batch, FactUpdate, OffsetRange, Origin, Outcome, RunFacts
from ciml.pipelines.datasets.update import create_dataset, update_dataset, verify_dataset
from ciml.runs.accounting import reconcile
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from ciml.training.data.examples import read_dataset
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.exclusions import Exclusion, Exclusions
from ciml.transforms.examples.prepare import split_of
from ciml.trust import TrustPolicy, evaluate
from tests.pipelines.datasets.dataset_scenes import telemetry
from tests.runs.scenes import RawStore
from tests.transforms.samples import make_facts

POLICY = TrustPolicy.parse(
    '[[rule]]\nname = "forks"\ntrusted = false\nfork = ["yes"]\n'
    '[[rule]]\nname = "reviewed"\ntrusted = true\nauth = ["ssh"]\nreview = ["approved", "merged"]\n'
)
RUNS = 24


class Source:
    """Commits runs and updates as ingest does."""

    def __init__(self, data: DataRoot) -> None:
        self.data, self.raw, self.offset = data, RawStore(data), 0

    def commit(self, *said: RunFacts | FactUpdate) -> None:
        log, state = open_raw(self.data.raw)
        first = self.offset
        settled = [self._outcome(each) for each in said]
        covers = OffsetRange("t", "T", 0, first, self.offset)
        delta = reconcile(state, [Batch(covers, settled=settled)], 1, partial(evaluate, POLICY))
        assert log.try_append(state.version + 1, json.loads(canonical_json(delta)))

    def _outcome(self, said: RunFacts | FactUpdate) -> Outcome:
        origin = Origin("t", 0, self.offset)
        self.offset += 1
        if isinstance(said, FactUpdate):
            return Outcome("update", origin, f"zuul u{origin.offset}", updates=(said,))
        file = self.raw.write(said, telemetry(int(said.build_uuid)))
        return Outcome("run", origin, f"zuul {origin.offset}", said, trust=evaluate(POLICY, said), file=file)


def says(subject: str, **facts: str) -> FactUpdate:
    return FactUpdate("zuul", subject, facts, "ssh", 1)


def facts(number: int) -> RunFacts:
    return make_facts(number, auth="ssh", change="", subjects=(f"change:{number}", "all"), owner="o", head="h", url="u")


def define(data: DataRoot, name: str) -> None:
    create_dataset(data, DatasetDefinition(name=name, sample_interval="1s", max_windows=4, span_runs=RUNS))
    update_dataset(data.dataset(name))


def splits(data: DataRoot, name: str = "cpu") -> dict[str, str]:
    return {run.run_id: run.split for span in data.dataset(name).state().latest() for run in span.runs}


@pytest.fixture
def source(data: DataRoot) -> Source:
    made = Source(data)
    made.commit(says("change:1", change="c1"), *(facts(number) for number in range(1, 5)))
    made.commit(says("change:5", review="approved"), *(says(f"change:{n}", change=f"c{n}") for n in range(5, RUNS + 1)))
    made.commit(*(facts(number) for number in range(5, RUNS + 1)))
    define(data, "cpu")
    return made


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRoot:
    return DataRoot.open(tmp_path_factory.mktemp("data"))


def snapshot(data: DataRoot) -> Snapshot:
    made = make_snapshot(data.dataset("cpu"), POLICY)
    in_memory = read_dataset(data.dataset("cpu"), POLICY).snapshot
    assert in_memory.to_json() == made.to_json()
    return made


def numbers(made: Snapshot) -> set[int]:
    return {int(run.run_id.split("~")[1]) for run in made.runs()}


def test_updates_after_a_span_was_sealed_count_in_the_next_snapshot(data: DataRoot, source: Source) -> None:
    assert numbers(snapshot(data)) == {5}
    source.commit(says("all", review="approved"))
    everyone = snapshot(data)
    assert numbers(everyone) == set(range(1, RUNS + 1))
    source.commit(says("change:7", fork="yes"))
    lowered = snapshot(data)
    assert numbers(lowered) == set(range(1, RUNS + 1)) - {7}
    assert lowered.untrusted == {"forks": 1}
    roles = {run.run_id: (run.split, run.role) for run in everyone.runs()}
    assert {run.run_id: (run.split, run.role) for run in lowered.runs()} == {
        run_id: roles[run_id] for run_id in roles if "~7~" not in run_id
    }
    assert update_dataset(data.dataset("cpu")).sealed == ()
    assert verify_dataset(data.dataset("cpu")) == []
    assert verify_raw(data.raw).findings == []


def test_a_fact_that_comes_later_excludes_its_run(data: DataRoot, source: Source) -> None:
    """The branch of a run is told by another event, after the run was stored and its span was sealed."""
    source.commit(says("all", review="approved"), says("change:7", branch="wild"))
    made = make_snapshot(data.dataset("cpu"), POLICY, Exclusions((Exclusion("bad branch", branch="wild"),)))
    assert numbers(made) == set(range(1, RUNS + 1)) - {7}
    assert made.excluded == {"bad branch": 1}


def test_a_known_change_decides_the_split_and_a_later_one_moves_nothing(data: DataRoot, source: Source) -> None:
    definition = data.dataset("cpu").state().definition
    assert definition is not None
    before = splits(data)
    expected, by_run, roles = {}, {}, {}
    for number in range(1, RUNS + 1):
        own, weights, salt = facts(number), definition.tdt_split, definition.salt
        change = f"c{number}" if number >= 5 else ""  # that of run 1 came in the same delta: a later one than its row
        expected[own.run_id] = split_of(own.project, change, own.run_id, salt, weights)
        by_run[own.run_id] = split_of(own.project, "", own.run_id, salt, weights)
        roles[own.run_id] = split_of(own.project, change, own.run_id, f"{salt}\0dev", (17, 3, 0))
    assert before == expected != by_run
    source.commit(says("all", change="99", review="approved", project="other"))
    made = snapshot(data)
    assert {run.run_id: run.split for run in made.runs()} == before
    assert {run.run_id: run.role for run in made.runs() if run.split == "train"} == {
        run_id: role for run_id, role in roles.items() if before[run_id] == "train"
    }
    assert "dev" in roles.values()
    update_dataset(data.dataset("cpu"))
    define(data, "again")  # rebuilt from the same raw store, after the update
    assert splits(data) == splits(data, "again") == before


def test_a_correction_of_a_run_that_lost_its_trust_reaches_its_span(data: DataRoot, source: Source) -> None:
    source.commit(facts(40).replace(review="approved"))
    source.commit(*(facts(number) for number in range(50, 50 + RUNS - 1)))
    update_dataset(data.dataset("cpu"))
    source.commit(says("change:40", fork="yes"))
    update_dataset(data.dataset("cpu"))
    source.commit(facts(40).replace(outcome="failure", result="FAILURE"))
    update_dataset(data.dataset("cpu"))
    (run,) = (run for span in data.dataset("cpu").state().latest() for run in span.runs if "~40~" in run.run_id)
    known = open_raw(data.raw)[1].index.run(run.run_id)
    assert known is not None
    assert (known.outcome, run.label_name) == ("failure", "failed")

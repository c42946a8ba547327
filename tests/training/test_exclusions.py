"""Stored exclusions: never lost, never twice; honoured by snapshots until they are reverted."""

from __future__ import annotations

import multiprocessing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset
from ciml.storage import Store
from ciml.training.data.examples import read_dataset
from ciml.training.data.snapshot import Snapshot, make_snapshot
from ciml.training.exclusions import Exclusion, Exclusions, add, exclusions_of, read_lines, read_state, revert
from ciml.training.experiment import Experiment, refresh_key
from ciml.training.refresh import Skipped, TrainConfig, refresh
from ciml.trust import TrustPolicy
from tests.training.records import excluding

JOB, RUN = Exclusion("bad mirror", job="tempest-*"), Exclusion("disk was full", "zuul~a~1")
OF_ANN = Exclusion("theirs", owner="ann")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return DataRoot.open(tmp_path).exclusions


def active(store: Store) -> list[int]:
    return [kept.id for kept in read_state(store).active()]


def test_additions_have_ids_and_reverts_leave_them(store: Store, tmp_path: Path) -> None:
    added = [(kept.id, kept.exclusion, kept.time_us) for kept in add(store, [JOB, RUN], now_us=5)]
    assert added == [(1, JOB, 5), (2, RUN, 5)]
    (again,) = add(store, [RUN], now_us=6)
    assert (again.id, again.time_us, read_state(store).version) == (2, 5, 1)
    (reverted,) = revert(store, [2, 2], now_us=7)  # one number twice is one revert
    assert (reverted.id, reverted.exclusion, active(store)) == (2, RUN, [1])
    first, second = add(store, [RUN, RUN], now_us=8)  # one exclusion twice is stored once
    assert first.id == second.id == 3
    kept = read_state(store).by_id
    assert [(one.id, one.reverted_us) for one in kept.values()] == [(1, None), (2, 7), (3, None)]
    described = {"id": 2, "reason": "disk was full", "run_id": "zuul~a~1", "time_us": 5, "author": "", "reverted_us": 7}
    described |= {"reverted_by": "", "revert_reason": ""}
    assert kept[2].to_json() == described
    assert exclusions_of(DataRoot.open(tmp_path), DataRoot.open(tmp_path)).exclusions == (JOB, RUN)


def test_who_excluded_and_who_reverted_is_stored(store: Store) -> None:
    add(store, [JOB], author="ann")
    revert(store, [1], author="bob", reason="the mirror was good")
    (kept,) = read_state(store).by_id.values()
    assert (kept.author, kept.reverted_by, kept.revert_reason) == ("ann", "bob", "the mirror was good")


def test_what_older_versions_stored_has_no_author(store: Store) -> None:
    assert ManifestLog(store).try_append(1, {"kind": "exclude", "time_us": 1, "exclusions": [RUN.to_json()]})
    assert ManifestLog(store).try_append(2, {"kind": "revert", "time_us": 2, "ids": [1]})
    (kept,) = read_state(store).by_id.values()
    assert (kept.exclusion, kept.author, kept.reverted_us, kept.reverted_by) == (RUN, "", 2, "")


@pytest.mark.parametrize(
    ("exclusions", "kind"), [([JOB], "exclude"), ([OF_ANN], "exclude_by"), ([JOB, OF_ANN], "exclude_by")]
)
def test_older_versions_stop_at_fields_that_they_do_not_know(
    store: Store, exclusions: list[Exclusion], kind: str
) -> None:
    add(store, exclusions)
    assert ManifestLog(store).read(1)["kind"] == kind
    assert [kept.exclusion for kept in read_state(store).active()] == exclusions


def test_an_invalid_change_stores_nothing(store: Store) -> None:
    with pytest.raises(CimlError, match="reason: is empty"):
        add(store, [RUN, Exclusion("", job="unit")])
    assert add(store, []) == []
    assert store.list() == []
    add(store, [JOB, RUN])
    revert(store, [2])
    for ids, line in (([9], "exclusion 9: unknown; in force: 1"), ([1, 2], "2: reverted already")):
        with pytest.raises(CimlError, match=line):
            revert(store, ids)
    assert active(store) == [1]


@pytest.mark.parametrize(
    "delta", [{"kind": "exclude", "exclusions": [{"reason": 1}]}, {"kind": "revert", "ids": [1]}, {"kind": "forget"}]
)
def test_a_contradicting_delta_is_reported(store: Store, delta: dict[str, Any]) -> None:
    assert ManifestLog(store).try_append(1, {"time_us": 1, **delta})
    with pytest.raises(IntegrityError, match="exclusions: version 1"):
        read_state(store)


def _exclude(path: str, name: str, start: Any) -> None:
    start.wait()
    for number in range(20):
        add(DataRoot.open(path).exclusions, [Exclusion("race", f"zuul~{name}-{number}~1")])


def test_two_processes_that_exclude_at_once_are_both_stored(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=_exclude, args=(str(tmp_path), name, start)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    state = read_state(store)
    assert (len(state.by_id), state.version) == (40, 40)
    expected = {f"zuul~{name}-{number}~1" for name in "ab" for number in range(20)}
    assert {kept.exclusion.run_id for kept in state.active()} == expected


def test_a_job_is_in_no_later_snapshot_until_its_exclusion_is_reverted(data: DataRoot, snapshot: Snapshot) -> None:
    dataset, policy, experiment = data.dataset("providers"), TrustPolicy.load(), Experiment()
    jobs = sorted({run.build_name for run in snapshot.runs()})
    assert len(jobs) > 1
    spans = dataset.state().latest()
    of_the_job = sum(run.build_name == jobs[0] for span in spans for run in span.runs)  # untrusted ones too
    (kept,) = add(data.exclusions, [Exclusion("bad mirror", job=jobs[0])])

    def next_refresh() -> Snapshot:
        """Of `ciml refresh`: it stops before training where it expects the same."""
        key = refresh_key(make_snapshot(dataset, policy).digest, experiment)
        found = refresh(TrainConfig(data, "providers", "m", experiment), last_key=key)
        assert isinstance(found, Skipped)
        return found.snapshot

    trained = read_dataset(dataset, policy)  # of `ciml experiment train` and sweeps
    for found in (next_refresh(), trained.snapshot):
        assert {run.build_name for run in found.runs()} == set(jobs[1:])
        assert found.excluded == {"bad mirror": of_the_job}
        assert found.digest != snapshot.digest
    assert {facts.build_name for facts in trained.facts} == set(jobs[1:])
    revert(data.exclusions, [kept.id])
    assert next_refresh() == read_dataset(dataset, policy).snapshot == snapshot


def test_exclusions_of_the_raw_stores_data_root_count_too(data: DataRoot, tmp_path: Path) -> None:
    other = DataRoot.open(tmp_path / "other")
    definition = data.dataset("providers").state().definition
    assert definition is not None
    build_dataset(data, other, definition)
    before = make_snapshot(other.dataset("providers"), TrustPolicy.load())
    one, two = [run.run_id for run in before.runs()][:2]
    add(data.exclusions, [Exclusion("raw", one)])
    add(other.exclusions, [Exclusion("own", two)])
    after = make_snapshot(other.dataset("providers"), TrustPolicy.load())
    assert after.excluded == {"raw": 1, "own": 1}
    assert {run.run_id for run in before.runs()} - {run.run_id for run in after.runs()} == {one, two}


TIMES = st.none() | st.integers(0, 12)
FACTS = st.builds(
    RunFacts,
    run_id=st.sampled_from(["zuul~a~1", "zuul~b~1", "github~a~1"]),
    build_uuid=st.just("a"),
    build_name=st.sampled_from(["unit", "unit-py3", "lint", ""]),
    source=st.sampled_from(["", "zuul", "jenkins"]),
    project=st.sampled_from(["", "nova", "nova-fork"]),
    branch=st.sampled_from(["", "main", "stable/x"]),
    owner=st.sampled_from(["", "ann"]),
    change=st.sampled_from(["", "7"]),
    start_us=TIMES,
    end_us=TIMES,
)
BY_RULE = st.builds(
    lambda length, **fields: Exclusion(until_us=length and (fields["since_us"] or 0) + length, **fields),
    length=st.none() | st.integers(1, 5),
    reason=st.sampled_from(["first", "second", "third"]),
    job=st.sampled_from(["", "unit", "unit*", "*"]),
    source=st.sampled_from(["", "zuul", "github"]),
    project=st.sampled_from(["", "", "nova", "nova*"]),
    branch=st.sampled_from(["", "", "main", "stable/*"]),
    owner=st.sampled_from(["", "", "ann", "bob"]),
    change=st.sampled_from(["", "", "7"]),
    since_us=st.none() | st.integers(0, 8),
).filter(lambda one: one.until_us is None or one.since_us is not None)
BY_RUN = st.builds(
    Exclusion, reason=st.sampled_from(["a leak", "this run"]), run_id=st.sampled_from(["zuul~a~1", "github~a~1"])
)


def plainly(one: Exclusion, facts: RunFacts) -> bool:
    if one.run_id:
        return one.run_id == facts.run_id
    times = [each for each in (facts.start_us, facts.end_us) if each is not None]
    instants = range(min(times), max(times) + 1) if times else ()  # at which a run is known to have run
    within = [at for at in instants if one.until_us is None or at < one.until_us]
    is_source = not one.source or (facts.source or facts.run_id.split("~")[0]) == one.source
    is_in_time = one.since_us is None or any(at >= one.since_us for at in within)
    globs = ((facts.build_name, one.job), (facts.project, one.project), (facts.branch, one.branch))
    is_named = all(fnmatchcase(text, glob or "*") for text, glob in globs)
    is_theirs = one.owner in ("", facts.owner) and one.change in ("", facts.change)
    return is_named and is_theirs and is_source and is_in_time


@given(BY_RULE | BY_RUN, FACTS.filter(lambda one: None in (one.start_us, one.end_us) or one.start_us <= one.end_us))
def test_an_exclusion_matches_what_its_fields_say(one: Exclusion, facts: RunFacts) -> None:
    assert one.matches(facts) == plainly(one, facts)


@example([Exclusion("a leak", "zuul~a~1"), Exclusion("this run", "zuul~a~1")], RunFacts("zuul~a~1", "a"))
@given(st.lists(BY_RULE | BY_RUN, max_size=6), FACTS)
def test_the_first_match_gives_the_reason_that_of_a_single_run_before_others(
    several: list[Exclusion], facts: RunFacts
) -> None:
    matching = [one for one in several if one.matches(facts)]
    matching.sort(key=lambda one: not one.run_id)  # stable
    assert Exclusions(tuple(several)).reason(facts) == (matching[0].reason if matching else None)
    assert bool(Exclusions(tuple(several))) == bool(several)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"run_id": "zuul~a~1", "reason": " "}, "reason: is empty"),
        ({}, "names no runs; give a run, a time since when, or one of job, project, branch, source, owner, change"),
        ({"run_id": "zuul~a~1", "job": "unit"}, "run: cannot be combined with others"),
        ({"run_id": "zuul~a~1", "since_us": 0}, "run: cannot be combined with others"),
        ({"run_id": "zuul~a~1", "owner": "ann"}, "run: cannot be combined with others"),
        ({"job": "unit", "until_us": 5}, "until: want a time after since"),
        ({"since_us": 5, "until_us": 5}, "until: want a time after since"),
        ({"job": "a\nb"}, r"job: 'a\\nb' is not one printable line"),
        ({"job": "a" * 1025}, "of at most 1024 characters"),
    ],
)
def test_an_invalid_exclusion_is_one_line(fields: dict, line: str) -> None:
    with pytest.raises(CimlError, match=line):
        Exclusion(**{"reason": "why", **fields}).check()


def test_valid_ones_are_described() -> None:
    since, until = 1_767_225_600_000_000, 1_767_225_600_500_000
    for exclusion, text in (
        (Exclusion("why", "zuul~a~1"), "run zuul~a~1"),
        (Exclusion("why", job="unit*", source="zuul"), "job unit*, source zuul"),
        (Exclusion("why", project="nova", owner="ann", change="7"), "project nova, owner ann, change 7"),
        (Exclusion("why", since_us=since, until_us=until),
         "since 2026-01-01T00:00:00Z, until 2026-01-01T00:00:00.500000Z"),
    ):  # fmt: skip
        assert exclusion.check().describe() == text


def test_a_file_holds_a_run_a_line(tmp_path: Path) -> None:
    path = tmp_path / "excluded"
    path.write_text("# purged\nzuul~a~1 a leak\n\n  zuul~b~1\n")
    assert read_lines(str(path)) == (Exclusion("a leak", "zuul~a~1"), Exclusion("excluded", "zuul~b~1"))
    assert read_lines(None) == ()
    path.write_text("zuul~a~1\nzuul~b~1 a\x1bb\n")
    with pytest.raises(CimlError, match=f"--exclude {path}, line 2: exclusion: reason: "):
        read_lines(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(CimlError, match=f"--exclude {path}: cannot be read"):
        read_lines(str(path))


def test_json_of_single_runs_is_as_before() -> None:
    assert Exclusions().to_json() == {}
    assert excluding({"zuul~a~1": "a leak"}).to_json() == {"zuul~a~1": "a leak"}
    assert Exclusions((Exclusion("why", job="unit"),)).to_json() == [{"reason": "why", "job": "unit"}]

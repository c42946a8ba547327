"""After an erasure, no byte of a data root names the person or the runs; all else is as it was, and verified."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.digest import sha256_json
from ciml.errors import CimlError
from ciml.events.payloads import payload_of
from ciml.events.records import Batch, FactUpdate, Message, OffsetRange, Origin, Outcome
from ciml.events.run_id import erased_id, is_erased
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets.build import build_dataset, remove_dataset
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.compact import compact
from ciml.runs.erased import RunCriteria
from ciml.runs.reader import read_run
from ciml.runs.state import open_raw
from ciml.services.stored import erase as erase_module
from ciml.services.stored import erasure_steps
from ciml.services.stored.erase import count_runs, erase, read_plan, read_receipts
from ciml.services.stored.names import erased_native
from ciml.serving.predict.log import read_predictions
from ciml.serving.registry import Signature
from ciml.storage import LocalStore
from ciml.training.data.snapshot import make_snapshot, read_snapshot, write_snapshot
from ciml.training.exclusions import Exclusion, add
from ciml.trust import TrustPolicy
from ciml.verdicts.signatures.notes import Note, add_note
from tests.durable import Steps
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.services.stored import every_kind
from tests.services.stored.person import (
    NAMES,
    NATIVE,
    OTHER,
    OWNER,
    RUNS,
    WAITING,
    broken,
    copy,
    left,
    make_world,
    others,
    read_all,
    stored,
)
from tests.transforms.samples import corpus

GOLDEN = Path(__file__).parents[2] / "golden"
SIGNED = Signature("ann", "request 17")
BY_OWNER = RunCriteria(owner=OWNER)
TRUSTED = TrustPolicy.parse('[[rule]]\nname = "all"\ntrusted = true\nsource = ["*"]\n')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    data = make_world(tmp_path_factory.mktemp("world"))
    assert not broken(data)
    return LocalStore(data.url)


@pytest.fixture
def data(world: LocalStore, tmp_path: Path) -> DataRoot:
    data = DataRoot.open(tmp_path / "data")
    copy(world, data.store)
    return data


def commit(data: DataRoot, *outcomes: Outcome) -> None:
    """Commit outcomes of the messages of another topic."""
    covers = OffsetRange("later", "X", 0, 0, len(outcomes))
    Committer(data.raw).commit([Batch(covers, settled=list(outcomes))])


def test_nothing_names_the_person_or_the_runs(world: LocalStore, anywhere: DataRoot) -> None:
    data = anywhere
    copy(world, data.store)
    before = others(data)
    counts = open_raw(data.raw)[1].totals()
    predictions = [one["id"] for one in read_predictions(data.predictions)]
    assert {word for _, word in left(data.store, *NAMES)} == set(NAMES)
    assert count_runs(data, BY_OWNER) == 5
    with Steps(data.url).recording() as steps:
        (erased,) = erase(data, BY_OWNER, SIGNED)
    # Events are ignored before anything is removed, and the plan is there until the receipt is.
    assert steps.steps[:2] == ["create erasures/plan.json", "append raw: closes erases ignored"]
    assert steps.steps[-2:] == ["append erasures: erased", "delete erasures/plan.json"]
    assert left(data.store, *NAMES) == []
    assert erased.remaining == ()
    assert broken(data) == {}
    # What is compressed was searched too.
    assert erased.receipt.searched_bytes > sum(entry.size for entry in data.store.entries())
    assert others(data) == before
    after = open_raw(data.raw)[1].totals()
    # A message that waited for its log, or failed, is ignored now.
    assert sum(after.values()) == sum(counts.values())
    assert after["run"] == counts["run"]
    assert len(predictions) - len(list(read_predictions(data.predictions))) == 3
    assert erased.receipt == read_receipts(data)[-1]
    assert erased.receipt.runs == tuple(sorted(map(erased_id, (*RUNS, WAITING))))
    assert read_plan(data) is None
    assert list(erase(data, BY_OWNER, SIGNED)) == []


@pytest.mark.parametrize(
    ("facts", "criteria"),
    [({"owner": OWNER}, BY_OWNER), ({"start_us": None, "end_us": None}, RunCriteria(before_us=1 << 62))],
    ids=["by owner", "by time, without times"],
)
def test_events_of_an_erased_run_that_come_again_are_ignored(
    data: DataRoot, facts: dict[str, Any], criteria: RunCriteria
) -> None:
    runs, tables, _ = corpus(1)
    run = runs[0].replace(run_id="zuul~again~1", **facts)
    RawStore(data).add([(run, tables[0])])
    list(erase(data, criteria, SIGNED))
    before = len(stored(data))
    commit(data, Outcome("ignored", Origin("later", 0, 0), "zuul again", run, reason="not_finished"))
    delta = ManifestLog(data.raw).read(ManifestLog(data.raw).end())
    assert [record["reason"] for record in delta["ignored"]] == ["erased"]
    assert left(data.store, run.run_id) == []
    assert len(stored(data)) == before
    assert broken(data) == {}


def test_an_account_without_runs_is_erased_from_reviews_and_notes(data: DataRoot) -> None:
    add_note(data.failures, Note("abc", "only.reviews", text="mirror down"), now_us=4)
    (erased,) = erase(data, RunCriteria(owner="only.reviews"), SIGNED)
    assert (erased.receipt.runs, erased.remaining) == ((), ())
    assert left(data.store, "only.reviews") == []
    assert broken(data) == {}
    assert list(erase(data, RunCriteria(owner="only.reviews"), SIGNED)) == []


def with_updates(data: DataRoot) -> None:
    """Add a run of each of three changes, its second subject. Updates give two to dave; the last one executes one."""
    facts, tables, _ = corpus(3)
    subjects = [f"change:{number}" for number in (80, 81, 82)]
    both = [("topic:t", subject) for subject in subjects]
    changes = [one.replace(source="zuul", subjects=each) for one, each in zip(facts, both, strict=True)]
    RawStore(data).add(
        [(one.replace(run_id=f"zuul~s{number}~1"), tables[number]) for number, one in enumerate(changes)]
    )
    updates = tuple(FactUpdate("zuul", subject, {"owner": "dave"}) for subject in subjects[:2])
    parents = FactUpdate("zuul", subjects[2], {"parents": subjects[1]})
    commit(data, Outcome("update", Origin("later", 0, 0), "zuul later", updates=(*updates, parents)))


@pytest.mark.parametrize(
    ("criteria", "parts", "remaining"),
    [
        ({}, [1, 1], 0),
        ({"run_id": "zuul~s1~1"}, [1], 1),
        ({"before_us": 1}, [0], 2),  # the account is named
        ({"run_id": "zuul~s2~1"}, [0], 2),
    ],
)
def test_runs_that_an_update_gave_an_owner(
    data: DataRoot, monkeypatch: pytest.MonkeyPatch, criteria: Any, parts: list[int], remaining: int
) -> None:
    """They must match the other criteria, and are found until the last one is erased."""
    monkeypatch.setattr(erase_module, "MOST_RUNS", 1)
    with_updates(data)
    asked = RunCriteria(owner="dave", **criteria)
    assert count_runs(data, asked) == sum(parts)
    assert [len(erased.receipt.runs) for erased in erase(data, asked, SIGNED)] == parts
    assert count_runs(data, RunCriteria(owner="dave")) == remaining
    assert bool(left(data.store, "dave")) is bool(remaining)
    assert broken(data) == {}


def test_runs_whose_change_an_update_names(data: DataRoot) -> None:
    facts, tables, _ = corpus(1)
    run = facts[0].replace(run_id="zuul~pushed~1", source="zuul", subjects=("sha:1", "topic:t"))
    RawStore(data).add([(run, tables[0])])
    update = FactUpdate("zuul", "topic:t", {"change": "90", "project": "p"})
    commit(data, Outcome("update", Origin("later", 0, 0), "zuul later", updates=(update,)))
    assert [len(erased.receipt.runs) for erased in erase(data, RunCriteria(change="90", project="p"), SIGNED)] == [1]
    assert left(data.store, "zuul~pushed~1") == []


def test_another_run_may_name_an_erased_one_or_have_its_native_id(data: DataRoot) -> None:
    """Its facts lose the name; the run itself stays, such as a second attempt of the same native id."""
    facts, tables, _ = corpus(3)
    naming = facts[0].replace(
        run_id="zuul~naming~1", build_uuid="naming", source="zuul", auth="x", attempt_of=NATIVE,
        log_url=f"https://logs/{NATIVE}", subjects=(f"set:{RUNS[1]}",),
    )  # fmt: skip
    native = "5" * 32
    mine, second = (
        one.replace(run_id=f"zuul~{native}~{attempt}", build_uuid=native, source="zuul", owner=owner)
        for attempt, (one, owner) in enumerate(zip(facts[1:], (OWNER, "bob"), strict=True), 1)
    )
    RawStore(data).add([(naming, tables[0]), (mine, tables[1]), (second, tables[2])], outputs={second.run_id: b"x\n"})
    before = others(data)
    (erased,) = erase(data, BY_OWNER, SIGNED)
    assert erased.remaining == ()
    assert left(data.store, *NAMES, mine.run_id) == []
    after = others(data)
    assert after[second.run_id] == before[second.run_id]
    (run,) = [run.own for run in stored(data) if run.facts.run_id == "zuul~naming~1"]
    assert (run.attempt_of, run.subjects) == (erased_native(NATIVE), (f"set:{erased_id(RUNS[1])}",))
    assert after.keys() == before.keys() - {mine.run_id}
    assert broken(data) == {}


def test_only_the_row_that_counts_names_the_owner_and_the_time_of_a_run(data: DataRoot) -> None:
    """Events that are believed less are those of anybody: they lose the name, and the run stays."""
    facts, tables, _ = corpus(2)
    mine = facts[0].replace(run_id="zuul~mine~1", source="zuul", owner="bob", auth="hmac")
    forged = mine.replace(owner="carol", auth="", start_us=1, end_us=2)
    RawStore(data).add([(forged, tables[0])], trust=UNTRUSTED)
    RawStore(data).add(reclaims=[(mine, tables[0])])
    payload = payload_of(Message(0, b"of carol", (), timestamp_ms=7))
    commit(
        data,
        Outcome("ignored", Origin("later", 0, 0), "later 0", forged, reason="not_finished"),
        Outcome("dead_letter", Origin("later", 0, 1), "later 1", forged, reason="bad_log", payload=payload),
    )
    before = others(data)
    assert count_runs(data, RunCriteria(before_us=3)) == 0
    assert count_runs(data, RunCriteria(owner="carol")) == 0
    (erased,) = erase(data, RunCriteria(owner="carol"), SIGNED)
    assert (erased.receipt.runs, erased.remaining) == ((), ())
    assert left(data.store, "carol", base64.b64encode(b"of carol").decode()) == []
    assert others(data) == before
    assert broken(data) == {}


def test_many_runs_are_erased_in_parts(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase_module, "MOST_RUNS", 2)
    bookmarks = ((data.predictions, "_neighbours"), (data.failures, "_signatures"), (data.feedback, "_causes"))
    for store, name in bookmarks:
        store.replace(name, RUNS[0].encode())  # of a reader
    parts = list(erase(data, BY_OWNER, SIGNED))
    assert [(len(erased.receipt.runs), erased.remaining) for erased in parts] == [(2, ()), (2, ()), (1, ())]
    assert left(data.store, *NAMES) == []


def test_an_erasure_that_was_killed_is_completed_before_the_next(data: DataRoot) -> None:
    with Steps(data.url, 1).recording():
        list(erase(data, BY_OWNER, SIGNED))
    (target,) = [run.facts.run_id for run in stored(data) if run.facts.run_id not in (*RUNS, WAITING)][:1]
    parts = list(erase(data, RunCriteria(run_id=target), SIGNED))
    assert [(len(erased.receipt.runs), erased.receipt.by) for erased in parts] == [(5, ("owner",)), (1, ("run",))]


def test_two_calls_complete_the_same_part(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one leaves the plan of the next part, whose process was killed, and adds no receipt."""
    monkeypatch.setattr(erase_module, "MOST_RUNS", 2)
    with Steps(data.url, 1).recording():
        list(erase(data, BY_OWNER, SIGNED))
    search = erase_module._search

    def search_slowly(*arguments: Any) -> Any:
        monkeypatch.setattr(erase_module, "_search", search)
        faster = erase(data, BY_OWNER, SIGNED)
        next(faster)
        with Steps(data.url, 1).recording():
            next(faster)
        return search(*arguments)

    monkeypatch.setattr(erase_module, "_search", search_slowly)
    next(erase(data, RunCriteria(run_id="zuul~none~1"), SIGNED))
    assert [len(receipt.runs) for receipt in read_receipts(data)] == [1, 2]  # the first one is of the world
    assert read_plan(data) is not None
    list(erase(data, RunCriteria(run_id="zuul~none~1"), SIGNED))
    assert [len(receipt.runs) for receipt in read_receipts(data)] == [1, 2, 2]
    list(erase(data, BY_OWNER, SIGNED))
    assert [len(receipt.runs) for receipt in read_receipts(data)] == [1, 2, 2, 1]
    assert left(data.store, *NAMES) == []


def test_an_object_of_another_program_that_cannot_be_searched_remains(data: DataRoot) -> None:
    data.store.create("notes/x.parquet", b"not Parquet")
    (erased,) = erase(data, BY_OWNER, SIGNED)
    assert erased.remaining == (f"{data.store.url('notes/x.parquet')}: not searched",)
    assert erased.receipt.remaining == {"notes": 1}
    assert list(erase(data, RunCriteria(owner="nobody"), SIGNED)) == []


@pytest.mark.parametrize("size", [1, 1000])
def test_messages_without_a_run_are_removed_if_they_name_the_owner(data: DataRoot, size: int) -> None:
    """Such a message could not be decoded. A message of another person's run is only reported."""
    theirs = corpus(1)[0][0].replace(run_id="zuul~carol~1", source="zuul", owner="carol")
    payloads = [
        payload_of(Message(n, f"{n} by {name}".encode() * size, (), timestamp_ms=7))
        for n, name in enumerate((OWNER, NATIVE, OWNER))
    ]
    commit(
        data,
        Outcome("dead_letter", Origin("later", 0, 0), "later 0", reason="broken_json", payload=payloads[0]),
        Outcome("dead_letter", Origin("later", 0, 1), "later 1", theirs, reason="bad_log", payload=payloads[1]),
        Outcome("dead_letter", Origin("later", 0, 2), "later 2", theirs, reason="bad_log", payload=payloads[2]),
    )
    (erased,) = erase(data, BY_OWNER, SIGNED)
    delta = ManifestLog(data.raw).read(ManifestLog(data.raw).end() - 1)
    assert ["payload" in record for record in delta["dead_letters"]] == [False, False, True]
    assert [line.rpartition(": ")[2] for line in erased.remaining] == ["owner"]
    assert broken(data) == {}


def test_the_output_of_another_run_that_names_an_erased_one_remains(data: DataRoot) -> None:
    facts, tables, _ = corpus(1)
    theirs = facts[0].replace(run_id="zuul~carol~1", source="zuul", owner="carol")
    RawStore(data).add([(theirs, tables[0])], outputs={theirs.run_id: f"after {RUNS[0]}\n".encode()})
    (erased,) = erase(data, BY_OWNER, SIGNED)
    assert {line.rpartition(": ")[2] for line in erased.remaining} == {"id of the CI system, run id"}
    assert all("zuul~carol~1." in line for line in erased.remaining)
    assert broken(data) == {}


def test_all_runs_before_a_time(data: DataRoot) -> None:
    list(erase(data, RunCriteria(before_us=1 << 62), SIGNED))
    assert all(is_erased(run.facts.run_id) for run in stored(data))
    assert {read_run(data.raw, run.file).num_rows for run in stored(data)} == {0}
    assert broken(data) == {}
    compact(data.raw, older_than_s=0, grace_s=0)
    assert broken(data) == {}


def test_each_time_of_a_retention_is_kept(data: DataRoot) -> None:
    """By it, later events of these runs are ignored."""
    facts, tables, _ = corpus(1)
    for end_us in (2_000_000_000_000_000, 3_000_000_000_000_000):
        later = facts[0].replace(run_id=f"zuul~t{end_us}~1", end_us=end_us)
        RawStore(data).add([(later, tables[0])])
        assert len(list(erase(data, RunCriteria(before_us=end_us + 1), SIGNED))) == 1
        assert open_raw(data.raw)[1].erased_before_us == end_us + 1


def test_runs_leave_examples_and_snapshots(data: DataRoot) -> None:
    dataset = data.dataset(every_kind.DATASET)
    (name,) = data.trainer(every_kind.DATASET).list("snapshots")
    digest = name.removeprefix("snapshots/").removesuffix(".json")
    before = [run.run_id for run in read_snapshot(data.trainer(every_kind.DATASET), digest).runs()]
    target = before[3]
    known = {
        "causes": [{"run_id": run_id, "cause": "code"} for run_id in (target, before[0])],
        "corrections": [{"run_id": target, "outcome": "error", "result": "ERROR"}],
    }
    decayed = make_snapshot(dataset, TRUSTED, half_life="10h")
    write_snapshot(data.trainer(every_kind.DATASET), decayed)
    add(data.exclusions, [Exclusion("forged", run_id=target)], now_us=5)
    without = make_snapshot(dataset, TRUSTED)
    write_snapshot(data.trainer(every_kind.DATASET), without)
    assert dataset.log.try_append(dataset.log.end() + 1, {"time_us": 9, **known})
    with Steps(data.url).recording() as steps:
        list(erase(data, RunCriteria(run_id=target), SIGNED))
    # A data set names the run by its position in the raw manifest, so that is changed later.
    logs = [step.split("/_manifest/")[0] for step in steps.steps if "/_manifest/0" in step]
    assert list(dict.fromkeys(logs))[:2] == [f"replace datasets/{every_kind.DATASET}", "replace raw"]
    after = [run.run_id for run in read_snapshot(data.trainer(every_kind.DATASET), digest).runs()]
    assert after == [run_id for run_id in before if run_id != target]
    weighted = read_snapshot(data.trainer(every_kind.DATASET), decayed.digest)
    assert weighted.weights is not None
    assert len(weighted.weights) == len([*weighted.runs()]) == len([*decayed.runs()]) - 1
    # The run was not in this snapshot, but its examples were in the same file.
    spans = read_snapshot(data.trainer(every_kind.DATASET), without.digest).spans
    assert all(dataset.store.exists(file.path) for span in spans for files in span.files.values() for file in files)
    state = dataset.state()
    assert (state.causes, target in state.corrections) == ({before[0]: "code"}, False)
    assert target not in state.span_of
    assert erased_id(target) in state.span_of
    assert state.excluded()["erased"] == 2  # one is of the world
    assert broken(data) == {}


@pytest.mark.parametrize("is_built_again", [False, True])
def test_runs_leave_the_snapshots_of_a_data_set_that_was_removed(data: DataRoot, is_built_again: bool) -> None:
    dataset = data.dataset(every_kind.DATASET)
    definition = dataset.state().definition
    assert definition is not None
    trainer = data.trainer(every_kind.DATASET)
    (name,) = trainer.list("snapshots")
    digest = name.removeprefix("snapshots/").removesuffix(".json")
    before = read_snapshot(trainer, digest)
    target = before.spans[-1].runs[0].run_id
    remove_dataset(dataset)
    if is_built_again:
        build_dataset(data, data, definition.replace(span_runs=before.spans[0].span + 1000))
    list(erase(data, RunCriteria(run_id=target), SIGNED))
    after = read_snapshot(trainer, digest)
    assert [run for run in before.runs() if run.run_id != target] == list(after.runs())
    assert after.spans[-1].files == before.spans[-1].files  # of the former data set
    assert left(data.store, target) == []


def test_what_a_slow_worker_stores_meanwhile_is_removed(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, so all steps are done three times."""
    search = erase_module._search
    late = [f"runs/job=unit/date=2026-11-24/{RUNS[0]}.{number:016x}.parquet" for number in range(2)]

    def search_later(*arguments: Any) -> Any:
        if late:
            table = data.raw.read(next(path for path in data.raw.list("runs") if path.endswith(".parquet")))
            data.raw.create(late.pop(), table)
        return search(*arguments)

    monkeypatch.setattr(erase_module, "_search", search_later)
    (erased,) = erase(data, BY_OWNER, SIGNED)
    assert (late, erased.remaining, left(data.store, *NAMES)) == ([], (), [])


def test_examples_that_no_manifest_names_are_those_of_an_update_for_an_hour(data: DataRoot) -> None:
    path = f"datasets/{every_kind.DATASET}/span-9/version-1/examples-0.parquet"
    data.store.create(path, b"")
    data.erasures.create("plan.json", b"{}")
    plan_s = Path(data.url, "erasures/plan.json").stat().st_mtime
    for age_s, is_left in ((3500, False), (3700, True)):
        os.utime(Path(data.url, path), (plan_s - age_s, plan_s - age_s))
        assert erasure_steps._is_left_over(data, path) is is_left


def test_what_cannot_be_erased_is_refused(data: DataRoot) -> None:
    with pytest.raises(CimlError, match="name the runs"):
        list(erase(data, RunCriteria(), SIGNED))
    for signed in (Signature("ann", f"{OWNER} asked"), Signature(OWNER, "request 17")):
        with pytest.raises(CimlError, match="must not name the owner"):
            list(erase(data, BY_OWNER, signed))
    assert len(read_receipts(data)) == 1
    assert left(data.store, OTHER)


@pytest.mark.timeout(900)
def test_killed_before_each_step(world: LocalStore, anywhere: DataRoot) -> None:
    """Whatever the step, all logs can be read then, and the next call completes the erasure."""
    few = not isinstance(anywhere.store, LocalStore)
    index = 0
    is_done = False
    while not is_done:
        data = DataRoot(anywhere.store.child(str(index)))
        copy(world, data.store)
        with Steps(data.url, index).recording() as steps:
            list(erase(data, BY_OWNER, SIGNED))
        is_done = not steps.is_dead
        read_all(data)
        list(erase(data, BY_OWNER, SIGNED))
        assert left(data.store, *NAMES) == [], index
        assert len(read_receipts(data)) == 2
        assert broken(data) == {}, index
        index += 20 if few else 3
    assert len(steps.steps) > 60


def test_a_log_keeps_its_name_in_topics(tmp_path: Path) -> None:
    """A projection compares it with the messages that it has published."""
    data = DataRoot.open(tmp_path / "data")
    copy(LocalStore(GOLDEN / "present"), data.store)
    log = ManifestLog(data.raw)
    before = log.identity()
    assert before == sha256_json(log.read(1))
    for run in [run for run in stored(data) if run.version == 1][:2]:
        list(erase(data, RunCriteria(run_id=run.facts.run_id), SIGNED))
        assert ManifestLog(data.raw).identity() == before
    assert before != sha256_json(ManifestLog(data.raw).read(1))


@pytest.mark.parametrize("sample", ["data_root/data", "checkpoints", "packs"])
def test_what_older_versions_wrote_is_erased(sample: str, tmp_path: Path) -> None:
    data = DataRoot.open(tmp_path / "data")
    copy(LocalStore(GOLDEN / sample), data.store)
    before = broken(data)
    target = stored(data)[0].facts.run_id
    list(erase(data, RunCriteria(run_id=target), SIGNED))
    assert left(data.store, target) == []
    assert broken(data) == before
    assert [run.facts.run_id for run in stored(data)].count(erased_id(target)) == 1

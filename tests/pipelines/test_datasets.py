from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.dataset_state import DatasetState, dataset_names
from ciml.definitions import DatasetDefinition
from ciml.errors import CimlError, EngineError, IntegrityError
from ciml.manifests import ManifestLog
from ciml.records import Mention
from ciml.storage import LocalStore, Store, open_store
from pipelines import datasets
from pipelines.datasets import (
    create_dataset,
    dataset_state,
    dataset_store,
    read_span,
    update_dataset,
    verify_dataset,
)
from tests.golden import make_logs
from tests.pipelines.raw_store import UNTRUSTED, RawStore
from tests.transforms.samples import LOAD, corpus, mention, table
from transforms.examples import make_examples
from transforms.parse import Log, parse_logs

NOON = make_logs.instant("2026-11-24T12:00:00Z")
SECOND = 1_000_000


def telemetry(number: int) -> pa.Table:
    times = [NOON + second * SECOND for second in range(0, 25, 5)]
    return table(times, usr=[number + 0.5 * second for second in range(5)], load=[1.0 / number] * 5)


def runs(first: int, last: int, **facts: Any) -> list[tuple[Mention, pa.Table]]:
    """Runs by number; every third has failed."""
    out = []
    for number in range(first, last + 1):
        outcome = "success" if number % 3 else "failure"
        out.append((mention(number, outcome=outcome, result=outcome.upper(), **facts), telemetry(number)))
    return out


def define(data: Store, name: str = "cpu", **keys: Any) -> None:
    create_dataset(data, DatasetDefinition.from_json({"name": name, "span_runs": 4, "max_windows": 4, **keys}))


def run_ids(state: DatasetState) -> list[list[str]]:
    return [[run.run_id.split("~")[1] for run in span.runs] for span in state.latest()]


def ids(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


@pytest.fixture
def data(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def raw(data: Store) -> RawStore:
    return RawStore(data)


def test_a_span_is_the_next_selected_runs_in_the_raw_manifests_order(data: Store, raw: RawStore) -> None:
    define(data)
    assert update_dataset(data, "cpu").sealed == ()
    raw.add(runs(1, 3))
    update = update_dataset(data, "cpu")
    assert (update.sealed, update.waiting, update.state.cursor) == ((), 3, (1, 0))
    raw.add(runs(4, 9))
    update = update_dataset(data, "cpu", now_us=17)
    assert [(span.span, span.version) for span in update.sealed] == [(1, 1), (2, 1)]
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8)]
    assert update.waiting == 1
    assert (update.state.cursor, update.state.version, update.state.time_us) == ((2, 5), 3, 17)
    assert update.sealed[0].selected == ((1, 0), (1, 1), (1, 2), (2, 0))
    assert update_dataset(data, "cpu").sealed == ()
    update = update_dataset(data, "cpu", seal=True)
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8), ["9"]]
    assert (update.state.cursor, update.waiting) == ((3, 0), 0)
    assert update_dataset(data, "cpu", seal=True).sealed == ()
    assert verify_dataset(data, "cpu") == []


def test_files_are_laid_out_by_span_version_and_split_and_hold_what_the_manifest_says(
    data: Store, raw: RawStore
) -> None:
    raw.add(runs(1, 8))
    define(data, tdt_split=[1, 1, 1], span_runs=8)
    (span,) = update_dataset(data, "cpu").sealed
    root = dataset_store(data, "cpu")
    assert set(span.files) == {"train", "dev", "test"}
    assert root.list("span-1") == sorted(
        f"span-1/version-1/{split}/examples-{file.digest[:16]}.parquet"
        for split, files in span.files.items()
        for file in files
    )
    delta = ManifestLog(root).read(2)
    assert delta["spans"] == [span.to_json()]
    assert (delta["cursor"], delta["corrections_to"], delta["corrections"]) == ([1, 8], 1, [])
    assert delta["resolved"]["features"] == ["usr", "1m"]
    state = dataset_state(data, "cpu")
    assert state.resolved is not None
    rows = read_span(root, span)
    direct = make_examples([run for run, _ in runs(1, 8)], [each for _, each in runs(1, 8)], state.resolved).table
    assert rows.sort_by("run_id").equals(direct.sort_by("run_id"))
    assert rows.column("split").to_pylist() == sorted(rows.column("split").to_pylist(), key=list(span.files).index)
    train = read_span(root, span, splits=["train"], columns=["run_id", "usr"])
    assert train.column_names == ["run_id", "usr"]
    assert train.num_rows == span.files["train"][0].rows


def test_only_selected_jobs_are_taken_and_a_late_data_set_starts_at_record_0(data: Store, raw: RawStore) -> None:
    for first in (1, 5, 9):
        raw.add(runs(first, first + 1, build_name="unit-py3") + runs(first + 2, first + 3, build_name="docs"))
    define(data, build_name=["unit-*"], span_runs=3)
    update = update_dataset(data, "cpu")
    assert run_ids(update.state) == [["1", "2", "5"], ["6", "9", "10"]]
    assert update.waiting == 0


@pytest.mark.parametrize("seal", [False, True])
def test_when_updates_happen_makes_no_difference_to_full_spans(tmp_path: Path, seal: bool) -> None:
    found = []
    for often in (False, True):
        data = open_store(tmp_path / str(often))
        raw = RawStore(data)
        define(data)
        for first in range(1, 20, 3):
            raw.add(runs(first, first + 2))
            if often:
                update_dataset(data, "cpu")
        state = update_dataset(data, "cpu", seal=seal).state
        found.append([span.to_json() for span in state.latest()])
        assert len(found[-1]) == (6 if seal else 5)
    assert found[0] == found[1]


def test_excluded_runs_belong_to_their_span(data: Store, raw: RawStore) -> None:
    good = runs(1, 1)
    raw.add(
        [
            *good,
            (mention(2, outcome="error"), telemetry(2)),
            (mention(3), telemetry(3).drop_columns([LOAD])),
            (mention(4), table([NOON], usr=[None], load=[1.0])),
        ]
    )
    define(data)
    (span,) = update_dataset(data, "cpu").sealed
    assert [run.run_id for run in span.runs] == ["zuul~1~1"]
    assert span.excluded == (
        {"run_id": "zuul~2~1", "reason": "no_label"},
        {"run_id": "zuul~3~1", "reason": "missing_column", "detail": LOAD},
        {"run_id": "zuul~4~1", "reason": "empty", "detail": "no window has a value in every selected column"},
    )
    assert dataset_state(data, "cpu").excluded() == {"no_label": 1, "missing_column": 1, "empty": 1}
    assert verify_dataset(data, "cpu") == []


def test_a_span_of_excluded_runs_alone_has_no_files(data: Store, raw: RawStore) -> None:
    raw.add([(mention(number, outcome="error"), telemetry(number)) for number in range(1, 5)])
    define(data)
    (span,) = update_dataset(data, "cpu").sealed
    assert (span.runs, span.files, len(span.excluded)) == ((), {}, 4)
    assert verify_dataset(data, "cpu") == []


def test_trusted_runs_decide_on_columns_and_classes(data: Store, raw: RawStore) -> None:
    wide = telemetry(1).append_column("evil:usr2", pa.array([1.0] * 5))
    raw.add([(mention(number, provider="evil"), wide) for number in (1, 2)], trust=UNTRUSTED)
    raw.add(runs(3, 3, provider="north") + runs(4, 4, provider="south"))
    define(data, class_label="provider")
    state = update_dataset(data, "cpu").state
    assert state.resolved is not None
    assert state.resolved.classes == ("north", "south")
    assert state.resolved.features == ("usr", "1m")
    assert [each["reason"] for each in state.latest()[0].excluded] == ["unknown_class"] * 2


def test_a_correction_before_the_span_ends_is_in_its_first_version(data: Store, raw: RawStore) -> None:
    define(data)
    raw.add(runs(1, 2), corrections=[mention(1, outcome="failure", result="FAILURE")])
    update_dataset(data, "cpu")
    raw.add(runs(3, 4))
    (span,) = update_dataset(data, "cpu").sealed
    assert [run.label_name for run in span.runs] == ["failed", "passed", "failed", "passed"]
    state = dataset_state(data, "cpu")
    assert state.corrected == {"zuul~1~1": ("failure", "FAILURE")}
    # back again: what the span says is compared, not the raw row
    raw.add(corrections=[mention(1)])
    (again,) = update_dataset(data, "cpu").sealed
    assert (again.span, again.version) == (1, 2)
    assert [run.label_name for run in again.runs] == ["passed", "passed", "failed", "passed"]


def test_a_late_correction_makes_a_new_version_of_its_span(data: Store, raw: RawStore) -> None:
    define(data)
    raw.add([*runs(1, 5), (mention(6, outcome="error"), telemetry(6)), *runs(7, 8)])
    first, second = update_dataset(data, "cpu").sealed
    raw.add(corrections=[mention(2, outcome="timeout", result="TIMED_OUT", project="forged")])
    (new,) = update_dataset(data, "cpu").sealed
    assert (new.span, new.version, new.selected) == (1, 2, first.selected)
    assert [run.label_name for run in new.runs] == ["passed", "failed", "failed", "passed"]
    assert [run.digest for run in new.runs] == [run.digest for run in first.runs]
    rows = read_span(dataset_store(data, "cpu"), new).sort_by("run_id")
    assert rows.column("result").to_pylist() == ["SUCCESS", "TIMED_OUT", "FAILURE", "SUCCESS"]
    assert set(rows.column("project").to_pylist()) == {""}  # what trust is judged by is not corrected
    # a run that had no label gains one, and one that has one loses it
    raw.add(corrections=[mention(6), mention(5, outcome="cancellation", result="ABORTED")])
    (new,) = update_dataset(data, "cpu").sealed
    assert (new.span, new.version) == (2, 2)
    assert [run.run_id for run in new.runs] == ["zuul~6~1", "zuul~7~1", "zuul~8~1"]
    assert new.excluded == ({"run_id": "zuul~5~1", "reason": "no_label"},)
    assert update_dataset(data, "cpu", seal=True).sealed == ()
    state = dataset_state(data, "cpu")
    assert [(span.span, span.version) for span in state.latest()] == [(1, 2), (2, 2)]
    assert state.spans[2][1] == second
    assert verify_dataset(data, "cpu") == []


def test_a_correction_without_effect_makes_no_version(data: Store, raw: RawStore) -> None:
    define(data, build_name="unit-tests")
    raw.add(runs(1, 4) + runs(5, 6, build_name="docs"))
    assert len(update_dataset(data, "cpu").sealed) == 1
    raw.add(corrections=[mention(3, outcome="timeout"), mention(5, outcome="failure"), mention(99)])
    assert update_dataset(data, "cpu").sealed == ()


def test_what_is_trusted_is_not_corrected_by_what_is_not(data: Store, raw: RawStore) -> None:
    define(data)
    raw.add(runs(1, 2))
    raw.add(corrections=[mention(1, outcome="failure")], trust=UNTRUSTED)
    raw.add(runs(3, 4))
    (span,) = update_dataset(data, "cpu").sealed
    assert span.runs[0].label_name == "passed"
    raw.add(corrections=[mention(2, outcome="failure")])
    raw.add(corrections=[mention(2, outcome="success")], trust=UNTRUSTED)
    (span,) = update_dataset(data, "cpu").sealed
    assert [run.label_name for run in span.runs] == ["passed", "failed", "failed", "passed"]


@settings(max_examples=40, deadline=None)
@given(
    deltas=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["success", "failure", "error"])), max_size=3),
            st.booleans(),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_at_the_end_every_run_has_its_last_label_whenever_updates_happened(
    tmp_path_factory: pytest.TempPathFactory, deltas: list[tuple[int, list[tuple[int, str]], bool]]
) -> None:
    data = open_store(tmp_path_factory.mktemp("data"))
    raw = RawStore(data)
    define(data)
    outcomes: dict[int, str] = {}
    for count, fixes, update in deltas:
        fresh = runs(len(outcomes) + 1, len(outcomes) + count)
        outcomes.update({int(run.build_uuid): run.outcome or "" for run, _ in fresh})
        known = [(number, outcome) for number, outcome in fixes if number in outcomes]
        outcomes.update(known)
        raw.add(fresh, corrections=[mention(number, outcome=outcome) for number, outcome in known])
        if update:
            update_dataset(data, "cpu")
    if not outcomes:
        return
    update_dataset(data, "cpu", seal=True)
    state = update_dataset(data, "cpu").state  # sealing takes in corrections of what it seals; those of others next
    labels = {int(run.run_id.split("~")[1]): run.label_name for span in state.latest() for run in span.runs}
    words = {"success": "passed", "failure": "failed"}
    assert labels == {number: words[outcome] for number, outcome in outcomes.items() if outcome in words}
    assert verify_dataset(data, "cpu") == []


def test_creating_again_changes_nothing_and_another_definition_is_an_error(data: Store) -> None:
    define(data)
    define(data)
    assert ManifestLog(dataset_store(data, "cpu")).read(1)["definition"]["span_runs"] == 4
    assert dataset_state(data, "cpu").version == 1
    with pytest.raises(CimlError, match="data set 'cpu' exists with another sample_interval: choose another name"):
        define(data, sample_interval="1s")
    define(data, "other")
    assert dataset_names(data) == ["cpu", "other"]


def test_users_errors_get_one_clear_line_and_commit_nothing(data: Store, raw: RawStore) -> None:
    with pytest.raises(CimlError, match=r"no data set 'cpu' in .*/datasets: create it with ciml dataset create"):
        update_dataset(data, "cpu")
    with pytest.raises(CimlError, match=r"'\.\./raw' is no name"):
        update_dataset(data, "../raw")
    raw.add(runs(1, 4))
    define(data, build_name="func-*")
    with pytest.raises(CimlError, match=r"no stored run has a job that matches func-\*; there are runs of unit-tests"):
        update_dataset(data, "cpu", seal=True)
    define(data, "none", features_regex="usr9")
    with pytest.raises(CimlError, match="features_regex 'usr9' selects none of the columns usr, 1m"):
        update_dataset(data, "none")
    define(data, "one", class_label="build_name")
    with pytest.raises(CimlError, match="only the class 'unit-tests'; name the classes"):
        update_dataset(data, "one")
    define(data, "good")
    with pytest.raises(CimlError, match="runner 'spark': want fnapi or flink, or none"):
        update_dataset(data, "good", runner="spark")
    with pytest.raises(CimlError, match="want the job server's host:port"):
        update_dataset(data, "good", runner="flink")
    assert [dataset_state(data, name).version for name in ("cpu", "none", "one", "good")] == [1] * 4


class Interrupted(Exception):
    pass


class FailingStore(LocalStore):
    """Fails at its nth write."""

    def __init__(self, root: str, left: list[int]) -> None:
        super().__init__(root)
        self.left = left

    def create(self, path: str, data: bytes) -> bool:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise Interrupted
        return super().create(path, data)

    def child(self, path: str) -> LocalStore:
        return FailingStore(super().child(path).root, self.left)


def test_an_update_that_is_killed_at_any_write_leaves_nothing_behind_that_counts(tmp_path: Path) -> None:
    whole = None
    for kill in range(9):
        data = LocalStore(tmp_path / str(kill))
        raw = RawStore(data)
        raw.add(runs(1, 5))
        define(data, tdt_split=[1, 1, 1])
        with pytest.raises(Interrupted) if kill < 3 else _maybe(Interrupted):
            update_dataset(FailingStore(data.root, [kill]), "cpu", seal=True, now_us=0)
        raw.add(runs(6, 9))  # so that what was to be a short span becomes a full one
        state = update_dataset(data, "cpu", seal=True, now_us=0).state
        assert verify_dataset(data, "cpu") == []
        assert [run for span in run_ids(state) for run in span] == ids(1, 9)
        assert run_ids(state)[0] == ids(1, 4)
        whole = whole or state.spans[1]
        assert state.spans[1] == whole


class _maybe:  # noqa: N801
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is self.error


def test_an_updater_that_loses_takes_over_what_the_other_did(
    data: Store, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.add(runs(1, 9))
    define(data)
    write = datasets.write_span
    others: list[int] = []

    def write_late(*arguments: Any) -> Any:
        span = write(*arguments)
        if not others:  # between this one's files and its commit, another runs from beginning to end
            others.append(1)
            raw.add(runs(10, 10))
            others.append(len(update_dataset(data, "cpu", seal=True).sealed))
        return span

    monkeypatch.setattr(datasets, "write_span", write_late)
    update = update_dataset(data, "cpu")
    assert (len(update.sealed), others) == (0, [1, 3])
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8), ids(9, 10)]
    assert verify_dataset(data, "cpu") == []


def test_files_of_a_loser_that_differ_are_swept(data: Store, raw: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.add(runs(1, 2))
    define(data)
    write = datasets.write_span
    others: list[int] = []

    def write_late(*arguments: Any) -> Any:
        span = write(*arguments)
        if not others:
            others.append(1)
            raw.add(runs(3, 4))
            others.append(len(update_dataset(data, "cpu").sealed))
        return span

    monkeypatch.setattr(datasets, "write_span", write_late)
    update = update_dataset(data, "cpu", seal=True)  # would have sealed runs 1 and 2 alone
    assert (len(update.sealed), others) == (0, [1, 1])
    assert run_ids(update.state) == [ids(1, 4)]
    assert verify_dataset(data, "cpu") == []


def _update(root: str, start: Any) -> None:
    start.wait()
    update_dataset(open_store(root), "cpu", seal=True)


def test_updaters_in_several_processes_give_one_result(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 18))
    define(data)
    processes = multiprocessing.get_context("spawn")
    start = processes.Event()
    workers = [processes.Process(target=_update, args=(data.root, start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert run_ids(dataset_state(data, "cpu")) == [ids(1, 4), ids(5, 8), ids(9, 12), ids(13, 16), ids(17, 18)]
    assert verify_dataset(data, "cpu") == []


def _real_runs() -> Iterator[tuple[Mention, pa.Table]]:
    """Fifty of the corpus, and the golden logs of downsampling."""
    mentions, tables, _ = corpus(50)
    yield from zip(mentions, tables, strict=True)
    logs = [make(zone) for make in make_logs.LARGE for zone in make_logs.ZONES]
    parsed = parse_logs([Log(golden.data, golden.start_us, golden.end_us) for golden in logs])
    for number, each in enumerate(parsed, 900):
        assert isinstance(each, pa.Table)
        yield mention(number, provider="north", start_us=NOON), each


def _equals_direct(data: Store, **arguments: Any) -> None:
    raw = RawStore(data)
    given = list(_real_runs())
    raw.add(given[:25])
    raw.add(given[25:])
    keys = {
        "class_label": "provider",
        "classes": ["alibaba", "aws", "huawei", "tencent", "north"],
        "sample_interval": "7s",
        "max_windows": None,
        "span_runs": 25,
        "tdt_split": [7, 1, 2],
    }
    for name in ("direct", "beam"):
        define(data, name, **keys)
    direct = update_dataset(data, "direct", seal=True, now_us=5)
    beam = update_dataset(data, "beam", seal=True, now_us=5, **arguments)
    assert [len(span.runs) + len(span.excluded) for span in beam.sealed] == [25, 25, 12]
    assert [span.to_json() for span in beam.sealed] == [span.to_json() for span in direct.sealed]
    stores = [dataset_store(data, name) for name in ("direct", "beam")]
    for span in beam.sealed:
        for path in span.paths:
            assert stores[0].read(path) == stores[1].read(path)
    deltas = [
        [json.dumps(delta).replace("direct", "beam") for _, delta in ManifestLog(store).since(1)] for store in stores
    ]
    assert deltas[0] == deltas[1]
    assert stores[1].list("results") == []
    assert verify_dataset(data, "beam") == []


def test_beam_in_this_process_gives_the_same_bytes(data: Store) -> None:
    _equals_direct(data, runner="fnapi")


@pytest.mark.engines
def test_flink_gives_the_same_bytes(data: Store, flink_jobs: str) -> None:
    _equals_direct(data, runner="flink", job_endpoint=flink_jobs)


@pytest.mark.engines
def test_s3_gives_the_same_as_a_folder(data: Store, s3: Any) -> None:
    bucket = open_store(f"{s3.bucket()}/ci/data")
    states = []
    for store in (data, bucket):
        RawStore(store).add(runs(1, 9))
        define(store)
        update_dataset(store, "cpu", seal=True)
        assert verify_dataset(store, "cpu") == []
        states.append([span.to_json() for span in dataset_state(store, "cpu").latest()])
    assert states[0] == states[1]


def test_a_stage_that_fails_in_beam_says_what_it_said(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    update_dataset(data, "cpu")
    raw.add(runs(5, 8))
    (path,) = [path for path in raw.store.list("runs") if "~7~1." in path]
    raw.store.delete(path)
    for runner in (None, "fnapi"):
        with pytest.raises(IntegrityError, match=r"~7~1\..*is named by the manifest, and is not there"):
            update_dataset(data, "cpu", runner=runner)
    assert dataset_state(data, "cpu").version == 2


def _flip(store: Store, path: str) -> None:
    content = bytearray(store.read(path))
    content[len(content) // 3] ^= 0x10
    store.replace(path, bytes(content))


def _change_a_value(store: Store, path: str) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(pa.BufferReader(store.read(path)))
    values = np.array(rows.column("usr").combine_chunks().flatten())
    values[0] += 1
    field = rows.schema.field("usr")
    rows = rows.set_column(
        rows.schema.get_field_index("usr"), field, pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
    )
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    store.replace(path, bytes(sink.getvalue()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store, path: store.delete(path), "is named by the manifest, and is not there"),
        (_flip, ""),
        (_change_a_value, "have another digest"),
        (lambda store, path: store.replace(path.replace("examples-", "other-"), b""), "is named by no manifest"),
    ],
    ids=["deleted", "flipped", "changed", "foreign"],
)
def test_verify_finds_damage(data: Store, raw: RawStore, damage: Callable[[Store, str], None], message: str) -> None:
    raw.add(runs(1, 4))
    define(data)
    (span,) = update_dataset(data, "cpu").sealed
    damage(dataset_store(data, "cpu"), span.files["train"][0].path)
    wrong = verify_dataset(data, "cpu")
    assert len(wrong) >= 1
    assert message in wrong[0]


def test_verify_finds_a_run_that_no_span_has(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    update_dataset(data, "cpu")
    manifest = dataset_store(data, "cpu")
    path = ManifestLog(manifest).path(2)
    delta = json.loads(manifest.read(path))
    delta["spans"][0]["runs"][1]["run_id"] = "zuul~77~1"
    manifest.replace(path, json.dumps(delta).encode())
    assert [line for line in verify_dataset(data, "cpu") if line.startswith("the run")] == [
        "the run zuul~2~1 is selected, and in no span",
        "the run zuul~77~1 is in a span, and not selected",
    ]


def test_a_manifest_that_contradicts_itself_is_an_integrity_error(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 8))
    define(data)
    update_dataset(data, "cpu")
    log = ManifestLog(dataset_store(data, "cpu"))
    delta = log.read(3)
    for change, message in (
        ({"cursor": [1, 2]}, "goes back"),
        ({"spans": [{**delta["spans"][0], "span": 9}]}, "out of order"),
        ({"spans": [{**delta["spans"][0], "span": 3}]}, "holds the run zuul~5~1 again"),
    ):
        state = DatasetState()
        for version in (1, 2, 3):
            state.apply(version, log.read(version))
        with pytest.raises(IntegrityError, match=message):
            state.apply(4, {**delta, "cursor": [2, 0], **change, "version": 4})
    with pytest.raises(IntegrityError, match="version 9 after 0"):
        DatasetState().apply(9, delta)


def test_neither_beam_nor_tensorflow_is_imported_without_a_runner(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    program = (
        "import sys; from ciml.storage import open_store; from pipelines.datasets import update_dataset; "
        f"print(len(update_dataset(open_store({data.root!r}), 'cpu').sealed), "
        "[name for name in ('apache_beam', 'tensorflow') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    assert out.stdout == "1 []\n"


def test_the_store_that_does_not_answer_is_an_engine_error(data: Store, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    full = _full(data)
    with pytest.raises(EngineError, match="disk is full"):
        update_dataset(full, "cpu")
    assert dataset_state(data, "cpu").version == 1


def _full(data: Store) -> Store:
    class Full(LocalStore):
        def create(self, path: str, data: bytes) -> bool:
            raise EngineError("cannot write: disk is full")

        def child(self, path: str) -> LocalStore:
            return Full(super().child(path).root)

    return Full(data.root)

"""Updates of data sets that are killed, race, run in Beam or on S3, and what verification finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import DatasetDefinition
from ciml.datasets.state import DatasetState
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets import update as datasets
from ciml.pipelines.datasets.beam import build_spans
from ciml.pipelines.datasets.build import build_dataset, plan_build, plan_update
from ciml.pipelines.datasets.commit import commit_steps
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.storage import Store
from ciml.transforms.beam import run_here
from ciml.transforms.parse.logs import Log, parse_logs
from tests.durable import Steps, each_step
from tests.golden import make_logs
from tests.pipelines.datasets.dataset_scenes import NOON, define, ids, run_ids, runs
from tests.raw_manifest import forge
from tests.runs.scenes import RawStore
from tests.transforms.samples import corpus, make_facts

#: The files of a span are stored before the manifest names it.
STEPS = [
    "create datasets/cpu/span-1/version-1/dev/examples-*.parquet",
    "create datasets/cpu/span-1/version-1/test/examples-*.parquet",
    "append datasets/cpu: corrections_to cursor resolved spans",
    "create datasets/cpu/span-2/version-1/train/examples-*.parquet",
    "append datasets/cpu: corrections_to cursor spans",
]


def test_an_update_that_is_killed_before_any_step_leaves_nothing_behind_that_counts(tmp_path: Path) -> None:
    whole = None
    for index in each_step(len(STEPS), few=False):
        data = DataRoot.open(tmp_path / str(index))
        raw = RawStore(data)
        raw.add(runs(1, 5))  # a span, and a part of one
        define(data, tdt_split=[1, 1, 1])
        with Steps(data.url, index).recording() as steps:
            update_dataset(data.dataset("cpu"), seal=True, now_us=0)
        assert steps.steps == STEPS[:index]
        if index == len(STEPS):
            break
        raw.add(runs(6, 9))  # so that what was to be a short span becomes a full one
        state = update_dataset(data.dataset("cpu"), seal=True, now_us=0).state
        assert verify_dataset(data.dataset("cpu")) == []
        assert [run for span in run_ids(state) for run in span] == ids(1, 9)
        assert run_ids(state)[0] == ids(1, 4)
        whole = whole or state.spans[1]
        assert state.spans[1] == whole


@pytest.mark.parametrize(
    ("stored", "later", "seal", "other_seals", "spans"),
    [
        (9, 10, False, True, [ids(1, 4), ids(5, 8), ids(9, 10)]),
        (2, 4, True, False, [ids(1, 4)]),  # would have sealed runs 1 and 2 alone: its files differ, and are removed
    ],
    ids=["same span", "other span"],
)
def test_an_updater_that_loses_takes_over_what_the_other_did(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch,
    stored: int, later: int, seal: bool, other_seals: bool, spans: list[list[str]],
) -> None:  # fmt: skip
    raw.add(runs(1, stored))
    define(data)
    write = datasets.write_span
    others: list[int] = []

    def write_late(*arguments: Any) -> Any:
        span = write(*arguments)
        if not others:  # between this one's files and its commit, another runs from beginning to end
            others.append(0)
            raw.add(runs(stored + 1, later))
            others.append(len(update_dataset(data.dataset("cpu"), seal=other_seals).sealed))
        return span

    monkeypatch.setattr(datasets, "write_span", write_late)
    update = update_dataset(data.dataset("cpu"), seal=seal)
    assert (len(update.sealed), others) == (0, [0, len(spans)])
    assert run_ids(update.state) == spans
    assert verify_dataset(data.dataset("cpu")) == []


def _real_runs() -> Iterator[tuple[RunFacts, pa.Table]]:
    """Fifty of the corpus, and the golden logs of downsampling."""
    facts, tables, _ = corpus(50)
    yield from zip(facts, tables, strict=True)
    logs = [make(zone) for make in make_logs.LARGE for zone in make_logs.ZONES]
    parsed = parse_logs([Log(golden.data, golden.start_us, golden.end_us) for golden in logs])
    for number, each in enumerate(parsed, 900):
        assert isinstance(each, pa.Table)
        yield make_facts(number, flavour="north", start_us=NOON), each


@pytest.mark.parametrize("runner", ["fnapi", pytest.param("flink", marks=pytest.mark.engines)])
def test_a_runner_gives_the_same_bytes(data: DataRoot, runner: str, request: pytest.FixtureRequest) -> None:
    flink: str = request.getfixturevalue("flink_jobs") if runner == "flink" else ""
    raw = RawStore(data)
    given = list(_real_runs())
    raw.add(given[:25])
    raw.add(given[25:])
    keys = {
        "class_label": "flavour", "classes": [*sorted({run.flavour for run, _ in given})], "sample_interval": "7s",
        "max_windows": None, "span_runs": 25, "tdt_split": [7, 1, 2],
    }  # fmt: skip
    for name in ("direct", "beam"):
        define(data, name, **keys)
    direct = update_dataset(data.dataset("direct"), seal=True, now_us=5)
    beam = update_dataset(data.dataset("beam"), seal=True, now_us=5, runner=runner, job_endpoint=flink)
    assert [len(span.runs) + len(span.excluded) for span in beam.sealed] == [25, 25, 12]
    assert [span.to_json() for span in beam.sealed] == [span.to_json() for span in direct.sealed]
    stores = [data.dataset(name).store for name in ("direct", "beam")]
    for span in beam.sealed:
        for path in span.paths:
            assert stores[0].read(path) == stores[1].read(path)
    deltas = [
        [json.dumps(delta).replace("direct", "beam") for _, delta in ManifestLog(store).since(1)] for store in stores
    ]
    assert deltas[0] == deltas[1]
    assert stores[1].list("results") == []
    assert verify_dataset(data.dataset("beam")) == []


def test_a_stage_that_fails_in_beam_says_what_it_said(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    update_dataset(data.dataset("cpu"))
    raw.add(runs(5, 8))
    (path,) = [path for path in raw.store.list("runs") if "~7~1." in path]
    raw.store.delete(path)
    for runner in (None, "fnapi"):
        with pytest.raises(IntegrityError, match=r"~7~1\..*is in the manifest but does not exist"):
            update_dataset(data.dataset("cpu"), runner=runner)
    assert data.dataset("cpu").state().version == 2


def _flip(store: Store, path: str) -> None:
    content = bytearray(store.read(path))
    content[len(content) // 3] ^= 0x10
    store.replace(path, bytes(content))


def _change_a_value(store: Store, path: str) -> None:
    rows = pq.read_table(pa.BufferReader(store.read(path)))
    values = np.array(rows["usr"].combine_chunks().flatten())
    values[0] += 1
    place = rows.schema.get_field_index("usr")
    field = rows.schema.field(place)
    changed = pa.FixedSizeListArray.from_arrays(pa.array(values), type=field.type)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.set_column(place, field, changed), sink)
    store.replace(path, bytes(sink.getvalue()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store, path: store.delete(path), "is in the manifest but does not exist"),
        (_flip, ""),
        (_change_a_value, "differ from their digest"),
        (lambda store, path: store.replace(path.replace("examples-", "other-"), b""), "is not named by any manifest"),
    ],
    ids=["deleted", "flipped", "changed", "foreign"],
)
def test_verify_finds_damage(data: DataRoot, raw: RawStore, damage: Callable[[Store, str], None], message: str) -> None:
    raw.add(runs(1, 4))
    define(data)
    (span,) = update_dataset(data.dataset("cpu")).sealed
    damage(data.dataset("cpu").store, span.files["train"][0].path)
    wrong = verify_dataset(data.dataset("cpu"))
    assert len(wrong) >= 1
    assert message in wrong[0]


def test_verify_finds_a_run_that_no_span_has(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    update_dataset(data.dataset("cpu"))
    manifest = data.dataset("cpu").store
    forge(manifest, 2, lambda delta: delta["spans"][0]["runs"][1].update(run_id="zuul~77~1"))
    assert [line for line in verify_dataset(data.dataset("cpu")) if line.startswith("run ")] == [
        "run zuul~2~1 is selected but in no span",
        "run zuul~77~1 is in a span but not selected",
    ]


def test_a_manifest_that_contradicts_itself_is_an_integrity_error(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 8))
    define(data)
    update_dataset(data.dataset("cpu"))
    log = ManifestLog(data.dataset("cpu").store)
    delta = log.read(3)
    for change, message in (
        ({"cursor": [1, 2]}, "goes back"),
        ({"spans": [{**delta["spans"][0], "span": 9}]}, "out of order"),
        ({"spans": [{**delta["spans"][0], "span": 3}]}, "has the run zuul~5~1 twice"),
    ):
        state = DatasetState()
        for version in (1, 2, 3):
            state.apply(version, log.read(version))
        with pytest.raises(IntegrityError, match=message):
            state.apply(4, {**delta, "cursor": [2, 0], **change, "version": 4})
    with pytest.raises(IntegrityError, match="version 9 after 0"):
        DatasetState().apply(9, delta)


# --- a planned update: its one pipeline builds and commits what an update would, and never over another's


def spans_of(data: DataRoot, name: str) -> list[object]:
    return [span.to_json() for span in data.dataset(name).state().latest()]


def test_an_update_gives_what_the_direct_one_gives(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 6))
    for name in ("direct", "planned"):
        define(data, name)
    for last in (6, 9):
        if last > 6:
            raw.add(runs(7, last), corrections=[runs(3, 3)[0][0].replace(outcome="success", result="SUCCESS")])
        update_dataset(data.dataset("direct"), seal=last == 9)
        planned = plan_update(data.dataset("planned"), seal=last == 9)
        assert planned.runs == (4 if last == 6 else 5 + 4)  # and the new version of the span with the corrected run
        for _ in range(2):  # the stage may be repeated, and the whole job
            run_here(planned.build)
        assert verify_dataset(data.dataset("planned")) == []
    direct, other = data.dataset("direct").state(), data.dataset("planned").state()
    assert (direct.cursor, direct.corrections_to, direct.version) == (other.cursor, other.corrections_to, other.version)
    assert run_ids(other) == [ids(1, 4), ids(5, 8), ids(9, 9)]
    assert spans_of(data, "planned") == spans_of(data, "direct")
    assert data.dataset("planned").store.list("results") == []
    again = plan_update(data.dataset("planned"), seal=True)
    assert (again.steps, again.waiting) == ((), 0)


@pytest.mark.parametrize("slicer", [None, ":5"])
def test_a_build_gives_what_the_direct_one_gives(data: DataRoot, raw: RawStore, slicer: str | None) -> None:
    raw.add(runs(1, 7))
    for name in ("direct", "planned"):
        definition = DatasetDefinition.from_json({"name": name, "span_runs": 4, "max_windows": 4, "slicer": slicer})
        if name == "direct":
            build_dataset(data, data, definition)
        else:
            run_here(plan_build(data, data, definition).build)
            again = plan_build(data, data, definition)
            assert again.steps == ()
    assert spans_of(data, "planned") == spans_of(data, "direct")
    written = [data.dataset(name).store.read("_definition.toml").decode() for name in ("direct", "planned")]
    assert written[0].replace('"direct"', '"planned"') == written[1]


def test_nothing_is_created_for_a_job_without_runs(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 2))
    with pytest.raises(CimlError, match="no stored run matches"):
        plan_build(data, data, DatasetDefinition(name="none", build_name=("other",)))
    assert data.dataset_names() == []


def test_a_commit_that_is_killed_before_any_step_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, data: DataRoot, raw: RawStore
) -> None:
    """The records of the spans are removed after the last commit, so that the stage can read them again."""
    raw.add(runs(1, 8))
    define(data)
    planned = plan_update(data.dataset("cpu"))
    run_here(lambda pipeline: build_spans(pipeline, planned.raw, planned.root, planned.steps, "results/0"))
    order = [
        "append datasets/cpu: corrections_to cursor resolved spans",
        "append datasets/cpu: corrections_to cursor spans",
        "delete datasets/cpu/results/0/1-1.json",
        "delete datasets/cpu/results/0/2-1.json",
    ]
    for index in each_step(len(order), few=False):
        copy = DataRoot.open(shutil.copytree(data.url, tmp_path_factory.mktemp("copy") / "data"))
        root = copy.dataset("cpu").store
        with Steps(copy.url, index).recording() as steps:
            commit_steps(root, planned.steps, "results/0")
        assert steps.steps == order[:index]
        commit_steps(root, planned.steps, "results/0")
        assert run_ids(copy.dataset("cpu").state()) == [ids(1, 4), ids(5, 8)]
        assert root.list("results") == []
        assert verify_dataset(copy.dataset("cpu")) == []


def test_other_spans_of_another_updater_stop_it(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    planned = plan_update(data.dataset("cpu"))
    raw.add(runs(5, 8))
    update_dataset(data.dataset("cpu"))
    assert commit_steps(data.dataset("cpu").store, planned.steps, "results/none") == 0  # the same first span
    late = plan_update(data.dataset("cpu"), seal=True)
    assert late.steps == ()
    raw.add(runs(9, 9))
    late = plan_update(data.dataset("cpu"), seal=True)  # a span of one run
    with pytest.raises(IntegrityError, match="no result for span 3"):
        commit_steps(data.dataset("cpu").store, late.steps, "results/none")
    raw.add(corrections=[runs(1, 1)[0][0].replace(outcome="failure", result="FAILURE")])
    update_dataset(data.dataset("cpu"))  # seals no span 3, but a new version of span 1
    version = data.dataset("cpu").state().version
    with pytest.raises(CimlError, match=r"another update has changed .*cpu after version 3;"):
        run_here(late.build)
    assert data.dataset("cpu").state().version == version
    run_here(plan_update(data.dataset("cpu"), seal=True).build)  # started again
    assert run_ids(data.dataset("cpu").state())[-1] == ids(9, 9)
    assert verify_dataset(data.dataset("cpu")) == []

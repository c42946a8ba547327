"""Updates of data sets that are killed, race, run in Beam or on S3, and what verification finds."""

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

from ciml.data_root import DataRoot
from ciml.datasets.state import DatasetState
from ciml.errors import EngineError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.pipelines.datasets import update as datasets
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.storage import LocalStore, Store
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


def two_spans(folder: Path) -> tuple[DataRoot, RawStore]:
    """A data root with a definition, and with runs for a span and a part of one."""
    data = DataRoot.open(folder)
    raw = RawStore(data)
    raw.add(runs(1, 5))
    define(data, tdt_split=[1, 1, 1])
    return data, raw


def test_order_of_the_steps_of_an_update(tmp_path: Path) -> None:
    data, _ = two_spans(tmp_path)
    with Steps(data.url).recording() as steps:
        update_dataset(data.dataset("cpu"), seal=True, now_us=0)
    assert steps.steps == STEPS


def test_an_update_that_is_killed_before_any_step_leaves_nothing_behind_that_counts(tmp_path: Path) -> None:
    whole = None
    for index in each_step(len(STEPS), few=False):
        data, raw = two_spans(tmp_path / str(index))
        with Steps(data.url, index).recording():
            update_dataset(data.dataset("cpu"), seal=True, now_us=0)
        raw.add(runs(6, 9))  # so that what was to be a short span becomes a full one
        state = update_dataset(data.dataset("cpu"), seal=True, now_us=0).state
        assert verify_dataset(data.dataset("cpu")) == []
        assert [run for span in run_ids(state) for run in span] == ids(1, 9)
        assert run_ids(state)[0] == ids(1, 4)
        whole = whole or state.spans[1]
        assert state.spans[1] == whole


def test_an_updater_that_loses_takes_over_what_the_other_did(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
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
            others.append(len(update_dataset(data.dataset("cpu"), seal=True).sealed))
        return span

    monkeypatch.setattr(datasets, "write_span", write_late)
    update = update_dataset(data.dataset("cpu"))
    assert (len(update.sealed), others) == (0, [1, 3])
    assert run_ids(update.state) == [ids(1, 4), ids(5, 8), ids(9, 10)]
    assert verify_dataset(data.dataset("cpu")) == []


def test_files_of_a_loser_that_differ_are_swept(data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.add(runs(1, 2))
    define(data)
    write = datasets.write_span
    others: list[int] = []

    def write_late(*arguments: Any) -> Any:
        span = write(*arguments)
        if not others:
            others.append(1)
            raw.add(runs(3, 4))
            others.append(len(update_dataset(data.dataset("cpu")).sealed))
        return span

    monkeypatch.setattr(datasets, "write_span", write_late)
    update = update_dataset(data.dataset("cpu"), seal=True)  # would have sealed runs 1 and 2 alone
    assert (len(update.sealed), others) == (0, [1, 1])
    assert run_ids(update.state) == [ids(1, 4)]
    assert verify_dataset(data.dataset("cpu")) == []


def _update(root: str, start: Any) -> None:
    start.wait()
    update_dataset(DataRoot.open(root).dataset("cpu"), seal=True)


def test_updaters_in_several_processes_give_one_result(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 18))
    define(data)
    processes = multiprocessing.get_context("spawn")
    start = processes.Event()
    workers = [processes.Process(target=_update, args=(data.url, start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert run_ids(data.dataset("cpu").state()) == [ids(1, 4), ids(5, 8), ids(9, 12), ids(13, 16), ids(17, 18)]
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


def _equals_direct(data: DataRoot, **arguments: Any) -> None:
    raw = RawStore(data)
    given = list(_real_runs())
    raw.add(given[:25])
    raw.add(given[25:])
    keys = {
        "class_label": "flavour",
        "classes": [*sorted({run.flavour for run, _ in given})],
        "sample_interval": "7s",
        "max_windows": None,
        "span_runs": 25,
        "tdt_split": [7, 1, 2],
    }
    for name in ("direct", "beam"):
        define(data, name, **keys)
    direct = update_dataset(data.dataset("direct"), seal=True, now_us=5)
    beam = update_dataset(data.dataset("beam"), seal=True, now_us=5, **arguments)
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


def test_beam_in_this_process_gives_the_same_bytes(data: DataRoot) -> None:
    _equals_direct(data, runner="fnapi")


@pytest.mark.engines
def test_flink_gives_the_same_bytes(data: DataRoot, flink_jobs: str) -> None:
    _equals_direct(data, runner="flink", job_endpoint=flink_jobs)


@pytest.mark.engines
def test_s3_gives_the_same_as_a_folder(data: DataRoot, s3: Any) -> None:
    bucket = DataRoot.open(f"{s3.bucket()}/ci/data")
    states = []
    for store in (data, bucket):
        RawStore(store).add(runs(1, 9))
        define(store)
        update_dataset(store.dataset("cpu"), seal=True)
        assert verify_dataset(store.dataset("cpu")) == []
        states.append([span.to_json() for span in store.dataset("cpu").state().latest()])
    assert states[0] == states[1]


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


def test_neither_beam_nor_tensorflow_is_imported_without_a_runner(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    program = (
        "import sys; from ciml.data_root import DataRoot; from ciml.pipelines.datasets.update import update_dataset; "
        f"print(len(update_dataset(DataRoot.open({data.url!r}).dataset('cpu')).sealed), "
        "[name for name in ('apache_beam', 'tensorflow') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    assert out.stdout == "1 []\n"


def test_the_store_that_does_not_answer_is_an_engine_error(data: DataRoot, raw: RawStore) -> None:
    raw.add(runs(1, 4))
    define(data)
    full = _full(data)
    with pytest.raises(EngineError, match="disk is full"):
        update_dataset(full.dataset("cpu"))
    assert data.dataset("cpu").state().version == 1


def _full(data: DataRoot) -> DataRoot:
    class Full(LocalStore):
        def create(self, path: str, data: bytes) -> bool:
            raise EngineError("cannot write: disk is full")

        def child(self, path: str) -> LocalStore:
            return Full(super().child(path).root)

    return DataRoot(Full(data.url))

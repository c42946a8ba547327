"""A data path that an older version wrote is read, verified and continued: its files have no seals and no checksums."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.pipelines.datasets.update import update_dataset
from ciml.runs.pack_index import pack_state
from ciml.runs.reader import read_run
from ciml.runs.verify import verify_raw
from ciml.runs.writer import is_sealed, write_run
from ciml.storage import Store
from ciml.transforms.examples.spans import read_span, verify_span
from tests.runs.compacting import FAR, all_there, objects, squeeze
from tests.runs.scenes import RawStore
from tests.runs.stored import DATASET, OLD, example_files, runs_of
from tests.transforms.samples import LOAD, USR, make_facts, table

START_US = 1_600_000_000_000_000


def telemetry(number: int) -> pa.Table:
    """What a run of that number has; those of 1 to 6 were written by the older version."""
    rows, start = 3 + number, START_US + number * 60_000_000
    made = table(
        [start + at * 1_000_000 for at in range(rows)],
        boot=[at == 0 for at in range(rows)],
        usr=[number + at / 4 for at in range(rows)],
        load=[None if at == 1 else 1.0 / number + at for at in range(rows)],
    )
    return made.replace_schema_metadata({"recorder": "Dstat 0.7.4", "starts": "1"})


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    shutil.copytree(OLD, tmp_path / "data")
    return DataRoot.open(tmp_path / "data")


def numbers(raw: Store) -> list[int]:
    return [int(run.run_id.split("~")[1]) for run in runs_of(raw)]


def all_equal(raw: Store) -> None:
    for number, run in zip(numbers(raw), runs_of(raw), strict=True):
        assert read_run(raw, run.path).equals(telemetry(number), check_metadata=True)
        assert read_run(raw, run.path, columns=["time", LOAD, USR]).equals(
            telemetry(number).select(["time", LOAD, USR])
        )


def test_an_older_raw_store_is_read_verified_and_continued(data: DataRoot) -> None:
    raw = data.raw
    assert numbers(raw) == [1, 2, 3, 4, 5, 6]
    assert objects(raw) == {"runs": 3, "packs": 1, "swept": 0}
    all_equal(raw)
    assert verify_raw(raw, clock=FAR).findings == []

    RawStore(data).add([(make_facts(7, start_us=START_US + 420_000_000), telemetry(7))])
    all_equal(raw)  # the seal of a new file is no part of its telemetry
    done = squeeze(raw)
    assert (done.packing.runs, done.packing.merged, done.packing.faults) == (4, 2, [])
    assert objects(raw) == {"runs": 0, "packs": 1, "swept": 0}
    (pack,) = pack_state(raw, runs_of(raw)[0].folder).packs
    assert b"ciml.crc32" in pq.read_metadata(raw.url(pack)).metadata  # packs of older objects have checksums
    all_equal(raw)
    all_there(raw)
    assert verify_raw(raw, clock=FAR).findings == []


def test_an_older_data_set_is_read_verified_and_continued(data: DataRoot) -> None:
    RawStore(data).add(
        [(make_facts(number, start_us=START_US + number * 60_000_000), telemetry(number)) for number in (7, 8, 9)]
    )
    update_dataset(data.dataset(DATASET))
    state = data.dataset(DATASET).state()
    root, resolved = data.dataset(DATASET).store, state.resolved
    assert resolved is not None
    assert [[run.run_id for run in span.runs] for span in state.latest()] == [
        [f"zuul~{number}~1" for number in range(first, first + 3)] for first in (1, 4, 7)
    ]
    for span in state.latest():
        assert verify_span(root, span, resolved) == []
        read = read_span(root, span, columns=["run_id", "usr"])
        assert sorted(read.column("run_id").to_pylist()) == [run.run_id for run in span.runs]
        for run_id, usr in zip(*(read.column(name).to_pylist() for name in ("run_id", "usr")), strict=True):
            number = int(run_id.split("~")[1])  # a window has no value of both columns in its second sample
            assert usr == [number + at / 4 for at in (0, 2, 3, 4)][: 2 + number] + [0.0] * max(0, 2 - number)
    sealed = [is_sealed(root.read(file.path), file.path, "") for file in example_files(data.dataset(DATASET).state())]
    assert sealed == [False] * (len(sealed) - 1) + [True]


def test_a_file_is_sealed_with_its_name() -> None:
    sealed = write_run(telemetry(7), "runs/a.parquet")
    assert is_sealed(sealed, "swept/runs/a.parquet", "a")
    with pytest.raises(IntegrityError, match="holds the seal of another file; restore a backup"):
        is_sealed(sealed, "runs/b.parquet", "b")


def test_the_manifest_of_packs_is_as_older_versions_read_it(data: DataRoot) -> None:
    raw = data.raw
    squeeze(raw)
    fields = {"path", "size", "footer", "footer_digest", "rows", "runs", "columns"}
    deltas = [json.loads(raw.read(path)) for path in raw.list(f"packs/{runs_of(raw)[0].folder}/_manifest")]
    assert [set(pack) for delta in deltas for pack in delta["packs"]] == [fields] * 3

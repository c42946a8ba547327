"""Each table has the rows that ciml itself reads, in each engine; without the tables nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import Trust
from ciml.pipelines.datasets.update import verify_dataset
from ciml.runs.tables import FOLDER, delta_log, publish, store_of
from ciml.runs.tables.delta_log import CURSOR, DeltaLog, decode_fields, make_checkpoint, storage_options
from ciml.runs.tables.publish import list_tables, publish_tables
from ciml.runs.verify import verify_raw
from ciml.storage import open_store
from tests.conftest import S3Endpoint
from tests.runs.compacting import all_there, run, squeeze
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.runs.tables.readers import ENGINES, Rows
from tests.runs.tables.scenes import ODD, expected, make_store
from tests.transforms.samples import make_facts, table

TABLES = ("raw", "runs", "dead_letters", "datasets/cpu")
ROWS = {"raw": 42, "runs": 9, "dead_letters": 3, "datasets/cpu": 8}
EVERY = 3


def read(data: DataRoot, name: str, engine: str = "delta-rs") -> Rows:
    """Return the rows of a table as an engine reads them."""
    store = store_of(data, name)
    return ENGINES[engine](store.root, storage_options(store))[1]


def check(data: DataRoot, engines: Iterable[str] = ("delta-rs",)) -> None:
    for name in TABLES:
        rows = expected(data, name)
        for engine in engines:
            assert read(data, name, engine) == rows, (name, engine)


def publish_all(data: DataRoot) -> dict[str, int]:
    """Publish all tables; return the versions of those that changed."""
    return {done.name: done.version for done in publish_tables(data) if done.committed}


def rows_of(data: DataRoot, name: str = "raw", version: int | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DeltaTable(store_of(data, name).root, version).to_pyarrow_table().to_pylist()
    return found


def run_ids(data: DataRoot) -> set[str | None]:
    return {row["run_id"] for row in rows_of(data)}


@pytest.fixture
def early_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_log, "CHECKPOINT_EVERY", EVERY)


def check_engines(data: DataRoot) -> None:
    check(data, ENGINES)
    assert {each.name: each.rows for each in list_tables(data)} == ROWS
    assert {name: len(read(data, name)) for name in TABLES} == ROWS
    # a log that begins with a checkpoint
    raw = RawStore(data)
    for number in range(20, 21 + EVERY):
        raw.add([run(number)], corrections=[make_facts(number - 1, outcome="failure")] if number > 20 else ())
        list(publish_tables(data, ["runs"]))
    folder = store_of(data, "runs")
    assert f"{FOLDER}/{EVERY:020d}.checkpoint.parquet" in folder.list(FOLDER)
    for path in folder.list(FOLDER):
        if path < f"{FOLDER}/{EVERY:020d}":
            folder.delete(path)
    rows = expected(data, "runs")
    assert [engine for engine in ENGINES if read(data, "runs", engine) != rows] == []
    state = DeltaLog(folder).read()
    assert (state.version, state.transactions[CURSOR], state.rows) == (EVERY + 1, 6 + EVERY, 10 + EVERY)
    assert [done.committed for done in publish_tables(data, ["runs"])] == [False]


@pytest.mark.usefixtures("early_checkpoints")
def test_each_engine_reads_the_rows_that_ciml_reads(published: DataRoot) -> None:
    check_engines(published)


@pytest.mark.engines
@pytest.mark.usefixtures("early_checkpoints")
def test_each_engine_reads_the_rows_on_s3(s3: S3Endpoint, stored_once: Path) -> None:
    data, stored = DataRoot.open(f"{s3.bucket()}/data"), DataRoot.open(stored_once).store
    for path in stored.list():
        data.store.create(path, stored.read(path))
    assert publish_all(data) == dict.fromkeys(TABLES, 0)
    check_engines(data)


def test_a_table_that_is_up_to_date_gets_no_version(published: DataRoot) -> None:
    behind = dict.fromkeys(TABLES, 0)
    assert publish_all(published) == {}
    assert {each.name: each.behind for each in list_tables(published)} == behind
    RawStore(published).add([run(20), run(21)])  # in a pack of more than half the size of the largest: both are merged
    behind |= {"runs": 1, "dead_letters": 1}
    assert {each.name: each.behind for each in list_tables(published)} == behind
    squeeze(published.raw)
    assert next(list_tables(published, ["raw"])).behind == 2  # packed, then merged
    assert publish_all(published) == {"raw": 1, "runs": 1, "dead_letters": 1}
    check(published)


def test_deleting_the_tables_loses_nothing(published: DataRoot) -> None:
    rows = {name: read(published, name) for name in TABLES}
    for path in published.tables.list():
        published.tables.delete(path)
    for store in (store_of(published, name) for name in TABLES):
        for path in store.list(FOLDER):
            store.delete(path)
    all_there(published.raw)
    assert verify_raw(published.raw).number == 0
    assert verify_dataset(published.dataset("cpu")) == []
    assert {each.name: (each.version, each.rows) for each in list_tables(published)} == dict.fromkeys(TABLES, (None, 0))
    assert publish_all(published) == dict.fromkeys(TABLES, 0)
    assert {name: read(published, name) for name in TABLES} == rows
    check(published)


@pytest.mark.usefixtures("early_checkpoints")
def test_ciml_s_own_checks_pass_over_the_tables(published: DataRoot) -> None:
    raw = RawStore(published)
    leftovers = [Path(store_of(published, "raw").root, FOLDER, f".staging-{name}") for name in ("old", "new")]
    for path in leftovers:
        path.write_bytes(b"half")
    os.utime(leftovers[0], (0, 0))
    for number in range(30, 31 + EVERY):
        raw.add([run(number)])
        squeeze(published.raw)
        publish_all(published)
    assert any(path.endswith(".checkpoint.parquet") for path in published.raw.list(f"packs/{FOLDER}"))
    assert [path.exists() for path in leftovers] == [False, True]
    squeeze(published.raw, everything=True)
    assert verify_raw(published.raw, grace_s=0).findings == []
    assert published.dataset_names() == ["cpu"]
    check(published)


def test_other_files_in_a_table_s_folder_are_none_of_its_rows(published: DataRoot) -> None:
    """What another program wrote or removed is undone: the folder's state decides."""
    log = DeltaLog(store_of(published, "raw"))
    state = log.read()
    foreign = {"path": "foreign.parquet", "partitionValues": {"job": "x", "date": None}, "size": 1, "dataChange": True}
    remove = {"path": next(iter(state.files)), "deletionTimestamp": 1, "dataChange": True}
    assert log.try_commit(1, [{"add": {**foreign, "modificationTime": 1}}, {"remove": remove}], 1)
    assert publish_all(published) == {"raw": 2}
    assert log.read().files.keys() == state.files.keys()
    check(published)


def test_packs_of_older_versions_have_no_run_ids(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("ciml.runs.packing.RUN_COLUMNS", ())
        raw = make_store(data)
    publish_all(data)
    assert run_ids(data) == {None}
    raw.add([run(20), run(21)])
    squeeze(data.raw)
    all_there(data.raw)
    publish_all(data)
    assert len(rows_of(data)) == 42 + 8
    merged = {f"zuul~{number}~1" for number in (1, 2, 3, 4, 5, 6, 20, 21)}  # with the new ones
    assert {row["run_id"] for row in rows_of(data) if str(row["date"]) == "1970-01-01"} == merged
    assert squeeze(data.raw, everything=True).packing.merged == 2
    publish_all(data)
    assert run_ids(data) == merged | {f"zuul~{number}~1" for number in (7, 8, 9)}
    all_there(data.raw)
    assert verify_raw(data.raw, grace_s=0).findings == []
    assert squeeze(data.raw, everything=True).packing.merged == 0
    assert read(data, "raw") == expected(data, "raw")


def test_rows_have_their_job_and_day_the_digest_of_their_log_and_the_present_outcome(published: DataRoot) -> None:
    raw = rows_of(published)
    days = {(ODD, "1970-01-08"), ("unit-tests", "1970-01-01"), ("unit-tests", "1970-01-02")}
    assert {(row["job"], str(row["date"])) for row in raw} == days
    assert {row["job"] for row in raw if row["run_id"] == "zuul~9~1"} == {ODD}
    runs = {row["run_id"]: row for row in rows_of(published, "runs")}
    assert len(runs) == len(rows_of(published, "runs")) == 9
    logs = {row["digest"] for row in raw if row["run_id"] == "zuul~1~1"}
    assert len(logs) == 2
    assert runs["zuul~1~1"]["digest"] in logs
    assert runs["zuul~2~1"]["outcome"] == "failure"  # corrected
    assert [runs["zuul~3~1"][name] for name in ("rows", "outcome", "version")] == [5, "success", 3]
    assert dict(runs["zuul~9~1"]["labels"]) == {"nodes": "3", "ä": "ß"}


def test_columns_that_differ_in_case_alone_cost_their_own_pack_or_themselves(data: DataRoot) -> None:
    """Spark does not read a file with both; in two files they would be one column to some engines."""
    raw = make_store(data)
    add_run(raw, 30, a__x=[1.0, 2.0], A__x=[3.0, 4.0])
    add_run(raw, 31, DISK__read=[1.0, 2.0])
    notes = publish_raw(data)
    assert [note.rpartition("is left out: ")[2] for note in notes] == [
        "two columns differ only in upper and lower case", "it and another differ only in upper and lower case",
    ]  # fmt: skip
    assert notes[0].startswith("packs/job=job-30/date=1970-01-01/")
    assert notes[1].startswith("column 'disk:read'")
    assert run_ids(data) == {f"zuul~{number}~1" for number in (*range(1, 10), 31)}


def test_an_unknown_table_is_an_error_of_one_line(data: DataRoot) -> None:
    RawStore(data).add([run(1)])
    with pytest.raises(CimlError, match="unknown table 'rwa'; choose from raw, runs, dead_letters, datasets/NAME"):
        list(publish_tables(data, ["rwa"]))
    with pytest.raises(CimlError, match="no data set 'cpu'"):
        list(publish_tables(data, ["datasets/cpu"]))


def test_a_damaged_log_is_an_error_that_names_the_remedy(published: DataRoot) -> None:
    commit = Path(store_of(published, "runs").root, FOLDER, f"{0:020d}.json")
    commit.write_text("{")
    with pytest.raises(IntegrityError, match=r"commit 0: .*; delete this folder and publish again"):
        list(publish_tables(published, ["runs"]))
    commit.rename(commit.with_name(f"{1:020d}.json"))
    with pytest.raises(IntegrityError, match="commit 0 is missing; delete this folder and publish again"):
        list(publish_tables(published, ["runs"]))


def test_the_restored_manifest_of_a_backup_is_read_from_its_beginning(data: DataRoot) -> None:
    """It has another delta at the position that the table shows."""
    raw = RawStore(data)
    raw.add([run(1)])
    raw.add([run(2)])
    publish_all(data)
    Path(raw.store.root, raw.log.path(2)).unlink()
    again = RawStore(data)
    again.add([run(5)])
    again.add([run(6)])
    publish_all(data)
    assert read(data, "runs") == expected(data, "runs")


def test_vacuums_are_kept_from_manifests(published: DataRoot) -> None:
    """A full vacuum lists all that is below a table's folder; the property makes it keep what is there."""
    RawStore(published).add([run(20)])
    squeeze(published.raw, grace_s=5_000_000_000)
    publish_all(published)
    before = published.store.list()
    for name in TABLES:
        assert DeltaTable(store_of(published, name).root).vacuum(dry_run=False, full=True) == [], name
    assert published.store.list() == before


@pytest.mark.engines
def test_a_failed_checkpoint_is_reported_without_credentials(s3: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    store = open_store(f"{s3.bucket()}/nothing")
    assert storage_options(store)["aws_secret_access_key"] == "the-secret"
    note = make_checkpoint(store)
    assert note.startswith(f"{store.root}: no checkpoint: ")
    assert "the-" not in note
    assert "the-" not in repr(store)


def test_files_of_older_versions_stay_for_the_grace(published: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> list[str]:
        return [path for path in store_of(published, "runs").list() if path.endswith(".parquet")]

    raw = RawStore(published)
    old = rows_of(published, "runs", 0)
    (first,) = parts()
    raw.add([run(20)])
    publish_all(published)
    assert rows_of(published, "runs", 0) == old
    assert len(parts()) == 2
    monkeypatch.setattr("ciml.runs.tables.publish.GRACE_S", -3600)
    raw.add([run(21)])
    publish_all(published)
    assert len(parts()) == 2  # listed before
    raw.add([run(22)])
    publish_all(published)
    assert len(parts()) == 2
    assert first not in parts()
    check(published)


# ---- columns of untrusted runs ----


def columns_of(data: DataRoot) -> list[str]:
    return [field.name for field in DeltaTable(store_of(data, "raw").root).schema().fields]


def add_run(raw: RawStore, number: int, trust: Trust = TRUSTED, **columns: list[float]) -> None:
    """Store a run in a folder and a pack of its own."""
    facts = make_facts(number, build_name=f"job-{number}", start_us=0)
    raw.add([(facts, table([0, 1_000_000], **columns))], trust=trust)


def publish_raw(data: DataRoot) -> list[str]:
    """Publish the table `raw`; return its notes."""
    squeeze(data.raw)
    return list(next(publish_tables(data, ["raw"])).notes)


CPU = {"total cpu usage__usr": [1.0, 2.0], "load avg__1m": [3.0, 4.0]}


@pytest.fixture
def few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 14 columns, of which three may be of untrusted runs alone."""
    monkeypatch.setattr(publish, "MAX_TABLE_COLUMNS", 14)
    monkeypatch.setattr(publish, "MAX_TABLE_UNTRUSTED_COLUMNS", 3)


@pytest.mark.usefixtures("few_columns")
@pytest.mark.parametrize("first", ["trusted", "untrusted"])
def test_columns_of_untrusted_runs_displace_none_of_a_trusted_run(raw: RawStore, data: DataRoot, first: str) -> None:
    good = {**CPU, "app__rate": [5.0, 6.0], "zz__top": [7.0, 8.0]}
    if first == "trusted":
        add_run(raw, 1, **good)
        publish_raw(data)
    for number in range(2, 8):
        add_run(raw, number, UNTRUSTED, **{f"!{number}__{name}": [1.0, 2.0] for name in "abcde"}, **CPU)
    notes = publish_raw(data)
    published = columns_of(data)
    if first == "untrusted":
        add_run(raw, 1, **good)
        publish_raw(data)
    names = columns_of(data)
    assert {"total cpu usage:usr", "load avg:1m", "app:rate", "zz:top"} <= set(names)
    assert set(published) <= set(names)
    assert [name for name in names if name.startswith("!")] == ["!2:a", "!2:b", "!2:c"]
    assert "column '!7:e' is left out: the table has 3 columns that no trusted run has already" in notes
    row = next(row for row in rows_of(data) if row["run_id"] == "zuul~1~1")
    assert (row["total cpu usage:usr"], row["zz:top"]) in ((1.0, 7.0), (2.0, 8.0))


@pytest.mark.parametrize("name", ["total cpu usage__USR", "App__rate", "app__RATE"])
@pytest.mark.parametrize("published", [True, False])
def test_a_case_twin_of_an_untrusted_run_removes_no_column(
    raw: RawStore, data: DataRoot, name: str, published: bool
) -> None:
    for number in (1, 2):
        add_run(raw, number, UNTRUSTED, **{name: [1.0, 2.0], "load avg__1m": [1.0, 2.0]})
    if published:
        publish_raw(data)
    add_run(raw, 3, **CPU, app__rate=[5.0, 6.0])
    notes = publish_raw(data)
    assert {"total cpu usage:usr", "app:rate"} <= set(columns_of(data))
    twin = name.replace("__", ":")
    assert twin not in columns_of(data)
    assert f"column {twin!r} is left out: it and another differ only in upper and lower case" in notes
    add_run(raw, 4, UNTRUSTED, **{name: [1.0, 2.0], "other__x": [1.0, 2.0]})
    publish_raw(data)
    assert {"total cpu usage:usr", "app:rate", "other:x"} <= set(columns_of(data))


@pytest.mark.usefixtures("few_columns")
def test_a_column_of_an_untrusted_run_stays_and_gains_standing_from_a_trusted_one(
    raw: RawStore, data: DataRoot
) -> None:
    for trust, of_untrusted in ((UNTRUSTED, {"mine:x"}), (TRUSTED, set())):
        add_run(raw, 1 + trust.trusted, trust, **CPU, mine__x=[1.0, 2.0])
        publish_raw(data)
        metadata = DeltaLog(store_of(data, "raw")).read().metadata
        assert metadata is not None
        assert decode_fields(metadata["schemaString"])[1] == of_untrusted
        assert "mine:x" in columns_of(data)

"""Each table has the rows that ciml itself reads, in each engine; without the tables nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import Trust
from ciml.pipelines.datasets.update import update_dataset, verify_dataset
from ciml.runs.tables import FOLDER, publish, store_of
from ciml.runs.tables.delta_log import (
    CHECKPOINT_EVERY,
    CURSOR,
    DeltaLog,
    decode_fields,
    make_checkpoint,
    storage_options,
)
from ciml.runs.tables.publish import list_tables, publish_tables
from ciml.runs.verify import verify_raw
from ciml.storage import open_store
from tests.conftest import S3Endpoint
from tests.runs.compacting import all_there, run, squeeze
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore
from tests.runs.tables.readers import ENGINES, Rows
from tests.runs.tables.scenes import ODD, expected, make_dataset, make_store
from tests.transforms.samples import make_facts, table

TABLES = ("raw", "runs", "dead_letters", "datasets/cpu")
ROWS = {"raw": 42, "runs": 9, "dead_letters": 3, "datasets/cpu": 8}


def read(data: DataRoot, name: str, engine: str = "delta-rs") -> Rows:
    store = store_of(data, name)
    return ENGINES[engine](store.root, storage_options(store))[1]


def check(data: DataRoot, engine: str = "delta-rs") -> None:
    for name in TABLES:
        assert read(data, name, engine) == expected(data, name), name


def publish_all(data: DataRoot) -> dict[str, int]:
    """Publish all tables; return the versions of those that changed."""
    return {done.name: done.version for done in publish_tables(data) if done.committed}


def made(data: DataRoot) -> RawStore:
    raw = make_store(data)
    make_dataset(data)
    assert publish_all(data) == dict.fromkeys(TABLES, 0)
    return raw


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_reads_the_rows_that_ciml_reads(anywhere: DataRoot, engine: str) -> None:
    made(anywhere)
    check(anywhere, engine)
    assert {each.name: each.rows for each in list_tables(anywhere)} == ROWS
    assert {each.name: len(read(anywhere, each.name, engine)) for each in list_tables(anywhere)} == ROWS


def test_each_engine_reads_a_checkpoint(anywhere: DataRoot) -> None:
    raw = made(anywhere)
    for number in range(20, 21 + CHECKPOINT_EVERY):
        raw.add([run(number)], corrections=[make_facts(number - 1, outcome="failure")] if number > 20 else ())
        publish_all(anywhere)
    folder = store_of(anywhere, "runs")
    assert f"{FOLDER}/{CHECKPOINT_EVERY:020d}.checkpoint.parquet" in folder.list(FOLDER)
    for path in folder.list(FOLDER):
        if path < f"{FOLDER}/{CHECKPOINT_EVERY:020d}":
            folder.delete(path)
    for engine in ENGINES:
        assert read(anywhere, "runs", engine) == expected(anywhere, "runs")
    before = DeltaLog(folder).read()
    assert (before.version, before.transactions[CURSOR], before.rows) == (CHECKPOINT_EVERY + 1, 16, 20)
    assert publish_all(anywhere) == {}


def test_what_is_up_to_date_gets_no_version(data: DataRoot) -> None:
    raw = made(data)
    assert publish_all(data) == {}
    assert {each.name: each.behind for each in list_tables(data)} == dict.fromkeys(TABLES, 0)
    raw.add([run(20), run(21)])  # in a pack of more than half the size of the largest, so that both are merged
    assert {each.name: each.behind for each in list_tables(data)} == {
        **dict.fromkeys(TABLES, 0),
        "runs": 1,
        "dead_letters": 1,
    }
    squeeze(data.raw)
    assert next(list_tables(data, ["raw"])).behind == 2  # packed, then merged
    assert publish_all(data) == {"raw": 1, "runs": 1, "dead_letters": 1}
    check(data)


def test_compaction_and_new_versions_of_spans_reach_the_tables(data: DataRoot) -> None:
    raw = made(data)
    before = {name: read(data, name) for name in TABLES}
    raw.add([run(number) for number in range(20, 24)], corrections=[make_facts(4, outcome="failure")])
    squeeze(data.raw)
    update_dataset(data.dataset("cpu"))
    assert [versions for versions in data.dataset("cpu").state().spans.values() if len(versions) == 2] != []
    publish_all(data)
    check(data)
    assert all(read(data, name) != before[name] for name in TABLES if name != "dead_letters")


def test_deleting_the_tables_loses_nothing(data: DataRoot) -> None:
    made(data)
    rows = {name: read(data, name) for name in TABLES}
    for store in {data.store.child("tables"), *(store_of(data, name) for name in TABLES)}:
        for path in store.list(FOLDER if store != data.store.child("tables") else ""):
            store.delete(path)
    all_there(data.raw)
    assert verify_raw(data.raw).number == 0
    assert verify_dataset(data.dataset("cpu")) == []
    assert {each.name: (each.version, each.rows) for each in list_tables(data)} == dict.fromkeys(TABLES, (None, 0))
    assert publish_all(data) == dict.fromkeys(TABLES, 0)
    assert {name: read(data, name) for name in TABLES} == rows
    check(data)


def test_ciml_s_own_checks_pass_over_the_tables(data: DataRoot) -> None:
    raw = made(data)
    for number in range(30, 31 + CHECKPOINT_EVERY):
        raw.add([run(number)])
        squeeze(data.raw)
        publish_all(data)
    assert any(path.endswith(".checkpoint.parquet") for path in data.raw.list(f"packs/{FOLDER}"))
    squeeze(data.raw, everything=True)
    assert verify_raw(data.raw, grace_s=0).findings == []
    assert data.dataset_names() == ["cpu"]
    check(data)


def test_other_files_in_a_table_s_folder_are_none_of_its_rows(data: DataRoot) -> None:
    """What another program wrote or removed is undone: the folder's state decides."""
    made(data)
    log = DeltaLog(store_of(data, "raw"))
    state = log.read()
    add = next(iter(state.files.values()))
    foreign = {"path": "foreign.parquet", "partitionValues": {"job": "x", "date": None}, "size": 1, "dataChange": True}
    remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
    assert log.try_commit(1, [{"add": {**foreign, "modificationTime": 1}}, {"remove": remove}], 1)
    assert publish_all(data) == {"raw": 2}
    assert log.read().files.keys() == state.files.keys()
    check(data)


def test_packs_of_older_versions_have_no_run_ids(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("ciml.runs.packing.RUN_COLUMNS", ())
        raw = make_store(data)
    all_there(data.raw)
    publish_all(data)
    ids = {row["run_id"] for row in _raw(data)}
    assert ids == {None}
    raw.add([run(20), run(21)])
    squeeze(data.raw)
    all_there(data.raw)
    publish_all(data)
    assert len(_raw(data)) == 42 + 8
    merged = {row["run_id"] for row in _raw(data) if str(row["date"]) == "1970-01-01"}
    assert merged == {f"zuul~{number}~1" for number in (1, 2, 3, 4, 5, 6, 20, 21)}  # merged with the new ones
    done = squeeze(data.raw, everything=True)
    assert done.packing.merged == 2
    publish_all(data)
    assert {row["run_id"] for row in _raw(data)} == merged | {f"zuul~{number}~1" for number in (7, 8, 9)}
    all_there(data.raw)
    assert verify_raw(data.raw, grace_s=0).findings == []
    assert squeeze(data.raw, everything=True).packing.merged == 0
    check_raw = read(data, "raw")
    assert check_raw == expected(data, "raw")


def _raw(data: DataRoot) -> list[dict]:  # type: ignore[type-arg]
    from deltalake import DeltaTable

    return DeltaTable(store_of(data, "raw").root).to_pyarrow_table().to_pylist()  # type: ignore[no-any-return]


def test_partitions_are_the_job_as_its_name_has_it_and_the_day(data: DataRoot) -> None:
    made(data)
    found = {(row["job"], str(row["date"]), row["run_id"]) for row in _raw(data)}
    assert (ODD, "1970-01-08", "zuul~9~1") in found
    assert {(job, day) for job, day, _ in found} == {
        (ODD, "1970-01-08"), ("unit-tests", "1970-01-01"), ("unit-tests", "1970-01-02"),
    }  # fmt: skip


def test_columns_that_differ_in_case_alone_cost_their_own_pack_or_themselves(data: DataRoot) -> None:
    """Spark does not read a file with both; in two files they would be one column to some engines."""
    raw = make_store(data)
    times = [0, 1_000_000]
    raw.add([(make_facts(30, build_name="both", start_us=0), table(times, a__x=[1.0, 2.0], A__x=[3.0, 4.0]))])
    raw.add([(make_facts(31, build_name="other", start_us=0), table(times, DISK__read=[1.0, 2.0]))])
    squeeze(data.raw)
    done = next(publish_tables(data, ["raw"]))
    assert [note.rpartition("is left out: ")[2] for note in done.notes] == [
        "two columns differ only in upper and lower case", "it and another differ only in upper and lower case",
    ]  # fmt: skip
    assert done.notes[0].startswith("packs/job=both/date=1970-01-01/")
    assert done.notes[1].startswith("column 'disk:read'")
    assert {row["run_id"] for row in _raw(data)} == {f"zuul~{number}~1" for number in (*range(1, 10), 31)}


def test_the_other_log_of_a_run_is_distinguished_by_its_digest(data: DataRoot) -> None:
    made(data)
    logs = {(row["digest"], row["total cpu usage:usr"]) for row in _raw(data) if row["run_id"] == "zuul~1~1"}
    counted = {row["digest"] for row in _runs(data) if row["run_id"] == "zuul~1~1"}
    assert len({digest for digest, _ in logs}) == 2
    assert len(counted) == 1
    assert counted < {digest for digest, _ in logs}


def _runs(data: DataRoot) -> list[dict]:  # type: ignore[type-arg]
    from deltalake import DeltaTable

    return DeltaTable(store_of(data, "runs").root).to_pyarrow_table().to_pylist()  # type: ignore[no-any-return]


def test_runs_have_their_present_outcome_and_row(data: DataRoot) -> None:
    made(data)
    rows = {row["run_id"]: row for row in _runs(data)}
    assert len(rows) == len(_runs(data)) == 9
    assert rows["zuul~2~1"]["outcome"] == "failure"  # corrected
    assert (rows["zuul~3~1"]["rows"], rows["zuul~3~1"]["outcome"], rows["zuul~3~1"]["version"]) == (5, "success", 3)
    assert dict(rows["zuul~9~1"]["labels"]) == {"nodes": "3", "ä": "ß"}


def test_a_missing_extra_table_or_span_is_an_error_of_one_line(data: DataRoot) -> None:
    make_store(data)
    with pytest.raises(CimlError, match="unknown table 'rwa'; choose from raw, runs, dead_letters, datasets/NAME"):
        list(publish_tables(data, ["rwa"]))
    with pytest.raises(CimlError, match="no data set 'cpu'"):
        list(publish_tables(data, ["datasets/cpu"]))


def test_a_damaged_log_is_an_error_that_says_what_to_do(data: DataRoot) -> None:
    made(data)
    folder = Path(store_of(data, "runs").root, FOLDER)
    (folder / f"{0:020d}.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"commit 0: .*; delete this folder and publish again"):
        list(publish_tables(data, ["runs"]))
    (folder / f"{0:020d}.json").rename(folder / f"{1:020d}.json")
    with pytest.raises(IntegrityError, match="commit 0 is missing; delete this folder and publish again"):
        list(publish_tables(data, ["runs"]))


def test_the_restored_manifest_of_a_backup_is_read_from_its_beginning(data: DataRoot, tmp_path: Path) -> None:
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


def test_vacuums_are_kept_from_manifests(data: DataRoot) -> None:
    """A full vacuum lists all that is below a table's folder; the property makes it keep what is there."""
    from deltalake import DeltaTable

    raw = made(data)
    raw.add([run(20)])
    squeeze(data.raw, grace_s=5_000_000_000)
    publish_all(data)
    before = data.store.list()
    for name in TABLES:
        found = DeltaTable(store_of(data, name).root).vacuum(dry_run=False, full=True)
        assert found == [], name
    assert data.store.list() == before


def test_no_secret_of_a_log_s_address_is_in_the_log(data: DataRoot) -> None:
    made(data)
    commit = DeltaLog(store_of(data, "raw"))
    lines = [json.loads(line) for line in commit.store.read(commit.path(0)).splitlines()]
    assert [next(iter(line)) for line in lines] == ["commitInfo", "protocol", "metaData", "add", "add", "add", "txn"]


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


def test_files_of_older_versions_stay_for_the_grace(data: DataRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = made(data)
    old = read_at(data, "runs", 0)
    raw.add([run(20)])
    publish_all(data)
    assert read_at(data, "runs", 0) == old
    parts = [path for path in store_of(data, "runs").list() if path.endswith(".parquet")]
    assert len(parts) == 2
    monkeypatch.setattr("ciml.runs.tables.publish.GRACE_S", -3600)
    raw.add([run(21)])
    publish_all(data)
    assert len([path for path in store_of(data, "runs").list() if path.endswith(".parquet")]) == 2  # listed before
    raw.add([run(22)])
    publish_all(data)
    left = [path for path in store_of(data, "runs").list() if path.endswith(".parquet")]
    assert len(left) == 2
    assert parts[0] not in left
    check(data)


def read_at(data: DataRoot, name: str, version: int) -> list[dict]:  # type: ignore[type-arg]
    from deltalake import DeltaTable

    return DeltaTable(store_of(data, name).root, version=version).to_pyarrow_table().to_pylist()  # type: ignore[no-any-return]


# ---- columns of untrusted runs ----


def columns_of(data: DataRoot) -> list[str]:
    from deltalake import DeltaTable

    return [field.name for field in DeltaTable(store_of(data, "raw").root).schema().fields]


def add_run(raw: RawStore, number: int, trust: Trust, **columns: list[float]) -> None:
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
def test_columns_of_untrusted_runs_displace_none_of_a_trusted_run(data: DataRoot, first: str) -> None:
    raw = RawStore(data)
    good = {**CPU, "app__rate": [5.0, 6.0], "zz__top": [7.0, 8.0]}
    if first == "trusted":
        add_run(raw, 1, TRUSTED, **good)
        publish_raw(data)
    for number in range(2, 8):
        add_run(raw, number, UNTRUSTED, **{f"!{number}__{name}": [1.0, 2.0] for name in "abcde"}, **CPU)
    notes = publish_raw(data)
    published = columns_of(data)
    if first == "untrusted":
        add_run(raw, 1, TRUSTED, **good)
        publish_raw(data)
    names = columns_of(data)
    assert {"total cpu usage:usr", "load avg:1m", "app:rate", "zz:top"} <= set(names)
    assert set(published) <= set(names)
    assert [name for name in names if name.startswith("!")] == ["!2:a", "!2:b", "!2:c"]
    assert "column '!7:e' is left out: the table has 3 columns that no trusted run has already" in notes
    row = next(row for row in _raw(data) if row["run_id"] == "zuul~1~1")
    assert (row["total cpu usage:usr"], row["zz:top"]) in ((1.0, 7.0), (2.0, 8.0))


@pytest.mark.parametrize("name", ["total cpu usage__USR", "App__rate", "app__RATE"])
@pytest.mark.parametrize("published", [True, False])
def test_a_case_twin_of_an_untrusted_run_removes_no_column(data: DataRoot, name: str, published: bool) -> None:
    raw = RawStore(data)
    for number in (1, 2):
        add_run(raw, number, UNTRUSTED, **{name: [1.0, 2.0], "load avg__1m": [1.0, 2.0]})
    if published:
        publish_raw(data)
    add_run(raw, 3, TRUSTED, **CPU, app__rate=[5.0, 6.0])
    notes = publish_raw(data)
    assert {"total cpu usage:usr", "app:rate"} <= set(columns_of(data))
    twin = name.replace("__", ":")
    assert twin not in columns_of(data)
    assert f"column {twin!r} is left out: it and another differ only in upper and lower case" in notes
    add_run(raw, 4, UNTRUSTED, **{name: [1.0, 2.0], "other__x": [1.0, 2.0]})
    publish_raw(data)
    assert {"total cpu usage:usr", "app:rate", "other:x"} <= set(columns_of(data))


@pytest.mark.usefixtures("few_columns")
def test_a_column_of_an_untrusted_run_stays_and_gains_standing_from_a_trusted_one(data: DataRoot) -> None:
    raw = RawStore(data)
    add_run(raw, 1, UNTRUSTED, **CPU, mine__x=[1.0, 2.0])
    publish_raw(data)
    schema = DeltaLog(store_of(data, "raw")).read().metadata["schemaString"]  # type: ignore[index]
    assert decode_fields(schema)[1] == {"mine:x"}
    add_run(raw, 2, TRUSTED, **CPU, mine__x=[1.0, 2.0])
    publish_raw(data)
    schema = DeltaLog(store_of(data, "raw")).read().metadata["schemaString"]  # type: ignore[index]
    assert decode_fields(schema)[1] == set()
    assert "mine:x" in columns_of(data)

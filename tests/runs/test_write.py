"""Parse and store: logs to raw objects that are named by their content, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.digest import telemetry_digest
from ciml.errors import IntegrityError
from ciml.events.records import Batch, Message, OffsetRange, Origin, PendingRun, RawFile, RunFacts, Trust
from ciml.runs.reader import read_runs, verify_run
from ciml.runs.writer import run_path, store, write_run
from ciml.storage import LocalStore
from ciml.transforms.parse.logs import parse
from tests.transforms import samples
from tests.transforms.samples import corpus, make_facts

COVERS = OffsetRange("t", "T", 0, 0, 9)
TRUST = Trust(True, "gated", "p")


def pending(offset: int, log: bytes, facts: RunFacts) -> PendingRun:
    return PendingRun(Origin("t", 0, offset), f"e{offset}", facts, Message(offset, b"{}"), TRUST, log=log)


def from_corpus(count: int) -> Batch:
    runs, _, paths = corpus(count)
    return Batch(COVERS, pending_runs=[pending(at, paths[at].read_bytes(), run) for at, run in enumerate(runs)])


def table(rows: int = 3, **columns: list[float | None]) -> pa.Table:
    made = samples.table(range(0, rows * 1_000_000, 1_000_000), boot=[True] + [False] * (rows - 1), **columns)
    return made.replace_schema_metadata({"recorder": "dstat 0.7.4", "dropped_rows": "1"})


GOOD = table(usr=[1.0, 2.0, 3.0])


def test_logs_become_raw_objects_that_read_back_equal(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    _, tables, _ = corpus(40)
    batch = store(parse(from_corpus(40)), raw)
    assert (batch.messages, batch.pending_runs, len(batch.settled)) == ([], [], 40)
    files = [outcome.file for outcome in batch.settled]
    assert all(outcome.kind == "run" and outcome.trust == TRUST for outcome in batch.settled)
    found = read_runs(raw, [file for file in files if file])
    for outcome, expected, got in zip(batch.settled, tables, found, strict=True):
        assert outcome.file is not None
        assert got.equals(expected, check_metadata=True)
        assert outcome.file.digest == telemetry_digest(outcome.run_id, expected)
        assert (outcome.file.rows, outcome.file.size) == (
            expected.num_rows,
            (tmp_path / outcome.file.path).stat().st_size,
        )
        assert verify_run(raw, outcome.run_id, outcome.file) == ""


def test_a_second_store_finds_what_the_first_wrote(tmp_path: Path) -> None:
    raw = LocalStore(tmp_path)
    first = store(parse(from_corpus(3)), raw)
    written = {path: (tmp_path / path).stat().st_ino for path in raw.list()}
    assert store(parse(from_corpus(3)), raw) == first
    assert {path: (tmp_path / path).stat().st_ino for path in raw.list()} == written


def test_a_log_that_is_refused_is_a_dead_letter_and_holds_nobody_up(tmp_path: Path) -> None:
    good = from_corpus(1).pending_runs[0]
    bad = pending(5, b"<html>502</html>\n", make_facts())
    batch = store(parse(Batch(COVERS, pending_runs=[bad, good])), LocalStore(tmp_path))
    dead_letter, run = batch.settled
    assert (dead_letter.kind, dead_letter.reason, dead_letter.origin.offset) == ("dead_letter", "not_telemetry", 5)
    assert dead_letter.payload == {"value": "e30=", "headers": [], "timestamp_ms": 0}
    assert (run.kind, run.origin.offset) == ("run", 0)


def test_a_retry_keeps_its_attempts_and_needs_no_message(tmp_path: Path) -> None:
    good = from_corpus(1).pending_runs[0]
    good.message, good.attempts, good.first_seen_us = None, 3, 17
    bad = pending(5, b"", make_facts())
    bad.message, bad.attempts = None, 2
    dead_letter, run = store(parse(Batch(None, pending_runs=[good, bad])), LocalStore(tmp_path)).settled
    assert (run.attempts, run.first_seen_us) == (3, 17)
    assert (dead_letter.attempts, dead_letter.payload) == (2, None)


def test_the_same_table_gives_the_same_bytes() -> None:
    one = table(usr=[1.0, None, 3.0], sys=[0.1, 0.2, 0.3])
    again = pa.concat_tables([one[:1], one[1:]])
    assert write_run(one) == write_run(again)
    described = pq.ParquetFile(pa.BufferReader(write_run(one)))
    assert described.metadata.num_row_groups == 1
    assert described.schema_arrow.field("time").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("facts", "path"),
    [
        ({"build_name": "tempest", "start_us": 86_399_999_999}, "job=tempest/date=1970-01-01"),
        ({"build_name": "a/../b", "end_us": 86_400_000_000}, "job=a%2F..%2Fb/date=1970-01-02"),
        ({"build_name": "..", "start_us": -1}, "job=%2E./date=1969-12-31"),
        ({}, "job=unit-tests/date=1970-01-01"),
    ],
)
def test_where_a_run_lies(facts: dict[str, Any], path: str) -> None:
    assert run_path(make_facts(**facts), table(), "abcd" * 16) == f"runs/{path}/zuul~1~1.abcdabcdabcdabcd.parquet"


def test_a_job_with_an_endless_name_has_a_folder_of_its_own(tmp_path: Path) -> None:
    paths = {run_path(make_facts(build_name="é" * 400 + end), table(), "abcd" * 16) for end in ("a", "b")}
    assert len(paths) == 2
    for path in paths:
        LocalStore(tmp_path).create(path, b"")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "does not exist"),
        (write_run(GOOD)[:-20], "cannot be read as Parquet"),
        (write_run(GOOD[:2]), "has 2 rows, the manifest says 3"),
        (write_run(table(usr=[1.0, 2.0, 4.0])), f"expected {telemetry_digest('r', GOOD)}"),
        (write_run(table().append_column("x", pa.array(["a", "b", "c"]))), "got string"),
        (write_run(GOOD), ""),
    ],
    ids=["missing", "cut", "rows", "content", "type", "good"],
)
def test_a_fault_of_a_raw_object_is_named(tmp_path: Path, data: bytes | None, fault: str) -> None:
    raw = LocalStore(tmp_path)
    file = RawFile("x", telemetry_digest("r", GOOD), 3, 1)
    if data is not None:
        raw.create("x", data)
    found = verify_run(raw, "r", file)
    assert fault in found if fault else found == ""
    assert verify_run(raw, "another run", file) != ""
    if data is None:
        with pytest.raises(IntegrityError):
            read_runs(raw, [file, file])

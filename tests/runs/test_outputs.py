"""The stored outputs of runs: read as they were written, verified, expired and collected."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from ciml.errors import IntegrityError
from ciml.events.records import OutputFile, RawFile
from ciml.manifest.log import ManifestLog
from ciml.runs.collect_garbage import Collected
from ciml.runs.outputs import (
    EXPIRED,
    NO_OUTPUT,
    TEXTS,
    KeptOutput,
    OutputTemplates,
    compress,
    expire_before,
    output_path,
    read_output,
    read_templates,
    templates_path,
    unnamed_outputs,
)
from ciml.runs.run_log import RunRecord, find_rows
from ciml.runs.verify import verify_raw
from ciml.storage import Entry, LocalStore
from ciml.transforms.logs.templates import MASKS
from tests.durable import Steps
from tests.runs.compacting import DAY, FAR, run, squeeze
from tests.runs.scenes import RawStore

TEXT = b"collecting\npassword=hunter2\n1 failed in 3.2s\n"


def row_of(raw: RawStore, number: int) -> RunRecord:
    run_id = run(number)[0].run_id
    return find_rows(raw.log, [run_id])[run_id]


def add(raw: RawStore, number: int = 1, day: int = 0, text: bytes | None = TEXT) -> RunRecord:
    facts, telemetry = run(number, day)
    raw.add([(facts, telemetry)], outputs={} if text is None else {facts.run_id: text})
    return row_of(raw, number)


@pytest.mark.parametrize("text", [TEXT, gzip.compress(TEXT)], ids=["plain", "gzip"])
def test_an_output_is_read_as_it_was_stored(raw: RawStore, text: bytes) -> None:
    row = add(raw, text=text)
    assert row.output is not None
    kept = read_output(raw.store, row.output)
    assert kept == KeptOutput(b"collecting\npassword=REDACTED\n1 failed in 3.2s\n", 4)
    assert read_templates(raw.store, row.output) == OutputTemplates(
        ("collecting", "password=REDACTED", "<*> failed in <*>"), (1, 1, 1), (1, 2, 3), 4, 1, MASKS
    )
    assert row.output.path.startswith(f"{TEXTS}/job=unit-tests/date=1970-01-01/{row.mention.run_id}.")
    assert not any(b"hunter2" in raw.store.read(path) for path in raw.store.list())
    assert verify_raw(raw.store).outputs == 1


def test_rows_without_output_have_no_key_for_it(raw: RawStore) -> None:
    row = add(raw, text=None)
    assert b"output" not in ManifestLog(raw.store).read_raw(1)
    assert (row.output, read_output(raw.store, row.output), read_templates(raw.store, row.output)) == (
        None,
        NO_OUTPUT,
        NO_OUTPUT,
    )


def test_a_row_says_why_its_output_is_missing(raw: RawStore) -> None:
    row = add(raw, text=None).replace(output=OutputFile(missing="log_forbidden"))
    assert read_output(raw.store, row.output) == read_templates(raw.store, row.output) == "log_forbidden"
    assert row.output is not None
    assert row.output.to_json() == {"missing": "log_forbidden"}


def test_a_damaged_or_lost_output_is_found(raw: RawStore) -> None:
    rows = [add(raw, number, text=TEXT + b"%d" % number) for number in range(4)]
    paths = [row.output.path for row in rows if row.output]
    other = raw.store.read(paths[1])
    raw.store.replace(paths[0], other)
    raw.store.replace(paths[1], other[:-4])
    raw.store.delete(paths[2])
    raw.store.delete(templates_path(paths[3]))
    findings = verify_raw(raw.store)
    faults = ("differs from its digest", "cannot be read as zstd", "is in the manifest but", "does not exist; restore")
    assert [fault in text for fault, text in zip(faults, findings.findings, strict=True)] == [True] * 4
    assert verify_raw(raw.store, sample=4).number == 4
    for row in rows[:3]:
        with pytest.raises(IntegrityError):
            read_output(raw.store, row.output)


def stray_output(raw: RawStore) -> str:
    """The output of a run that no manifest names."""
    facts, telemetry = run(9)
    stray = output_path(raw.write(facts, telemetry), "0" * 64)
    for path in (stray, templates_path(stray)):
        raw.store.create(path, b"")
    return stray


def expire(raw: RawStore) -> Collected:
    """Remove the texts of the first two days."""
    return squeeze(raw.store, clock=lambda: 5 * DAY + 1.0, keep_outputs_s=3 * DAY, grace_s=-1e10).swept


def test_texts_expire_and_templates_stay(raw: RawStore) -> None:
    rows = [add(raw, number, day) for number, day in enumerate((0, 0, 3))]
    assert expire(raw).outputs == 2
    assert [read_output(raw.store, row.output) == EXPIRED for row in rows] == [True, True, False]
    assert all(isinstance(read_templates(raw.store, row.output), OutputTemplates) for row in rows)
    assert verify_raw(raw.store).findings == []
    assert squeeze(raw.store, keep_outputs_s=None).swept.outputs == 0


def test_templates_stay_while_the_pack_of_their_runs_is_broken(raw: RawStore, tmp_path: Path) -> None:
    row = add(raw)
    assert row.output
    os.utime(tmp_path / "raw" / row.output.path, (1, 1))
    squeeze(raw.store, keep_outputs_s=None)
    (pack,) = (path for path in raw.store.list("packs") if path.endswith(".parquet"))
    raw.store.replace(pack, raw.store.read(pack)[:-4])
    assert expire(raw).outputs == 1
    assert isinstance(read_templates(raw.store, row.output), OutputTemplates)


def test_templates_of_unknown_runs_go_before_the_texts_by_which_they_are_found(raw: RawStore, tmp_path: Path) -> None:
    add(raw)
    stray = stray_output(raw)
    os.utime(tmp_path / "raw" / stray, (1, 1))
    with Steps(str(tmp_path)).recording() as steps:
        assert expire(raw).outputs == 2
    removed = [step.split("/")[2] for step in steps.steps if step.startswith("delete raw/outputs/")]
    assert removed == ["templates", "text", "text"]


def test_an_output_that_is_lost_before_its_time_is_no_expired_one(raw: RawStore) -> None:
    row = add(raw, 1, 3)
    assert row.output
    raw.store.delete(row.output.path)
    expire_before(raw.store, date(1970, 1, 4))
    with pytest.raises(IntegrityError, match="in the manifest but does not exist"):
        read_output(raw.store, row.output)
    for day in (5, 2):  # then texts are kept for longer again
        expire_before(raw.store, date(1970, 1, day))
    assert read_output(raw.store, row.output) == EXPIRED


@pytest.mark.parametrize("packed", [True, False])
def test_outputs_of_unknown_runs_go_and_others_stay(raw: RawStore, packed: bool) -> None:
    """As a worker leaves them that is killed before its commit."""
    row = add(raw)
    stray_output(raw)
    if packed:
        squeeze(raw.store)
    collected: Collected = squeeze(raw.store, everything=True).swept
    assert collected.outputs == 1
    assert row.output
    assert {path for path in raw.store.list() if path.startswith("outputs/")} == {
        row.output.path,
        templates_path(row.output.path),
    }


def test_young_outputs_of_unknown_runs_stay(raw: RawStore) -> None:
    stray = stray_output(raw)
    assert squeeze(raw.store, everything=True, aside_s=FAR()).swept.outputs == 0
    assert raw.store.exists(stray)


def test_an_output_that_no_row_names_is_reported_after_a_month_and_can_be_removed(raw: RawStore) -> None:
    """As a worker leaves one that read another text than the one that committed."""
    row = add(raw)
    stray = output_path(row.file, "0" * 64)
    lost = output_path(row.file, "1" * 64)
    raw.store.create(stray, b"")
    raw.store.create(templates_path(lost), b"")  # whose text has expired
    now_s = time.time()
    young = verify_raw(raw.store, grace_s=0, clock=lambda: now_s + 29 * DAY)
    assert (young.findings, young.notes) == ([], ["2 young objects are not named by any manifest yet"])
    assert verify_raw(raw.store, sample=1, grace_s=0, clock=FAR).findings == []
    found = verify_raw(raw.store, grace_s=0, clock=lambda: now_s + 31 * DAY).findings
    assert found == [f"{raw.store.url(path)} is not named by any manifest" for path in (stray, templates_path(lost))]
    assert squeeze(raw.store, everything=True, keep_outputs_s=None).swept.outputs == 1
    assert verify_raw(raw.store, grace_s=0, clock=FAR).findings == []
    assert isinstance(read_output(raw.store, row.output), KeptOutput)
    assert isinstance(read_templates(raw.store, row.output), OutputTemplates)


def test_an_output_that_is_committed_while_objects_are_listed_is_named(
    raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_entries = LocalStore.entries
    numbers = [1]

    def entries(store: LocalStore, prefix: str = "") -> Iterator[Entry]:
        if numbers:
            add(raw, numbers.pop())
        return list_entries(store, prefix)

    monkeypatch.setattr(LocalStore, "entries", entries)
    assert unnamed_outputs(raw.store) == []
    assert numbers == []


def test_damaged_templates_are_an_error_of_one_line(raw: RawStore) -> None:
    row = add(raw)
    assert row.output
    path = templates_path(row.output.path)
    other = b"[1]"
    for content, fault in (
        (raw.store.read(row.output.path), "differs from its digest"),
        (compress(hashlib.sha256(other).hexdigest().encode() + other), r"cannot be read \(.*\); restore a backup"),
    ):
        raw.store.replace(path, content)
        with pytest.raises(IntegrityError, match=fault):
            read_templates(raw.store, row.output)


def test_only_runs_have_outputs() -> None:
    with pytest.raises(IntegrityError, match="is not the path of a run"):
        output_path(RawFile("elsewhere", "", 0, 0), "0" * 64)


def test_the_record_is_of_json_types() -> None:
    output = OutputFile("p", "d", 10, 4, 2, 1, 3)
    assert OutputFile.from_json(json.loads(json.dumps(output.to_json()))) == output


def test_a_line_is_found_by_its_number_in_the_whole_output() -> None:
    kept = KeptOutput(b"1\n2\n9\n10\n", head_lines=2, dropped_lines=6, dropped_bytes=12)
    numbers = [1, 2, 3, 8, 9, 10, 11]
    assert [kept.line(number) for number in numbers] == [b"1", b"2", None, None, b"9", b"10", None]
    assert [kept.number(index) for index in (1, 2, 3, 4)] == [1, 2, 9, 10]

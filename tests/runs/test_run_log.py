"""The typed runs of a raw manifest equal those of its deltas."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.records import LISTS, UNJUDGED, Origin, Outcome, RawFile, RunFacts, Trust, rows_of
from ciml.manifest.log import ManifestLog
from ciml.runs.latest_runs import latest_runs
from ciml.runs.run_log import Settled, StoredRunLog, outcomes_of, stored_rows
from ciml.runs.state import open_raw
from ciml.storage import open_store
from tests.runs.compacting import run
from tests.runs.scenes import RawStore

TRUST = Trust(True, "gated", "p")


def outcome(number: int, **more: object) -> Outcome:
    facts = RunFacts(f"zuul~{number}~1", str(number), "job", outcome="success", start_us=number, labels={"size": "ä"})
    file = RawFile(f"runs/job=job/date=2026-01-01/{number}.parquet", "0" * 64, 60, 1000)
    return Outcome("run", Origin("t", 0, number), "key", facts, trust=TRUST, file=file).replace(**more)


@pytest.fixture
def log(tmp_path: Path) -> ManifestLog:
    log = ManifestLog(open_store(tmp_path))
    runs = [outcome(1), outcome(2, trust=UNJUDGED)]
    change = outcome(1, kind="correction", file=None)
    assert change.mention is not None
    change = change.replace(trust=UNJUDGED, mention=change.mention.replace(outcome="failure", result="FAILURE"))
    empty = {"time_us": 0, "runs": [], "corrections": [], "repeats": []}
    assert log.try_append(1, {**empty, "runs": [run.to_json() for run in runs]})
    assert log.try_append(2, {**empty, "corrections": [change.to_json()]})
    return log


def judge(facts: RunFacts) -> Trust:
    return Trust(False, f"judged {facts.build_uuid}", "now")


def test_runs_equal_those_of_the_deltas(log: ManifestLog) -> None:
    (one, first), (two, second) = StoredRunLog(log, judge).since(0)
    assert (one, two) == (1, 2)
    assert [(run.mention, run.file) for run in first.runs] == [
        (each.mention, each.file) for each in map(Outcome.from_json, log.read(1)["runs"])
    ]
    (correction,) = second.corrections
    assert (correction.mention.run_id, correction.fix) == ("zuul~1~1", ("failure", "FAILURE"))
    assert StoredRunLog(log, judge).read(2) == second
    assert list(StoredRunLog(log, judge).since(2)) == []


def test_a_stored_record_without_trust_is_judged_by_its_facts(log: ManifestLog) -> None:
    (_, first), (_, second) = StoredRunLog(log, judge).since(0)
    assert [run.trust for run in first.runs] == [TRUST, Trust(False, "judged 2", "now")]
    assert [correction.trust for correction in second.corrections] == [Trust(False, "judged 1", "now")]


def test_reclaims_are_rows_after_the_runs(log: ManifestLog) -> None:
    reclaim = outcome(2, kind="reclaim")
    delta = {"time_us": 0, "runs": [outcome(3).to_json()], "reclaims": [reclaim.to_json()], "corrections": []}
    assert log.try_append(3, delta)
    read = StoredRunLog(log, judge).read(3)
    assert [row.mention.build_uuid for row in read.rows] == ["3", "2"] == [
        row["mention"]["build_uuid"] for row in rows_of(log.read(3))
    ]  # fmt: skip


def test_outcomes_without_a_trusted_decision_are_untrusted(tmp_path: Path) -> None:
    log = ManifestLog(open_store(tmp_path))
    rows = [outcome(number).to_json() for number in range(2)]
    letters = [
        outcome(number, kind="dead_letter", file=None, trust=Trust(False, "", "")).to_json() for number in (2, 3)
    ]
    for record in (rows[1], letters[1]):
        del record["trust"]  # an older version stored none
    lists = {**{name: [] for name in LISTS.values()}, "runs": rows, "dead_letters": letters, "ignored": [rows[1]]}
    assert log.try_append(1, {"time_us": 0, **lists})
    assert outcomes_of(log, "t") == Settled(Counter(run=2, dead_letter=2, ignored=1), untrusted=3)
    assert outcomes_of(log, "u") == Settled(Counter(), 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not a delta of this manifest"),
        (b"[]", "is not a delta of this manifest"),
        (b'{"version": 1, "runs": [{"mention": {"run_id": 3}}]}', "is not a delta of this manifest"),
        (b'{"version": 2, "runs": []}', "is not version 1; restore a backup"),
        (b'{"runs": []}', "is not version 1; restore a backup"),
        (b"\xff", "is not a delta of this manifest"),
    ],
)
def test_a_broken_delta_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    store = open_store(tmp_path)
    log = ManifestLog(store)
    store.create(log.path(1), data)
    with pytest.raises(IntegrityError, match=message) as caught:
        list(StoredRunLog(log, judge).since(0))
    assert log.path(1) in str(caught.value)


def test_the_outcome_of_a_run_is_the_corrected_one(tmp_path: Path) -> None:
    raw = RawStore(DataRoot.open(tmp_path / "data"))
    facts, telemetry = run(1)
    raw.add([(facts, telemetry)], corrections=[facts.replace(outcome="failure")])
    (found,) = latest_runs(*open_raw(raw.store))
    assert (facts.outcome, found.own.outcome, found.outcome) == ("success", "success", "failure")


def test_the_file_of_a_run_is_that_of_its_last_row(tmp_path: Path) -> None:
    def mention(number: int) -> dict[str, object]:
        return {"run_id": f"zuul~{number}~1", "build_uuid": str(number)}

    log = ManifestLog(open_store(tmp_path))
    rows: list[dict[str, dict[str, object]]] = [
        {"mention": mention(n), "file": RawFile(f"runs/{n}", "d", n, 1).to_json()} for n in range(4)
    ]
    assert log.try_append(1, {"runs": rows[:2]})
    again = {**rows[0], "file": {**rows[0]["file"], "path": "runs/reclaimed"}}
    corrected = [{"mention": mention(1)}]
    assert log.try_append(2, {"runs": rows[2:], "reclaims": [again], "corrections": corrected})
    found = stored_rows(log, ["zuul~0~1", "zuul~3~1", "zuul~1~1"])
    assert {run_id: row.file.path for run_id, row in found.items()} == {
        "zuul~0~1": "runs/reclaimed", "zuul~1~1": "runs/1", "zuul~3~1": "runs/3"
    }  # fmt: skip
    with pytest.raises(IntegrityError, match="does not have the run zuul~7~1"):
        stored_rows(log, ["zuul~1~1", "zuul~7~1"])

"""Signatures of stored outputs: read once, continued by the next reader, whatever happens to the texts."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events.records import OutputFile, Trust
from ciml.runs import outputs
from ciml.runs.outputs import expire_before, templates_path
from ciml.storage import Store
from ciml.transforms.logs import run_outputs
from ciml.transforms.logs.failure_keys import Key
from ciml.transforms.logs.profile import Printed
from ciml.transforms.logs.run_outputs import stored_printed
from ciml.transforms.logs.signatures import Failure, Line, Signature, Signatures
from ciml.verdicts.signatures import stored as module
from ciml.verdicts.signatures.stored import BOOKMARK, LINE_CHARACTERS, SignatureLog, read_signatures
from tests.runs.compacting import run
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore

USUAL = "collecting\nerror: no cache was found here\n"
DOWN = f"{USUAL}error: could not reach the mirror token=hunter2abcdef\n"


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


@pytest.fixture
def raw(data: DataRoot) -> RawStore:
    return RawStore(data)


def add(raw: RawStore, number: int, text: str, outcome: str = "failure", trust: Trust = TRUSTED, **facts: Any) -> str:
    run_facts, telemetry = run(number, outcome=outcome, **{"change": f"{number}", "end_us": number, **facts})
    raw.add([(run_facts, telemetry)], trust=trust, outputs={run_facts.run_id: text.encode()})
    return run_facts.run_id


def add_all(raw: RawStore) -> None:
    passing = [run(number, outcome="success", change=f"{number}", end_us=number) for number in range(6)]
    raw.add(passing, outputs={facts.run_id: USUAL.encode() for facts, _ in passing})
    for number in range(6, 10):
        add(raw, number, DOWN, labels={"node": f"node-{number % 2}"}, provider="east")
    add(raw, 10, "collecting\n")


def facts_of(signature: Signature) -> tuple[Any, ...]:
    return signature.key, signature.runs, signature.changes, signature.judgement


def test_failed_runs_share_the_new_lines_of_their_outputs(data: DataRoot, raw: RawStore) -> None:
    add_all(raw)
    signatures = read_signatures(data)
    ended, down = signatures.all()
    assert facts_of(down) == (Key("error: could not reach the mirror token=REDACTED", ""), 4, 4, "machine")
    assert facts_of(ended)[0] == Key("error: no cache was found here", "unit-tests", is_end=True)
    assert down.line == Line(down.founder, 3, "error: could not reach the mirror token=REDACTED")
    assert ended.line == Line(ended.founder, 2, "")
    assert (down.nodes, down.providers) == ({"node-0": 2, "node-1": 2}, {"east": 4})
    assert list(down.by_change) == ["6", "7", "8", "9"]
    assert b"hunter2" not in data.failures.read(BOOKMARK)


def test_the_next_reader_continues_from_the_bookmark(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the state of a reader of all deltas, and reads no output twice."""
    read: list[str] = []

    def counted(raw: Store, output: OutputFile | None) -> dict[str, Printed] | None:
        read.append(output.path if output else "")
        return stored_printed(raw, output)

    for reader in (module, run_outputs):
        monkeypatch.setattr(reader, "stored_printed", counted)
    add_all(raw)
    read_signatures(data)
    read.clear()
    read_signatures(data)
    assert read == []
    add(raw, 11, DOWN)
    continued = read_signatures(data)
    assert len(read) == 7  # its own templates, and those of six passing runs
    data.failures.delete(BOOKMARK)
    assert read_signatures(data).encode() == continued.encode()


def test_a_bookmark_that_cannot_be_used_is_ignored(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_all(raw)
    whole = read_signatures(data).encode()
    data.failures.replace(BOOKMARK, b"{}\n")
    assert read_signatures(data).encode() == whole
    monkeypatch.setattr(module.SignatureReader, "encode", lambda self: b"other")
    data.failures.delete(BOOKMARK)
    read_signatures(data)
    assert read_signatures(data).encode() == whole


def test_a_long_manifest_is_bookmarked_on_the_way(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_all(raw)
    monkeypatch.setattr(module, "_BOOKMARK_FAILED", 2)
    added: list[str] = []
    original = Signatures.add

    def add_some(signatures: Signatures, failure: Failure) -> Signature | None:
        added.append(failure.run_id)
        if len(added) == 5:
            raise RuntimeError("the process ends")
        return original(signatures, failure)

    monkeypatch.setattr(Signatures, "add", add_some)
    with pytest.raises(RuntimeError):
        read_signatures(data)
    assert [signature.runs for signature in read_signatures(data).all()] == [1, 4]
    assert added == [f"zuul~{number}~1" for number in (6, 7, 8, 9, 10, 10)]


def test_signatures_do_not_depend_on_the_retention_of_texts(data: DataRoot, raw: RawStore) -> None:
    add_all(raw)
    before = read_signatures(data).all()
    expire_before(data.raw, date(2030, 1, 1))
    for path in data.raw.list(outputs.TEXTS):
        data.raw.delete(path)
    data.failures.delete(BOOKMARK)
    after = read_signatures(data).all()
    assert list(map(facts_of, after)) == list(map(facts_of, before))
    assert after[1].line == Line(after[1].founder, 0, "error: could not reach the mirror token=REDACTED")


def test_a_damaged_output_costs_its_own_run_the_signature(
    data: DataRoot, raw: RawStore, caplog: pytest.LogCaptureFixture
) -> None:
    add_all(raw)
    failed = add(raw, 11, DOWN)
    paths = [path for path in data.raw.list(outputs.TEXTS) if failed in path]
    (passing, *_) = [path for path in data.raw.list(outputs.TEXTS) if run(0)[0].run_id in path]
    for path in (*paths, passing):
        data.raw.delete(templates_path(path))
    signatures = read_signatures(data)
    assert signatures.of_run(failed) is None
    assert sum(signature.runs for signature in signatures.all()) == 5
    assert f"run {failed} has no signature" in caplog.text


def test_untrusted_passing_runs_are_not_compared_with(data: DataRoot, raw: RawStore) -> None:
    """Otherwise anybody could hide a line, by a passing run that prints it."""
    for number in range(5):
        add(raw, number, DOWN, "success", UNTRUSTED)
    add(raw, 6, DOWN)
    assert [signature.key.template for signature in read_signatures(data).all()] == [
        "error: could not reach the mirror token=REDACTED"
    ]


def test_the_latest_passing_runs_are_compared_with_and_lines_are_cut(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PASSING_RUNS", 2)
    line = f"error: the mirror {'abc ' * 99}\n"
    for number, text in enumerate((line, "collecting\n", "collecting\n")):
        add(raw, number, text, "success")
    add(raw, 3, line)
    (signature,) = read_signatures(data).all()
    assert signature.line is not None
    assert signature.line.text == line[:LINE_CHARACTERS]


def test_a_data_root_without_runs_has_no_signatures(data: DataRoot) -> None:
    assert read_signatures(data).all() == []


def test_a_process_continues_and_a_short_time_reads_a_part(
    data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_all(raw)
    log = SignatureLog(data)
    with log.read(budget_s=-1) as reader:
        assert reader.signatures.all() == []  # one delta, of passing runs
    with log.read() as reader:
        assert sum(signature.runs for signature in reader.signatures.all()) == 5
    saved = data.failures.read(BOOKMARK)
    add(raw, 11, DOWN)
    with log.read() as reader:
        assert sum(signature.runs for signature in reader.signatures.all()) == 6
    assert data.failures.read(BOOKMARK) == saved  # replaced once a minute
    monkeypatch.setattr(module, "_BOOKMARK_S", 0.0)
    add(raw, 12, DOWN)
    with log.read():
        assert data.failures.read(BOOKMARK) != saved


def test_failed_tests_are_remembered_with_their_changes(data: DataRoot, raw: RawStore) -> None:
    for number in range(2):
        add(raw, number, f"{DOWN}FAILED tests/test_a.py::test_b\n", project="p")
    with SignatureLog(data).read() as reader:
        assert reader.tests.others("p", "tests/test_a.py::test_b", "p 0", 2).changes == 1
    with SignatureLog(data).read() as reader:  # from the bookmark
        assert reader.tests.others("p", "tests/test_a.py::test_b", "p 0", 2).changes == 1

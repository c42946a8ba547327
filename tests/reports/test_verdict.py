"""The page of a failed run: what it shows, and that hostile texts are only text."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.reports import verdict as module
from ciml.reports.page import render
from ciml.reports.verdict import save_verdict, verdict_page
from ciml.runs.outputs import TEXTS
from ciml.storage import open_store
from ciml.transforms.logs import run_outputs
from ciml.transforms.logs.ranking import Line
from ciml.verdict_rules import Verdict
from ciml.verdicts.evidence import Evidence, evidence_of
from ciml.verdicts.evidence.output import OutputEvidence, RunTest
from ciml.verdicts.signatures.notes import Note, add_note
from tests.reports.scenes import HOSTILE
from tests.runs.scenes import RawStore
from tests.verdicts.evidence.stored import FAILED, STARVED, prediction, push
from tests.verdicts.evidence.subjects import profiles
from tests.verdicts.evidence.test_line import FAILING
from tests.verdicts.evidence.test_output import fail, passing_runs

ERROR = "E   ModuleNotFoundError: No module named 'attrs'"


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


@pytest.fixture
def raw(data: DataRoot) -> RawStore:
    return passing_runs(data)


def stored(tmp_path: Path, data: DataRoot, raw: RawStore) -> dict[str, Any]:
    """Store the failed run, another one that failed alike, and a note on both; return the prediction."""
    fail(raw, 20, FAILING)
    raw.add([(FAILED, STARVED)], outputs={FAILED.run_id: FAILING.encode()})
    push(data, tmp_path / "model", profiles(60))
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and FAILED.run_id in path]
    record = prediction(FAILED, path)
    output = evidence_of(data, record).output
    assert output is not None
    assert output.failure is not None
    add_note(data.failures, Note(output.failure.id, "ada", "no attrs", "machine", "see 12"))
    return record


def page_of(tmp_path: Path, data: DataRoot, record: dict[str, Any]) -> str:
    folder = open_store(tmp_path / "page")
    save_verdict(data, folder, record, Verdict.from_json(record["verdict"]), evidence_of(data, record))
    return unescape((tmp_path / "page" / "index.html").read_text())


def test_the_page_has_the_same_sentences_the_lines_and_the_picture(
    tmp_path: Path, data: DataRoot, raw: RawStore
) -> None:
    record = stored(tmp_path, data, raw)
    text = page_of(tmp_path, data, record)
    assert all(sentence in text for sentence in evidence_of(data, record).observations)
    assert "“ada” named the cause of this failure “no attrs”: the machine; “see 12”." in text
    assert f"<td>3 +</td><td>{ERROR}</td>" in text
    assert '<td>tests/test_io.py::test_read</td><td>pytest</td><td class="n">4</td>' in text
    assert "<td>note</td><td>no attrs: machine: see 12 (ada)</td>" in text
    assert "<svg " in text
    assert ">Steal<" in text


def test_a_verdict_without_telemetry_says_so(tmp_path: Path, data: DataRoot, raw: RawStore) -> None:
    record = stored(tmp_path, data, raw)
    assert "There is no telemetry" not in page_of(tmp_path, data, record)
    record["verdict"]["without_telemetry"] = True
    assert "There is no telemetry: the verdict follows from the outcome and the output alone." in page_of(
        tmp_path / "without", data, record
    )


def test_a_run_without_a_readable_output_has_a_page(
    tmp_path: Path, data: DataRoot, raw: RawStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = stored(tmp_path, data, raw)
    monkeypatch.setattr(run_outputs, "_last_read", run_outputs.LastRead(0))  # that of another process
    for path in data.raw.list(TEXTS):
        data.raw.replace(path, b"damaged")
    text = page_of(tmp_path, data, record)
    assert "Failed tests" not in text
    assert "steal was 41 %" in text


@pytest.mark.parametrize("hostile", [*HOSTILE, "javascript:alert(1)", 'https://x/"><script>alert(1)</script>'])
def test_hostile_texts_are_only_text(hostile: str) -> None:
    record = prediction(FAILED.replace(build_name=hostile, change=hostile, project=hostile), "p")
    output = OutputEvidence((hostile,), tests=(RunTest(hostile, hostile, 3),), url=hostile)
    lines = module._Excerpt((Line(1, hostile, 1.0, True),), 1)
    evidence = Evidence((hostile,), output=output)
    html = render(verdict_page(record, Verdict.from_json(record["verdict"]), evidence, "", lines))
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html

"""The record of a prediction with a verdict has what the output of its run shows, as evidence does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ciml.data_root import DataRoot
from ciml.events.records import OutputFile, RunFacts
from ciml.manifest.log import ManifestLog
from ciml.messages import RunOutput
from ciml.pipelines.predict import explain_output
from ciml.runs.outputs import TEXTS
from ciml.runs.run_log import find_rows
from ciml.serving.predict.predictor import Announcement
from ciml.verdicts.evidence.output import output_evidence
from ciml.verdicts.signatures.notes import Note, add_note
from tests.runs.scenes import RawStore
from tests.verdicts.evidence.test_line import FAILING
from tests.verdicts.evidence.test_output import fail, passing_runs


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


@pytest.fixture
def raw(data: DataRoot) -> RawStore:
    return passing_runs(data)


def announced(data: DataRoot, facts: RunFacts, **changes: Any) -> Announcement:
    row = find_rows(ManifestLog(data.raw), [facts.run_id])[facts.run_id]
    announcement = Announcement(0, 0, facts.run_id, facts.build_name, row.file.path, "", facts, row.output)
    return msgspec.structs.replace(announcement, **changes) if changes else announcement


def test_it_has_the_sentences_of_evidence_and_their_parts(data: DataRoot, raw: RawStore) -> None:
    for number in range(10, 13):
        last = fail(raw, number, FAILING)
    before = output_evidence(data, last.run_id)
    assert before is not None
    assert before.failure is not None
    add_note(data.failures, Note(before.failure.id, "ada", text="x" * 900))
    record = explain_output(data, announced(data, last))["output"]
    evidence = output_evidence(data, last.run_id)
    assert evidence is not None
    assert record["sentences"] == list(evidence.sentences)
    assert len(record["sentences"]) == 4
    assert record["line"] == {
        "text": "E ModuleNotFoundError: No module named 'attrs'", "number": 3, "file": "", "step": "",
    }  # fmt: skip
    assert (record["failed_tests"], record["url"]) == (1, "")
    assert record["signature"]["runs"] == 3
    assert record["signature"]["note"]["text"] == f"{'x' * 199}…"
    assert msgspec.convert(record, RunOutput) == record


def test_a_run_without_a_readable_output_has_none(
    data: DataRoot,
    raw: RawStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = fail(raw, 10, FAILING)
    announcement = announced(data, failed)
    (path,) = [path for path in data.raw.list(TEXTS) if failed.run_id in path]
    data.raw.replace(path, b"damaged")
    assert explain_output(data, announcement) == {}
    assert "no evidence of its output" in caplog.text
    missing = Announcement(0, 0, failed.run_id, "unit", "", "", failed, OutputFile(missing="log_not_found"))
    assert explain_output(data, missing) == {}
    assert explain_output(data, Announcement(0, 0, failed.run_id, "unit", "", "", failed, None)) == {}
    assert explain_output(data, Announcement(0, 0, failed.run_id, "unit", "", "", None, announcement.output)) == {}


def test_its_size_is_bounded_whatever_an_output_prints(data: DataRoot, raw: RawStore) -> None:
    long = "\N{FULLWIDTH LATIN SMALL LETTER X}" * 900
    text = f"TASK [{long}]\nError: {long}\n" + "".join(f"FAILED tests/{long}{n}.py::test_{n}\n" for n in range(1200))
    record = explain_output(data, announced(data, fail(raw, 10, text)))
    assert len(json.dumps(record, ensure_ascii=False).encode()) < 6_000
    assert record["output"]["failed_tests"] == 1000

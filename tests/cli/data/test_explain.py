"""``ciml explain``: the lines that explain a failure, printed for a person and for a program."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ciml.cli.commands.data.runs import _output_text
from ciml.data_root import DataRoot
from ciml.events.records import OutputFile
from ciml.transforms.logs import keep, prepare
from tests.cli.calling import ciml
from tests.project.test_startup import loaded_by
from tests.runs.compacting import run, squeeze
from tests.runs.scenes import TRUSTED, UNTRUSTED, RawStore

PASSING = "setting up\nWARNING: slow disk, error: retried\n" + "".join(f"step {n} of 9\n" for n in range(9)) + "done\n"
FAILING = (
    PASSING.replace("done\n", "").replace("setting up", "fatal: no setup")
    + "FAILED tests/a.py::test_x - OSError: token=s3cr3tpassw0rd\n\x07bell rings\n"
)


def explain(*words: object, code: int = 0) -> str:
    return ciml("explain", *words, code=code).output


@pytest.fixture
def outputs(tmp_path: Path) -> tuple[Path, Path]:
    """A failing output and a passing one, which is packed."""
    failing, passing = tmp_path / "failing.txt", tmp_path / "passing.txt.gz"
    failing.write_text(FAILING)
    passing.write_bytes(gzip.compress(PASSING.encode()))
    return failing, passing


def test_the_cause_is_shown_with_its_number_and_without_secrets(outputs: tuple[Path, Path]) -> None:
    shown = explain(outputs[0], "--passed", outputs[1], "--characters", 75)
    assert shown.splitlines() == [
        " 1 +fatal: no setup",
        "    …",
        "12 +FAILED tests/a.py::test_x - OSError: token=REDACTED",
        "12 !tests/a.py::test_x",
        "2 of 13 lines; 3 are new (+); 1 failed test (pytest)",
    ]


def test_what_passing_runs_print_and_how_often_is_compared(outputs: tuple[Path, Path]) -> None:
    passed = [word for _ in range(5) for word in ("--passed", str(outputs[1]))]
    outputs[0].write_text(FAILING.replace("step 3 of 9\n", "step 3 of 9\n" * 20))
    shown = explain(outputs[0], *passed, "--characters", 75).splitlines()
    assert shown[-4:-1] == [
        "- not printed: setting up",
        "- not printed: done",
        "~ 28 times, usually 9: step <*> of <*>",
    ]
    few = explain(outputs[0], *passed[:8], "--characters", 75)
    assert "not printed" not in few


def test_without_a_passing_run_no_line_is_called_new(outputs: tuple[Path, Path]) -> None:
    shown = explain(outputs[0], "--characters", 80)
    assert " …" in shown
    assert "+" not in shown
    assert "new" not in shown


def test_json_has_scores_and_tests(outputs: tuple[Path, Path]) -> None:
    found = json.loads(explain(outputs[0], "--passed", outputs[1], "--json", "--characters", 60))
    assert found["lines"][0] | {"score": 0} == {
        "number": 12, "text": "FAILED tests/a.py::test_x - OSError: token=REDACTED", "score": 0, "is_new": True,
    }  # fmt: skip
    assert found["failed_tests"] == [{"runner": "pytest", "name": "tests/a.py::test_x", "line": 12}]
    assert (found["all_lines"], found["new_lines"], found["dropped_bytes"]) == (13, 3, 0)


def test_the_middle_of_a_large_output_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "MAX_OUTPUT_BYTES", 2000)
    keep.keep_readable.__defaults__ = (2000,)  # type: ignore[attr-defined]
    try:
        (tmp_path / "large").write_text("step\n" * 5000 + "Error: at the end\n")
        shown = explain(tmp_path / "large", "--characters", 30)
    finally:
        keep.keep_readable.__defaults__ = (256 << 20,)  # type: ignore[attr-defined]
    assert shown.splitlines()[-2] == "5,001  Error: at the end"
    assert "bytes in the middle were not read" in shown


@pytest.mark.parametrize(("content", "said"), [(b"\x1f\x8b\x08\x00broken", "corrupt_gzip"), (None, "does not exist")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "output.gz"
    if content is not None:
        path.write_bytes(content)
    output = explain(path, code=2)
    assert "output.gz" in output
    assert said in output


def test_a_stored_run_is_compared_with_passing_runs_of_its_job(tmp_path: Path) -> None:
    """Only trusted ones, and only of its own job."""
    raw = RawStore(DataRoot.open(tmp_path))
    failed, telemetry = run(0, outcome="failure")
    raw.add([(failed, telemetry)], outputs={failed.run_id: FAILING.encode()})
    passing = [run(number, outcome="success") for number in range(1, 7)]
    raw.add(passing, outputs={facts.run_id: PASSING.encode() for facts, _ in passing})
    for number, facts, trust in ((7, {}, UNTRUSTED), (8, {"build_name": "other"}, TRUSTED), (9, {}, TRUSTED)):
        other = run(number, **{"outcome": "failure" if number == 9 else "success", **facts})
        raw.add([other], trust=trust, outputs={other[0].run_id: FAILING.encode()})
    shown_run = ciml("runs", "show", failed.run_id, "--data-path", tmp_path).output
    assert "output     14 lines: outputs/text/job=unit-tests/" in shown_run
    shown = explain(failed.run_id, "--data-path", tmp_path, "--characters", 75).splitlines()
    assert shown[:3] == [
        " 1 +fatal: no setup",
        "    …",
        "12 +FAILED tests/a.py::test_x - OSError: token=REDACTED",
    ]
    assert "- not printed: done" in shown
    assert shown[-1] == "2 of 13 lines; 3 are new (+); 1 failed test (pytest)"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (OutputFile("outputs/text/x.zst", "0", 20, 4), "output     4 lines: outputs/text/x.zst"),
        (
            OutputFile("outputs/text/x.zst", "0", 20, 4000, 2, 3000, 99),
            "output     4,000 lines, 3,000 of them dropped: outputs/text/x.zst",
        ),
        (OutputFile(missing="log_forbidden"), "output     missing: log_forbidden"),
    ],
)
def test_a_run_is_shown_with_its_output(output: OutputFile, said: str) -> None:
    assert f"output     {_output_text(output.to_json())}" == said


def test_templates_of_other_masks_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawStore(DataRoot.open(tmp_path))
    failed, passed = run(0, outcome="failure"), run(1, outcome="success")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "MASKS", "earlier")
        patch.setattr(prepare, "templates_of", lambda lines: lines)
        raw.add([passed], outputs={passed[0].run_id: PASSING.encode()})
    raw.add([failed], outputs={failed[0].run_id: FAILING.encode()})
    assert "3 are new (+)" in explain(failed[0].run_id, "--data-path", tmp_path, "--characters", 75)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (None, "no output of {run}: none was stored with it"),
        ("log_forbidden", "no output of {run}: it could not be fetched (log_forbidden)"),
        ("text", "no output of {run}: its text was removed after the time of ciml runs compact --keep-outputs"),
    ],
)
def test_a_run_without_output_is_an_error_with_the_reason(tmp_path: Path, output: str | None, said: str) -> None:
    raw = RawStore(DataRoot.open(tmp_path))
    facts, telemetry = run(0)
    raw.add(
        [(facts, telemetry)],
        outputs={facts.run_id: b"x"} if output == "text" else {},
        missing=None if output == "text" else output,
    )
    if output == "text":
        squeeze(raw.store, keep_outputs_s=0)
    assert said.format(run=facts.run_id) in explain(facts.run_id, "--data-path", tmp_path, code=2)
    assert "no file and no run 'zuul~none~1'" in explain("zuul~none~1", "--data-path", tmp_path, code=2)


def test_its_help_imports_no_arrow() -> None:
    assert "pyarrow" not in loaded_by("import ciml.cli.commands.data.explain")

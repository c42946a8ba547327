"""What a run's output shows: a new line, failed tests, runs that failed alike, and the notes of operators on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.events.records import RunFacts
from ciml.runs.outputs import TEXTS, KeptOutput, templates_path
from ciml.transforms.logs import run_outputs
from ciml.transforms.logs.failed_tests import OtherChanges
from ciml.transforms.logs.ranking import scan
from ciml.verdicts.evidence import evidence_of
from ciml.verdicts.evidence import output as output_module
from ciml.verdicts.evidence.check import follows
from ciml.verdicts.evidence.observe import AS_USUAL
from ciml.verdicts.evidence.output import (
    OutputEvidence,
    QuotedLine,
    RunTest,
    failed_tests_sentence,
    note_sentence,
    output_evidence,
    output_url,
)
from ciml.verdicts.signatures.notes import Note, add_note
from tests.runs.compacting import run
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.verdicts.evidence.stored import FAILED, STARVED, prediction, push
from tests.verdicts.evidence.subjects import GB, USED, profiles, run_of
from tests.verdicts.evidence.test_line import FAILING, PASSING, SAID

HOUR_US = 3_600_000_000
NOW_US = 1_795_000_000_000_000
DOWN = "collecting\nerror: could not reach the mirror of packages\n"
KILLED = "It was ended by SIGKILL (exit status -9) after 59 s; passing runs take 54 to 64 s."
TEST = "The test “tests/test_io.py::test_read” failed."


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    return DataRoot.open(tmp_path / "data")


@pytest.fixture
def raw(data: DataRoot) -> RawStore:
    return passing_runs(data)


def passing_runs(data: DataRoot) -> RawStore:
    """A store with three passing runs of the job."""
    raw = RawStore(data)
    passing = [run(number, outcome="success", build_name="unit") for number in range(3)]
    raw.add(passing, outputs={facts.run_id: PASSING.encode() for facts, _ in passing})
    return raw


def fail(raw: RawStore, number: int, text: str, hours: float = 0, **facts: Any) -> RunFacts:
    """Store a failed run with an output, so many hours after the first one."""
    end_us = NOW_US + int(hours * HOUR_US)
    keys = {"outcome": "failure", "build_name": "unit", "project": "p", "change": f"{number}", "end_us": end_us}
    made, table = run(number, **{**keys, **facts})
    raw.add([(made, table)], outputs={made.run_id: text.encode()})
    return made


def shown(data: DataRoot, facts: RunFacts) -> OutputEvidence:
    evidence = output_evidence(data, facts.run_id)
    assert evidence is not None
    return evidence


def test_a_stored_run_is_compared_with_passing_runs_of_its_job(data: DataRoot, raw: RawStore) -> None:
    evidence = shown(data, fail(raw, 10, FAILING))
    assert evidence.sentences == (SAID, TEST)
    assert evidence.to_json()["line"]["number"] == 3
    assert evidence.to_json()["failed_tests"][0]["other_changes"] == 0
    assert shown(data, fail(raw, 11, FAILING, build_name="another-job")).line is None
    assert output_evidence(data, "zuul~unknown~1") is None


def test_untrusted_runs_do_not_make_a_line_known(data: DataRoot) -> None:
    raw = RawStore(data)
    facts, table = run(0, outcome="success", build_name="unit")
    raw.add([(facts, table)], outputs={facts.run_id: PASSING.encode()}, trust=UNTRUSTED)
    assert shown(data, fail(raw, 1, FAILING)).line is None


def test_a_test_that_failed_on_other_changes_recently_is_said_to(data: DataRoot, raw: RawStore) -> None:
    fail(raw, 10, FAILING, -24 * 8)  # more than seven days before
    fail(raw, 11, FAILING, -24, build_name="other-job")
    fail(raw, 12, FAILING, -23)
    fail(raw, 13, FAILING, -22, project="another")
    last = fail(raw, 14, FAILING + "FAILED tests/test_io.py::test_write\nFAILED a.py::test_c\n")
    fail(raw, 15, FAILING, change="14")  # a rerun
    assert shown(data, last).sentences[1] == (
        "3 tests failed, such as “tests/test_io.py::test_read” (also on 2 other changes since 2026-11-17) and "
        "“tests/test_io.py::test_write”."
    )


def test_a_test_that_its_line_does_not_name_is_left_out() -> None:
    output = scan(FAILING.encode())
    assert len(output_module._quotable_tests(KeptOutput(FAILING.encode(), 9), output)) == 1
    assert output_module._quotable_tests(KeptOutput(b"another text\n" * 9, 9), output) == []


def test_one_two_and_many_tests_are_named_in_one_sentence() -> None:
    tests = [RunTest("pytest", "a", 1, OtherChanges(1, NOW_US)), RunTest("pytest", "b" * 200, 2), RunTest("", "c", 3)]
    assert failed_tests_sentence(tests[:1]) == "The test “a” (also on 1 other change since 2026-11-18) failed."
    assert failed_tests_sentence(tests[:2]).endswith(f"and “…{'b' * 79}” failed.")
    assert failed_tests_sentence(tests).startswith("3 tests failed, such as “a” (also")


def test_the_same_failure_on_several_changes_within_hours_indicates_the_machine(data: DataRoot, raw: RawStore) -> None:
    first = fail(raw, 10, DOWN)
    assert len(shown(data, first).sentences) == 1
    fail(raw, 11, DOWN, 1, build_name="other-job")
    last = fail(raw, 12, DOWN, 2)
    evidence = shown(data, last)
    assert evidence.failure is not None
    assert evidence.sentences[-1] == (
        f"3 runs of 3 changes in 2 jobs failed like this since 2026-11-18 (signature {evidence.failure.id}); "
        "3 changes within 6 hours indicate the machine."
    )
    late = fail(raw, 13, DOWN, 100)  # days later, when nothing else fails
    assert shown(data, late).sentences[-1].endswith(f"(signature {evidence.failure.id}).")


@pytest.mark.parametrize("same", [{"change": "7"}, {"change": "", "head": "c0ffee"}, {"change": "", "attempt_of": "a"}])
def test_the_same_failure_on_a_change_and_its_reruns_indicates_its_code(
    data: DataRoot, raw: RawStore, same: dict[str, str]
) -> None:
    fail(raw, 10, DOWN, **same)
    evidence = shown(data, fail(raw, 11, DOWN, 1, **same))
    assert evidence.failure is not None
    assert evidence.sentences[-1] == (
        f"2 runs failed like this since 2026-11-18 (signature {evidence.failure.id}), all of this change, which "
        "indicates its code."
    )


def test_a_damaged_output_of_a_passing_run_costs_no_other_its_evidence(data: DataRoot, raw: RawStore) -> None:
    failed = fail(raw, 10, DOWN)
    (passing, *_) = [path for path in data.raw.list(TEXTS) if run(0)[0].run_id in path]
    data.raw.delete(templates_path(passing))
    assert len(shown(data, failed).sentences) == 1


def test_a_failure_by_another_line_names_it(data: DataRoot, raw: RawStore) -> None:
    fail(raw, 10, DOWN)
    both = fail(raw, 11, f"{DOWN}E   ModuleNotFoundError: No module named 'attrs'\nFAILED tests/a.py::test_b\n")
    said = shown(data, both).sentences
    assert said[0].startswith("“E ModuleNotFoundError")
    assert "failed with “error: could not reach the mirror of packages” since" in said[-1]


def test_runs_that_end_before_a_line_are_said_to(data: DataRoot) -> None:
    raw = RawStore(data)
    for number in range(6):
        facts, table = run(number, outcome="success", build_name="unit")
        raw.add([(facts, table)], outputs={facts.run_id: PASSING.encode()})
    fail(raw, 10, "collecting\n")
    assert (
        "2 runs of 2 changes failed before they printed “ERROR: no cache” since"
        in shown(data, fail(raw, 11, "collecting\n")).sentences[-1]
    )


def test_a_note_is_the_operators_and_comes_first(data: DataRoot, raw: RawStore) -> None:
    for number in range(10, 13):
        last = fail(raw, number, DOWN)
    signature = shown(data, last).failure
    assert signature is not None
    add_note(data.failures, Note(signature.id, "ada", "mirror down", "machine", "recheck after 14:00"))
    later = shown(data, fail(raw, 13, DOWN, 1))
    assert later.sentences[0] == (
        "“ada” named the cause of this failure “mirror down”: the machine; “recheck after 14:00”."
    )
    assert later.note is not None
    assert later.note.cause == "machine"
    assert "indicate" not in later.sentences[-1]  # the operator has said it


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (Note("x", "ada", "flaky port"), "“ada” named this failure “flaky port”."),
        (Note("x", "ada", text="see 12"), "“ada” noted on this failure: “see 12”."),
        (Note("x", "ada", "port", text="see 12"), "“ada” named this failure “port”: “see 12”."),
        (Note("x", "ada", cause="code"), "“ada” named the cause of this failure: the code."),
        (Note("x", "a" * 99, text="b" * 300), f"“{'a' * 79}…” noted on this failure: “{'b' * 199}…”."),
    ],
)
def test_each_form_of_a_note_is_a_sentence(note: Note, said: str) -> None:
    assert note_sentence(note) == said


LINE = QuotedLine("x", 812)
PAGE = "https://git.example.org/p/-/jobs/7"


@pytest.mark.parametrize(
    ("facts", "line", "url"),
    [
        ({"adapter": "gitlab", "url": PAGE}, LINE, f"{PAGE}#L812"),
        ({"adapter": "gitlab", "url": PAGE}, None, PAGE),
        ({"adapter": "github", "url": "https://github.com/o/r/actions/runs/1/job/2"}, LINE,
         "https://github.com/o/r/actions/runs/1/job/2"),
        ({"adapter": "zuul", "url": PAGE}, LINE, ""),
        ({"adapter": "zuul", "output_url": "https://logs.example.org/1/job-output.txt"}, LINE,
         "https://logs.example.org/1/job-output.txt"),
        ({"output_url": "https://logs.example.org/1/out?token=REDACTED"}, LINE, ""),
    ],
)  # fmt: skip
def test_the_address_has_the_line_where_the_server_has_such_addresses(
    facts: dict[str, str], line: QuotedLine | None, url: str
) -> None:
    assert output_url(FAILED.replace(**facts), line) == url


def evidence_with(tmp_path: Path, data: DataRoot, raw: RawStore, table: Any, text: str) -> tuple[str, ...]:
    raw.add([(FAILED, table)], outputs={FAILED.run_id: text.encode()})
    push(data, tmp_path / "model", profiles(60))
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and FAILED.run_id in path]
    return evidence_of(data, prediction(FAILED, path)).observations


def test_telemetry_follows_the_output_and_a_damaged_output_costs_its_sentences_alone(
    tmp_path: Path, data: DataRoot, raw: RawStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_outputs, "_last_read", run_outputs.LastRead(0))  # the second time, it is read again
    said = evidence_with(tmp_path, data, raw, STARVED, FAILING)
    assert said[:2] == (SAID, TEST)
    (text,) = [path for path in data.raw.list(TEXTS) if FAILED.run_id in path]
    data.raw.replace(text, b"damaged")
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and FAILED.run_id in path]
    assert said[2:] == (KILLED, "From second 20, steal was 41 %; passing runs have 0 %.")
    assert evidence_of(data, prediction(FAILED, path)).observations == said[2:]
    assert "no evidence of its output" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FAILING, "The machine behaved as usual."),
        (f"{PASSING}OSError: [Errno 28] No space left on device\n", KILLED),
        ("collecting\n", "CPU, load, memory, disk and network were as in 20 passing runs of this job."),
    ],
)
def test_a_machine_that_behaved_as_usual_is_said_to_in_one_short_sentence_after_a_line(
    tmp_path: Path, data: DataRoot, raw: RawStore, text: str, said: str
) -> None:
    assert evidence_with(tmp_path, data, raw, run_of({}).table, text)[-1] == said


def test_a_machine_that_did_not_behave_as_usual_is_not_said_to() -> None:
    assert follows(AS_USUAL, run_of({}))
    assert not follows(AS_USUAL, run_of({USED: [6 * GB] * 60}))
    assert not follows(AS_USUAL, run_of({}, rows=9))
    assert not follows(AS_USUAL, run_of({}, job="other"))

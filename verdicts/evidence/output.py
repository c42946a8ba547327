"""What the output of a failed run shows: a new line, failed tests, and other runs that failed in the same way.

Each sentence has words of ours and quotations. Quotations of the output are looked up in the stored text before they
are used; all numbers are counted from the runs of the data root. What an operator noted on the failure is quoted as
that operator's, and never taken for the verdict of a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ciml.data_root import DataRoot
from ciml.events.outcomes import CODE, MACHINE
from ciml.events.records import OutputFile, RunFacts, change_of
from ciml.events.redaction import REDACTED
from ciml.manifest.log import ManifestLog
from ciml.manifest.replica import LogReplica
from ciml.runs.latest_runs import last_row
from ciml.runs.outputs import KeptOutput
from ciml.runs.run_log import RunRecord
from ciml.runs.state import RAW, RawState
from ciml.transforms.logs.failed_tests import FailedTest, OtherChanges, failed_tests
from ciml.transforms.logs.failure_keys import TROUBLES, without_margin
from ciml.transforms.logs.profile import OutputProfile
from ciml.transforms.logs.ranking import STRONG, ScannedOutput, is_known_template, rank, scan, step_of
from ciml.transforms.logs.run_outputs import ReadOutput, read_scanned, stored_profile
from ciml.transforms.logs.signals import KINDS
from ciml.transforms.logs.signatures import CODE_RUNS, MACHINE_CHANGES
from ciml.verdicts.signatures.failures import FailedRuns, failed_runs
from ciml.verdicts.signatures.notes import Note, read_notes
from ciml.verdicts.signatures.stored import SignatureReader, shared_signatures, time_of

#: Longest quotations of a line, and of a name.
MAX_CHARACTERS = 200
MAX_NAME_CHARACTERS = 80
_QUOTATION = re.compile(
    r"“(?P<line>.*)” is new in this job \((?:(?P<file>[A-Za-z0-9_.-]+), line )?(?:line )?(?P<number>[0-9,]+)"
    r"(?: of its output)?(?:, step “(?P<step>.*)”)?\)\."
)
#: Tests that a sentence names.
_NAMED_TESTS = 2
#: Time for reading the outputs of runs that are not in the signatures yet, s. Beyond it, a run has no signature.
_BUDGET_S = 10.0
_CAUSES = {CODE: "this change", MACHINE: "the machine"}
_BY_CAUSE = {CODE: "the code", MACHINE: "the machine"}


class QuotedLine(NamedTuple):
    """A line of the output of a run that no passing run of its job printed.

    Attributes:
      text: visible characters in one row, at most `MAX_CHARACTERS`.
      number: in the whole output, counted from 1.
      file: name of the output's file; "" if it is not known.
      step: of the CI system, at most `MAX_NAME_CHARACTERS`; "" if the output names none.
      template: the line without numbers, paths and ids.
      is_trouble: whether it names memory, a disk, the network, a service or a crash.
    """

    text: str
    number: int
    file: str = ""
    step: str = ""
    template: str = ""
    is_trouble: bool = False

    @property
    def sentence(self) -> str:
        """The line as a sentence of evidence."""
        place = f"{self.file}, line {self.number:,}" if self.file else f"line {self.number:,} of its output"
        step = f", step “{self.step}”" if self.step else ""
        return f"“{self.text}” is new in this job ({place}{step})."


class RunTest(NamedTuple):
    """A test that failed in a run.

    Attributes:
      runner: what ran it, such as ``pytest``.
      name: as the runner prints it.
      line: number of the first line that says so, counted from 1.
      others: other changes of the project on which it failed in the seven days before the run, or later; None if
        that is not known.
    """

    runner: str
    name: str
    line: int
    others: OtherChanges | None = None

    @property
    def also(self) -> str:
        """The other changes in parentheses, with a blank before them; "" without any."""
        if self.others is None or not self.others.changes:
            return ""
        number = self.others.changes
        return f" (also on {number} other change{'s' if number > 1 else ''}{_since(self.others.since_us)})"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        test = {"runner": self.runner, "name": self.name, "line": self.line}
        return test if self.others is None else {**test, "other_changes": self.others.changes}


@dataclass(frozen=True, slots=True)
class OutputEvidence:
    """What the output of a failed run shows.

    Attributes:
      sentences: at most four: the operator's note, the new line, failed tests, and the other runs that failed alike.
        They hold hostile text, all of it visible.
      line: the best line that no passing run printed; None without one.
      tests: that failed, in order of their lines; those that failed on most other changes first.
      failure: the failure signature of the run, with the operator's note; None without one.
      near: changes with this signature within six hours of the run; 0 if none of them is trusted.
      url: address where a person finds the line or the output; "" if it is not known. It is hostile text.
    """

    sentences: tuple[str, ...]
    line: QuotedLine | None = None
    tests: tuple[RunTest, ...] = ()
    failure: FailedRuns | None = None
    near: int = 0
    url: str = ""

    @property
    def note(self) -> Note | None:
        """What an operator says about the failure."""
        return None if self.failure is None else self.failure.note

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return {
            "sentences": list(self.sentences),
            "line": None if self.line is None else self.line._asdict(),
            "failed_tests": [test.to_json() for test in self.tests],
            "signature": None if self.failure is None else {**self.failure.to_json(), "changes_near": self.near},
            "url": self.url,
        }

    @property
    def blames_machine(self) -> bool:
        """Whether the line, the spread of the failure or an operator names the machine or what surrounds the code."""
        is_named = self.note is not None and self.note.cause == MACHINE
        return is_named or self.near >= MACHINE_CHANGES or (self.line is not None and self.line.is_trouble)

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON of a bounded size, as the record of a prediction has them."""
        failure = self.failure
        note = self.note
        signature = None
        if failure is not None:
            signature = {
                "id": failure.id,
                "runs": failure.runs,
                "changes": failure.changes,
                "jobs": len(failure.jobs),
                "first_us": failure.first_us,
                "changes_near": self.near,
            }
        if signature is not None and note is not None:
            texts = {"author": note.author, "name": note.name, "text": note.text}
            signature["note"] = {**{name: shortened(text) for name, text in texts.items()}, "cause": note.cause}
        return {
            "sentences": list(self.sentences),
            "line": None
            if self.line is None
            else {
                "text": self.line.text,
                "number": self.line.number,
                "file": self.line.file,
                "step": self.line.step,
            },
            "failed_tests": len(self.tests),
            "signature": signature,
            "url": self.url,
        }


def output_evidence(data: DataRoot, run_id: str) -> OutputEvidence | None:
    """Return what the stored output of a run shows; None for a run without one.

    Raises:
      EngineError: the store does not answer.

    Example:
      >>> output_evidence(data, "zuul~5f0c~1").sentences  # doctest: +SKIP
      ("“E ModuleNotFoundError: No module named 'attrs'” is new in this job (job-output.txt, line 812).",)
    """
    row = stored_row(data, run_id)
    return evidence_of_output(data, row.facts, row.output) if row is not None and row.output is not None else None


@lru_cache(maxsize=8)
def shared_raw(data: DataRoot) -> LogReplica[RawState]:
    """Return the process's replica of the raw manifest of a data root: each delta is read once."""
    return LogReplica(ManifestLog(data.raw), RAW)


def stored_row(data: DataRoot, run_id: str) -> RunRecord | None:
    """Return the raw row of a run; None for a run without one."""
    replica = shared_raw(data)
    with replica.state() as state:
        return last_row(replica.log, state, run_id)


def evidence_of_output(
    data: DataRoot,
    facts: RunFacts,
    stored: OutputFile,
    budget_s: float = _BUDGET_S,
) -> OutputEvidence:
    """Do as `output_evidence`, given what is stored of the run.

    Args:
      data: the data root.
      facts: of the run.
      stored: its output.
      budget_s: time for reading runs that are not in the signatures yet, s.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: its output is damaged.
    """
    read = read_scanned(data.raw, stored)
    kept_output, output = ReadOutput(KeptOutput(b"", 0), scan(b"")) if isinstance(read, str) else read
    failed = _quotable_tests(kept_output, output)
    with shared_signatures(data).read(budget_s) as reader:
        profile = _profile(data, reader, facts.build_name)
        failure, neighbours = _failure(data, reader, facts)
        tests = _with_others(failed, reader, facts)
    line = quote(kept_output, output, profile, stored.name)
    sentences = _sentences(line, tests, failure, neighbours)
    return OutputEvidence(tuple(sentences), line, tuple(tests), failure, neighbours, output_url(facts, line))


def profile_of_job(data: DataRoot, job: str) -> OutputProfile:
    """Return the profile of the latest passing runs of a job with which failed runs are compared.

    Raises:
      EngineError: the store does not answer.
    """
    with shared_signatures(data).read(_BUDGET_S) as reader:
        return _profile(data, reader, job)


def _profile(data: DataRoot, reader: SignatureReader, job: str) -> OutputProfile:
    """Return the profile of a job; by the raw manifest where the signatures are not read to its end."""
    if reader.is_current:
        return reader.profile(job)
    replica = shared_raw(data)
    with replica.state() as state:
        return stored_profile(data.raw, replica.log, state, job)


def _failure(data: DataRoot, reader: SignatureReader, facts: RunFacts) -> tuple[FailedRuns | None, int]:
    """Return the signature of a run, and the number of changes that have it within six hours of the run."""
    signature = reader.signatures.of_run(facts.run_id)
    if signature is None:
        return None, 0
    return failed_runs(signature, read_notes(data.failures)), signature.near(time_of(facts))


def _quotable_tests(kept: KeptOutput, output: ScannedOutput) -> list[FailedTest]:
    """Return the failed tests of an output whose lines have their names, with the numbers of these lines."""
    tests = (test._replace(line=kept.number(test.line)) for test in failed_tests(output))
    return [test for test in tests if is_in_line(shortened(test.name), test.line, kept)]


def count_others(data: DataRoot, facts: RunFacts, tests: Iterable[FailedTest]) -> list[RunTest]:
    """Return the failed tests of a run with the other changes on which they failed, those with the most first.

    Raises:
      EngineError: the store does not answer.
    """
    with shared_signatures(data).read(_BUDGET_S) as reader:
        return _with_others(tests, reader, facts)


def _with_others(tests: Iterable[FailedTest], reader: SignatureReader, facts: RunFacts) -> list[RunTest]:
    change = change_of(facts)
    counted = [(test, reader.tests.others(facts.project, test.name, change, time_of(facts))) for test in tests]
    return [RunTest(*test, changes) for test, changes in sorted(counted, key=lambda pair: -pair[1].changes)]


def output_url(facts: RunFacts, line: QuotedLine | None) -> str:
    """Return the address where a person finds the output of a run, at a line where its server has such addresses.

    GitLab's page of a job has its lines. That of GitHub has them by step, whose number is not known.
    """
    if facts.adapter == "gitlab" and facts.url:
        return f"{facts.url}#L{line.number}" if line is not None else facts.url
    if facts.adapter == "github":
        return facts.url
    return "" if REDACTED in facts.output_url else facts.output_url


def _sentences(
    line: QuotedLine | None, tests: Sequence[RunTest], failure: FailedRuns | None, near: int
) -> Iterator[str]:
    if failure is not None and failure.note is not None:
        yield note_sentence(failure.note)
    if line is not None:
        yield line.sentence
    if tests:
        yield failed_tests_sentence(tests)
    if failure is not None and failure.runs > 1:
        yield spread_sentence(failure, near, line)


def note_sentence(note: Note) -> str:
    """Return a note of an operator as a sentence.

    Example:
      >>> note_sentence(Note("5d5efe4cbf26", "ada", cause="machine", text="mirror down, recheck after 14:00"))
      '“ada” named the cause of this failure: the machine; “mirror down, recheck after 14:00”.'
    """
    author = f"“{shortened(note.author, MAX_NAME_CHARACTERS)}”"
    named = f" “{shortened(note.name, MAX_NAME_CHARACTERS)}”" if note.name else ""
    text = f"“{shortened(note.text)}”" if note.text else ""
    if note.cause:
        statement = f"named the cause of this failure{named}: {_BY_CAUSE[note.cause]}"
        return f"{author} {statement}{f'; {text}' if text else ''}."
    return (
        f"{author} {f'named this failure{named}' if named else 'noted on this failure'}{f': {text}' if text else ''}."
    )


def failed_tests_sentence(tests: Sequence[RunTest]) -> str:
    """Return failed tests as a sentence, of which it names at most two.

    Example:
      >>> others = OtherChanges(3, 1_795_000_000_000_000)
      >>> failed_tests_sentence([RunTest("pytest", "test_a", 3, others), RunTest("pytest", "b", 5)])
      'The tests “test_a” (also on 3 other changes since 2026-11-18) and “b” failed.'
    """
    named = [_named_test(test) for test in tests[:_NAMED_TESTS]]
    if len(tests) > _NAMED_TESTS:
        return f"{len(tests):,} tests failed, such as {' and '.join(named)}."
    return f"The test{'s' if len(tests) > 1 else ''} {' and '.join(named)} failed."


def _named_test(test: RunTest) -> str:
    name = shortened(test.name)
    if len(name) > MAX_NAME_CHARACTERS:
        name = f"…{name[1 - MAX_NAME_CHARACTERS :].lstrip()}"  # the end tells tests of a file apart
    return f"“{name}”{test.also}"


def spread_sentence(failure: FailedRuns, near: int, line: QuotedLine | None = None) -> str:
    """Return how far a failure has spread, and what that indicates, as a sentence.

    Args:
      failure: of at least two runs.
      near: changes with it within six hours of the run.
      line: the line that was quoted before; a failure by another line names it.
    """
    alike = "like this" if line is not None and line.template == failure.template and not failure.ends else _by(failure)
    since = f"{_since(failure.first_us)} (signature {failure.id})"
    is_named = failure.note is not None and bool(failure.note.cause)
    if failure.changes == 1:
        code = ", which indicates its code" if failure.runs >= CODE_RUNS and not is_named else ""
        return f"{failure.runs:,} runs failed {alike}{since}, all of {_CAUSES[CODE]}{code}."
    jobs = f" in {len(failure.jobs)} jobs" if len(failure.jobs) > 1 else ""
    machine = ""
    if near >= MACHINE_CHANGES and not is_named:
        machine = f"; {near} changes within 6 hours indicate the machine"
    return f"{failure.runs:,} runs of {failure.changes:,} changes{jobs} failed {alike}{since}{machine}."


def _by(failure: FailedRuns) -> str:
    quoted = shortened(failure.template if failure.ends else failure.line, MAX_NAME_CHARACTERS)
    return f"before they printed “{quoted}”" if failure.ends else f"with “{quoted}”"


def _since(time_us: int) -> str:
    """Return `` since 2026-11-24``; "" for an unknown time."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime(" since %Y-%m-%d") if time_us else ""


def quote(kept: KeptOutput, output: ScannedOutput, profile: OutputProfile, file: str = "") -> QuotedLine | None:
    """Return the best line that no passing run printed; None without passing runs or such a line.

    Args:
      kept: the output.
      output: the same, scanned.
      profile: of passing runs of the job.
      file: name of the output's file; "" if it is not known.
    """
    if not profile.runs:
        return None
    worth = rank(output, profile)
    worth[is_known_template(output, profile)[output.codes]] = 0
    if worth.max(initial=0) < STRONG:
        return None
    index = int(np.argmax(worth))
    code = int(output.codes[index])
    (text,) = output.text_of(np.array([index]))
    step = shortened(step_of(output, index), MAX_NAME_CHARACTERS)
    line = QuotedLine(
        shortened(text),
        kept.number(index + 1),
        file,
        step if _is_in(step, kept) else "",
        without_margin(output.templates[code].as_py()),
        any(output.signals.kinds[code, KINDS.index(kind)] for kind in TROUBLES),
    )
    return line if is_quoted(line.sentence, kept) else None


def is_quoted(sentence: str, kept: KeptOutput) -> bool:
    """Return whether a sentence quotes a line that has its number in an output, and a step that the output names."""
    match = _QUOTATION.fullmatch(sentence)
    if match is None:
        return False
    number = int(match["number"].replace(",", ""))
    return is_in_line(match["line"], number, kept) and _is_in(match["step"] or "", kept)


def is_in_line(quotation: str, number: int, kept: KeptOutput) -> bool:
    """Return whether a line of an output has a quotation, which may be shortened."""
    line = kept.line(number)
    return line is not None and quotation.removesuffix("…") in _visible(line.decode("utf-8", "replace"))


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return a text in one row of visible characters, at most ``most``."""
    visible = _visible(text).strip()
    return visible if len(visible) <= most else f"{visible[: most - 1].rstrip()}…"


def _is_in(quotation: str, kept: KeptOutput) -> bool:
    return quotation.removesuffix("…").encode() in kept.data


def _visible(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())

"""``ciml explain``: the lines of a failed job's output that explain the failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ciml.cli.command import make_command
from ciml.cli.options import Json
from ciml.cli.output import printable
from ciml.errors import CimlError, RejectedInput, UnknownRunError
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.events.records import RunFacts
    from ciml.runs.outputs import KeptOutput
    from ciml.transforms.logs.profile import OutputProfile
    from ciml.transforms.logs.ranking import Line
    from ciml.verdicts.evidence.output import RunTest

_CHUNK_BYTES = 1 << 20
#: Why a stored run has no output.
_WHY_NOT = {
    "no_output": "none was stored with it; docs/fetch.md describes where outputs are looked for",
    "expired": "its text was removed after the time of ciml runs compact --keep-outputs",
}
#: Missing templates that are printed, and unusual ones; JSON has all.
_SHOWN = 5


class ExplainOptions(Json):
    """Options of ``ciml explain``.

    Attributes:
      passed: Output of a passing run of the same job; its lines explain no failure; may be repeated.
      characters: Most characters to show.
      data_path: Data root of a stored run.
    """

    output: str = argument("OUTPUT|RUN_ID")
    passed: tuple[str, ...] = repeated(kind="file")
    characters: int = option(4000, kind="count", metavar="N")
    data_path: str | None = option(kind="new data")


class _Explanation(NamedTuple):
    """What explains a failure.

    Attributes:
      lines: in their order, without secrets; their numbers are those of the file.
      all_lines: the number of lines of the file.
      new_lines: of these, the lines that no passing run printed; None without a passing run.
      failed_tests: those of a stored run that failed on most other changes first, then in order of their lines.
      missing: templates that nearly all of five passing runs or more print, and this one does not, in their order.
      unusual: templates with more or fewer lines than in any of them, with these numbers.
      dropped_bytes: of a file that is too large to be read whole.
    """

    lines: list[Line]
    all_lines: int
    new_lines: int | None
    failed_tests: list[RunTest]
    missing: list[str]
    unusual: list[tuple[str, int, int, int]]
    dropped_bytes: int

    def to_json(self) -> dict[str, Any]:
        tests = [test.to_json() for test in self.failed_tests]
        return {**self._asdict(), "lines": [line._asdict() for line in self.lines], "failed_tests": tests}


@make_command("explain")
def command(options: ExplainOptions) -> None:
    """Show the lines that explain a failed job.

    OUTPUT is what the job printed, plain or gzip; RUN_ID is a stored run, with --data-path, which is compared with the
    last passing runs of its job that are trusted, at most 20. Lines are chosen by words of failure, by how rare they
    are, and by the step that failed. With the output of passing runs (--passed), lines that these printed too are no
    causes; with five of them, missing lines and unusual numbers of lines are shown too. Colours, timestamps of CI
    systems and secrets are removed. Failed tests of pytest, unittest, go test, cargo, jest, JUnit and other runners are
    counted.

    \b
    Example:
      ciml explain job-output.txt.gz
      ciml explain job-output.txt.gz --passed passing/job-output.txt.gz --characters 1000
      ciml explain zuul~5f0c~1 --data-path data
    """
    options.show(_explain(options), _print, _Explanation.to_json)


def _explain(options: ExplainOptions) -> _Explanation:
    import numpy as np

    from ciml.events.redaction import redact_text
    from ciml.transforms.logs.failed_tests import failed_tests
    from ciml.transforms.logs.profile import differences_of, printed_templates, profile_of
    from ciml.transforms.logs.ranking import excerpt, is_known_template, scan
    from ciml.verdicts.evidence.output import RunTest, count_others

    profile = profile_of(printed_templates(scan(_read(path).data)) for path in options.passed)
    stored = None
    if os.path.exists(options.output):
        kept_output = _read(options.output)
    elif options.data_path is None:
        raise CimlError(f"{options.output} does not exist; name a file, or a stored run and its --data-path")
    else:
        kept_output, stored = _read_stored(options.output, options.data_path, profile)
    comparison = profile if profile.runs else None
    output = scan(kept_output.data)
    lines = [
        line._replace(number=kept_output.number(line.number), text=redact_text(line.text))
        for line in excerpt(output, options.characters, comparison)
    ]
    failed = [test._replace(line=kept_output.number(test.line)) for test in failed_tests(output)]
    counted = [RunTest(*test) for test in failed] if stored is None else count_others(*stored, failed)
    tests = [test._replace(name=redact_text(test.name)) for test in counted]
    new = None if comparison is None else int(np.count_nonzero(~is_known_template(output, comparison)[output.codes]))
    differences = differences_of(printed_templates(output), profile)
    return _Explanation(
        lines,
        len(output.codes) + kept_output.dropped_lines,
        new,
        tests,
        [redact_text(difference.template) for difference in differences.missing],
        [
            (redact_text(difference.template), difference.lines, difference.usual.low, difference.usual.high)
            for difference in differences.unusual
        ],
        kept_output.dropped_bytes,
    )


def _read_stored(run_id: str, data_path: str, profile: OutputProfile) -> tuple[KeptOutput, tuple[DataRoot, RunFacts]]:
    """Read the output of a stored run, and add the passing runs of its job to a profile.

    Returns:
      The output; the data root and the facts of the run.

    Raises:
      CimlError: there is no such run, or no output of it.
    """
    from ciml.cli.options import require_data
    from ciml.data_root import DataRoot
    from ciml.runs.outputs import read_output
    from ciml.runs.run_log import find_rows
    from ciml.runs.state import open_raw
    from ciml.transforms.logs.run_outputs import stored_profile

    require_data(data_path)
    data = DataRoot.open(data_path)
    raw = data.raw
    log, state = open_raw(raw)
    row = find_rows(log, [run_id]).get(run_id)
    if row is None:
        raise UnknownRunError(f"no file and no run {run_id!r:.200} in {data_path}; list runs: ciml runs list")
    kept_output = read_output(raw, row.output)
    if isinstance(kept_output, str):
        raise CimlError(
            f"no output of {run_id}: {_WHY_NOT.get(kept_output, f'it could not be fetched ({kept_output})')}"
        )
    profile.merge(stored_profile(raw, log, state, row.facts.build_name))
    return kept_output, (data, row.facts)


def _read(path: str) -> KeptOutput:
    """Read an output file.

    Raises:
      CimlError: it cannot be read.
    """
    from ciml.transforms.logs.keep import keep_readable

    try:
        return keep_readable(_chunks(path))
    except OSError as error:
        raise CimlError(f"{path}: {error.strerror}") from None
    except RejectedInput as error:
        raise CimlError(f"{path}: {error}") from None


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _print(explanation: _Explanation) -> None:
    width = len(f"{explanation.all_lines:,}")
    last = 0
    for line in explanation.lines:
        if last and line.number > last + 1:
            click.echo(" " * width + "  …")
        mark = "+" if line.is_new else " "
        click.echo(f"{line.number:>{width},} {mark}{printable(line.text)}")
        last = line.number
    for test in explanation.failed_tests[:_SHOWN]:
        click.echo(f"{test.line:>{width},} !{printable(test.name)}{test.also}")
    for template in explanation.missing[:_SHOWN]:
        click.echo(f"- not printed: {printable(template)}")
    for template, number, low, high in explanation.unusual[:_SHOWN]:
        usual = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        click.echo(f"~ {number:,} times, usually {usual}: {printable(template)}")
    click.echo(_summary(explanation))


def _summary(explanation: _Explanation) -> str:
    """Return the last line: what is shown of how much."""
    parts = [f"{len(explanation.lines):,} of {explanation.all_lines:,} lines"]
    if explanation.new_lines is not None:
        parts.append(f"{explanation.new_lines:,} are new (+)")
    if explanation.failed_tests:
        runners = ", ".join(dict.fromkeys(test.runner for test in explanation.failed_tests))
        number = len(explanation.failed_tests)
        parts.append(f"{number:,} failed test{'s' if number > 1 else ''} ({runners})")
    if explanation.dropped_bytes:
        parts.append(f"{explanation.dropped_bytes:,} bytes in the middle were not read")
    return "; ".join(parts)

"""The page of a failed run: the verdict, its evidence, the lines of its output, failed tests, and its telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.reports.drawing import shown
from ciml.reports.page import Page, Picture, Section, Table, Tile, cells, save
from ciml.storage import Store
from ciml.transforms.logs.ranking import Line, excerpt
from ciml.transforms.logs.run_outputs import read_scanned
from ciml.verdict_rules import Verdict
from ciml.verdicts.evidence import Evidence
from ciml.verdicts.evidence.output import OutputEvidence, profile_of_job, stored_row
from ciml.verdicts.signatures.failures import FailedRuns

#: Characters of the output, and failed tests, that are shown.
_CHARACTERS = 4000
_MOST_TESTS = 50
_NAME_CHARACTERS = 60
_LINE_CHARACTERS = 600


@dataclass(frozen=True)
class _Excerpt:
    """Lines of an output: their numbers, their text, and whether no passing run printed them."""

    lines: tuple[Line, ...]
    all_lines: int


def save_verdict(
    data: DataRoot, folder: Store, prediction: Mapping[str, Any], verdict: Verdict, evidence: Evidence
) -> str:
    """Write the page of a run into a folder. Return its address.

    Args:
      data: the data root of the run.
      folder: existing files of the same names are replaced.
      prediction: the record with the verdict.
      verdict: the same, decoded.
      evidence: of the run.

    Raises:
      EngineError: a store does not answer.
    """
    picture = data.predictions.read(evidence.picture).decode() if evidence.picture else ""
    return save(folder, verdict_page(prediction, verdict, evidence, picture, _excerpt(data, prediction["run_id"])))


def _excerpt(data: DataRoot, run_id: str) -> _Excerpt:
    """Return the lines that explain a failure; none of a run without an output, or with a damaged one."""
    row = stored_row(data, run_id)
    try:
        read = read_scanned(data.raw, row.output if row else None)
    except IntegrityError:
        return _Excerpt((), 0)
    if row is None or isinstance(read, str):
        return _Excerpt((), 0)
    kept_output, output = read
    profile = profile_of_job(data, row.facts.build_name)
    lines = excerpt(output, _CHARACTERS, profile if profile.runs else None)
    all_lines = len(output.codes) + kept_output.dropped_lines
    return _Excerpt(tuple(line._replace(number=kept_output.number(line.number)) for line in lines), all_lines)


def verdict_page(
    prediction: Mapping[str, Any], verdict: Verdict, evidence: Evidence, picture: str, output: _Excerpt
) -> Page:
    """Return the page of a run. All texts in it may be hostile but ``picture``, an SVG of ours."""
    run = prediction["run"]
    base_rate = verdict.base_rate.get(verdict.cause)
    tiles = (
        Tile("verdict", verdict.cause, f"retry: {verdict.retry}"),
        Tile(
            "probability",
            f"{min(verdict.probability, 0.99):.0%}",
            "" if base_rate is None else f"base rate {base_rate:.0%} of {verdict.runs} failed runs",
        ),
        Tile("compared with", f"{evidence.runs:,}", "passing runs" if evidence.job else "passing runs of all jobs"),
    )
    sections = [Section("Evidence", *evidence.observations)]
    if evidence.output is not None:
        sections += _of_output(evidence.output, output)
    if picture:
        sections.append(Section("Telemetry", Picture("Telemetry next to that of passing runs", picture)))
    job = shown(str(run.get("build_name", "")), _NAME_CHARACTERS)
    lead = f"{job} ({run.get('outcome', 'failure')}); model {prediction['model']}. {_change(run)}"
    if verdict.without_telemetry:
        lead += " There is no telemetry: the verdict follows from the outcome and the output alone."
    return Page(f"Run {shown(prediction['run_id'], _NAME_CHARACTERS)}", lead, tiles, tuple(sections))


def _change(run: Mapping[str, Any]) -> str:
    return shown(f"Change {run['change']} of {run.get('project', '')}.", _NAME_CHARACTERS) if run.get("change") else ""


def _of_output(evidence: OutputEvidence, output: _Excerpt) -> Iterator[Section]:
    if output.lines:
        rows = tuple(
            (f"{line.number:,}{' +' if line.is_new else ''}", shown(line.text, _LINE_CHARACTERS))
            for line in output.lines
        )
        caption = f"{len(rows):,} of {output.all_lines:,} lines; + marks those that no passing run printed."
        yield Section("Output", caption, Table(("line", "text"), rows, words=2), _address(evidence.url))
    if evidence.tests:
        tests = tuple(
            cells(
                shown(test.name, _LINE_CHARACTERS),
                test.runner,
                test.line,
                None if test.others is None else test.others.changes,
            )
            for test in evidence.tests[:_MOST_TESTS]
        )
        caption = f"{len(evidence.tests):,} failed; other changes are those of the last seven days."
        yield Section("Failed tests", caption, Table(("test", "runner", "line", "other changes"), tests, words=2))
    if evidence.failure is not None:
        yield Section("Failure signature", Table(("fact", "value"), tuple(_facts_of(evidence.failure)), words=2))


def _address(url: str) -> Table | None:
    if not url.startswith(("https://", "http://")):
        return None
    return Table(("address",), ((shown(url, _LINE_CHARACTERS),),), links={(0, 0): url})


def _facts_of(failure: FailedRuns) -> Iterator[tuple[str, str]]:
    yield "id", failure.id
    yield "line", shown(failure.text, _LINE_CHARACTERS)
    yield "seen", f"{_time(failure.first_us)} to {_time(failure.last_us)}"
    yield "runs", f"{failure.runs:,} of {failure.changes:,} changes in {len(failure.jobs):,} jobs"
    if failure.indicates:
        yield "indicates", failure.indicates
    if failure.note is not None:
        note = failure.note
        yield "note", f"{': '.join(filter(None, (note.name, note.cause, note.text)))} ({note.author})"


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")

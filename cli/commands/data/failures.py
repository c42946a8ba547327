"""``ciml failures``: signatures of failed runs, how far the failures spread, and the operators' notes on them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.cli.options import Data, Json, JsonLines, Signed
from ciml.cli.output import by_frequency, minute_of, print_columns, print_table
from ciml.options import argument, option, repeated

if TYPE_CHECKING:
    from ciml.verdicts.signatures.failures import FailedRuns

#: Longest line in the table, characters.
_LINE_CHARACTERS = 80
#: Number of latest runs and changes shown for a signature; the JSON output has all of them.
_SHOWN = 5


class ListOptions(Data, JsonLines):
    """Options of ``ciml failures``.

    Attributes:
      since: Signatures with a run within TIME, such as 7d.
      job: Job of the runs, or a glob of jobs; may be repeated.
      runs: Fewest runs of a signature to list.
      last: Most signatures to list, those with the latest runs.
    """

    since: float | None = option(kind="time", metavar="TIME")
    job: tuple[str, ...] = repeated(metavar="GLOB")
    runs: int = option(1, kind="count", metavar="N")
    last: int = option(20, kind="count", metavar="N")


@make_command("list")
def list_failures(options: ListOptions) -> None:
    """List the lines that failed runs share.

    The signature with the latest run comes first. The first call reads the outputs of all failed runs; later calls
    read those that were stored since.

    \b
    Example:
      ciml failures list --since 7d --runs 2 --data-path data
      ciml failures list --job 'tempest-*' --json --data-path data
    """
    from ciml.verdicts.signatures.failures import FailedRuns, failures

    since_us = None if options.since is None else time.time_ns() // 1000 - round(options.since * 1e6)
    signatures = [
        signature
        for signature in failures(options.root, since_us=since_us, jobs=options.job)
        if signature.runs >= options.runs
    ]
    options.show_all(signatures[: options.last], _print_table, FailedRuns.to_json, "no failure signatures")


def _print_table(signatures: list[FailedRuns]) -> None:
    headings = ("id", "line", "runs", "changes", "jobs", "last seen", "indicates")
    rows = []
    for signature in signatures:
        line = signature.text
        if len(line) > _LINE_CHARACTERS:
            line = f"{line[: _LINE_CHARACTERS - 1]}…"
        line_and_notes = "\n".join([line, *_notes(signature)])
        jobs = next(iter(signature.jobs), "") if len(signature.jobs) < 2 else f"{len(signature.jobs)} jobs"
        last_seen = minute_of(signature.last_us)
        counts = (signature.runs, signature.changes)
        rows.append((signature.id, line_and_notes, *counts, jobs, last_seen, signature.indicates))
    print_table(headings, rows)


def _notes(signature: FailedRuns) -> Iterator[str]:
    """Yield the signature that supersedes this one, and the operator's note, a line each."""
    if signature.same_as:
        yield f"same as {signature.same_as}"
    note = signature.note
    if note is not None:
        text = ": ".join(filter(None, (note.name, note.cause, note.text)))
        yield f"{text} ({note.author}, {minute_of(note.time_us)})"


class ShowOptions(Data, Json):
    """Options of ``ciml failures show``."""

    id: str = argument("ID")


@make_command("show")
def show_failure(options: ShowOptions) -> None:
    """Show a failure signature.

    ID is the id of a signature, the first digits of one, or a run id.

    \b
    Example:
      ciml failures show 3f2a --data-path data
      ciml failures show zuul~5f0c~1 --data-path data
    """
    from ciml.verdicts.signatures.failures import FailedRuns, find_failure

    options.show(find_failure(options.root, options.id), _print_signature, FailedRuns.to_json)


def _print_signature(signature: FailedRuns) -> None:
    place = f"{signature.run}, line {signature.number:,}" if signature.number else signature.run
    latest_runs = ", ".join(signature.latest_runs[-_SHOWN:])
    latest_changes = ", ".join(signature.latest_changes[-_SHOWN:])
    rows = [
        ("signature", signature.id),
        ("line", signature.text),
        ("first in", place),
        ("compared", f"within job {signature.job}" if signature.job else "across all jobs"),
        ("seen", f"{minute_of(signature.first_us)} to {minute_of(signature.last_us)}"),
        ("runs", f"{signature.runs:,}, {signature.trusted:,} trusted; latest: {latest_runs}"),
        ("changes", f"{signature.changes:,}, at most {signature.spread:,} within 6 h; latest: {latest_changes}"),
        ("jobs", _counts(signature.jobs)),
        ("nodes", _counts(signature.nodes)),
        ("providers", _counts(signature.providers)),
        ("indicates", signature.indicates or "neither code nor machine"),
        *(("note", note) for note in _notes(signature)),
    ]
    print_columns([(name, text) for name, text in rows if text])


class NameOptions(Data, Signed):
    """Options of ``ciml failures name``.

    Attributes:
      name: Short name.
      cause: Cause of the failures.
      text: Advice for the authors of changes.
      same_as: ID of the signature that supersedes this one.
    """

    id: str = argument("ID")
    name: str = option("", metavar="TEXT")
    cause: str = option("", kind=click.Choice(["code", "machine"]), shown="none")
    text: str = option("", metavar="TEXT")
    same_as: str = option("", metavar="ID")


@make_command("name")
def name_failure(options: NameOptions) -> None:
    """Name a failure signature and state its cause.

    The note applies to all runs of the signature, later ones too. It replaces the signature's last note, which remains
    in the history. With --same-as, another signature supersedes this one, which then shows the note of the other.

    \b
    Example:
      ciml failures name 3f2a --cause machine --text "mirror down, recheck after 14:00" --data-path data
      ciml failures name 77e0 --same-as 3f2a --data-path data
    """
    from ciml.verdicts.signatures.failures import find_failure
    from ciml.verdicts.signatures.notes import Note, add_note

    data = options.root
    same_as = find_failure(data, options.same_as).id if options.same_as else ""
    signature = find_failure(data, options.id).id
    note = Note(signature, options.signed_by(), options.name, options.cause, options.text, same_as)
    add_note(data.failures, note)
    _print_signature(find_failure(data, signature))


def _counts(counts: Mapping[str, int]) -> str:
    """Return counts as text, the highest first: ``a 3, b 1``."""
    return ", ".join(f"{name} {count:,}" for name, count in by_frequency(counts))


@click.group("failures", cls=DefaultGroup, default="list", commands=[list_failures, show_failure, name_failure])
def command() -> None:
    """Show lines that failed runs share.

    A failure signature is a line that failed runs share and that no passing run of the job printed. Without a COMMAND
    it lists them. Several changes within hours indicate the machine; one change and its reruns, the code.

    \b
    Example:
      ciml failures --since 7d --data-path data
      ciml failures show 3f2a --data-path data
      ciml failures name 3f2a --cause machine --text "mirror down, recheck after 14:00" --data-path data
    """

"""Decode lines of a listing to pending runs, like messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ciml.digest import sha256_json
from ciml.errors import RejectedInput
from ciml.events.listing import Line, Reading, decode_line, too_long
from ciml.events.records import COMPLETES, Batch, OffsetRange, Origin, Outcome, PendingRun, RawFile, RunFacts
from ciml.transforms.guard import bisect, unread_dead_letter
from ciml.transforms.ingest.decode import dead_letter, why_ignored


class CompletedRow(NamedTuple):
    """A stored row with facts of its line that it lacked. Its raw object stays."""

    facts: RunFacts
    file: RawFile

    def outcome(self, origin: Origin) -> Outcome:
        """Return the outcome of the line. Its event key follows from the facts, so they complete the row once."""
        key = f"complete {sha256_json(self.facts.to_json())[:32]}"
        return Outcome("run", origin, event_key=key, mention=self.facts, reason=COMPLETES, file=self.file)


def decode_lines(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int] = frozenset(),
    completed: Mapping[int, CompletedRow] | None = None,
) -> Batch:
    """Decode the lines of a range.

    Args:
      covers: the range; ``lines`` outside of it are ignored.
      lines: the lines, without blank ones.
      reading: how the lines are read.
      known: numbers of lines whose runs have raw rows: their logs are not read again.
      completed: the rows that lines complete, by the line's number: their logs are not read again either.

    Returns:
      A batch of pending runs; ignored and known runs and dead letters are settled, as in
      `ciml.transforms.ingest.decode`. An unexpected exception affects only its own line (`ciml.transforms.guard`).
    """
    done = Batch(covers)
    for some, made in bisect("decode", lines, lambda part: _decode(covers, part, reading, known, completed or {})):
        if isinstance(made, Batch):
            done.pending_runs += made.pending_runs
            done.settled += made.settled
        elif covers.start <= some[0].number < covers.end:
            origin = Origin(covers.topic, covers.partition, some[0].number)
            done.settled.append(unread_dead_letter(origin, some[0].message(reading), made))
    return done


def _decode(
    covers: OffsetRange,
    lines: Sequence[Line],
    reading: Reading,
    known: Collection[int],
    completed: Mapping[int, CompletedRow],
) -> Batch:
    pending_runs: list[PendingRun] = []
    settled: list[Outcome] = []
    for line in lines:
        if not covers.start <= line.number < covers.end:
            continue
        origin = Origin(covers.topic, covers.partition, line.number)
        if line.sha256:
            settled.append(too_long(origin, line))
            continue
        message = line.message(reading)
        try:
            run = decode_line(line.data, reading)
        except RejectedInput as rejected:
            settled.append(dead_letter(origin, message, rejected))
            continue
        facts = run.facts
        if run.fault is not None:
            settled.append(dead_letter(origin, message, run.fault, facts=facts))
        elif reason := why_ignored(facts):
            settled.append(Outcome("ignored", origin, mention=facts, reason=reason))
        elif (row := completed.get(line.number)) is not None:
            settled.append(row.outcome(origin))
        elif line.number in known:  # the accounting makes it a correction if the outcome differs
            settled.append(Outcome("repeat", origin, mention=facts, reason="run"))
        else:
            address = run.address if run.address != facts.log_url else ""
            pending_runs.append(PendingRun(origin, "", facts, message, address=address))
    return Batch(covers, [], pending_runs, settled)
